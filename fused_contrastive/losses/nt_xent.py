"""NT-Xent: two views of every sample, all other rows are negatives."""

from __future__ import annotations

import torch

from .. import checks, reference
from ..autograd.similarity import similarity
from ..backends import dispatch
from ..dtypes import matrix_dtype
from ..scalars import inverse_scale
from ._arguments import check_options, check_vectors
from ._cross_entropy import dot, one_direction
from ._reduction import Outcome, exact_rows


def nt_xent_loss(
    z1: torch.Tensor,
    z2: torch.Tensor,
    temperature: float | torch.Tensor = 0.5,
    *,
    normalize: bool = True,
    keys: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    margin: float = 0.0,
    hardness: float = 0.0,
    tau_plus: float = 0.0,
    reduction: str = "mean",
    metrics: bool = False,
    backend: str | None = None,
):
    """NT-Xent, the SimCLR loss (Chen et al. 2020, arXiv:2002.05709, eq. 1).

    Args:
        z1, z2: two views ``[B, ...]``, trailing dimensions flattened; row i of one is the positive of row i of the other.
        normalize: cosine similarities (rows divided by ``max(|x|, 1e-12)``), else raw dot products.
        keys, weights, bias: ``[B]``, of each sample, for both of its views; see `fused_contrastive.losses`, as for the options
            `label_smoothing`, `margin`, `hardness` and `tau_plus`. With a bias the set is no longer symmetric: half the speed.

    Returns:
        ``[2B]`` ordered ``[z1; z2]`` with ``reduction="none"``, else a scalar.
    """
    checks.embeddings("z1", z1, at_least=2)
    checks.embeddings("z2", z2, at_least=2, like=("z1", z1))
    checks.same_shape("z2", z2, "z1", z1)
    checks.number("temperature", temperature, z1.device, divisor=True)
    checks.choice("reduction", reduction, checks.REDUCTIONS)
    checks.flags(normalize=normalize, metrics=metrics)
    options, B = check_options(label_smoothing, margin, hardness, tau_plus), z1.shape[0]
    check_vectors(z1, B, (B,), keys, weights, bias)
    if dispatch.is_eager(backend):
        return reference.nt_xent_loss(
            z1, z2, temperature, normalize=normalize, keys=keys, weights=weights, bias=bias, reduction=reduction,
            metrics=metrics, **options._asdict(),
        )  # fmt: skip
    z = torch.cat([z1.flatten(1), z2.flatten(1)])
    scale = inverse_scale(temperature, z)
    unit = scale if normalize else None
    keys, weights, bias = (None if x is None else x.repeat(2) for x in (keys, weights, bias))
    kind = "not_pair" if keys is None else "other_key"
    if not any(options) and bias is None:
        result = similarity(
            z, None, scale, kind=kind, stride=max(B, 1), key_a=keys, positive=B, normalize=normalize, extrema=metrics,
            backend=backend,
        )  # fmt: skip
        outcome = Outcome(result.loss, result.pos, unit, ((result.pos, result.row_max),))
    else:
        dtype, z = matrix_dtype(z), exact_rows(z, normalize)
        product = dot(z[:B], z[B:], scale).repeat(2)
        loss, rank = one_direction(
            z, None, product, scale, options, (kind, keys, None), bias=bias, own_bias=bias, metrics=metrics,
            dtype=dtype, backend=backend,
        )  # fmt: skip
        outcome = Outcome(loss, scale * product, unit, (rank,))
    return outcome.reduced(reduction, metrics, weights)
