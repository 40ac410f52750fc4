"""pytorch-metric-learning's losses over all pairs.

Write ``from fused_contrastive.integrations.pytorch_metric_learning import NTXentLoss``;
`SupConLoss` and `NPairsLoss` are here, too. They stream with labels, with `ref_emb` and
`ref_labels`, with any reducer and regularizer, inside `SelfSupervisedLoss`, `CrossBatchMemory` and
`DistributedLossWrapper`. The distance must be `CosineSimilarity` or `DotProductSimilarity` (any p,
normalised or not, ``power=1``). Pairs and triplets given as an `indices_tuple` take memory in
proportion to the tuple. Other distances and labels that are not integers fall back. So does a
temperature that has several elements, is 0 or is infinite.

`NTXentLoss` here needs O(N D) memory and a number per positive pair. The library's needs a matrix
``[positive pairs, negative pairs]``. With the default reducer and very many positive pairs, the
loss here does not list them either. The library's saturates where a probability is very small, and
so does ours; ``NTXentLoss(exact=True)`` does not.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from ..backends._warnings import warn
from ..checks import is_integer
from ..dtypes import matrix_dtype
from ..losses._comparison import Comparison, exact_rows
from ..losses._reduction import one_positive
from ..losses.n_pairs import n_pairs_loss
from ..losses.sup_con import sup_con_loss
from ..problem import NO_SELF, Candidates
from ..scalars import inverse_scale
from ._classes import absent
from ._common import falls_back, in_dtype_of, mismatch, number, package
from ._pairs import Labelled, listed_logits, listed_logsumexp
from ._patch import patching

if TYPE_CHECKING:
    import pytorch_metric_learning.losses as peer
else:
    peer = package("pytorch_metric_learning.losses", "pytorch-metric-learning")
distances = package("pytorch_metric_learning.distances", "pytorch-metric-learning")
reducers = package("pytorch_metric_learning.reducers", "pytorch-metric-learning")
c_f = package("pytorch_metric_learning.utils.common_functions", "pytorch-metric-learning")
lmu = package("pytorch_metric_learning.utils.loss_and_miner_utils", "pytorch-metric-learning")

__all__ = ["NPairsLoss", "NTXentLoss", "SupConLoss", "patch"]

__getattr__ = absent(__name__)


class SaturationWarning(UserWarning):
    """Terms of the loss are so large that the package's arithmetic loses their gradient."""


# Up to this many positive pairs per row of either set are listed. Another pass sums over more.
LISTED = 16


def compare(loss, embeddings: torch.Tensor, ref_emb: torch.Tensor) -> Comparison:
    """The distance's rows of both sets as its matrix product would read them, and the scale.

    Where both sets are the same tensor, columns and rows are the same tensor as well.
    """
    distance, same = loss.distance, ref_emb is embeddings
    distance.reset_stats()
    q = distance.maybe_normalize(embeddings)
    r = q if same else distance.maybe_normalize(ref_emb)
    distance.set_default_stats(embeddings, ref_emb, q, r)
    rows = exact_rows(q, False)
    columns = rows if same else exact_rows(r, False)
    scale = inverse_scale(number(loss.temperature, embeddings, divisor=True), embeddings)
    return Comparison(rows, columns, scale, matrix_dtype(embeddings))


def one_set_or_two(
    compared: Comparison,
    kind: str,
    key_a: torch.Tensor,  # [M]
    key_b: torch.Tensor,  # [N]
    offset: int = NO_SELF,
) -> tuple[Comparison, Candidates]:
    """All pairs that the keys choose; one set where rows and columns share their keys, too."""
    if compared.columns is compared.rows and key_a is key_b:
        return compared._replace(columns=None), Candidates(kind, offset, key_a=key_a)
    return compared, Candidates(kind, offset, key_a=key_a, key_b=key_b)


_Loss: Any = object
"""What `Streaming` is mixed into: a loss of the package."""


