"""Rows by class: sizes, sums and comparisons, without reading a label back from the device.

Over ranks the classes are those of all ranks, and each rank sorts its own rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..autograd.keyed_sums import keyed_sums
from ..autograd.similarity import Result
from ..distributed.groups import Ranks
from ..dtypes import matrix_dtype
from ..ops.keyed_sums import exactly_summable
from ..problem import NO_SELF, Candidates
from ..scalars import inverse_scale
from ._comparison import Comparison, as_read, exact_rows, product
from ._labelled import by_class, centers, removed
from ._reduction import masked_logsumexp, merged


def classes(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first row with the label of each row, and how many rows have that label.

    The labels ``[N]`` are sorted integers, and both results are ``[N]``.
    """
    first = torch.searchsorted(labels, labels)
    return first, torch.searchsorted(labels, labels, right=True) - first


def class_sums(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The sum of ``x [N, D]`` over the rows of each row's class, which ``index [N]`` names.

    Every run gives the same bits, forward and backward.
    """
    sums = torch.zeros_like(x)
    if x.device.type == "cuda":
        # CUDA's index_add adds in any order.
        return sums.index_put((index,), x, accumulate=True)[index]
    return sums.index_add(0, index, x).index_select(0, index)


class Queue(NamedTuple):
    """Rows of earlier batches, which are columns only. They are sorted by class."""

    z: torch.Tensor  # [K, D], as the products read them
    key: torch.Tensor  # [K]

    def sums(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The sums ``[N, C]`` of ``x [K, C]`` over the rows of each of the `labels`."""
        return keyed_sums(x, self.key, labels, None)


class Batch:
    """The rows of V views of N samples, which of them are anchors, and who their positives are.

    The anchors A are all views, or the first one. With labels the samples are sorted by class, so
    that kernels may leave out tiles without equal keys. `restored` undoes the sorting.
    """

    def __init__(
        self,
        features: torch.Tensor,  # [N, D] or [N, V, D]
        labels: torch.Tensor | None,  # [N]
        temperature: float | torch.Tensor,
        *,
        contrast_mode: str,
        normalize: bool,
        backend: str | None,
        ranks: Ranks | None = None,
        ignore_index: int | None = None,
        queue: tuple[torch.Tensor, torch.Tensor] | None = None,  # [K, D] and its labels [K]
    ):
        views = features.unsqueeze(0) if features.dim() == 2 else features.transpose(0, 1)
        self.views, self.samples, _ = views.shape
        self.anchors = self.views if contrast_mode == "all" else 1
        self.scale, self.dtype = inverse_scale(temperature, views), matrix_dtype(views)
        self.backend, self.ranks = backend, ranks
        # The index names the class of each row, [N].
        self.by_views, self.index, self.order = labels is None, None, None
        self.queue, self.ignored, self.ignore_index = None, None, ignore_index
        if labels is None:
            size = torch.ones(self.samples, dtype=torch.int64, device=views.device)
        else:
            labels, self.order = labels.to(torch.int64).sort(stable=True)
            self.labels = labels
            if ranks is None:
                self.index, size = classes(labels)
            else:
                self.index = labels
                ones = torch.ones_like(labels, dtype=self.scale.dtype).unsqueeze(1)
                size = self.class_sums(ones).squeeze(1).long()
            views = views.index_select(1, self.order)
        # These are the rows as the products read them, [V, N, D].
        self.z = exact_rows(views, normalize)
        # This is the number of rows in the class of each row, and of its positives, [N].
        self.size = self.views * size
        self.count = self.size - 1
        if queue is not None:
            self.queue = Queue(*by_class(*queue, normalize, ignore_index)[:2])
            ones = torch.ones_like(self.queue.key, dtype=self.scale.dtype).unsqueeze(1)
            self.count = self.count + self.queue.sums(ones, labels).squeeze(1).long()
        if ignore_index is not None:
            self.ignored = labels == ignore_index
            self.count = self.count.masked_fill(self.ignored, 0)

    def restored(self, x: torch.Tensor) -> torch.Tensor:
        """``x [..., N]`` in the order of the samples given."""
        return x if self.order is None else torch.empty_like(x).index_copy(-1, self.order, x)

    @property
    def key(self) -> torch.Tensor:
        """The class of each row, ``[V, N]``."""
        return self.index.expand(self.views, -1)

    def against_all(
        self,
        kind: str,
        *,
        z: torch.Tensor | None = None,  # [V, N, D]; None: the rows themselves
        metrics: bool = False,
        **options,
    ) -> Result:
        """The log-sum-exp ``[A, N]`` of the anchors with the candidates among all rows.

        The `options` are those of `Comparison.lse`.
        """
        compared, candidates = self._compared(kind, self.z if z is None else z)
        result = compared.lse(candidates, extrema=metrics, **options)
        return self._by_anchor(result)

    def against_queue(
        self,
        found: Result,
        kind: str,
        *,
        z: torch.Tensor | None = None,  # [A, N, D]; None: the anchors themselves
        queue: torch.Tensor | None = None,  # [K, D]; None: the queue itself
        metrics: bool = False,
        bias: torch.Tensor | None = None,  # [K]
    ) -> Result:
        """What the anchors have `found`, ``[A, N]``, with the rows of the queue as candidates."""
        if self.queue is None:
            return found
        compared, candidates = self._compared_with_queue(kind, z, queue)
        more = self._by_anchor(compared.lse(candidates, extrema=metrics, bias=bias))
        largest = torch.maximum(found.row_max, more.row_max) if metrics else None
        return found._replace(rows=merged([found.rows, more.rows]), row_max=largest)

    def positives(self, metrics: bool = False) -> Result:
        """The anchors against their positives, ``[A, N]``. Samples have labels."""
        found = self.against_all("same_key", metrics=metrics)
        return self.against_queue(found, "same_key", metrics=metrics)

    def softplus_of_positives(self, row_bias: torch.Tensor) -> torch.Tensor:
        """The sum of ``softplus(-(s + row_bias))`` over each anchor's positives, ``[A, N]``.

        `row_bias` is ``[A * N]``.
        """
        pairs = [self._compared("same_key", self.z)]
        if self.queue is not None:
            pairs.append(self._compared_with_queue("same_key"))
        sums = [x.softplus_sum(candidates, row_bias, sign=-1) for x, candidates in pairs]
        return sum(self._by_anchor(x).rows for x in sums)

    def _compared_with_queue(self, kind: str, z=None, queue=None) -> tuple[Comparison, Candidates]:
        rows = (self.z[: self.anchors] if z is None else z).flatten(0, 1)
        keys = {"key_a": self.labels.repeat(self.anchors), "key_b": self.queue.key}
        columns = self.queue.z if queue is None else queue
        compared = Comparison(rows, columns, self.scale, self.dtype, backend=self.backend)
        return compared, Candidates(kind, NO_SELF, **keys)

    def _compared(self, kind: str, z: torch.Tensor) -> tuple[Comparison, Candidates]:
        everything = z.flatten(0, 1)
        key = self.key.flatten() if kind in ("same_key", "other_key") else None
        rows, columns, key_b = everything, None, None
        if self.anchors < self.views:
            rows, columns, key_b = everything[: self.samples].clone(), everything, key
        key_a = None if key is None else key[: rows.shape[0]]
        candidates = Candidates(kind, 0, max(self.samples, 1), key_a, key_b)
        where = {"backend": self.backend, "ranks": self.ranks}
        return Comparison(rows, columns, self.scale, self.dtype, **where), candidates

    def _by_anchor(self, result):
        shape = self.anchors, self.samples
        return type(result)(*(None if x is None else x.view(shape) for x in result))

    def negatives(self, metrics: bool) -> Result:
        """The anchors against the rows of other classes, ``[A, N]``."""
        if self.by_views:
            return self.against_all("not_pair", metrics=metrics)
        bias = removed(self.labels.repeat(self.views), self.ignore_index, self.scale)
        found = self.against_all("other_key", metrics=metrics, bias=bias)
        if self.queue is None:
            return found
        bias = removed(self.queue.key, self.ignore_index, self.scale)
        return self.against_queue(found, "other_key", metrics=metrics, bias=bias)

    def dots(self, other: torch.Tensor) -> torch.Tensor:
        """``scale * <anchor, other>`` for one row of other ``[A, N, D]`` each."""
        return self.scale * (self.z[: self.anchors] * other).sum(-1)

    def sums(self, z: torch.Tensor) -> torch.Tensor:
        """The sums of ``z [V, N, D]`` over each sample's class, ``[N, D]``."""
        z = z.sum(0)
        return z if self.by_views else self.class_sums(z)

    def class_sums(self, x: torch.Tensor) -> torch.Tensor:
        """The sums of ``x [N, C]`` over each sample's class, ``[N, C]``."""
        if self.ranks is None:
            return class_sums(x, self.index)
        return keyed_sums(x, self.index, self.index, self.ranks)

    def center(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The mean of each sample's class, a constant ``[N, D]`` of the same bits in all rows.

        With a queue it comes with the same mean for each row of the queue, ``[K, D]``.
        """
        if self.queue is not None:
            return centers(self.z.mean(0), self.labels, self.queue.key, self.ranks)
        if self.by_views or self.ranks is None:
            total = self.sums(self.z).detach()
        else:
            z = exactly_summable(self.z.detach().sum(0), self.ranks.encode())
            total = self.class_sums(z).to(self.z.dtype)
        return total / self.size.unsqueeze(1), None

    def mean(self) -> torch.Tensor:
        """The mean logit of the positives, 0 where there are none, ``[A, N]``."""
        others = self.sums(self.z) - self.z[: self.anchors]
        if self.queue is not None:
            others = others + self.queue.sums(self.queue.z, self.labels)
        return self.dots(others) / self.count.clamp_min(1)

    def excess(self) -> torch.Tensor:
        """The positives' log-sum-exp less their mean, ``[A, N]``.

        This is 0 where there are fewer than two positives. It does not change when one vector is
        subtracted from all positives of a row. Here this vector is their class mean, a constant.
        What remains is as small as the differences that count. All rounding errors are then as
        small, those of the gradients as well.
        """
        center, of_queue = self.center()
        z = as_read(self.z - center, self.dtype)
        a = z[: self.anchors]
        # s_ij is scale * <a_i, z_j> + column_j, plus what is constant in j.
        column = self.scale * (z * center).sum(-1)
        of_columns = self.sums(column.unsqueeze(-1)).squeeze(-1)
        others = self.scale * (a * (self.sums(z) - a)).sum(-1) + of_columns
        others = others - column[: self.anchors]
        if self.by_views:
            lse = masked_logsumexp(self.view_logits(z) + column.T, -1)
        else:
            found = self.against_all("same_key", z=z, bias=column.flatten())
            if self.queue is not None:
                near = as_read(self.queue.z - of_queue, self.dtype)
                bias = self.scale * (near * of_queue).sum(-1)
                found = self.against_queue(found, "same_key", z=a, queue=near, bias=bias)
                sums = self.queue.sums(torch.cat([near, bias.unsqueeze(1)], 1), self.labels)
                others = others + self.scale * (a * sums[:, :-1]).sum(-1) + sums[:, -1]
            lse = found.rows
        mean = others / self.count.clamp_min(1)
        return (lse - mean).masked_fill(self.count <= 1, 0.0)

    def view_logits(self, z: torch.Tensor | None = None) -> torch.Tensor:
        """The logits ``[A, N, V]`` of every anchor with its sample's views, −inf with itself."""
        z = (self.z if z is None else z).transpose(0, 1)
        dots = product(z[:, : self.anchors], z.transpose(1, 2)).transpose(0, 1)
        itself = torch.eye(self.views, dtype=torch.bool, device=z.device)[: self.anchors]
        return (self.scale * dots).masked_fill(itself.unsqueeze(1), float("-inf"))
