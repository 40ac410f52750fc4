"""Supervised contrastive losses: several positives per row, given by labels, by views or by weights."""

from __future__ import annotations

import torch

from .. import checks, reference
from ..autograd.sigmoid import sigmoid_sum
from ..autograd.similarity import Result, similarity
from ..backends import dispatch
from ..dtypes import in_autocast, matrix_dtype, outside_autocast
from ..scalars import inverse_scale
from ._classes import class_sums, classes
from ._reduction import as_read, exact_rows, hits, one_positive


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
    backend: str | None = None,
):
    """Supervised contrastive losses (Khosla et al. 2020, arXiv:2004.11362): the positives of a row are all other rows of its class.

    With s the similarities over the temperature, lse the log-sum-exp over all rows but i itself (over the rows of other classes: lse_neg)
    and P the positives of row i, its loss is

    - ``positives="out"`` (eq. 2, SupContrast): ``lse - mean_P s``; 0 where there are no positives;
    - ``"in"`` (eq. 3 without 1/\\|P\\|, solo-learn): ``lse - log sum_P exp s``; inf, with gradient 0, where there are no positives;
    - ``"pairs"`` (pytorch-metric-learning's NTXentLoss): ``sum_P log(1 + exp(lse_neg - s))``: a term per pair of row and positive, in which
      other positives are no negatives; 0 where there are none. The mean is over pairs.

    Args:
        features: ``[N, D]``, or ``[N, V, D]``: V views of every sample, each of which is a row.
        labels: ``[N]`` integers; None, with views: every sample is a class of its own (SimCLR with V views).
        positive_weights: in place of labels, and with "out" only: ``[N, N]`` non-negative weights of sample j as a positive of sample i
            (SupContrast's mask; need not be symmetric; its diagonal weights the other views of i). The mean over P is then
            ``sum_P w s / sum_P w``. Copied once; all else is O(N D).
        contrast_mode: ``"all"``: every view's rows have a loss; ``"one"``: only the first view's, against all rows.
        normalize: cosine similarities (rows divided by ``max(|x|, 1e-12)``), else raw dot products.
        skip_unmatched: leave rows without positives out of the mean, and make their loss 0 with "in", too.
        weights: ``[N]`` weights of the samples: losses are multiplied by them, and the mean is ``sum(w loss) / sum(w)``.
        metrics: with labels or views only. accuracy: the share of rows whose largest other logit is a positive's; positive_similarity: the mean
            cosine (or logit) over all pairs of row and positive; rows without positives are in neither. Costs another forward pass.

    Returns:
        ``[N]`` with ``reduction="none"`` for ``[N, D]`` and for ``contrast_mode="one"``, else ``[N, V]``; a scalar otherwise. A mean over no rows
        (or no pairs) is NaN, with gradient 0.
    """
    _check(features, labels, temperature, positives, positive_weights, weights)
    checks.choice("contrast_mode", contrast_mode, ("all", "one"))
    checks.flags(normalize=normalize, skip_unmatched=skip_unmatched, metrics=metrics)
    checks.choice("reduction", reduction, checks.REDUCTIONS)
    if metrics and positive_weights is not None:
        raise ValueError("metrics=True needs labels or views: positive_weights must be None")
    if dispatch.is_eager(backend):
        return reference.sup_con_loss(
            features, labels, temperature, positives=positives, positive_weights=positive_weights,
            contrast_mode=contrast_mode, normalize=normalize, skip_unmatched=skip_unmatched, weights=weights,
            reduction=reduction, metrics=metrics,
        )  # fmt: skip
    batch = Batch(features, labels, temperature, contrast_mode, normalize, backend)
    if positive_weights is not None:
        loss, count = _weighted(batch, positive_weights)
    else:
        form = {"out": _out, "in": _in, "pairs": _pairs}[positives]
        form = _one_pair if labels is None and batch.views == 2 else form
        (loss, largest), count = form(batch, metrics), batch.count
    matched = (count != 0).expand_as(loss)
    loss = loss.masked_fill(
        ~matched, float("inf") if positives == "in" and not skip_unmatched else 0.0
    )
    terms = count.expand_as(loss) if positives == "pairs" else matched if skip_unmatched else None

    def by_sample(x):
        if x is None:
            return None
        x = batch.restored(x)
        return x.T if features.dim() == 3 and contrast_mode == "all" else x[0]

    loss = reference.weighted_reduce(by_sample(loss), reduction, weights, by_sample(terms))
    if not metrics:
        return loss
    with torch.no_grad():
        hit, mean, count = _metrics(batch, largest)
        unit = batch.scale if normalize else 1.0
        accuracy = reference.weighted_reduce(
            by_sample(hit.to(loss.dtype)), "mean", weights, by_sample(count > 0)
        )
        similarity = reference.weighted_reduce(
            by_sample(count * mean / unit), "mean", weights, by_sample(count)
        )
    return loss, {"accuracy": accuracy, "positive_similarity": similarity}


