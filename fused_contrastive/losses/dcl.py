"""Decoupled contrastive losses: NT-Xent without the positive in the denominator."""

from __future__ import annotations

import torch

from .. import checks, reference
from ..autograd.similarity import similarity
from ..backends import dispatch
from ..dtypes import matrix_dtype
from ..scalars import as_scalar, inverse_scale
from ._arguments import check_vectors
from ._reduction import exact_rows, finish, two_sets


def dcl_loss(
    z1: torch.Tensor,
    z2: torch.Tensor,
    temperature: float | torch.Tensor = 0.1,
    *,
    normalize: bool = True,
    keys: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    reduction: str = "mean",
    metrics: bool = False,
    backend: str | None = None,
):
    """Decoupled contrastive loss (Yeh et al. 2022, arXiv:2110.06848, eq. 6): the log-sum-exp of the negatives, less the positive.

    Args:
        z1, z2: two views ``[B, D]``; row i of one is the positive of row i of the other.
        normalize: cosine similarities (rows divided by ``max(|x|, 1e-12)``), else raw dot products.
        keys, weights: ``[B]``, of the pairs; see `fused_contrastive.losses`.

    Returns:
        ``[2B]`` ordered ``[z1; z2]`` with ``reduction="none"``, else a scalar; −inf where there are no negatives (B = 1).
    """
    _check(z1, z2, temperature, normalize, keys, weights, reduction, metrics)
    if dispatch.is_eager(backend):
        return reference.dcl_loss(
            z1,
            z2,
            temperature,
            normalize=normalize,
            keys=keys,
            weights=weights,
            reduction=reduction,
            metrics=metrics,
        )
    return _decoupled(
        z1, z2, temperature, None, normalize, keys, weights, reduction, metrics, backend
    )


def dclw_loss(
    z1: torch.Tensor,
    z2: torch.Tensor,
    temperature: float | torch.Tensor = 0.1,
    sigma: float | torch.Tensor = 0.5,
    *,
    normalize: bool = True,
    keys: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    reduction: str = "mean",
    metrics: bool = False,
    backend: str | None = None,
):
    """`dcl_loss` with the positives weighted (Yeh et al. 2022, arXiv:2110.06848, the negative von Mises-Fisher weighting): by
    ``2 - B softmax_i(<z1_i, z2_i> / sigma)``, constants that are small where the pair is similar already. No gradient flows through
    them, nor to `sigma`.

    Args:
        z1, z2: two views ``[B, D]``; row i of one is the positive of row i of the other.
        sigma: number or 0-d tensor (its value is never read).
        normalize, keys, weights: as in `dcl_loss`.

    Returns:
        ``[2B]`` ordered ``[z1; z2]`` with ``reduction="none"``, else a scalar; −inf where there are no negatives (B = 1).
    """
    _check(z1, z2, temperature, normalize, keys, weights, reduction, metrics)
    checks.number("sigma", sigma, z1.device, divisor=True)
    if dispatch.is_eager(backend):
        return reference.dclw_loss(
            z1, z2, temperature, sigma, normalize=normalize, keys=keys, weights=weights, reduction=reduction,
            metrics=metrics,
        )  # fmt: skip
    return _decoupled(
        z1, z2, temperature, sigma, normalize, keys, weights, reduction, metrics, backend
    )


def _check(z1, z2, temperature, normalize, keys, weights, reduction, metrics):
    two_sets("z1", z1, "z2", z2)
    checks.number("temperature", temperature, z1.device, divisor=True)
    checks.flags(normalize=normalize, metrics=metrics)
    checks.choice("reduction", reduction, checks.REDUCTIONS)
    check_vectors(z1, z1.shape[0], (z1.shape[0],), keys, weights, None)


def _decoupled(z1, z2, temperature, sigma, normalize, keys, weights, reduction, metrics, backend):
    z = torch.cat([z1, z2])
    keys, weights = (None if x is None else x.repeat(2) for x in (keys, weights))
    B, scale, dtype = z1.shape[0], inverse_scale(temperature, z), matrix_dtype(z)
    z = exact_rows(z, normalize)
    result = similarity(
        z, None, scale, kind="not_pair" if keys is None else "other_key", stride=max(B, 1), key_a=keys, extrema=metrics,
        dtype=dtype, backend=backend,
    )  # fmt: skip
    cosine = (z[:B] * z[B:]).sum(-1)
    pos = weighted = scale * cosine
    if sigma is not None:
        weighted = pos * (2 - B * (cosine.detach() / as_scalar(sigma, z).detach()).softmax(0))
    loss = result.rows - torch.cat([weighted, weighted])
    pos, unit = torch.cat([pos, pos]), scale if normalize else None
    return finish(loss, reduction, metrics, result, pos, unit, weights=weights)
