"""Errors against an oracle, and how large they may be: no larger than those of eager."""

from __future__ import annotations

import numpy as np
import torch
from conftest import is_interpreted
from oracles import similarity as oracle


def relative_error(x, truth) -> float:
    """``|x - truth| / |truth|`` in the Euclidean norm over the whole tensor.

    A truth that underflows counts as the smallest float32.
    """
    x, truth = oracle.array(x), oracle.array(truth)
    return float(
        np.linalg.norm(x - truth) / max(np.linalg.norm(truth), torch.finfo(torch.float32).tiny)
    )


def positive_weights(shape, seed) -> torch.Tensor:
    """Random upstream gradients in [0.5, 1.5], exact in every dtype."""
    return (
        torch.randint(4, 13, shape, generator=torch.Generator().manual_seed(seed + 1)).double() / 8
    )


def assert_within_yardstick(
    ours: list[dict], eager: list[dict], dtype: torch.dtype, logit: float = 0.0
):
    """The median over the seeds is at most eager's, or 4 ulp.

    Or seed by seed typically no more than 1.5 times eager's.

    (Where the logits' rounding dominates, errors vary tenfold with the seed, for both alike: which
    median is smaller is chance.) In float64 the oracle rounds too and is granted as much: 4 ulp, or
    2 of its logits where these, of size `logit`, are extreme. Where eager is not finite, ours must
    be.
    """
    ulps = max(8, 2 * logit) if dtype == torch.float64 else 4
    for name in ours[0]:
        errors, theirs = (np.array([e[name] for e in values]) for values in (ours, eager))
        error, bound = np.median(errors), max(np.median(theirs), ulps * torch.finfo(dtype).eps)
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = np.median(errors / theirs)
        if np.isnan(bound):
            assert np.isfinite(errors).all(), f"{name}: {errors}"
        else:
            assert error <= bound or ratio <= 1.5, (
                f"{name}: error {error:.2e}, allowed {bound:.2e}, ratio to eager {ratio:.2f}"
            )


SEEDS = range(5)
MORE_SEEDS = range(9)
"""Where single errors vary widely."""


def size(backend) -> tuple[int, int]:
    """Rows and dimensions: ragged across the tile borders of every backend."""
    return (19, 20) if is_interpreted(backend) else (70, 40)


def small_size(backend) -> tuple[int, int]:
    """Where the numbers matter, not the tiles."""
    return (11, 16) if is_interpreted(backend) else (40, 24)
