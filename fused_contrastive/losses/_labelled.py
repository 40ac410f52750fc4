"""Rows and columns of two sets, where those of equal labels are positives of each other.

The loss of a row is the mean over its positives of ``lse - s``. As for `sup_con_loss`, it is put
together from terms that do not cancel; docs/maths.md has the derivation.
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
from ._comparison import Comparison, as_read, exact_rows
from ._reduction import Matches, hits, one_positive, reduce, reported


class TwoSets(NamedTuple):
    """Rows and columns with labels. The positives of a row are the columns with its label.

    The terms of a row's positives do not change when one vector is subtracted from all of them, or
    one number from all of the row's logits. So `near` has both sets less the means of their
    classes. What remains is as small as the differences that count. All rounding errors are then as
    small, those of the gradients as well.
    """

    compared: Comparison  # [M, D] with [N, D]
    near: Comparison
    center_a: torch.Tensor  # the mean of the rows in the class of each column, [N, D]
    center_b: torch.Tensor  # the mean of the columns in the class of each row, [M, D]
    key_a: torch.Tensor  # [M]
    key_b: torch.Tensor  # [N]
    # The label of rows that have no loss, and of columns that are no candidates.
    ignore_index: int | None = None

    @staticmethod
    def of(compared: Comparison, key_a, key_b, ignore_index: int | None = None) -> TwoSets:
        """A comparison of rows with keys ``[M]`` and columns with keys ``[N]``."""
        (a, b), ranks = compared[:2], compared.ranks
        own_a, center_a = centers(a, key_a, key_b, ranks)
        own_b, center_b = centers(b, key_b, key_a, ranks)
        near_a, near_b = (as_read(x, compared.dtype) for x in (a - own_a, b - own_b))
        near = compared._replace(rows=near_a, columns=near_b)
        keys = {"key_a": key_a, "key_b": key_b, "ignore_index": ignore_index}
        return TwoSets(compared, near, center_a, center_b, **keys)

    def reversed(self) -> TwoSets:
        """The columns compared with the rows."""
        return TwoSets(
            self.compared.reversed(),
            self.near.reversed(),
            center_a=self.center_b,
            center_b=self.center_a,
            key_a=self.key_b,
            key_b=self.key_a,
            ignore_index=self.ignore_index,
        )

    def candidates(self, kind: str) -> Candidates:
        """The columns of equal labels, or those of others. No column is the row itself."""
        return Candidates(kind, NO_SELF, key_a=self.key_a, key_b=self.key_b)

    def negatives(self, **wanted) -> Result:
        """The log-sum-exp ``[M]`` over the columns of other labels; `wanted` as in `similarity`."""
        bias = removed(self.key_b, self.ignore_index, self.compared.scale)
        return self.compared.lse(self.candidates("other_key"), bias=bias, **wanted)

    def losses(self, lse: torch.Tensor, largest: torch.Tensor | None) -> Direction:
        """The losses of the rows, from the log-sum-exp and largest logit ``[M]`` of negatives."""
        columns, near = self.compared.columns, self.near.columns
        scale, same = self.compared.scale, self.candidates("same_key")
        # A logit is scale * <near_a, near_b> + bias, plus what is constant in the row.
        bias = scale * (near * self.center_a).sum(-1)
        of_class = self.near.lse(same, bias=bias).rows
        ones = near.new_ones((near.shape[0], 1))
        parts = torch.cat([columns, near, bias.unsqueeze(1), ones], 1)
        sums = keyed_sums(parts, self.key_b, self.key_a, self.compared.ranks)
        D, count = columns.shape[1], sums[:, -1].detach()
        if self.ignore_index is not None:
            count = count.masked_fill(self.key_a == self.ignore_index, 0.0)
        size = count.clamp_min(1)
        mean = scale * self.compared.dot(sums[:, :D]) / size
        of_near = (scale * self.near.dot(sums[:, D:-2]) + sums[:, -2]) / size
        excess = (of_class - of_near).masked_fill(count <= 1, 0.0)
        loss = (one_positive(lse, mean + excess) + excess).masked_fill(count == 0, 0.0)
        if largest is None:
            return Direction(loss, count, None)
        with torch.no_grad():
            best = self.compared.lse(same, extrema=True).row_max
            hit = hits(best, largest) & (count > 0)
        return Direction(loss, count, Matches(hit, mean.detach(), count))


def centers(
    x: torch.Tensor,  # [N, D]
    key: torch.Tensor,  # [N]
    others: torch.Tensor,  # [M]
    ranks: Ranks | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The means of each row's class of x, constants of the same bits in all of the class.

    The first ``[N, D]`` are for the rows of x, the second ``[M, D]`` for rows with other keys.
    Where x has no such row they are 0.
    """
    x = torch.cat([x.detach(), x.new_ones((x.shape[0], 1))], 1)
    if ranks is not None:
        x = exactly_summable(x, ranks.encode())
    total = keyed_sums(x, key, torch.cat([key, others]), ranks)
    mean = (total[:, :-1] / total[:, -1:].clamp_min(1)).to(x.dtype)
    return mean[: len(key)], mean[len(key) :]


