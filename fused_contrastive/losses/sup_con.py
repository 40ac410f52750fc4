"""Supervised contrastive losses: several positives per row, by labels, views or weights."""

from __future__ import annotations

import torch

from .. import checks, reference
from ..autograd.keyed_sums import rows_of_all_ranks
from ..autograd.over_ranks import sum_over_ranks
from ._arguments import asks_for_eager, check_settings, check_temperature
from ._classes import Batch
from ._comparison import product
from ._module import TemperatureLoss
from ._over_ranks import NOT_GIVEN, over_ranks
from ._reduction import hits, masked_logsumexp, one_positive, reduce

POSITIVES = ("out", "in", "pairs")
CONTRAST_MODES = ("all", "one")


@over_ranks
def sup_con_loss(
    features: torch.Tensor,
    labels: torch.Tensor | None = None,
    temperature: float | torch.Tensor = 0.1,
    *,
    positives: str = "out",
    positive_weights: torch.Tensor | None = None,
    contrast_mode: str = "all",
    normalize: bool = True,
    skip_unmatched: bool = False,
    weights: torch.Tensor | None = None,
    reduction: str = "mean",
    metrics: bool = False,
    group=NOT_GIVEN,
    strategy: str = "auto",
    backend: str | None = None,
):
    """Supervised contrastive losses (Khosla et al. 2020, arXiv:2004.11362).

    The positives of a row are all other rows of its class. Let s be the similarities over the
    temperature, and P the positives of row i. Let lse be its log-sum-exp over all other rows, and
    lse_neg that over the rows of other classes. Then the loss of row i is

    - ``positives="out"`` (eq. 2, SupContrast): ``lse - mean_P s``; 0 where there are no positives;
    - ``"in"`` (eq. 3 without 1/\\|P\\|, solo-learn): ``lse - log sum_P exp s``; inf, with gradient
      0, where there are no positives;
    - ``"pairs"`` (pytorch-metric-learning's NTXentLoss): ``sum_P log(1 + exp(lse_neg - s))``; 0
      where there are no positives. This is a term for each pair of row and positive, in which other
      positives are no negatives. The mean is over pairs.

    Args:
        features: ``[N, D]``, or ``[N, V, D]``: V views of every sample, where each view is a row.
        labels: ``[N]`` integers. With None, which needs views, every sample is a class of its own
            (SimCLR with V views).
        positives: ``"out"``, ``"in"`` or ``"pairs"``; see above.
        positive_weights: ``[N, N]`` non-negative weights of sample j as a positive of sample i, in
            place of labels and with "out" only. They are SupContrast's mask. They need not be
            symmetric, and the diagonal weights the other views of i. The mean over P is then
            ``sum_P w s / sum_P w``. They are copied once; all else is O(N D). Over ranks they are
            the rows of this rank's n samples, ``[n, N]``, against the N samples of all ranks in
            rank order, whose rows are then gathered.
        contrast_mode: ``"all"``: every view's rows have a loss; ``"one"``: only the first view's,
            against all rows.
        normalize: compare cosines (rows divided by ``max(|x|, 1e-12)``) instead of raw dot
            products.
        skip_unmatched: leave rows without positives out of the mean, and make their loss 0 with
            "in", too.
        weights: ``[N]`` weights of the samples. They multiply the losses, and the mean is ``sum(w
            loss) / sum(w)``.
        metrics: with labels or views only. The accuracy is the share of rows whose largest other
            logit is a positive's. The positive similarity is the mean cosine (or logit) over all
            pairs of row and positive. Rows without positives are in neither. The log-sum-exp is
            that of the rows of other classes. Metrics cost another forward pass.

    Returns:
        ``[N]`` with ``reduction="none"`` for ``[N, D]`` and for ``contrast_mode="one"``, else ``[N,
        V]``; a scalar otherwise. A mean over no rows (or no pairs) is NaN, with gradient 0.

    >>> import torch, fused_contrastive
    >>> features, labels = torch.eye(4), torch.tensor([0, 0, 1, 1])
    >>> round(fused_contrastive.sup_con_loss(features, labels).item(), 4)
    1.0986
    >>> views = torch.eye(4).unsqueeze(1).expand(4, 2, 4)
    >>> fused_contrastive.sup_con_loss(views, reduction="none").shape
    torch.Size([4, 2])
    """
    _check(features, labels, temperature, positives, positive_weights, weights, group=group)
    checks.choice("contrast_mode", contrast_mode, CONTRAST_MODES)
    check_settings(
        normalize=normalize, skip_unmatched=skip_unmatched, metrics=metrics, reduction=reduction
    )
    if metrics and positive_weights is not None:
        raise ValueError("metrics=True needs labels or views: positive_weights must be None")
    arguments = {
        "positives": positives,
        "positive_weights": positive_weights,
        "contrast_mode": contrast_mode,
        "normalize": normalize,
        "skip_unmatched": skip_unmatched,
        "weights": weights,
        "reduction": reduction,
        "metrics": metrics,
    }
    if asks_for_eager(backend, group):
        return reference.sup_con_loss(features, labels, temperature, **arguments)
    return _fused(features, labels, temperature, group, backend, **arguments)


