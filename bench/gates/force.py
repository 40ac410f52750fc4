"""The force family's part of the compile gate: its calls, on the meta device. Dimensions as in fused_contrastive/force_ops.py."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from fused_contrastive.problem import ForceProblem

FORCE_PRODUCTS = {
    "force_group": "scratch",
    "distance_group": "scratch",
    "force_rows": "points",
    "distance_pull": "points",
}
"""Kernels that multiply weights with coordinates, and an argument of the type of both."""


@dataclass(frozen=True)
class ForceScenario:
    """One call of each op of the family."""

    name: str
    dtype: str
    P: int
    D: int
    G: int = 1
    K: int = 5
    kind: str = "loss"
    precision: str = "highest"


FORCE_SCENARIOS = (
    *(ForceScenario("force loss", "float32", P, 256, 256) for P in (16, 32, 64, 128)),
    ForceScenario("force loss", "bfloat16", 128, 256, 256),
    ForceScenario("force loss, tf32", "float32", 128, 256, 256, precision="high"),
    ForceScenario("force loss, ragged", "float32", 100, 70, 256),
    ForceScenario("force loss", "float32", 256, 256, 64),
    ForceScenario("force loss", "float64", 64, 64, 16),
    ForceScenario("force loss", "float64", 128, 64, 16),
    ForceScenario("force loss", "float32", 4096, 128),
    ForceScenario("force loss, tf32", "float32", 4096, 128, precision="high"),
    ForceScenario("force loss, ragged", "float32", 1000, 100),
    ForceScenario("force loss", "float64", 2048, 64),
    ForceScenario("force of each temperature", "float32", 128, 256, 256, kind="each"),
    ForceScenario("force of each temperature", "float32", 4096, 256, kind="each"),
    ForceScenario("force", "float32", 128, 256, 256, K=1, kind="force"),
    ForceScenario("force", "float32", 4096, 256, K=1, kind="force"),
    ForceScenario("drift", "float32", 100, 768, 64, K=3, kind="drift"),
    ForceScenario("drift", "float32", 1024, 768, 4, K=3, kind="drift"),
    ForceScenario("drift field", "float32", 4096, 2, K=1, kind="field"),
)


def step_force(backend, s: ForceScenario) -> None:
    """The calls that fused_contrastive's functions of this kind make; half of the points are rows."""
    accumulate = torch.float64 if s.dtype == "float64" else torch.float32

    def meta(*shape, dtype=accumulate):
        return torch.empty(shape, dtype=dtype, device="meta")

    x, inverse, scale = meta(s.G, s.P, s.D, dtype=getattr(torch, s.dtype)), meta(s.K), meta(s.G)
    rows, floor = s.P // 2, math.log(1e-6) / 2
    problem = ForceProblem(x, inverse, scale, None, rows=rows, negatives=rows)
    if s.kind == "drift":
        weight = meta(s.G, s.P)
        backend.distance_sums(x, weight, rows, 1e-8)
        problem = problem._replace(
            weight=weight,
            all_rows=False,
            mask=True,
            self_logit=floor,
            floor=floor,
            clip=1e-8,
            separate=True,
        )
        backend.force_forward(problem)
    elif s.kind == "field":
        problem = problem._replace(all_rows=False, mask=True, denominator=math.log(1e-12))
        backend.force_forward(problem)
    else:
        each = s.kind == "each"
        given = scale if s.kind == "force" else None
        backend.force_forward(problem._replace(scale=given, rms=not each, separate=each))
        backend.distance_gradient(scale, x)