def _check(features, labels, temperature, positives, positive_weights, weights):
    checks.embeddings("features", features)
    if features.dim() not in (2, 3) or (features.dim() == 3 and features.shape[1] == 0):
        raise ValueError(
            f"features must have shape [N, D] or [N, V, D] with V >= 1, got {tuple(features.shape)}"
        )
    N, device = features.shape[0], features.device
    checks.number("temperature", temperature, device, divisor=True)
    checks.choice("positives", positives, ("out", "in", "pairs"))
    if labels is not None:
        checks.keys("labels", labels, (N,), device)
    elif features.dim() == 2 and positive_weights is None:
        raise ValueError(
            "labels must be given with features [N, D]: without them, no row of a single view has a positive"
        )
    if positive_weights is not None:
        if labels is not None:
            raise ValueError("labels must be None where positive_weights are given")
        if positives != "out":
            raise ValueError(f"positive_weights need positives='out', got {positives!r}")
        checks.array("positive_weights", positive_weights, (N, N), device)
    if weights is not None:
        checks.embeddings("weights", weights)
        checks.array("weights", weights, (N,), device)


class Batch:
    """The rows of V views, those of them that are anchors (all, or the first view's), and who their positives are.

    With labels the samples are sorted by class, so that kernels may leave out tiles without equal keys; `restored` undoes it.
    """

    def __init__(self, features, labels, temperature, contrast_mode, normalize, backend):
        views = features.unsqueeze(0) if features.dim() == 2 else features.transpose(0, 1)
        self.views, self.samples, _ = views.shape
        self.anchors = self.views if contrast_mode == "all" else 1
        self.scale, self.dtype, self.backend = (
            inverse_scale(temperature, views),
            matrix_dtype(views),
            backend,
        )
        self.by_views, self.order = labels is None, None
        if labels is None:
            self.index, size = (
                None,
                torch.ones(self.samples, dtype=torch.int64, device=views.device),
            )
        else:
            labels, self.order = labels.to(torch.int64).sort(stable=True)
            self.index, size = classes(labels)
            views = views.index_select(1, self.order)
        self.z = exact_rows(views, normalize)  # [V, N, D]
        self.count = self.views * size - 1
        """Positives of each row, ``[N]``."""

    def restored(self, x: torch.Tensor) -> torch.Tensor:
        """``x [..., N]`` in the order of the samples given."""
        return x if self.order is None else torch.empty_like(x).index_copy(-1, self.order, x)

    def compare(self, kind: str, key=None, z=None, function=similarity, **options):
        """`similarity` of the anchors with all rows (of `z`, if given), keys ``[V, N]``; results ``[anchors, N]``."""
        everything = (self.z if z is None else z).flatten(0, 1)
        key = None if key is None else key.flatten()
        a, b, key_b = everything, None, None
        if self.anchors < self.views:
            a, b, key_b = everything[: self.samples].clone(), everything, key
        result = function(
            a, b, self.scale, key_a=None if key is None else key[: a.shape[0]], key_b=key_b, kind=kind,
            stride=max(self.samples, 1), dtype=self.dtype, backend=self.backend, **options,
        )  # fmt: skip
        return type(result)(
            *(None if x is None else x.view(self.anchors, self.samples) for x in result)
        )

    @property
    def key(self) -> torch.Tensor:
        return self.index.expand(self.views, -1)

    def negatives(self, metrics: bool) -> Result:
        """The anchors against the rows of other classes."""
        if self.by_views:
            return self.compare("not_pair", extrema=metrics)
        return self.compare("other_key", self.key, extrema=metrics)

    def dots(self, other: torch.Tensor) -> torch.Tensor:
        """``scale * <anchor, other>`` for one row of other ``[anchors, N, D]`` each."""
        return self.scale * (self.z[: self.anchors] * other).sum(-1)

    def sums(self, z: torch.Tensor) -> torch.Tensor:
        """The sums of ``z [V, N, D]`` over each sample's class, ``[N, D]``."""
        z = z.sum(0)
        return z if self.by_views else class_sums(z, self.index)

    def mean(self) -> torch.Tensor:
        """The mean logit of the positives, 0 where there are none, ``[anchors, N]``."""
        return self.dots(self.sums(self.z) - self.z[: self.anchors]) / self.count.clamp_min(1)

    def excess(self) -> torch.Tensor:
        """The positives' log-sum-exp less their mean, ``[anchors, N]``: 0 where there are fewer than two positives.

        It does not change when one vector is subtracted from all positives of a row. Less their class means (constants) they are as small as the
        differences that count, and so are all rounding errors, of the gradients as well.
        """
        center = (self.sums(self.z) / (self.count + 1).unsqueeze(1)).detach()
        z = as_read(self.z - center, self.dtype)
        a = z[: self.anchors]
        column = self.scale * (z * center).sum(
            -1
        )  # s_ij is <a_i, z_j> + column_j and what is constant in j
        others = self.scale * (a * (self.sums(z) - a)).sum(-1) + self.sums(
            column.unsqueeze(-1)
        ).squeeze(-1)
        mean = (others - column[: self.anchors]) / self.count.clamp_min(1)
        if self.by_views:
            lse = reference.masked_logsumexp(self.view_logits(z) + column.T, -1)
        else:
            lse = self.compare("same_key", self.key, z, bias=column.flatten()).rows
        return (lse - mean).masked_fill(self.count <= 1, 0.0)

    def view_logits(self, z: torch.Tensor | None = None) -> torch.Tensor:
        """The logits of every anchor with the views of its sample, −inf with itself, ``[anchors, N, V]``."""
        z = (self.z if z is None else z).transpose(0, 1)
        dots = product(z[:, : self.anchors], z.transpose(1, 2)).transpose(0, 1)
        itself = torch.eye(self.views, dtype=torch.bool, device=z.device)[: self.anchors]
        return (self.scale * dots).masked_fill(itself.unsqueeze(1), float("-inf"))


