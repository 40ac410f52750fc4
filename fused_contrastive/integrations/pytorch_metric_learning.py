"""pytorch-metric-learning: ``from fused_contrastive.integrations.pytorch_metric_learning import NTXentLoss, SupConLoss, NPairsLoss``.

Streams with labels, with `ref_emb` and `ref_labels`, with any reducer and regularizer, inside `SelfSupervisedLoss`, `CrossBatchMemory` and
`DistributedLossWrapper`; the distance must be `CosineSimilarity` or `DotProductSimilarity` (any p, normalised or not, ``power=1``). Pairs and triplets
given as an `indices_tuple` take memory in proportion to the tuple. Other distances, labels that are not integers, and a temperature of several
elements, of 0 or infinite fall back.

`NTXentLoss` here needs O(N D) and a number per positive pair where the library's needs [positive pairs, negative pairs]. With the default
reducer and very many positive pairs it does not list them either.
"""

from __future__ import annotations

import math

import torch

from .. import losses
from ..autograd.sigmoid import sigmoid_sum
from ..autograd.similarity import similarity
from ..checks import is_integer
from ..dtypes import matrix_dtype
from ..losses._reduction import exact_rows, one_positive
from ..losses.sup_con import product
from ..problem import NO_SELF
from ..scalars import inverse_scale
from ._common import falls_back, in_dtype_of, mismatch, number, package

peer = package("pytorch_metric_learning.losses", "pytorch-metric-learning")
distances = package("pytorch_metric_learning.distances", "pytorch-metric-learning")
reducers = package("pytorch_metric_learning.reducers", "pytorch-metric-learning")
c_f = package("pytorch_metric_learning.utils.common_functions", "pytorch-metric-learning")
lmu = package("pytorch_metric_learning.utils.loss_and_miner_utils", "pytorch-metric-learning")

__all__ = ["NPairsLoss", "NTXentLoss", "SupConLoss"]

CHUNK = 1 << 12
"""Listed pairs whose rows are gathered at a time."""
LISTED = 16
"""Positive pairs per row of either set up to which they are listed rather than summed over by another pass."""


class ListedDots(torch.autograd.Function):
    """``<a[i], b[j]>`` for index vectors i and j, in O(pairs) memory beside the operands."""

    @staticmethod
    def forward(ctx, a, b, i, j):
        ctx.save_for_backward(a, b, i, j)
        pairs = zip(i.split(CHUNK), j.split(CHUNK), strict=True)
        return torch.cat([(a[x] * b[y]).sum(1) for x, y in pairs])

    @staticmethod
    def backward(ctx, g):
        a, b, i, j = ctx.saved_tensors
        da, db = torch.zeros_like(a), torch.zeros_like(b)
        for x, y, w in zip(
            i.split(CHUNK), j.split(CHUNK), g.unsqueeze(1).split(CHUNK), strict=True
        ):
            da.index_add_(0, x, w * b[y])
            db.index_add_(0, y, w * a[x])
        return da, db, None, None


def listed_logsumexp(logits: torch.Tensor, row: torch.Tensor, rows: int) -> torch.Tensor:
    """Log-sum-exp ``[rows]`` of the logits of each row, −inf where there are none."""
    largest = logits.new_full((rows,), float("-inf")).scatter_reduce(
        0, row, logits.detach(), "amax"
    )
    total = logits.new_zeros(rows).index_add(0, row, (logits - largest[row]).exp())
    return largest + total.log()