class Streaming(_Loss):
    """What the losses over all pairs share: when they stream, and which of their terms are 0.

    Reducers leave out terms of 0. The library rounds a term to 0 when it adds it to a much larger
    logit. `_labelled` and `_listed` therefore return that logit last.
    """

    distance: Any
    temperature: float

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
        compared = compare(self, embeddings, ref_emb)
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
    """Why a distance does not stream; None: it does."""
    if (
        type(distance) not in (distances.CosineSimilarity, distances.DotProductSimilarity)
        or distance.power != 1
    ):
        return f"distance={type(distance).__name__}, power={getattr(distance, 'power', None)}"
    return None


def tuple_reason(indices_tuple, rows: int, columns: int) -> str | None:
    """Why pairs or triplets of these many rows and columns do not stream; None: they do."""
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
    """Works as `pytorch_metric_learning.losses.NTXentLoss` does.

    There is a term for each pair of anchor and positive, against the anchor's negatives. The
    package adds the smallest normal number of the dtype to a probability before it takes the
    logarithm. So its terms end at 87.3 in float32 and at 9.7 in float16, and there they have no
    gradient. Raw dot products get there soon. This class does as the package, and warns once.

    Args:
        exact: leave this number out. Every term has its value and its gradient then.
        temperature: divides the similarities; further arguments are the package's.
    """

    def __init__(self, temperature=0.07, *, exact=False, **kwargs):
        super().__init__(temperature=temperature, **kwargs)
        self.exact = exact

    def _labelled(self, compared: Comparison, labelled: Labelled):
        keys = labelled.labels, labelled.ref_labels
        among, others = one_set_or_two(compared, "other_key", *keys)
        negative = among.lse(others).rows
        many = labelled.positives > LISTED * sum(map(len, keys))
        certain = self.exact or self._cannot_saturate(compared)
        if many and certain and self._takes_the_mean():
            among, positives = one_set_or_two(compared, "same_key", *keys, labelled.offset)
            total = among.softplus_sum(positives, -negative, sign=-1).rows.sum()
            return total / labelled.positives, None, "already_reduced", compared.scale.new_zeros(())
        return self._terms(compared, negative, *labelled.pairs())

    def _listed(self, compared: Comparison, a1, p, a2, n):
        negative = listed_logsumexp(listed_logits(compared, a2, n), a2, len(compared.rows))
        return self._terms(compared, negative, a1, p)

    def _terms(self, compared: Comparison, negative: torch.Tensor, a, p):
        terms = one_positive(negative[a], listed_logits(compared, a, p))
        if not self.exact:
            floor = self._floor(compared)
            if not self._cannot_saturate(compared) and (terms.detach() > -floor).any():
                self._saturates(floor)
            terms = -torch.logaddexp(-terms, terms.new_tensor(floor))
        return terms, (a, p), "pos_pair", terms.new_zeros(())

    def _operations(self, z: torch.Tensor) -> torch.Tensor:
        return torch.log(torch.exp(z @ z.T / self.temperature))

    def _floor(self, compared: Comparison) -> float:
        """The logarithm of what the library adds to a probability before it takes the logarithm.

        This is the smallest normal number of the dtype.
        """
        return math.log(c_f.small_val(compared.dtype))

    def _saturates(self, floor: float) -> None:
        normalize = ", or normalise: distance=CosineSimilarity()"
        warn(
            "pytorch_metric_learning.NTXentLoss saturates: as in the package, its terms end at "
            f"{-floor:.1f} in this dtype, and terms beyond have no gradient. Pass exact=True, "
            "which only the class from fused_contrastive takes"
            f"{'' if self.distance.normalize_embeddings else normalize}",
            SaturationWarning,
            beside="pytorch_metric_learning",
        )

    def _cannot_saturate(self, compared: Comparison) -> bool:
        """Whether rounding loses this number, whatever the embeddings."""
        if (
            compared.dtype == torch.float16
            or not self.distance.normalize_embeddings
            or self.distance.p != 2
        ):
            return False
        if isinstance(self.temperature, torch.Tensor):
            return False
        return 2 / abs(self.temperature) + math.log(len(compared.columns)) < 60

    def _takes_the_mean(self) -> bool:
        """Whether the terms are averaged, and nothing counts them."""
        reducer = self.reducer
        if type(reducer) is reducers.MultipleReducers:
            reducer = (
                reducer.reducers["loss"] if "loss" in reducer.reducers else reducer.default_reducer
            )
        return type(reducer) is reducers.MeanReducer and not reducer.collect_stats


