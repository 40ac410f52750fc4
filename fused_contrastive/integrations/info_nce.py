"""info-nce-pytorch: ``from fused_contrastive.integrations.info_nce import InfoNCE, info_nce``.

All options stream: every `reduction`, in-batch, unpaired and paired negatives, a temperature that
is a number or a tensor of one element. A temperature falls back if it has several elements, is 0 or
is infinite.
"""

from __future__ import annotations

from typing import Any

from ..checks import REDUCTIONS
from ..losses.info_nce import info_nce_loss
from ._classes import absent
from ._common import falls_back, in_dtype_of, mismatch, number, package
from ._patch import patching

peer: Any = package("info_nce", "info-nce-pytorch")
own = peer.info_nce
_InfoNCE: Any = peer.InfoNCE

__all__ = ["InfoNCE", "info_nce", "patch"]

__getattr__ = absent(__name__)


def info_nce(
    query,
    positive_key,
    negative_keys=None,
    temperature=0.1,
    reduction="mean",
    negative_mode="unpaired",
):
    """Works as `info_nce.info_nce` does.

    Queries and positive keys are ``[N, D]``, negative keys ``[M, D]`` or (paired) ``[N, M, D]``.
    """
    reason = _reason(query, positive_key, negative_keys, temperature, reduction, negative_mode)
    if reason is not None:
        falls_back("info_nce.info_nce", reason)
        return own(query, positive_key, negative_keys, temperature, reduction, negative_mode)
    loss = info_nce_loss(
        query,
        positive_key,
        negative_keys,
        number(temperature, query, divisor=True),
        negative_mode="unpaired" if negative_keys is None else negative_mode,
        reduction=reduction,
        group=None,
    )
    return in_dtype_of(query, loss)


def _reason(
    query, positive_key, negative_keys, temperature, reduction, negative_mode
) -> str | None:
    """Why these do not stream; None: they do."""
    reason = mismatch(query, positive_key)
    if reason is None and query.shape != positive_key.shape:
        reason = "query and positive_key of different lengths"
    if reason is None and negative_keys is not None:
        if negative_mode not in ("unpaired", "paired"):
            return f"negative_mode={negative_mode!r}"
        paired = negative_mode == "paired"
        reason = mismatch(negative_keys, dim=3 if paired else 2) or mismatch(
            query, negative_keys.flatten(0, -2)
        )
        if reason is None and paired and len(negative_keys) != len(query):
            reason = "query and paired negative_keys of different lengths"
    if reason is None and number(temperature, query, divisor=True) is None:
        reason = f"temperature={temperature}"
    if reason is None and reduction not in REDUCTIONS:
        reason = f"reduction={reduction!r}"
    return reason


class InfoNCE(_InfoNCE):
    """Works as `info_nce.InfoNCE`: ``InfoNCE(temperature)(query, positive_key, negative_keys)``."""

    def forward(self, query, positive_key, negative_keys=None):
        return info_nce(
            query, positive_key, negative_keys, self.temperature, self.reduction, self.negative_mode
        )


patch = patching(__name__, {peer.InfoNCE: InfoNCE, own: info_nce})