def _check(features, labels, temperature, positives, positive_weights, weights, *, group):
    checks.embeddings("features", features)
    if features.dim() not in (2, 3) or (features.dim() == 3 and features.shape[1] == 0):
        raise ValueError(
            f"features must have shape [N, D] or [N, V, D] with V >= 1, got {tuple(features.shape)}"
        )
    N, device = features.shape[0], features.device
    check_temperature(temperature, device)
    checks.choice("positives", positives, POSITIVES)
    if labels is not None:
        checks.keys("labels", labels, (N,), device)
    elif features.dim() == 2 and positive_weights is None:
        raise ValueError(
            "labels must be given with features [N, D]: "
            "without them, no row of a single view has a positive"
        )
    if positive_weights is not None:
        if labels is not None:
            raise ValueError("labels must be None where positive_weights are given")
        if positives != "out":
            raise ValueError(f"positive_weights need positives='out', got {positives!r}")
        columns = N
        if group is not None and getattr(positive_weights, "ndim", 0) == 2:
            # How many samples all ranks have is not known before they exchange their rows.
            columns = positive_weights.shape[1]
        checks.array("positive_weights", positive_weights, (N, columns), device)
    if weights is not None:
        checks.embeddings("weights", weights)
        checks.array("weights", weights, (N,), device)


def _fused(
    features,
    labels,
    temperature,
    group,
    backend,
    *,
    positives,
    positive_weights,
    contrast_mode,
    normalize,
    skip_unmatched,
    weights,
    reduction,
    metrics,
):
    settings = {"contrast_mode": contrast_mode, "normalize": normalize}
    batch = Batch(features, labels, temperature, **settings, backend=backend, ranks=group)
    if positive_weights is not None:
        loss, count = _weighted(batch, positive_weights)
    else:
        form = {"out": _out, "in": _in, "pairs": _pairs}[positives]
        form = _one_pair if labels is None and batch.views == 2 else form
        (loss, negative), count = form(batch, metrics), batch.count
    matched = (count != 0).expand_as(loss)
    of_unmatched = float("inf") if positives == "in" and not skip_unmatched else 0.0
    loss = loss.masked_fill(~matched, of_unmatched)
    terms = None
    if positives == "pairs":
        terms = count.expand_as(loss)
    elif skip_unmatched:
        terms = matched

    def by_sample(x):
        if x is None:
            return None
        x = batch.restored(x)
        return x.T if features.dim() == 3 and contrast_mode == "all" else x[0]

    loss = reduce(by_sample(loss), reduction, weights, by_sample(terms), group)
    if not metrics:
        return loss
    with torch.no_grad():
        hit, mean, count = _metrics(batch, negative.row_max)
        total = count * mean / (batch.scale if normalize else 1.0)
        values = (hit, count > 0, total, count)
        numbers = [reduce(by_sample(x.to(loss.dtype)), "sum", weights) for x in values]
        if group is not None and loss.dim() == 0:
            numbers.append(loss / group.size)
        numbers = torch.stack(numbers)
        if group is not None:
            numbers = sum_over_ranks(numbers, group.encode())
        hit, matched, total, count, *mean_loss = numbers.unbind()
    found = {"accuracy": hit / matched, "positive_similarity": total / count}
    found["logsumexp"] = by_sample(negative.rows.detach())
    return loss, found | dict(zip(("loss",), mean_loss, strict=False))


def _one_pair(batch: Batch, metrics: bool):
    """Two views and no labels: NT-Xent, whichever way several positives are put together."""
    result = batch.against_all("not_pair", positive=batch.samples, metrics=metrics)
    return result.loss, result


