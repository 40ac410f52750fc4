"""This module measures the peak memory of one step above its inputs and gradients.

On CUDA it is the allocator's peak. On the CPU it is the growth of the resident set, in a process of
its own. That process has run the step once at a small size, so that libraries are loaded. It has
returned free memory to the system and reset the kernel's high-water mark. ``python -m bench.memory
'<json jobs>'`` prints one JSON line per job.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from . import contenders
from .losses import DTYPES, Size, make_inputs
from .measure import Step

PROC = Path("/proc/self")
SMALL = 256


def unsupported() -> str | None:
    """Returns why resident memory cannot be measured here, or None."""
    if not (PROC / "clear_refs").exists():
        return "needs Linux's /proc/self/clear_refs"
    try:
        reset_peak()
    except OSError as error:
        return f"cannot reset the high-water mark: {error}"
    return None


def reset_peak() -> None:
    (PROC / "clear_refs").write_text("5")


def resident(field: str) -> int:
    """Returns the bytes of ``VmRSS`` (now) or ``VmHWM`` (peak since the last reset)."""
    for line in (PROC / "status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def trim() -> None:
    """Returns the C library's free memory to the system."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def host_peak(loss: str, backend: str, size: Size, dtype: str, which: str) -> int:
    """Returns the peak growth of this process's resident set in bytes.

    Inputs and gradients are not counted.
    """
    function = contenders.function(loss, backend)
    small = Size(min(SMALL, size.N), min(SMALL, size.K), size.D)
    warm = size if backend == "compile" else small
    _run(Step(function, make_inputs(loss, warm, DTYPES[dtype], torch.device("cpu"))), which)
    step = Step(function, make_inputs(loss, size, DTYPES[dtype], torch.device("cpu")))
    trim()
    before = resident("VmRSS")
    reset_peak()
    _run(step, which)
    growth = resident("VmHWM") - before
    return max(0, growth - _gradient_bytes(step, which))


def cuda_peak(step: Step, which: str) -> int:
    """Returns the peak of allocated bytes over inputs and gradients.

    The step has run before.
    """
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    _run(step, which)
    torch.cuda.synchronize()
    return max(0, torch.cuda.max_memory_allocated() - before - _gradient_bytes(step, which))


def _run(step: Step, which: str) -> None:
    if which == "forward":
        step.forward()
    else:
        step.gradients()


def _gradient_bytes(step: Step, which: str) -> int:
    return (
        0 if which == "forward" else sum(x.numel() * x.element_size() for x in step.differentiable)
    )


def measure(jobs: list[tuple], timeout: float) -> dict[tuple, int | str]:
    """Returns the peak bytes of jobs ``(loss, backend, size, dtype, pass)``.

    Where there are none, it returns the reason. One process runs all jobs, in the order of their
    sizes.
    """
    reason = unsupported()
    if reason is not None:
        return dict.fromkeys(jobs, reason)
    jobs = sorted(jobs, key=lambda job: job[2].N * max(job[2].K, job[2].N))
    command = [sys.executable, "-m", "bench.memory", json.dumps(jobs)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=timeout, env=environment
        )
        output, reason = (
            done.stdout,
            f"process ended with {done.returncode}: {done.stderr.strip()[-200:]}",
        )
    except subprocess.TimeoutExpired as expired:
        output, reason = expired.stdout or b"", f"not finished in {timeout:.0f} s"
        output = output.decode() if isinstance(output, bytes) else output
    answers = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    values = [answer.get("bytes", answer.get("reason")) for answer in answers]
    return dict(zip(jobs, values + [reason] * (len(jobs) - len(values)), strict=True))


def main() -> None:
    for loss, backend, size, dtype, which in json.loads(sys.argv[1]):
        try:
            answer = {"bytes": host_peak(loss, backend, Size(*size), dtype, which)}
        except (RuntimeError, MemoryError) as error:
            answer = {"reason": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
