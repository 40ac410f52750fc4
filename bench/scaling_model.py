"""This model predicts a step over up to 1,024 GPUs. It is never a measurement.

It takes the kernels' rates from bench/model.py, which are predictions themselves, and the links'
from `Machine`. It models the passes of fused_contrastive/distributed/exchange.py: what a rank
computes and sends in every step of a ring, or after gathering.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from fused_contrastive.distributed.exchange import GATHERED_BYTES, piece_columns

from . import plots, report
from .model import PREDICTIONS

TWO_SETS = {"nt_xent": False, "clip": True, "siglip": True, "info_nce": True}
OF_COLUMNS = {"nt_xent", "clip"}
"""The losses whose ranks find out log-sum-exps of the columns."""


class Machine(NamedTuple):
    """What the prediction assumes, each by its name. Rates are bytes per second, times seconds."""

    node: int = 8  # GPUs that are joined by NVLink
    nvlink: float = 360e9  # of one GPU in one direction: 80 % of 450 GB/s
    network: float = 45e9  # of one GPU in one direction: 90 % of 400 Gb/s InfiniBand
    collective: float = 320e9  # NCCL's all-gather over nodes: all network cards of a node share it
    message: float = 15e-6  # from the start of a message to its first byte
    visit: float = 300e-6  # the host's Python and launches for one visit of one pass
    agreement: float = 40e-6  # one of the W - 1 rounds in which gloo gathers over TCP
    cores: int = 132  # multiprocessors of a GPU
    tile: int = 128  # rows and columns of the tile of one multiprocessor

    def link(self, world: int) -> float:
        """The rate of the slowest link between neighbours in a ring."""
        return self.nvlink if world <= self.node else self.network

    def gathering(self, world: int) -> float:
        """The rate at which a rank receives in an all-gather."""
        return self.nvlink if world <= self.node else self.collective


MACHINE = Machine()
ASSUMED = (
    "Assumed: {node} GPUs of a node joined by NVLink at {nvlink:.0f} GB/s each way (80 % of 450); "
    "{network:.0f} GB/s each way to other nodes (90 % of 400 Gb/s InfiniBand for each GPU); an "
    "all-gather over nodes at {collective:.0f} GB/s, because it uses all cards of a node; "
    "{message:.0f} us for a message to begin; {visit:.0f} us of the host for each visit of each "
    "pass; {agreement:.0f} us for each of the W - 1 rounds of the agreement; tiles of {tile} x "
    "{tile} on {cores} multiprocessors, each as fast as its part of the rate in bench/model.py "
    "(the middle of each prediction; products at D = 128 as at 256)."
)


def assumptions(machine: Machine = MACHINE) -> str:
    """Returns every assumption in words."""
    shown = machine._asdict()
    shown |= {name: shown[name] / 1e9 for name in ("nvlink", "network", "collective")}
    shown |= {name: shown[name] * 1e6 for name in ("message", "visit", "agreement")}
    return ASSUMED.format(**shown)


class Pass(NamedTuple):
    """The bytes of a column in one pass: what travels out, and what is found out about it."""

    out: int
    home: int


def passes(loss: str, D: int, itemsize: int = 4) -> tuple[Pass, Pass]:
    """Returns the forward and the backward pass, without keys and biases."""
    columns = loss in OF_COLUMNS
    forward = Pass(D * itemsize, 8 * columns)
    # The backward pass needs two parts of the log-sum-exp and the upstream gradient, in float64.
    return forward, Pass(D * itemsize + 24 * columns, 4 * D)


def steps(loss: str, world: int) -> int:
    """Returns how many other ranks a rank meets."""
    return world - 1 if TWO_SETS[loss] else world // 2


def sent_bytes(loss: str, N: int, D: int, world: int, strategy: str | None, itemsize: int = 4):
    """Returns the bytes that the busiest rank sends in one step, small sums left out."""
    if strategy is None or world == 1:
        return 0
    met = steps(loss, world)
    out = world - 1 if strategy == "gather" else met
    return sum(N // world * (out * p.out + met * p.home) for p in passes(loss, D, itemsize))


def rates(D: int) -> dict[str, float]:
    """Returns the flops per second of a GPU's kernels: the middle of what bench/model.py predicts.

    Raises ValueError where nothing is predicted for D.
    """
    found = {p.kernel: p for p in PREDICTIONS if p.D == max(D, 256) and p.kernel == "product"}
    found |= {p.kernel: p for p in PREDICTIONS if p.D == D and p.kernel.startswith("pair_")}
    if len(found) < 3:
        raise ValueError(f"bench/model.py predicts nothing for D = {D}")
    return {name: (p.least + p.most) / 2 * 1e12 for name, p in found.items()}


def computing(M: int, N: int, D: int, machine: Machine) -> tuple[float, float]:
    """Returns the seconds of the forward and the backward pass of ``[M, N]`` pairs on one GPU.

    A multiprocessor takes one tile at a time, so that a small rectangle leaves some idle.
    """
    tiles = math.ceil(M / machine.tile) * math.ceil(N / machine.tile)
    waves = math.ceil(tiles / machine.cores) if tiles else 0
    flops = 2 * D * waves * machine.cores * machine.tile**2
    rate = rates(D)
    reduce, weigh = flops / rate["pair_reduce"], flops / rate["pair_weight"]
    return reduce, weigh + 2 * flops / rate["product"]


class Predicted(NamedTuple):
    """The seconds of a step: in all, of the products alone, of waiting, and of the agreement.

    The host agrees while the GPU still computes what came before the loss, so that time is beside
    the others. ``bytes`` is what a rank holds beyond its own rows.
    """

    total: float
    compute: float
    exposed: float
    agreement: float
    bytes: int


def predict(loss: str, N: int, D: int, world: int, strategy: str, machine=MACHINE) -> Predicted:
    """Returns the prediction of one step in bfloat16, with equal shards."""
    n, met = N // world, steps(loss, world)
    half = not TWO_SETS[loss]
    # A rank computes half of its own square for one set, and as the last step half of a rectangle.
    own = computing(n, n // 2 if half else n, D, machine)
    split = half and world % 2 == 0
    total = compute = 0.0
    held = 0
    for which, of in enumerate(passes(loss, D, 2)):
        each = piece_columns(n, "cuda")
        parts = math.ceil(n / each)
        if strategy == "ring":
            whole = computing(n, each, D, machine)[which] * parts
            last = computing(n // 2, each, D, machine)[which] * parts
            message = n * (of.out + of.home) / machine.link(world) + parts * machine.message
            work = [whole] * met
            if split:
                work[-1] = last
            busy = sum(work) + own[which]
            host = parts * machine.visit
            total += max(own[which], host, n * of.out / machine.link(world))
            total += sum(max(x, message, host) for x in work)
            # The results about the last piece have nothing beside them.
            total += each * of.home / (machine.network if world > machine.node else machine.nvlink)
            held = max(held, each * (4 * of.out + 5 * of.home))
        else:
            columns = met * n - (n // 2 if split else 0)
            others = parts * computing(n, math.ceil(columns / parts), D, machine)[which]
            gathered = N * of.out / machine.gathering(world) + machine.message
            home = columns * of.home / machine.link(world) + parts * machine.message
            busy = others + own[which]
            total += max(own[which], machine.visit, gathered)
            total += max(others, home, parts * machine.visit) + home / parts
            held = max(held, (N + columns / parts) * of.out + 5 * columns / parts * of.home)
        compute += busy
    agreement = (world - 1) * machine.agreement
    return Predicted(total, compute, total - compute, agreement, held)


def chosen(loss: str, N: int, D: int) -> str:
    """Returns what ``strategy="auto"`` takes in the backward pass in bfloat16."""
    backward = passes(loss, D, 2)[1]
    return "gather" if N * sum(backward) <= GATHERED_BYTES else "ring"


SIZES = (4096, 16384, 65536, 262144, 1 << 20, 10 * (1 << 20))
WORLDS = (2, 8, 16, 64, 256, 1024)


def predictions(losses=("nt_xent", "clip"), D: int = 512) -> list[dict]:
    """Returns a row for every size and number of GPUs in which a rank has 16 rows or more."""
    rows = []
    for loss in losses:
        for N in SIZES:
            for world in WORLDS:
                if N // world < 16:
                    continue
                row = {"loss": loss, "N": N, "D": D, "gpus": world, "auto": chosen(loss, N, D)}
                for strategy in ("ring", "gather"):
                    row[strategy] = predict(loss, N, D, world, strategy)._asdict()
                rows.append(row)
    return rows


def markdown(rows: list[dict]) -> str:
    """Returns the table of the predictions, below their assumptions."""
    header = ["loss", "N", "GPUs", "agreement ms"]
    for name in ("ring", "gather"):
        header += [f"{name} ms", "compute", "exposed", "MB"]
    header += ["faster", "auto"]
    lines = []
    for row in rows:
        line = [row["loss"], str(row["N"]), str(row["gpus"])]
        line.append(report.milliseconds(1e3 * row["ring"]["agreement"]))
        for name in ("ring", "gather"):
            p = row[name]
            line += [report.milliseconds(1e3 * p[key]) for key in ("total", "compute", "exposed")]
            line.append(f"{p['bytes'] / 1e6:.0f}")
        faster = min(("ring", "gather"), key=lambda name: row[name]["total"])
        lines.append([*line, faster, row["auto"]])
    title = f"# Predicted, not measured: a step over GPUs, D = {rows[0]['D']}, bf16"
    explained = (
        "`compute` is the kernels' time on one GPU, `exposed` the time in which it waits for links "
        "or for the host. The agreement is on the host, beside the GPU's work. `MB` is what a rank "
        "holds beyond its own rows."
    )
    return f"{title}\n\n{assumptions()}\n\n{explained}\n\n{report.table(header, lines)}\n"


def write(stem: Path) -> int:
    """Writes the table and the plot, and prints the table."""
    rows = predictions()
    page = markdown(rows)
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_name(stem.name + ".md").write_text(page)
    print(page)
    picture = stem.with_name(stem.name + ".png")
    print(plots.predict(rows, assumptions(), picture) or f"plot: {picture.name}")
    return 0