def _out(batch: Batch, metrics: bool):
    """lse - mean, as softplus(lse_neg - lse_pos) + (lse_pos - mean).

    Neither term cancels where the positives take all of the softmax.
    """
    negative, excess = batch.negatives(metrics), batch.excess()
    return one_positive(negative.rows, batch.mean() + excess) + excess, negative


def _in(batch: Batch, metrics: bool):
    """softplus(lse_neg - lse_pos)."""
    negative = batch.negatives(metrics)
    if batch.by_views:
        positive = masked_logsumexp(batch.view_logits(), -1)
    else:
        positive = batch.against_all("same_key").rows
    positive = positive.masked_fill(batch.count == 0, 0.0)
    return one_positive(negative.rows, positive), negative


def _pairs(batch: Batch, metrics: bool):
    """The sum over the positives of softplus(lse_neg - s)."""
    negative = batch.negatives(metrics)
    if not batch.by_views:
        return batch.softplus_of_positives(-negative.rows.flatten()), negative
    logits = batch.view_logits()
    others = logits.isneginf()
    terms = one_positive(negative.rows.unsqueeze(-1), logits.masked_fill(others, 0.0))
    return terms.masked_fill(others, 0.0).sum(-1), negative


def _weighted(batch: Batch, positive_weights: torch.Tensor):
    """lse - the weighted mean, and the sums of the weights; ``[A, N]`` each."""
    everyone = sums = batch.z.sum(0)
    itself = torch.arange(batch.samples, device=sums.device)
    if batch.ranks is not None:
        name, columns = "positive_weights", positive_weights.shape[1]
        everyone, sizes = rows_of_all_ranks(sums, columns, name, batch.ranks)
        itself = itself + sizes[: batch.ranks.rank, 0].sum().to(sums.device, non_blocking=True)
    itself = itself.unsqueeze(1)
    others = positive_weights.to(sums.dtype, copy=True).scatter_(1, itself, 0.0)
    mean_of, total = product(others, everyone), batch.views * others.sum(1)
    if batch.views > 1:
        # These weights are for the other views of the sample itself.
        own = positive_weights.gather(1, itself).squeeze(1).to(sums.dtype)
        mean_of = mean_of + own.unsqueeze(1) * (sums - batch.z[: batch.anchors])
        total = total + (batch.views - 1) * own
    mean = batch.dots(mean_of) / total.masked_fill(total == 0, 1.0)
    return batch.against_all("not_self").rows - mean, total


def _metrics(batch: Batch, largest: torch.Tensor):
    """Where the largest logit of a positive is at least `largest`, that of the others.

    This comes with the mean and the number of the positives; all three are ``[A, N]``.
    """
    if batch.by_views:
        best = batch.view_logits().amax(-1)
    else:
        best = batch.against_all("same_key", metrics=True).row_max
    count = batch.count.expand_as(best)
    return hits(best, largest) & (count > 0), batch.mean(), count


class SupConLoss(TemperatureLoss):
    """Module form of `sup_con_loss`: ``SupConLoss(temperature)(features, labels)``.

    The tensors `positive_weights` and `weights` are keyword arguments of `forward`.

    >>> import torch, fused_contrastive
    >>> loss = fused_contrastive.SupConLoss(temperature=0.5, positives="in")
    >>> round(loss(torch.eye(4), torch.tensor([0, 0, 1, 1])).item(), 4)
    1.0986
    """

    def __init__(
        self,
        temperature=0.1,
        *,
        positives="out",
        contrast_mode="all",
        normalize=True,
        skip_unmatched=False,
        reduction="mean",
        metrics=False,
        group=NOT_GIVEN,
        strategy="auto",
        backend=None,
        learnable=False,
        max_scale=None,
    ):
        checks.choice("positives", positives, POSITIVES)
        checks.choice("contrast_mode", contrast_mode, CONTRAST_MODES)
        super().__init__(
            temperature,
            learnable,
            max_scale,
            positives=positives,
            contrast_mode=contrast_mode,
            normalize=normalize,
            skip_unmatched=skip_unmatched,
            reduction=reduction,
            metrics=metrics,
            backend=backend,
            group=group,
            strategy=strategy,
        )

    def forward(
        self,
        features: torch.Tensor,
        labels: torch.Tensor | None = None,
        *,
        positive_weights: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
    ):
        tensors = {"positive_weights": positive_weights, "weights": weights}
        return sup_con_loss(features, labels, self.temperature, **tensors, **self.options)
