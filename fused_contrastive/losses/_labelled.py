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


class Labelled(NamedTuple):
    """Rows and columns with labels. The positives of a row are the columns with its label."""

    compared: Comparison  # [M, D] with [N, D]
    key_a: torch.Tensor  # [M]
    key_b: torch.Tensor  # [N]
    # The label of rows that have no loss, and of columns that are no candidates.
    ignore_index: int | None = None

    def reversed(self) -> Labelled:
        """The columns compared with the rows."""
        return Labelled(self.compared.reversed(), self.key_b, self.key_a, self.ignore_index)

    def candidates(self, kind: str) -> Candidates:
        """The columns of equal labels, or those of others. No column is the row itself."""
        return Candidates(kind, NO_SELF, key_a=self.key_a, key_b=self.key_b)

    def negatives(self, **wanted) -> Result:
        """The log-sum-exp ``[M]`` over the columns of other labels; `wanted` as in `similarity`."""
        bias = removed(self.key_b, self.ignore_index, self.compared.scale)
        return self.compared.lse(self.candidates("other_key"), bias=bias, **wanted)

    def sums(self, x: torch.Tensor) -> torch.Tensor:
        """The sum ``[M, C]`` of ``x [N, C]`` over the positives of each row."""
        return keyed_sums(x, self.key_b, self.key_a, self.compared.ranks)

    def center(self) -> torch.Tensor:
        """The mean of each column's class, a constant ``[N, D]`` of the same bits in the class."""
        x, ranks = self.compared.columns.detach(), self.compared.ranks
        parts = torch.cat([x, x.new_ones((x.shape[0], 1))], 1)
        if ranks is not None:
            parts = exactly_summable(parts, ranks.encode())
        total = keyed_sums(parts, self.key_b, self.key_b, ranks)
        return (total[:, :-1] / total[:, -1:].clamp_min(1)).to(x.dtype)

    def losses(self, lse: torch.Tensor, largest: torch.Tensor | None) -> Direction:
        """The losses of the rows, from the log-sum-exp and largest logit ``[M]`` of negatives."""
        compared, columns = self.compared, self.compared.columns
        # No row's terms change when one vector is subtracted from all its positives.
        near = as_read(columns - self.center(), compared.dtype)
        of_class = compared._replace(columns=near).lse(self.candidates("same_key")).rows
        ones = columns.new_ones((columns.shape[0], 1))
        D, sums = columns.shape[1], self.sums(torch.cat([columns, near, ones], 1))
        count = sums[:, -1].detach()
        if self.ignore_index is not None:
            count = count.masked_fill(self.key_a == self.ignore_index, 0.0)
        scale = compared.scale / count.clamp_min(1)
        mean, of_near = scale * compared.dot(sums[:, :D]), scale * compared.dot(sums[:, D:-1])
        excess = (of_class - of_near).masked_fill(count <= 1, 0.0)
        loss = one_positive(lse, mean + excess) + excess
        if largest is None:
            return Direction(loss.masked_fill(count == 0, 0.0), count, None)
        with torch.no_grad():
            best = compared.lse(self.candidates("same_key"), extrema=True).row_max
            hit = hits(best, largest) & (count > 0)
        matches = Matches(hit, mean.detach(), count)
        return Direction(loss.masked_fill(count == 0, 0.0), count, matches)


class Direction(NamedTuple):
    """The losses of all rows in one direction."""

    loss: torch.Tensor  # [M], 0 where there are no positives
    count: torch.Tensor  # [M], of the positives
    matches: Matches | None  # what metrics need

    def restored(self, order: torch.Tensor) -> Direction:
        """The same in the order that the rows had before `order` sorted them."""

        def back(x):
            return torch.empty_like(x).index_copy(0, order, x)

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
    forward = Labelled(compared, key_a, key_b, ignore_index)
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