class Comparison:
    """The distance's rows of both sets, as its matrix product would read them, with the temperature."""

    def __init__(self, loss, embeddings: torch.Tensor, ref_emb: torch.Tensor):
        distance, self.same = loss.distance, ref_emb is embeddings
        distance.reset_stats()
        q = distance.maybe_normalize(embeddings)
        r = q if self.same else distance.maybe_normalize(ref_emb)
        distance.set_default_stats(embeddings, ref_emb, q, r)
        self.dtype = matrix_dtype(embeddings)
        self.q = exact_rows(q, False)
        self.r = self.q if self.same else exact_rows(r, False)
        self.scale = inverse_scale(number(loss.temperature, embeddings, divisor=True), embeddings)

    def listed(self, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        """The logits of pairs."""
        if 8 * len(i) > len(self.q) * len(self.r):
            return self.scale * product(self.q, self.r.T)[i, j]
        return self.scale * ListedDots.apply(self.q, self.r, i, j)

    def stream(
        self,
        function,
        key_a: torch.Tensor,
        key_b: torch.Tensor,
        kind: str,
        offset: int,
        *more,
        **options,
    ):
        """`similarity` or `sigmoid_sum` of all pairs that the keys choose."""
        b = None if self.same and key_a is key_b else self.r
        key_b = None if b is None else key_b
        return function(
            self.q, b, self.scale, *more, kind=kind, offset=offset, key_a=key_a, key_b=key_b, dtype=self.dtype, **options
        )  # fmt: skip


class Labelled:
    """The positives of each row: the ``count`` entries of ``order`` from ``first`` on, of which its own place is none where `exclude`."""

    def __init__(self, labels: torch.Tensor, ref_labels: torch.Tensor):
        self.exclude = ref_labels is labels
        self.labels = labels.to(torch.int64)
        self.ref_labels = self.labels if self.exclude else ref_labels.to(torch.int64)
        self.offset = 0 if self.exclude else NO_SELF
        ordered, self.order = self.ref_labels.sort(stable=True)
        self.first = torch.searchsorted(ordered, self.labels)
        self.size = torch.searchsorted(ordered, self.labels, right=True) - self.first
        self.ref_first = (
            self.first if self.exclude else torch.searchsorted(ordered, self.ref_labels)
        )
        self.count = self.size - 1 if self.exclude else self.size
        self.positives = int(self.count.sum())
        self.negatives = (
            len(labels) * len(ref_labels) - self.positives - (len(labels) if self.exclude else 0)
        )

    def pairs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All pairs of row and positive, in the library's order."""
        rows = torch.arange(len(self.labels), device=self.labels.device)
        a = rows.repeat_interleave(self.size)
        within = torch.arange(len(a), device=a.device) - (self.size.cumsum(0) - self.size)[a]
        p = self.order[self.first[a] + within]
        if self.exclude:
            others = a != p
            a, p = a[others], p[others]
        return a, p

    def sums(self, r: torch.Tensor) -> torch.Tensor:
        """The sum of each row's positives."""
        sums = r.new_zeros(len(r) + 1, r.shape[1]).index_add(0, self.ref_first, r)[self.first]
        return sums - r if self.exclude else sums

    def single_keys(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys that agree for a row and what its log-sum-exp leaves out: its own place where `exclude`, and a positive that is the only one."""
        apart = len(self.ref_labels) + torch.arange(len(self.labels), device=self.labels.device)
        key_a = torch.where(self.count == 1, self.first, apart if self.exclude else -1)
        if self.exclude:
            return key_a, key_a
        return key_a, self.ref_first


class Streaming:
    """What the losses over all pairs share: when they stream, when there is nothing to compare, and which terms are 0, as reducers leave those out: the
    ones that the library's arithmetic rounds to 0 when it adds them to a logit, which `_labelled` and `_listed` return last."""

    def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels):
        c_f.labels_or_indices_tuple_required(labels, indices_tuple)
        reason = self._reason(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        if reason is not None:
            falls_back(f"pytorch_metric_learning.{type(self).__name__}", reason)
            return super().compute_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        if indices_tuple is None:
            labelled = Labelled(labels, labels if ref_labels is None else ref_labels)
            counts = labelled.positives, labelled.negatives
        else:
            indices_tuple = lmu.convert_to_pairs(indices_tuple, labels, ref_labels)
            counts = len(indices_tuple[0]), len(indices_tuple[2])
        if not all(counts) or max(counts) <= 1:
            return self.zero_losses()
        compared = Comparison(self, embeddings, ref_emb)
        if indices_tuple is None:
            terms, indices, reduction, beside = self._labelled(compared, labelled)
        else:
            terms, indices, reduction, beside = self._listed(compared, *indices_tuple)
        terms = in_dtype_of(embeddings, terms, self._operations)
        beside = beside.detach().to(terms.dtype)
        lost = beside + torch.log(1 + terms.detach()) == beside
        terms = torch.where(lost, terms - terms.detach(), terms)
        return {"loss": {"losses": terms, "indices": indices, "reduction_type": reduction}}

    def _reason(self, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> str | None:
        reason = distance_reason(self.distance) or mismatch(embeddings, ref_emb)
        if reason is not None:
            return reason
        if number(self.temperature, embeddings, divisor=True) is None:
            return f"temperature={self.temperature}"
        if indices_tuple is not None:
            return tuple_reason(indices_tuple, len(embeddings), len(ref_emb))
        ref_labels = labels if ref_labels is None else ref_labels
        for some in (labels, ref_labels):
            if not is_integer(some) or some.device != embeddings.device:
                return f"labels of {some.dtype} on {some.device}"
        if len(ref_labels) != len(ref_emb) or len(labels) != len(embeddings):
            return "ref_emb without labels of their own"
        return None


def distance_reason(distance) -> str | None:
    if (
        type(distance) not in (distances.CosineSimilarity, distances.DotProductSimilarity)
        or distance.power != 1
    ):
        return f"distance={type(distance).__name__}, power={getattr(distance, 'power', None)}"
    return None


def tuple_reason(indices_tuple, rows: int, columns: int) -> str | None:
    sizes = (rows, columns) * 2 if len(indices_tuple) == 4 else (rows, columns, columns)
    if len(indices_tuple) not in (3, 4) or not all(
        isinstance(x, torch.Tensor) for x in indices_tuple
    ):
        return "an indices_tuple that is not of three or four tensors"
    if (
        indices_tuple[0].shape != indices_tuple[1].shape
        or indices_tuple[-2].shape != indices_tuple[-1].shape
    ):
        return "an indices_tuple of different lengths"
    for x, size in zip(indices_tuple, sizes, strict=True):
        if (
            x.dim() != 1
            or x.dtype not in (torch.int64, torch.int32)
            or (len(x) and not 0 <= int(x.min()) <= int(x.max()) < size)
        ):
            return "an indices_tuple that does not index the embeddings from 0"
    return None


class NTXentLoss(Streaming, peer.NTXentLoss):
    """As `pytorch_metric_learning.losses.NTXentLoss`: a term per pair of anchor and positive, against the anchor's negatives."""

    def _labelled(self, compared: Comparison, labelled: Labelled):
        keys = labelled.labels, labelled.ref_labels
        negative = compared.stream(similarity, *keys, "other_key", NO_SELF).rows
        many = labelled.positives > LISTED * sum(map(len, keys))
        if many and self._takes_the_mean() and self._cannot_saturate(compared):
            total = compared.stream(
                sigmoid_sum, *keys, "same_key", labelled.offset, -negative, sign=-1
            ).rows.sum()
            return total / labelled.positives, None, "already_reduced", compared.scale.new_zeros(())
        return self._terms(compared, negative, *labelled.pairs())

    def _listed(self, compared: Comparison, a1, p, a2, n):
        negative = listed_logsumexp(compared.listed(a2, n), a2, len(compared.q))
        return self._terms(compared, negative, a1, p)

    def _terms(
        self, compared: Comparison, negative: torch.Tensor, a: torch.Tensor, p: torch.Tensor
    ):
        terms = one_positive(negative[a], compared.listed(a, p))
        return (
            -torch.logaddexp(-terms, self._floor(compared)),
            (a, p),
            "pos_pair",
            terms.new_zeros(()),
        )

    def _operations(self, z: torch.Tensor) -> torch.Tensor:
        return torch.log(torch.exp(z @ z.T / self.temperature))

    def _floor(self, compared: Comparison) -> torch.Tensor:
        """The library adds the dtype's smallest normal number to a probability before it takes the logarithm."""
        return compared.scale.new_tensor(math.log(c_f.small_val(compared.dtype)))

    def _cannot_saturate(self, compared: Comparison) -> bool:
        """Whether that is lost in rounding, whatever the embeddings."""
        if (
            compared.dtype == torch.float16
            or not self.distance.normalize_embeddings
            or self.distance.p != 2
        ):
            return False
        if isinstance(self.temperature, torch.Tensor):
            return False
        return 2 / abs(self.temperature) + math.log(len(compared.r)) < 60

    def _takes_the_mean(self) -> bool:
        """Whether the terms are averaged, and nothing counts them."""
        reducer = self.reducer
        if type(reducer) is reducers.MultipleReducers:
            reducer = (
                reducer.reducers["loss"] if "loss" in reducer.reducers else reducer.default_reducer
            )
        return type(reducer) is reducers.MeanReducer and not reducer.collect_stats


class SupConLoss(Streaming, peer.SupConLoss):
    """As `pytorch_metric_learning.losses.SupConLoss`: for each row the mean over its positives, in a softmax over all other rows."""

    def _labelled(self, compared: Comparison, labelled: Labelled):
        indices = c_f.torch_arange_from_size(compared.q)
        mean = (
            compared.scale
            * (compared.q * labelled.sums(compared.r)).sum(1)
            / labelled.count.clamp_min(1)
        )
        beside = self._beside(compared, mean, labelled.exclude)
        if compared.same and labelled.exclude:
            z, temperature = (
                compared.q.to(compared.dtype),
                number(self.temperature, compared.q, divisor=True),
            )
            terms = losses.sup_con_loss(
                z, labelled.labels, temperature, normalize=False, reduction="none"
            )
            return terms, indices, "element", beside
        rest = compared.stream(similarity, *labelled.single_keys(), "other_key", NO_SELF).rows
        terms = torch.where(labelled.count == 1, one_positive(rest, mean), rest - mean)
        return terms.masked_fill(labelled.count == 0, 0.0), indices, "element", beside

    def _listed(self, compared: Comparison, a1, p, a2, n):
        rows, columns = len(compared.q), len(compared.r)
        positive, negative = (torch.unique(i.long() * columns + j) for i, j in ((a1, p), (a2, n)))
        assert not torch.isin(positive, negative).any(), (
            "Each pair should be either be positive or negative"
        )
        logits = [compared.listed(x // columns, x % columns) for x in (positive, negative)]
        positive, negative = (x // columns for x in (positive, negative))
        count = torch.bincount(positive, minlength=rows)
        mean = logits[0].new_zeros(rows).index_add(0, positive, logits[0]) / count.clamp_min(1)
        mean = (
            mean + 0 * (compared.q @ compared.r.sum(0)).detach()
        )  # NaN where any logit of the row, listed or not, is
        rest = listed_logsumexp(logits[1], negative, rows)
        everything = torch.logaddexp(rest, listed_logsumexp(logits[0], positive, rows))
        terms = torch.where(count == 1, one_positive(rest, mean), everything - mean)
        indices, beside = (
            c_f.torch_arange_from_size(compared.q),
            self._beside(compared, mean, compared.same),
        )
        return terms.masked_fill(count == 0, 0.0), indices, "element", beside

    @staticmethod
    def _beside(compared: Comparison, positive: torch.Tensor, own: bool) -> torch.Tensor:
        """The logit of a row's only positive less its largest, which may be its own, that is no candidate."""
        if not own:
            return torch.zeros_like(positive)
        return (positive - compared.scale * (compared.q * compared.r).sum(1)).clamp_max(0.0)

    def _operations(self, z: torch.Tensor) -> torch.Tensor:
        return torch.logsumexp(z @ z.T / self.temperature, 1)


class NPairsLoss(peer.NPairsLoss):
    """As `pytorch_metric_learning.losses.NPairsLoss`: of each label the first pair, against the positives of the other labels."""

    def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels):
        c_f.labels_required(labels)
        c_f.ref_not_supported(embeddings, labels, ref_emb, ref_labels)
        reason = distance_reason(self.distance) or mismatch(embeddings)
        if reason is not None:
            falls_back("pytorch_metric_learning.NPairsLoss", reason)
            return super().compute_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        anchor, positive = self._pairs(labels, indices_tuple)
        self.num_pairs = len(anchor)
        if self.num_pairs == 0:
            return self.zero_losses()
        anchors, positives = embeddings[anchor], embeddings[positive]
        self.distance.reset_stats()
        q, r = self.distance.maybe_normalize(anchors), self.distance.maybe_normalize(positives)
        self.distance.set_default_stats(anchors, positives, q, r)
        terms = in_dtype_of(
            embeddings, losses.n_pairs_loss(q, r, normalize=False, reduction="none")
        )
        return {"loss": {"losses": terms, "indices": anchor, "reduction_type": "element"}}

    @staticmethod
    def _pairs(labels: torch.Tensor, indices_tuple) -> tuple[torch.Tensor, torch.Tensor]:
        """The first row of each label, in the order of the labels, and the second."""
        if indices_tuple is not None:
            return lmu.convert_to_pos_pairs_with_unique_labels(indices_tuple, labels)
        ordered, order = labels.sort(stable=True)
        edge = ordered.new_ones(1, dtype=torch.bool)
        begins = torch.cat([edge, ordered[1:] != ordered[:-1]])
        at = torch.where(begins[:-1] & ~begins[1:])[0]
        return order[at], order[at + 1]
