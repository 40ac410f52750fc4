"""NT-Xent: two views of every sample, all other rows are negatives."""

from __future__ import annotations

import torch

from .. import checks, dispatch, reference
from ..functions import inverse_scale, similarity
from .common import finish


def nt_xent_loss(
    z1: torch.Tensor,
    z2: torch.Tensor,
    temperature: float | torch.Tensor = 0.5,
    *,
    normalize: bool = True,
    reduction: str = "mean",
    metrics: bool = False,
    backend: str | None = None,
):
    """NT-Xent, the SimCLR loss (Chen et al. 2020, arXiv:2002.05709, eq. 1).

    Args:
        z1, z2: two views ``[B, ...]``, trailing dimensions flattened; row i of one is the positive of row i of the other.
        normalize: cosine similarities (rows divided by ``max(|x|, 1e-12)``), else raw dot products.

    Returns:
        ``[2B]`` ordered ``[z1; z2]`` with ``reduction="none"``, else a scalar.
    """
    checks.embeddings("z1", z1, at_least=2)
    checks.embeddings("z2", z2, at_least=2, like=("z1", z1))
    checks.same_shape("z2", z2, "z1", z1)
    checks.number("temperature", temperature, z1.device, divisor=True)
    checks.choice("reduction", reduction, checks.REDUCTIONS)
    if dispatch.is_eager(backend):
        return reference.nt_xent_loss(z1, z2, temperature, normalize=normalize, reduction=reduction, metrics=metrics)
    z = torch.cat([z1.flatten(1), z2.flatten(1)])
    B, scale = z1.shape[0], inverse_scale(temperature, z)
    result = similarity(
        z,
        None,
        scale,
        kind="not_pair",
        stride=max(B, 1),
        positive=B,
        normalize=normalize,
        extrema=metrics,
        backend=backend,
    )
    return finish(result.loss, reduction, metrics, result, result.pos, scale if normalize else None)
