"""The table shows the package's kernels alone, against product and copy rates of the same run.

Their times come from the profiled step of every row.
"""

from __future__ import annotations

import re

from ..losses import LOSSES, Loss, Size
from ..report import table

TILED = ("pair_reduce", "pair_weight", "fused_rows", "sigmoid_reduce", "sigmoid_weight")
"""These kernels compute every similarity once, or half of them where the matrix is symmetric."""
FORCE = {
    "force_distances": 3.0,
    "force_log_sums": 3.0,
    "force_affinities": 3.0,
    "force_weights": 1.5,
    "force_inverses": 3.0,
    "product": 3.0,
    "force_group": 3.0,
    "force_group_gradient": 4.5,
}
"""A step of the force loss launches each kernel with so many flops per similarity and dimension.

They hold for the CUDA backend (backends/cuda/force.py) and up to 8 temperatures. Half of the points
are rows. A block per group takes distances once for (i, j) and (j, i).
"""
OWN = re.compile(
    r"\b(prepare_backward|prepare|terms|pair_reduce|pair_weight|fused_rows|finish_\w+"
    r"|(?:force|sigmoid)_\w+|distance_(?:group|rows|pull))\b"
)
PRODUCT = re.compile(r"gemm|cutlass|nvjet|cublas", re.IGNORECASE)
BYTES = {"bf16": 2, "fp16": 2, "tf32": 4, "fp32": 4, "fp64": 8}


def short(name: str) -> str | None:
    """Returns the package's name of a kernel, "product" for a library's, None for another."""
    own = OWN.search(name)
    return own[1] if own else "product" if PRODUCT.search(name) else None


def entries(result: dict) -> list[dict]:
    """Returns one entry per row of a GPU backend and kernel.

    An entry has the microseconds of all launches of the kernel in a step. It has a rate where one
    has a meaning. The rate is in TFLOP/s for the tiled kernels and the products. It is in GB/s for
    `prepare`, which reads embeddings and writes normalised ones.
    """
    found = []
    for row in result["rows"]:
        if (
            row["pass"] != "full"
            or row["backend"] not in ("triton", "cuda")
            or not row.get("kernels")
        ):
            continue
        sums: dict[str, float] = {}
        for name, microseconds in row["kernels"]:
            sums[short(name) or "other"] = sums.get(short(name) or "other", 0.0) + microseconds
        loss, size = LOSSES[row["loss"]], Size(row["N"], row["K"], row["D"])
        bare = result["rates"].get(f"gemm_{row['dtype']}_tflops")
        for kernel, microseconds in sums.items():
            rate = of = None
            flops = per_cell(loss, row["loss"], row["backend"], kernel)
            if flops and microseconds:
                rate = flops * loss.cells(size) * size.D / microseconds / 1e6
                of = rate / bare if bare else None
            elif kernel == "prepare" and microseconds:
                rows = sum(shape[-2] for shape in loss.embeddings(size) + loss.constants(size))
                rate = 2 * BYTES[row["dtype"]] * rows * size.D / microseconds / 1e3
                of = (
                    rate / result["rates"]["copy_gb_per_s"]
                    if result["rates"].get("copy_gb_per_s")
                    else None
                )
            place = {name: row[name] for name in ("loss", "N", "K", "D", "dtype", "backend")}
            found.append({**place, "kernel": kernel, "us": microseconds, "rate": rate, "of": of})
    return found


def per_cell(loss: Loss, name: str, backend: str, kernel: str) -> float:
    """Returns the flops of a step's launches of this kernel per similarity and dimension.

    The result is 0 where they are not known.
    """
    if name == "contrastive_force":
        return FORCE.get(kernel, 0.0) if backend == "cuda" else 0.0
    if kernel in TILED:
        return loss.fused[0]
    return max(0, loss.fused[1] - loss.fused[0]) if kernel == "product" else 0.0


def markdown(result: dict) -> str:
    """Returns the entries as a table, or a sentence that there are none."""
    lines = []
    for e in entries(result):
        size = str(Size(e["N"], e["K"], e["D"]))
        unit = "GB/s" if e["kernel"] == "prepare" else "TFLOP/s"
        rate = f"{e['rate']:.0f} {unit}" if e["rate"] else "-"
        line = [e["loss"], size, e["dtype"], e["backend"], e["kernel"], f"{e['us']:.1f}", rate]
        lines.append([*line, f"{e['of']:.2f}" if e["of"] else "-"])
    header = ["loss", "size", "dtype", "backend", "kernel", "us", "rate", "of bare rate"]
    return table(header, lines) if lines else "No profiled kernels."
