"""A few small training steps run through every CUDA kernel.

``make gpu`` runs them under compute-sanitizer.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import torch

from ..environment import ROOT, without_paths

TOOLS = ("memcheck", "racecheck")
FAULTS = 9
"""The sanitizer ends with this exit status where it found faults."""


def main(device: str = "cuda") -> int:
    import fused_contrastive as fc

    generator = torch.Generator().manual_seed(0)

    def points(n, d, dtype):
        return torch.randn(n, d, generator=generator).to(device, dtype).requires_grad_()

    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        for d in (40, 130):
            a, b, keys = points(75, d, dtype), points(75, d, dtype), points(140, d, dtype).detach()
            losses = [
                fc.nt_xent_loss(a, b, 0.1, backend="cuda"),
                fc.clip_loss(a, b, 5.0, backend="cuda"),
                fc.info_nce_loss(a, b, keys, 0.1, backend="cuda"),
            ]
            torch.autograd.grad(sum(losses), (a, b))
            force_steps(a, b)
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return 0


def force_steps(a, b) -> None:
    """Runs the force family on three groups of 50 points and on 270 points.

    The latter do not fit into one block.
    """
    import fused_contrastive as fc

    groups = [x.unflatten(0, (3, -1)) for x in (a, b)]
    for positive, negative in (groups, (torch.cat([a, b]), torch.cat([a, b])[:120])):
        for normalizer in ("dist_affinity_rms", "force_rms"):
            loss = fc.contrastive_force_loss(
                positive, negative, (0.1, 0.2), normalizer=normalizer, backend="cuda"
            )
            torch.autograd.grad(loss.sum(), (a, b))
    fc.drift_loss(groups[1], groups[0], backend="cuda")


def sanitizer() -> str | None:
    """Returns compute-sanitizer of the CUDA toolkit beside nvcc or on the path."""
    from ..gates.cuda import build

    nvcc = build.nvcc()
    beside = (
        shutil.which("compute-sanitizer", path=str(Path(nvcc).resolve().parent)) if nvcc else None
    )
    return beside or shutil.which("compute-sanitizer")


def decided(said: str) -> bool:
    """Says whether this is a verdict. What did not run or did not finish is tried again."""
    return said.startswith(("passed", "failed"))


def _run(command: list[str], limit: float) -> tuple[int, dict[str, str]]:
    """Returns the exit status and the last lines of the outputs.

    Raises subprocess.TimeoutExpired when the limit is over. All processes of the command are ended
    then.
    """
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, text=True, start_new_session=True, **pipes) as process:
        try:
            outputs = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    lines = [(output.strip().splitlines() or [""])[-1].strip("= ") for output in outputs]
    return process.returncode, {
        name: without_paths(line) for name, line in zip(pipes, lines, strict=True)
    }


def sanitize(limit: float, earlier: dict[str, str] | None = None) -> dict[str, str]:
    """Returns what each tool of compute-sanitizer says about `main`.

    It says "passed", or "failed: ..." where the tool found faults, else why there is no verdict.
    Tools with a verdict in `earlier` keep it, and each other one has its share of `limit` seconds.
    """
    said = {name: text for name, text in (earlier or {}).items() if name in TOOLS and decided(text)}
    left = [name for name in TOOLS if name not in said]
    tool = sanitizer()
    if tool is None:
        return said | dict.fromkeys(left, "not run: no compute-sanitizer here")
    for name in left:
        command = [
            tool,
            f"--tool={name}",
            f"--error-exitcode={FAULTS}",
            sys.executable,
            "-m",
            "bench.gpu.small_case",
        ]
        share = limit / len(left)
        try:
            status, last = _run(command, share)
        except subprocess.TimeoutExpired:
            said[name] = f"not finished in {share:.0f} s"
        except OSError as error:
            said[name] = f"not run: {error.strerror}"
        else:
            verdict = {0: "passed", FAULTS: f"failed: exit {FAULTS}, {last['stdout']}"}
            said[name] = verdict.get(
                status, f"not run: exit {status}, {last['stderr'] or last['stdout']}"
            )
    return said


if __name__ == "__main__":
    sys.exit(main())
