"""``python -m bench.accuracy`` measures gradient errors against float64 as training converges.

The loss is NT-Xent of two views that are 0.3 standard deviations apart. The lower the temperature,
the closer the positive's probability is to 1. The errors are relative: medians over seeds of
``|g - g64| / |g64|``. Here g64 is the gradient of the dense loss in float64 on the same (rounded)
inputs. The command writes one JSON into bench/results.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import torch

from . import environment, report
from .source_tree import complete_package

complete_package()

from fused_contrastive import nt_xent_loss, reference  # noqa: E402

RESULTS = environment.ROOT / "bench" / "results"
ROWS, DIMENSIONS, NOISE, SEEDS = 1024, 64, 0.3, 5
CASES = (
    ("fp32", 0.5),
    ("fp32", 0.1),
    ("fp32", 0.05),
    ("fp32", 0.02),
    ("bf16", 0.1),
    ("bf16", 0.05),
)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def gradient(loss, views, temperature: float, dtype: torch.dtype) -> torch.Tensor:
    leaves = [z.to(dtype).requires_grad_() for z in views]
    return torch.cat(torch.autograd.grad(loss(*leaves, temperature), leaves)).double()


def errors(dtype: torch.dtype, temperature: float) -> dict[str, float]:
    """Returns median relative gradient errors of the eager loss and of the default backend."""
    found = {"eager": [], "fused": []}
    for seed in range(SEEDS):
        generator = torch.Generator().manual_seed(seed)
        z1 = torch.randn(ROWS // 2, DIMENSIONS, generator=generator, dtype=torch.float64)
        z2 = z1 + NOISE * torch.randn(z1.shape, generator=generator, dtype=torch.float64)
        views = [z.to(dtype) for z in (z1, z2)]
        exact = gradient(reference.nt_xent_loss, views, temperature, torch.float64)
        for name, loss in (("eager", reference.nt_xent_loss), ("fused", nt_xent_loss)):
            found[name].append(
                float((gradient(loss, views, temperature, dtype) - exact).norm() / exact.norm())
            )
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> int:
    p = argparse.ArgumentParser(
        prog="python -m bench.accuracy", description=__doc__.split("\n\n")[0]
    )
    p.add_argument(
        "--out", type=Path, default=RESULTS, help="folder of the JSON (default: bench/results)"
    )
    options = p.parse_args()
    result = report.new_result(
        "accuracy", "python -m bench.accuracy", environment.describe(torch.device("cpu"))
    )
    for dtype, temperature in CASES:
        row = {"dtype": dtype, "temperature": temperature, **errors(DTYPES[dtype], temperature)}
        result["rows"].append(row)
        print(f"{dtype} T = {temperature:<5} eager {row['eager']:.1e}  fused {row['fused']:.1e}")
    result["complete"] = True
    report.write_json(result, options.out / f"accuracy-{result['date']}.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
