"""The gradient of the force in panels; docs/maths.md has the derivation.

``q_ij`` is the derivative by ``log A_ij``, and ``p_ij`` is the share of pair ij in the mean of
(d A)^2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...problem import ABSENT
from ._force_field import Field, centred, unit
from ._running_sum import finite


class Backward:
    """The gradient of some groups, in which every point is a row.

    Points that are no rows of the force have no affinity, and their g is 0.
    """

    def __init__(
        self,
        field: Field,
        *,
        g: Tensor,  # [G, P, D]
        lse: Tensor,  # [G, P]
        log_norm: Tensor,  # [G]
        shift: Tensor,  # [2, G, P]
        sums: Tensor,  # [2, G, P]
    ):
        self.field, self.g, self.lse, self.log_norm, self.sums = field, g, lse, log_norm, sums
        self.floor, self.rms = field.problem.floor, field.problem.rms
        self.y, self.shift = centred(field.x), finite(shift)
        self.unit = unit(shift, log_norm)
        # Each pull is the sum over the side of E <g, y>.
        self.pulls = torch.zeros_like(sums)
        # The power is <g, force> of each group, [G].
        self.power = ABSENT

    def run(self, panels: list[slice], dx: Tensor) -> Tensor:
        """Fill dx ``[G, P, D]``, and return the derivative by the inverse temperature: ``[]``."""
        for i in panels:
            _, e = self.affinity(i)
            weighted = e * (self.g[:, i] @ self.y.mT)
            for side, columns in enumerate(self.field.sides):
                self.pulls[side, :, i] = weighted[..., columns].sum(2)
        self.power = (
            self.unit * (self.sums[0] * self.pulls[1] - self.sums[1] * self.pulls[0])
        ).sum(1)
        by_row, by_column = torch.zeros_like(self.lse), torch.zeros_like(self.lse)
        value = torch.zeros_like(self.y)
        for i in panels:
            a, e = self.affinity(i)
            q = self.by_affinity(i, e, self.g[:, i] @ self.y.mT)
            for side, columns in enumerate(self.field.sides):
                coefficient = self.unit[:, i] * self.sums[1 - side, :, i] * (2 * side - 1)
                value[:, columns] += (e[..., columns] * coefficient.unsqueeze(2)).mT @ self.g[:, i]
            q = self.unclipped(a, self.less_norm(i, a, q))
            by_row[:, i] = q.sum(2)
            by_column += q.sum(1)
        through_lse = (by_row + by_column) / -2
        df = self.lse.new_zeros(())
        for i in panels:
            h, part = self.by_distance(i, through_lse)
            df += part
            d = self.field.distances(i)
            w = torch.where(d > 0, h / d, 0.0)
            dx[:, i] = w.sum(2, keepdim=True) * self.y[:, i] - w @ self.y
        dx += value
        return df

    def affinity(self, i: slice) -> tuple[Tensor, Tensor]:
        """``(a, E)`` of the rows `i`, with E relative to each side's shift: ``[G, |i|, P]``."""
        a = self.field.log_affinity(i, 0, self.lse[:, i], self.lse)
        e = [
            (a[..., columns] - self.shift[side, :, i].unsqueeze(2)).exp_()
            for side, columns in enumerate(self.field.sides)
        ]
        return a, torch.cat(e, 2)

    def by_affinity(self, i: slice, e: Tensor, gy: Tensor) -> Tensor:
        """The force's part of q for the rows `i`: ``[G, |i|, P]``.

        It is ``unit E (s_neg <g, y> - pull_neg)``, or its mirror for negative columns.

        Args:
            e: E ``[G, |i|, P]``.
            gy: ``<g_i, y_j>``, of the same shape.
        """
        q = torch.empty_like(e)
        for side, columns in enumerate(self.field.sides):
            sign, other = 2 * side - 1, 1 - side
            sums, pulls = self.sums[other, :, i], self.pulls[other, :, i]
            pull = gy[..., columns] * sums.unsqueeze(2) - pulls.unsqueeze(2)
            q[..., columns] = e[..., columns] * pull * (sign * self.unit[:, i]).unsqueeze(2)
        return q

    def mirrored(self, i: slice, a: Tensor) -> Tensor:
        """The force's part of q_ji, for the points `i` as columns of the rows j: ``[G, |i|, P]``.

        Args:
            a: ``[G, |i|, P]``, which is symmetric in i and j.
        """
        gy = self.y[:, i] @ self.g.mT
        q = torch.empty_like(a)
        for side, columns in enumerate(self.field.sides):
            # The rows of this panel that are columns of that side.
            start, stop = max(i.start, columns.start), min(i.stop, columns.stop)
            block = slice(start - i.start, max(stop - i.start, 0))
            sign, other = 2 * side - 1, 1 - side
            e = (a[:, block] - self.shift[side].unsqueeze(1)).exp()
            pull = gy[:, block] * self.sums[other].unsqueeze(1) - self.pulls[other].unsqueeze(1)
            q[:, block] = e * pull * (sign * self.unit).unsqueeze(1)
        return q

    def shares(self, i: slice, a: Tensor) -> Tensor:
        """``p_ij`` of the rows `i`, 0 where d = 0: ``[G, |i|, P]``, as a."""
        d = self.field.distances(i)
        log_share = d.log() + a - finite(self.log_norm)[:, None, None]
        p = log_share.mul_(2).exp_().div_(d.shape[2] ** 2)
        return p.masked_fill_((self.log_norm == -math.inf)[:, None, None], 0.0)

    def less_norm(self, i: slice, a: Tensor, q: Tensor) -> Tensor:
        """q ``[G, |i|, P]`` less what goes through the norm."""
        return q - self.power[:, None, None] * self.shares(i, a) if self.rms else q

    def unclipped(self, a: Tensor, q: Tensor) -> Tensor:
        """q ``[G, |i|, P]`` with 0 where the floor of a is active."""
        return q if self.floor == -math.inf else q.masked_fill_(a <= self.floor, 0.0)

    def by_distance(self, i: slice, through_lse: Tensor) -> tuple[Tensor, Tensor]:
        """The derivative by d_ij, as ij and as ji, of the rows `i`: ``[G, |i|, P]``.

        The second result is their part of the derivative by the inverse temperature: ``[]``.

        Args:
            through_lse: the derivative by the log-sum-exps, ``[G, P]``.
        """
        field, factor = self.field, self.field.problem.inverse_temperatures[0]
        d = field.distances(i)
        a, e = self.affinity(i)
        own = self.less_norm(i, a, self.by_affinity(i, e, self.g[:, i] @ self.y.mT))
        mirrored = self.less_norm(i, a, self.mirrored(i, a))
        s = field.log_kernel(i, 0)
        softmax = (s - self.lse[:, i].unsqueeze(2)).exp_()
        own = self.unclipped(a, own) + through_lse[:, i].unsqueeze(2) * softmax
        softmax = (s - self.lse.unsqueeze(1)).exp_()
        both = own + self.unclipped(a, mirrored) + through_lse.unsqueeze(1) * softmax
        df = -(own * d).sum()
        h = both * -factor
        if self.rms:
            through_norm = 2 * self.power[:, None, None] * self.shares(i, a)
            h -= torch.where(d > 0, through_norm / d, 0.0)
        return h, df