class SupConLoss(Streaming, peer.SupConLoss):
    """Works as `pytorch_metric_learning.losses.SupConLoss` does.

    The loss of a row is the mean over its positives, in a softmax over all other rows.
    """

    def _labelled(self, compared: Comparison, labelled: Labelled):
        indices = c_f.torch_arange_from_size(compared.rows)
        sums = compared.dot(labelled.sums(compared.columns))
        mean = compared.scale * sums / labelled.count.clamp_min(1)
        beside = self._beside(compared, mean, labelled.exclude)
        if compared.columns is compared.rows and labelled.exclude:
            z = compared.rows.to(compared.dtype)
            temperature = number(self.temperature, compared.rows, divisor=True)
            terms = sup_con_loss(z, labelled.labels, temperature, normalize=False, reduction="none")
            return terms, indices, "element", beside
        among, others = one_set_or_two(compared, "other_key", *labelled.single_keys())
        rest = among.lse(others).rows
        terms = torch.where(labelled.count == 1, one_positive(rest, mean), rest - mean)
        return terms.masked_fill(labelled.count == 0, 0.0), indices, "element", beside

    def _listed(self, compared: Comparison, a1, p, a2, n):
        rows, columns = len(compared.rows), len(compared.columns)
        positive, negative = (torch.unique(i.long() * columns + j) for i, j in ((a1, p), (a2, n)))
        assert not torch.isin(positive, negative).any(), (
            "Each pair should be either be positive or negative"
        )
        logits = [listed_logits(compared, x // columns, x % columns) for x in (positive, negative)]
        positive, negative = (x // columns for x in (positive, negative))
        count = torch.bincount(positive, minlength=rows)
        mean = logits[0].new_zeros(rows).index_add(0, positive, logits[0]) / count.clamp_min(1)
        # This is NaN where any logit of the row is NaN, whether it is listed or not.
        mean = mean + 0 * (compared.rows @ compared.columns.sum(0)).detach()
        rest = listed_logsumexp(logits[1], negative, rows)
        everything = torch.logaddexp(rest, listed_logsumexp(logits[0], positive, rows))
        terms = torch.where(count == 1, one_positive(rest, mean), everything - mean)
        indices = c_f.torch_arange_from_size(compared.rows)
        beside = self._beside(compared, mean, compared.columns is compared.rows)
        return terms.masked_fill(count == 0, 0.0), indices, "element", beside

    @staticmethod
    def _beside(compared: Comparison, positive: torch.Tensor, own: bool) -> torch.Tensor:
        """The logit of a row's only positive less its largest logit, at most 0.

        The largest may be the row's own logit, which is no candidate.
        """
        if not own:
            return torch.zeros_like(positive)
        return (positive - compared.scale * compared.dot(compared.columns)).clamp_max(0.0)

    def _operations(self, z: torch.Tensor) -> torch.Tensor:
        return torch.logsumexp(z @ z.T / self.temperature, 1)


class NPairsLoss(peer.NPairsLoss):
    """Works as `pytorch_metric_learning.losses.NPairsLoss` does.

    The first pair of each label is compared with the positives of the other labels.
    """

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
        terms = n_pairs_loss(q, r, normalize=False, reduction="none")
        terms = in_dtype_of(embeddings, terms)
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


patch = patching(
    __name__,
    {peer.NPairsLoss: NPairsLoss, peer.NTXentLoss: NTXentLoss, peer.SupConLoss: SupConLoss},
)
