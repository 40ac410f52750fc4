"""Errors against an oracle may be no larger than those of eager."""

from __future__ import annotations

import numpy as np
import torch
from conftest import is_interpreted
from oracles import similarity as oracle


def relative_error(x, truth) -> float:
    """Return ``|x - truth| / |truth|`` in the Euclidean norm over the whole tensor.

    A truth that underflows counts as the smallest float32.
    """
    x, truth = oracle.array(x), oracle.array(truth)
    return float(
        np.linalg.norm(x - truth) / max(np.linalg.norm(truth), torch.finfo(torch.float32).tiny)
    )


def positive_weights(shape, seed) -> torch.Tensor:
    """Draw random upstream gradients in [0.5, 1.5] that are exact in every dtype."""
    return (
        torch.randint(4, 13, shape, generator=torch.Generator().manual_seed(seed + 1)).double() / 8
    )


def assert_within_yardstick(
    ours: list[dict], eager: list[dict], dtype: torch.dtype, logit: float = 0.0
):
    """Assert that our errors are typically no larger than those of eager.

    One of two conditions must hold. Either the median of our errors over the seeds is at most
    eager's, or 4 ulp. Or the median over the seeds of the ratio of our error to eager's is at most
    1.5.

    Where the logits' rounding dominates, errors vary tenfold with the seed, for both alike. It is
    then chance which median is smaller.

    In float64 the oracle rounds too and is granted as much. That is 4 ulp, or 2 ulp of its logits
    where these, of size `logit`, are extreme.

    Where eager is not finite, ours must be.
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
"""More seeds are needed where single errors vary widely."""


def size(backend) -> tuple[int, int]:
    """Return numbers of rows and dimensions that cross the tile borders of every backend.

    The last tiles are not full.
    """
    return (19, 20) if is_interpreted(backend) else (70, 40)


def small_size(backend) -> tuple[int, int]:
    """Return a smaller size, for tests where the numbers matter, not the tiles."""
    return (11, 16) if is_interpreted(backend) else (40, 24)