class Product(torch.autograd.Function):
    """``x @ y`` and its gradients outside autocast, also where a compiler traces the backward pass inside it."""

    @staticmethod
    def forward(x, y):
        with outside_autocast(x.device):
            return x @ y

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        x, y = ctx.saved_tensors
        with outside_autocast(x.device):
            return g @ y.transpose(-1, -2), x.transpose(-1, -2) @ g


def product(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """``x @ y``, not rounded by autocast."""
    if in_autocast(x.device) and not torch.compiler.is_exporting():
        return Product.apply(x, y)
    with outside_autocast(x.device):
        return x @ y


def _one_pair(batch: Batch, metrics: bool):
    """Two views and no labels: NT-Xent, whichever way several positives are put together."""
    result = batch.compare("not_pair", positive=batch.samples, extrema=metrics)
    return result.loss, result.row_max


def _out(batch: Batch, metrics: bool):
    """lse - mean, as softplus(lse_neg - lse_pos) + (lse_pos - mean): neither cancels where the positives take all of the softmax."""
    negative, excess = batch.negatives(metrics), batch.excess()
    return one_positive(negative.rows, batch.mean() + excess) + excess, negative.row_max


def _in(batch: Batch, metrics: bool):
    """softplus(lse_neg - lse_pos)."""
    negative = batch.negatives(metrics)
    if batch.by_views:
        positive = reference.masked_logsumexp(batch.view_logits(), -1)
    else:
        positive = batch.compare("same_key", batch.key).rows
    return one_positive(
        negative.rows, positive.masked_fill(batch.count == 0, 0.0)
    ), negative.row_max


def _pairs(batch: Batch, metrics: bool):
    """The sum over the positives of softplus(lse_neg - s)."""
    negative = batch.negatives(metrics)
    if not batch.by_views:
        sums = batch.compare(
            "same_key", batch.key, function=sigmoid_sum, row_bias=-negative.rows.flatten(), sign=-1
        )
        return sums.rows, negative.row_max
    logits = batch.view_logits()
    others = logits.isneginf()
    terms = one_positive(negative.rows.unsqueeze(-1), logits.masked_fill(others, 0.0))
    return terms.masked_fill(others, 0.0).sum(-1), negative.row_max


def _weighted(batch: Batch, positive_weights: torch.Tensor):
    """lse - the weighted mean, and the sums of the weights ``[anchors, N]``."""
    others = positive_weights.to(batch.z.dtype, copy=True)
    others.diagonal().zero_()
    sums = batch.z.sum(0)
    mean_of, total = product(others, sums), batch.views * others.sum(1)
    if batch.views > 1:  # the other views of the sample itself
        own = positive_weights.diagonal().to(batch.z.dtype)
        mean_of = mean_of + own.unsqueeze(1) * (sums - batch.z[: batch.anchors])
        total = total + (batch.views - 1) * own
    mean = batch.dots(mean_of) / total.masked_fill(total == 0, 1.0)
    return batch.compare("not_self").rows - mean, total


def _metrics(batch: Batch, largest: torch.Tensor):
    """Where the largest logit of a positive is at least `largest`, that of the others; the positives' mean and number; ``[anchors, N]``."""
    if batch.by_views:
        best = batch.view_logits().amax(-1)
    else:
        best = batch.compare("same_key", batch.key, extrema=True).row_max
    count = batch.count.expand_as(best)
    return hits(best, largest) & (count > 0), batch.mean(), count
