"""The sigmoid family's part of the compile gate: its calls, on the meta device. Dimensions as in fused_contrastive/sigmoid_ops.py."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class SigmoidScenario:
    """One forward and backward; without `N` one set."""

    name: str
    dtype: str
    M: int
    D: int
    N: int | None = None
    G: int = 1
    kind: str = "not_self"
    sign: int = 1
    normalize: bool = False
    extrema: bool = False
    precision: str = "highest"


SIGMOID_SCENARIOS = (
    SigmoidScenario("siglip", "bfloat16", 8192, 64, 8192),
    SigmoidScenario("siglip", "bfloat16", 8192, 128, 8192),
    SigmoidScenario("siglip", "bfloat16", 32768, 512, 32768),
    SigmoidScenario("siglip, metrics", "bfloat16", 8192, 512, 8192, extrema=True),
    SigmoidScenario("siglip", "float16", 8192, 512, 8192),
    SigmoidScenario("siglip, ragged", "bfloat16", 1000, 100, 1000),
    SigmoidScenario("siglip", "float32", 8192, 512, 8192),
    SigmoidScenario("siglip, tf32", "float32", 8192, 512, 8192, precision="high"),
    SigmoidScenario("siglip", "float64", 2048, 512, 2048),
    SigmoidScenario("pairs", "bfloat16", 8192, 64, kind="same_key", sign=-1, normalize=True),
    SigmoidScenario("pairs", "bfloat16", 8192, 512, kind="same_key", sign=-1, normalize=True),
    SigmoidScenario("pairs", "float32", 8192, 512, kind="same_key", sign=-1, normalize=True),
    SigmoidScenario("negatives of another rank", "bfloat16", 8192, 512, 8192, kind="all"),
    SigmoidScenario("groups of few rows", "bfloat16", 8, 128, 256, 1024, kind="all"),
    SigmoidScenario("groups of few rows", "float32", 8, 128, 256, 1024, kind="all"),
)


def step_sigmoid(backend, s: SigmoidScenario) -> None:
    """Forward and backward of a scenario; not_self has a positive."""
    dtype = getattr(torch, s.dtype)
    N = s.N or s.M

    def meta(*shape, dtype=dtype):
        return torch.empty(shape, dtype=dtype, device="meta")

    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    a, b = meta(s.G, s.M, s.D), None if s.N is None else meta(s.G, N, s.D)
    scale, row_bias = meta(dtype=accumulate), meta(s.G, s.M, dtype=accumulate)
    key_a, key_b = meta(s.G, s.M, dtype=torch.int64), meta(s.G, N, dtype=torch.int64)
    operands = (a, b, scale, row_bias, key_a, None if b is None else key_b)
    candidates = (s.kind, 0, 1, 0 if s.kind == "not_self" else -1, s.sign, s.normalize)
    rows, pos, _, *prepared = backend.sigmoid_forward(*operands, *candidates, s.extrema, dtype)
    backend.sigmoid_backward(
        rows, *operands, pos, *prepared, *candidates, dtype, True, b is not None, True, True
    )
