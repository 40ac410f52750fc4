"""The dense form of the primitive."""

from __future__ import annotations

import torch

from ..problem import resolve_offset
from ._dense import similarity


def similarity_logsumexp(
    a,
    b=None,
    *,
    scale=1.0,
    bias=None,
    normalize=False,
    candidates="all",
    self_offset=None,
    pair_stride=None,
    key_a=None,
    key_b=None,
    return_columns=False,
):
    """Dense log-sum-exp of ``scale * a @ b.T + bias`` over the candidates, in the dtype of `a`.

    a and b are ``[..., M, D]`` and ``[..., N, D]``.
    """
    kind, offset = resolve_offset(candidates, self_offset, b is None)
    if not isinstance(scale, torch.Tensor):
        scale = torch.full((), scale, dtype=a.dtype, device=a.device)
    scale = scale.to(a.device, a.dtype)
    result = similarity(
        a,
        b,
        scale,
        bias,
        key_a=key_a,
        key_b=key_b,
        kind=kind,
        offset=offset,
        stride=pair_stride or 1,
        positive=-1,
        normalize=normalize,
        columns=return_columns,
        extrema=False,
    )
    return result[:2] if return_columns else result[0]
