"""Decoupled contrastive losses: NT-Xent without the positive in the denominator."""

from __future__ import annotations

import torch

from .. import checks, dispatch, reference
from ..functions import Result, as_scalar, inverse_scale, matrix_dtype, similarity
from .common import exact_rows, finish, two_sets


def dcl_loss(
    z1: torch.Tensor,
    z2: torch.Tensor,
    temperature: float | torch.Tensor = 0.1,
    *,
    negatives: str = "joint",
    normalize: bool = True,
    reduction: str = "mean",
    metrics: bool = False,
    backend: str | None = None,
):
    """Decoupled contrastive loss (Yeh et al. 2022, arXiv:2110.06848, eq. 6): the log-sum-exp of the negatives, less the positive.

    Args:
        z1, z2: two views ``[B, D]``; row i of one is the positive of row i of the other.
        negatives: ``"joint"``: one log-sum-exp over the negatives of both views (the paper); ``"per_view"``: the sum of two, one over the
            negatives of each view (lightly).
        normalize: cosine similarities (rows divided by ``max(|x|, 1e-12)``), else raw dot products.

    Returns:
        ``[2B]`` ordered ``[z1; z2]`` with ``reduction="none"``, else a scalar; −inf where there are no negatives (B = 1).
    """
    _check(z1, z2, temperature, negatives, normalize, reduction)
    if dispatch.is_eager(backend):
        return reference.dcl_loss(
            z1, z2, temperature, negatives=negatives, normalize=normalize, reduction=reduction, metrics=metrics
        )
    return _decoupled(z1, z2, temperature, None, negatives, normalize, reduction, metrics, backend)


def dclw_loss(
    z1: torch.Tensor,
    z2: torch.Tensor,
    temperature: float | torch.Tensor = 0.1,
    sigma: float | torch.Tensor = 0.5,
    *,
    negatives: str = "joint",
    normalize: bool = True,
    reduction: str = "mean",
    metrics: bool = False,
    backend: str | None = None,
):
    """`dcl_loss` with the positives weighted (Yeh et al. 2022, arXiv:2110.06848, eq. 7): by ``2 - B softmax_i(<z1_i, z2_i> / sigma)``, constants
    that are small where the pair is similar already. No gradient flows through them, nor to `sigma`.

    Args:
        z1, z2: two views ``[B, D]``; row i of one is the positive of row i of the other.
        sigma: number or 0-d tensor (its value is never read).
        negatives, normalize: as in `dcl_loss`.

    Returns:
        ``[2B]`` ordered ``[z1; z2]`` with ``reduction="none"``, else a scalar; −inf where there are no negatives (B = 1).
    """
    _check(z1, z2, temperature, negatives, normalize, reduction)
    checks.number("sigma", sigma, z1.device, divisor=True)
    if dispatch.is_eager(backend):
        return reference.dclw_loss(
            z1, z2, temperature, sigma, negatives=negatives, normalize=normalize, reduction=reduction, metrics=metrics
        )
    return _decoupled(z1, z2, temperature, sigma, negatives, normalize, reduction, metrics, backend)


def _check(z1, z2, temperature, negatives, normalize, reduction):
    two_sets("z1", z1, "z2", z2)
    checks.number("temperature", temperature, z1.device, divisor=True)
    checks.choice("negatives", negatives, ("joint", "per_view"))
    checks.choice("normalize", normalize, (True, False))
    checks.choice("reduction", reduction, checks.REDUCTIONS)


def _decoupled(z1, z2, temperature, sigma, negatives, normalize, reduction, metrics, backend):
    z = torch.stack([z1, z2])
    (_, B, D), scale = z.shape, inverse_scale(temperature, z)
    options = {"extrema": metrics, "dtype": matrix_dtype(z), "backend": backend}
    z = exact_rows(z, normalize)
    if negatives == "joint":
        result = similarity(z.view(2 * B, D), None, scale, kind="not_pair", stride=max(B, 1), **options)
    else:
        own = similarity(z, None, scale, kind="not_self", **options)
        other = similarity(z[0], z[1], scale, kind="not_self", columns=True, **options)
        row_max = torch.maximum(own.row_max, torch.stack([other.row_max, other.col_max])).flatten() if metrics else None
        rows = (own.rows + torch.stack([other.rows, other.cols])).flatten()
        result = Result(rows, None, None, None, row_max, None)
    cosine = (z[0] * z[1]).sum(-1)
    pos = weighted = scale * cosine
    if sigma is not None:
        weighted = pos * (2 - B * (cosine.detach() / as_scalar(sigma, z).detach()).softmax(0))
    loss = result.rows - torch.cat([weighted, weighted])
    return finish(loss, reduction, metrics, result, torch.cat([pos, pos]), scale if normalize else None)
