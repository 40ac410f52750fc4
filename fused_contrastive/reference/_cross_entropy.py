"""Cross entropy with one positive per row, and the options that change it."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ._dense import masked_logsumexp, maximum


def cross_entropy(
    logits,
    target,
    *,
    excluded=None,
    bias=None,
    scale=1.0,
    similarities=None,
    label_smoothing=0.0,
    margin=0.0,
    hardness=0.0,
    tau_plus=0.0,
):
    """The loss of each row, the logits with their biases, and the negatives' log-sum-exp.

    The logits get the `bias` of the columns. Negatives get `hardness` times the constant
    `similarities`, and the target loses `margin` times `scale`. Then `tau_plus` corrects the sum
    over the negatives (Chuang et al. 2020, sec. 4). Last, the target is smoothed over the
    candidates.

    Args:
        logits: ``[M, N]``.
        target: the column of each row's positive, ``[M]``.
        excluded: which columns are no candidates, ``[M, N]``, or None. The target never is
            excluded.
        bias: ``[N]`` or ``[M, N]``, or None.
        scale: what similarities have been multiplied by.
        similarities: ``[M, N]``, read with `hardness` alone.

    Returns:
        ``(loss [M], logits [M, N], lse [M])``, where the logits are -inf where there is no
        candidate. The log-sum-exp has biases and hardness; `tau_plus` does not change it.
    """
    target = target.unsqueeze(1)
    if bias is not None:
        logits = logits + bias
    if excluded is not None:
        logits = logits.masked_fill(excluded, float("-inf"))
    biased, plain = logits, logits.gather(1, target).squeeze(1)
    if hardness:
        logits = logits + hardness * similarities.detach().scatter(1, target, 0.0)
    lse = masked_logsumexp(logits.scatter(1, target, float("-inf")), 1)
    if margin:
        logits = logits - margin * scale * torch.zeros_like(logits).scatter(1, target, 1.0)
    if not (label_smoothing or tau_plus):
        return F.cross_entropy(logits, target.squeeze(1), reduction="none"), biased, lse
    pos, negative = logits.gather(1, target).squeeze(1), logits.scatter(1, target, float("-inf"))
    total = masked_logsumexp(logits, 1)
    if tau_plus:
        count, top = (negative != float("-inf")).sum(1).to(logits.dtype), maximum(logits, 1)
        left = (negative - top.unsqueeze(1)).exp().sum(1) - tau_plus * count * (plain - top).exp()
        estimate = torch.maximum(left / (1 - tau_plus), count * (-abs(scale) - top).exp())
        total = top + torch.log((pos - top).exp() + estimate)
    candidates = logits != float("-inf")
    mean = logits.masked_fill(~candidates, 0.0).sum(1) / candidates.sum(1)
    loss = (1 - label_smoothing) * (total - pos) + label_smoothing * (total - mean)
    return loss, biased, lse


def other_equal_keys(rows, columns, target):
    """Which columns besides the target have the key of the row; None without keys.

    Args:
        rows: ``[M]``, or None.
        columns: ``[N]``, or ``[M, N]`` where each row has its own columns.
        target: ``[M]``.

    Returns:
        Booleans ``[M, N]``.
    """
    if rows is None:
        return None
    return (rows.unsqueeze(1) == (columns if columns.dim() == 2 else columns.unsqueeze(0))).scatter(
        1, target.unsqueeze(1), False
    )
