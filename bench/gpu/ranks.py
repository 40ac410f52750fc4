"""The losses over NCCL ranks: one process for each GPU, or one rank where there is one GPU.

Three things are found out: whether values and gradients are those of one process with the whole
batch, whether the host waits for the GPU in a loss, and how long a step takes with either strategy
and any number of ranks. ``make gpu`` runs this as a process of its own. On CPUs the ranks are
joined by gloo, which is how the tests run it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ..losses import DTYPES, LOSSES, Size, make_inputs
from ..measure import quartiles
from ..source_tree import complete_package

CHECKED = ("nt_xent", "clip", "siglip", "info_nce", "sup_con", "dcl")
TIMED = ("nt_xent", "clip")
STRATEGIES = ("ring", "gather")
TOLERANCE = 1e-4
"""Of values and gradients in float32, relative to their norm."""
SIZES = (Size(16384, 0, 512), Size(65536, 0, 512))
STEPS = 10


def shares(world: int) -> list[int]:
    """Returns how many samples each rank has in the checks: uneven shares, and more than a tile."""
    return [150 + 37 * rank for rank in range(world)]


def one_process(loss: str, dtype, device, samples: int, D: int = 64) -> list[torch.Tensor]:
    """Returns the inputs of all ranks together."""
    rows = 2 * samples if loss == "nt_xent" else samples
    return make_inputs(loss, Size(rows, 0, D), dtype, device)


def error(loss: str, strategy: str, rank: int, world: int, device: torch.device) -> float:
    """Returns the relative error of this rank's value and gradients against one process's."""
    parts = shares(world)
    whole = one_process(loss, torch.float32, device, sum(parts))
    start, own = sum(parts[:rank]), parts[rank]
    mine = [x.detach()[start : start + own].clone().requires_grad_() for x in whole]
    options = {}
    call = LOSSES[loss].call
    if loss == "sup_con":
        # The labels of bench/losses.py depend on the number of rows, which is not that of a rank.
        import fused_contrastive as fc

        labels = torch.arange(sum(parts), device=device) % 40
        call, options = fc.sup_con_loss, {"labels": labels[start : start + own]}
        expected = fc.sup_con_loss(whole[0], labels, group=None)
    else:
        expected = call(*whole, group=None)
    value = call(*mine, **options, group="world", strategy=strategy)
    gradients = torch.autograd.grad(value, mine)
    mean = value.detach().clone()
    dist.all_reduce(mean)
    found = [(mean / world, expected.detach())]
    for x, y in zip(gradients, torch.autograd.grad(expected, whole), strict=True):
        found.append((x / world, y[start : start + own]))
    return max(float((x - y).norm() / y.norm().clamp_min(1e-30)) for x, y in found)


def waits(loss: str, strategy: str, size: Size, rank: int, device: torch.device) -> str:
    """Says "no" where the host waits for the GPU in no part of a step, else what waits."""
    inputs = make_inputs(loss, size, DTYPES["bf16"], device, seed=rank)

    def step():
        value = LOSSES[loss].call(*inputs, group="world", strategy=strategy)
        torch.autograd.grad(value, inputs)

    # Groups are made and kernels are compiled and checked in the first step.
    step()
    if device.type != "cuda":
        return "not looked at: no GPU"
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    said = "no"
    try:
        step()
    except RuntimeError as found:
        said = str(found).splitlines()[0][:200]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return said


def timed(loss: str, strategy: str | None, size: Size, group, device: torch.device) -> dict:
    """Returns the milliseconds of a step in a group, or without one where `strategy` is None."""
    world = dist.get_world_size(group) if strategy else 1
    options = {"group": group, "strategy": strategy} if strategy else {"group": None}
    share = size._replace(N=size.N // world)
    inputs = make_inputs(loss, share, DTYPES["bf16"], device, seed=dist.get_rank(group))
    taken = []
    for _ in range(STEPS + 3):
        if strategy:
            dist.barrier(group=group)
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        torch.autograd.grad(LOSSES[loss].call(*inputs, **options), inputs)
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(1e3 * (time.perf_counter() - start))
    low, middle, high = quartiles(taken[3:])
    row = {"loss": loss, "N": size.N, "D": size.D, "dtype": "bf16", "ranks": world}
    return {**row, "strategy": strategy, "ms": middle, "ms_quartiles": [low, high]}


def worlds(world: int) -> list[int]:
    """Returns the numbers of ranks that are timed: powers of two, and all."""
    return sorted({world, *(1 << k for k in range(world.bit_length()) if 1 << k <= world)})


def everything(rank: int, world: int, device: torch.device, sizes, keep) -> None:
    """Finds out all three things. All ranks call it, and `keep` is called with each finding.

    Every rank makes the same calls in the same order, also where one of them has failed.
    """
    for loss in CHECKED:
        for strategy in STRATEGIES:
            everyone = [None] * world
            own = attempt(loss, strategy, rank, world, device)
            dist.all_gather_object(everyone, own)
            keep("errors", {f"{loss} {strategy}": max(everyone, key=lambda x: (x != x, x))})
    for loss in TIMED:
        for strategy in STRATEGIES:
            everyone = [None] * world
            share = Size(512, 0, sizes[0].D)
            dist.all_gather_object(everyone, waits(loss, strategy, share, rank, device))
            said = sorted({x for x in everyone if x != "no"})
            keep("waits", {f"{loss} {strategy}": "; ".join(said) or "no"})
    groups = {w: dist.new_group(list(range(w))) for w in worlds(world)}
    for loss in TIMED:
        for size in sizes:
            if rank == 0:
                keep("times", [timed(loss, None, size, groups[1], device)])
            for w, group in groups.items():
                for strategy in STRATEGIES:
                    if rank < w:
                        keep("times", [timed(loss, strategy, size, group, device)])
                    dist.barrier()


def attempt(*arguments) -> float:
    """Returns what `error` does, or NaN where it failed, whose traceback is printed."""
    try:
        return error(*arguments)
    except Exception:
        traceback.print_exc()
        return float("nan")


def _rank(rank: int, world: int, device: str, store: str, out: str, sizes) -> None:
    complete_package()
    place = torch.device(device, rank) if device == "cuda" else torch.device(device)
    if device == "cuda":
        torch.cuda.set_device(place)
    else:
        torch.set_num_threads(1)
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=world)
    result = {**unfinished(world), "backend": backend}

    def keep(name: str, found) -> None:
        """Adds a finding to the file at once, so that a rank that hangs loses only what follows."""
        if name == "times":
            result[name] += found
        else:
            result[name].update(found)
        if rank == 0:
            Path(out).write_text(json.dumps(result))

    everything(rank, world, place, sizes, keep)
    result["complete"] = True
    if rank == 0:
        Path(out).write_text(json.dumps(result))
    dist.destroy_process_group()


def unfinished(world: int) -> dict:
    """Returns what is known of ranks that have not found out anything."""
    result = {"backend": None, "world": world, "errors": {}, "waits": {}, "times": []}
    return {**result, "complete": False}


def failed(result: dict) -> list[str]:
    """Returns what is not as it should be, a line each."""
    lines = [
        f"{name}: relative error {value:.1e}"
        for name, value in result["errors"].items()
        if not value <= TOLERANCE
    ]
    fine = ("no", "not looked at: no GPU")
    lines += [
        f"{n}: the host waits: {said}" for n, said in result["waits"].items() if said not in fine
    ]
    return lines if result["complete"] else [*lines, "the ranks did not finish"]


def markdown(result: dict) -> str:
    """Returns what was found out, a line each."""
    lines = [f"{result['world']} ranks over {result['backend']}"]
    lines += failed(result) or ["as one process, and the host waits for nothing that was looked at"]
    for row in result["times"]:
        where = f"{row['ranks']} ranks, {row['strategy']}" if row["strategy"] else "no group"
        lines.append(f"{row['loss']} {row['N']}x{row['D']} {where}: {row['ms']:.2f} ms")
    return "\n".join(lines)


def run(world: int, device: str, out: Path, sizes=SIZES) -> None:
    """Starts the ranks, which fill the file `out`. Raises the error of a rank that ended in one."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = world, device, str(Path(folder) / "store"), str(out), sizes
        mp.spawn(_rank, arguments, nprocs=world)


def main(arguments: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m bench.gpu.ranks", description=__doc__)
    p.add_argument("--out", type=Path, required=True, help="path of the JSON")
    p.add_argument("--quick", action="store_true", help="the smaller size alone")
    p.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    p.add_argument("--world", type=int, help="number of ranks (default: one for each GPU)")
    options = p.parse_args(arguments)
    world = options.world or torch.cuda.device_count()
    run(world, options.device, options.out, SIZES[:1] if options.quick else SIZES)
    result = json.loads(options.out.read_text())
    print(markdown(result))
    return 1 if failed(result) else 0


if __name__ == "__main__":
    sys.exit(main())