class Direction(NamedTuple):
    """The losses of all rows in one direction."""

    loss: torch.Tensor  # [M]
    count: torch.Tensor | None  # [M], of the positives
    matches: Matches | None  # what metrics need

    def restored(self, order: torch.Tensor) -> Direction:
        """The same in the order that the rows had before `order` sorted them."""

        def back(x):
            return None if x is None else torch.empty_like(x).index_copy(0, order, x)

        matches = None if self.matches is None else Matches(*map(back, self.matches))
        return Direction(back(self.loss), back(self.count), matches)

    def shifted(self, bias: torch.Tensor) -> Direction:
        """The same with one number added to all logits. No loss depends on it."""
        matches = self.matches
        if matches is not None:
            matches = matches._replace(mean=matches.mean + bias.detach())
        return self._replace(loss=self.loss + 0.0 * bias, matches=matches)


def removed(key: torch.Tensor, ignore_index: int | None, like: torch.Tensor) -> torch.Tensor | None:
    """A bias ``[N]`` that removes the columns whose key is to be ignored."""
    if ignore_index is None:
        return None
    bias = torch.zeros_like(key, dtype=like.dtype)
    return bias.masked_fill(key == ignore_index, float("-inf"))


def kept(x: torch.Tensor, labels: torch.Tensor | None, ignore_index: int | None) -> torch.Tensor:
    """``x [N, ...]`` with zeros in the place of rows to be ignored, whatever they hold."""
    if ignore_index is None:
        return x
    return x.masked_fill((labels == ignore_index).view(-1, *[1] * (x.dim() - 1)), 0.0)


def by_class(
    x: torch.Tensor,  # [N, D]
    labels: torch.Tensor,  # [N]
    normalize: bool,
    ignore_index: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The rows as the products read them, their labels, and the order that sorted both by class.

    Kernels leave out tiles without equal labels.
    """
    key, order = labels.to(torch.int64).sort(stable=True)
    x = kept(x.index_select(0, order), key, ignore_index)
    return exact_rows(x, normalize), key, order


def labelled_losses(
    a: torch.Tensor,  # [M, D]
    b: torch.Tensor,  # [N, D]
    labels: tuple[torch.Tensor, torch.Tensor],  # [M], [N]
    scale: torch.Tensor,  # []
    *,
    normalize: bool,
    both: bool,
    ignore_index: int | None,
    metrics: bool,
    group: Ranks | None,
    backend: str | None,
) -> list[Direction]:
    """The losses of a's rows against b's, and with `both` also of b's against a's."""
    (rows, key_a, order_a), (columns, key_b, order_b) = (
        by_class(x, key, normalize, ignore_index) for x, key in zip((a, b), labels, strict=True)
    )
    compared = Comparison(rows, columns, scale, matrix_dtype(a), backend=backend, ranks=group)
    forward = TwoSets.of(compared, key_a, key_b, ignore_index)
    # One pass serves both directions, unless each has columns to remove.
    together = both and ignore_index is None
    negative = forward.negatives(columns=together, extrema=metrics)
    found = [forward.losses(negative.rows, negative.row_max).restored(order_a)]
    if both:
        backward = forward.reversed()
        lse, largest = negative.cols, negative.col_max
        if not together:
            negative = backward.negatives(extrema=metrics)
            lse, largest = negative.rows, negative.row_max
        found.append(backward.losses(lse, largest).restored(order_b))
    return found


def reduced(
    directions: list[Direction],
    reduction: str,
    metrics: bool,
    weights: tuple[torch.Tensor | None, ...],  # of the rows of each direction
    group: Ranks | None,
    to_cosine: torch.Tensor | None = None,  # [], what logits are divided by for the metrics
):
    """The mean of the directions' losses, reduced; with `metrics` a pair of it and the metrics.

    Rows without positives count nowhere.
    """
    pairs = list(zip(directions, weights, strict=False))
    losses = [reduce(x.loss, reduction, w, x.count != 0, group) for x, w in pairs]
    loss = losses[0] if len(losses) == 1 else (losses[0] + losses[1]) / 2
    if not metrics:
        return loss
    found = [x.matches for x in directions]
    if to_cosine is not None:
        found = [x._replace(mean=x.mean / to_cosine) for x in found]
    return loss, reported(loss, found, list(weights)[: len(found)], group)
