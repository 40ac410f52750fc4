"""``python -m bench digest`` prints SHA-256 digests of the losses and of all their gradients.

They form a table of cases. Two revisions whose tables agree compute the same bits. The table is for
one machine and one torch, because other instruction sets and other libraries round differently.
``python -m bench compare`` makes the table of two revisions and lists the cases that differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import warnings
import zlib
from pathlib import Path

import torch

from .digest_cases import Case, cases
from .digest_inputs import Draw

BACKENDS = ("cpu", "panels", "eager")
PARALLEL = ("cpu",)
"""These backends also run with two threads. Each divides the work in its own way."""


def tensors(value) -> list[torch.Tensor]:
    """Returns the tensors of an output, of nested tuples and dicts (by sorted key)."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [x for key in sorted(value) for x in tensors(value[key])]
    if isinstance(value, (tuple, list)):
        return [x for part in value for x in tensors(part)]
    return []


def digest(values: list[torch.Tensor | None]) -> str:
    """Hashes dtypes, shapes and bits.

    None stands for an absent gradient. Every NaN counts as the same.
    """
    found = hashlib.sha256()
    for value in values:
        if value is None:
            found.update(b"none")
            continue
        value = value.detach()
        if value.is_floating_point():
            value = torch.where(value.isnan(), torch.full_like(value, float("nan")), value)
        value = value.contiguous()
        found.update(f"{value.dtype} {tuple(value.shape)}".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:24]


def compute(case: Case) -> list[torch.Tensor | None]:
    """Returns the outputs of a case and the gradients.

    The gradients are those of a random weighted sum of the outputs that have one.
    """
    draw = Draw(zlib.crc32(f"{case.inputs.__name__} {case.size}".encode()), case.size, case.dtype)
    inputs = case.inputs(draw)
    options = {
        name: value(draw) if callable(value) else value for name, value in case.options.items()
    }
    outputs = tensors(case.call(*inputs, **options))
    leaves = [x for x in tensors([inputs, options]) if x.requires_grad]
    leaves += getattr(case.call, "parameters", [])
    summed = [x for x in outputs if x.requires_grad]
    if not summed:
        return outputs
    upstream = [draw.normal(*x.shape).to(x.dtype) for x in summed]
    gradients = torch.autograd.grad(
        summed, leaves, upstream, allow_unused=True, create_graph=case.second
    )
    found = [*outputs, *gradients]
    again = [x for x in gradients if x is not None and x.requires_grad]
    if case.second and again:
        upstream = [draw.normal(*x.shape).to(x.dtype) for x in again]
        found += torch.autograd.grad(again, leaves, upstream, allow_unused=True)
    return found


def outcome(case: Case) -> str:
    """Returns the digest of a case, or the error it raises, whose text must not change either."""
    try:
        return digest(compute(case))
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        return f"{type(error).__name__}: {error}"


def table(match: str = "", backends: tuple[str, ...] = BACKENDS) -> dict[str, str]:
    """Returns ``{case: digest}`` of the cases whose names contain `match`.

    The cases run with one thread and with two.
    """
    found = {}
    parallel = tuple(name for name in backends if name in PARALLEL)
    for threads, served in ((1, backends), (2, parallel)):
        torch.set_num_threads(threads)
        for case in cases(served):
            if match in case.name:
                found[f"{case.name}, threads={threads}"] = outcome(case)
    return found


def differing(base: dict[str, str], head: dict[str, str]) -> list[str]:
    """Returns one line per case that is not in both tables with the same digest."""
    lines = []
    for name in sorted(base.keys() | head.keys()):
        before, after = base.get(name, "absent"), head.get(name, "absent")
        if before != after:
            lines.append(f"{name}: {before} -> {after}")
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench digest", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--match", default="", help="only the cases whose names contain this")
    parser.add_argument("--backends", help=f"comma-separated (default: {','.join(BACKENDS)})")
    parser.add_argument("--out", type=Path, help="write the table here as JSON, else print it")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    backends = tuple(options.backends.split(",")) if options.backends else BACKENDS
    text = json.dumps(table(options.match, backends), indent=1)
    if options.out:
        options.out.write_text(text + "\n")
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
