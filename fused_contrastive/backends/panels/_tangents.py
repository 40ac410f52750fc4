"""What the second derivatives are made of: sides, softmaxes and sums, each with its tangent."""

from __future__ import annotations

import torch
from torch import Tensor

from ...dtypes import accumulation_dtype
from ...problem import ABSENT, LogSumExp
from ._panel import EPS, product, widen
from ._running_sum import finite

EVERY = slice(None)


class Side:
    """One set of rows, ``[G, rows, D]``, and the tangent of its normalised rows.

    Attributes:
        read: the rows as the products of the logits read them.
        x: the same in the accumulation dtype.
        t: the tangent of the set itself, in that dtype, or None, which stands for 0.
        u: the tangent of the normalised rows along it, or None.
        inv: ``[G, rows, 1]``, the inverse norms, or None where nothing is normalised.
        unit: the normalised rows before rounding, or None.
    """

    def __init__(
        self,
        given: Tensor,  # [G, rows, D]
        hat: Tensor | None,  # [G, rows, D]
        inv: Tensor | None,  # [G, rows]
        t: Tensor | None,  # [G, rows, D]
    ):
        self.dtype = given.dtype
        self.read = widen(given if hat is None else hat)
        self.x = self.read.to(accumulation_dtype(self.read.dtype))
        self.t = ABSENT if t is None else t.to(self.x.dtype)
        self.inv = self.unit = ABSENT
        if inv is not None:
            self.inv = inv.unsqueeze(-1)
            self.unit = given.to(self.x.dtype) * self.inv
        self.u = ABSENT if t is None else self.through_norm(self.t)

    def radial(self, x: Tensor) -> Tensor:
        """``<unit, x>``, ``[G, rows, 1]``.

        It is 0 below the norm floor, where the norm is a constant.
        """
        return (self.unit * x).sum(-1, keepdim=True) * (self.inv < 1 / EPS)

    def through_norm(self, x: Tensor) -> Tensor:
        """x ``[G, rows, D]`` times the normalisation's Jacobian, which is symmetric."""
        return x if self.inv is None else (x - self.radial(x) * self.unit) * self.inv

    def along_norm(self, x: Tensor, t_x: Tensor) -> Tensor:
        """The tangent of `through_norm(x)` along the tangent `t_x` of x and that of the set."""
        if self.inv is None:
            return t_x
        t = self.through_norm(t_x)
        if self.u is None:
            return t
        moved = (self.u * x).sum(-1, keepdim=True) * self.unit + self.radial(x) * self.u
        live = self.inv < 1 / EPS
        return t - (moved * live + self.through_norm(x) * self.radial(self.t)) * self.inv


class Softmax:
    """The softmax of one direction.

    It first finds the means of the logits' tangents, and then the weights. ``exp(s - lse)`` is
    divided by its own sum, so that weights sum to 1 also where another kernel made lse.

    Attributes:
        total: ``[G, size]``, the sums of ``exp(s - lse)``.
        mean: ``[G, size]``, the means of the logits' tangents.
        c, t_c: ``[G, size]``, the factors of the weights and their tangents.
    """

    def __init__(self, lse: LogSumExp):
        self.lse = finite(lse.value)
        self.total, self.mean = torch.zeros_like(self.lse), torch.zeros_like(self.lse)
        self.c = self.t_c = ABSENT

    def add(self, g: slice, k: slice, s: Tensor, t: Tensor, dim: int) -> None:
        """Add a panel of logits s and tangents t, ``[g, m, n]``, along `dim` to ``[g, k]``."""
        p = torch.sub(s, self.lse[g, k].unsqueeze(dim)).exp_()
        self.total[g, k] += p.sum(dim)
        self.mean[g, k] += p.mul_(t).sum(dim)

    def close(self) -> None:
        """Turn the sums of tangents into means, once all panels have been added."""
        self.total.masked_fill_(self.total == 0, 1.0)
        self.mean /= self.total

    def weigh(self, c: Tensor, t_c: Tensor | None = None, order: slice | Tensor = EVERY) -> None:
        """Set the upstream gradients of the log-sum-exps in `order`, ``[G, rows]``.

        `t_c` are their tangents, where None stands for 0.
        """
        self.c, self.t_c = torch.zeros_like(self.total), torch.zeros_like(self.total)
        self.c[:, order] = c
        if t_c is not None:
            self.t_c[:, order] = t_c
        self.c, self.t_c = self.c / self.total, self.t_c / self.total

    def weights(self, g: slice, k: slice, s: Tensor, t: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """``W = c softmax`` of a panel ``[g, m, n]``, and its tangent."""
        lse, mean, c, t_c = (
            x[g, k].unsqueeze(dim) for x in (self.lse, self.mean, self.c, self.t_c)
        )
        p = torch.sub(s, lse).exp_()
        t_w = torch.sub(t, mean).mul_(c).add_(t_c).mul_(p)
        return p.mul_(c), t_w


class Sums:
    """``W y``, unscaled, for the rows of one side, and its tangent: ``[G, rows, D]`` each."""

    def __init__(self, side: Side):
        self.side = side
        self.total, self.tangent = torch.zeros_like(side.x), torch.zeros_like(side.x)

    def add(self, place, w: Tensor, t_w: Tensor, other: Side, where) -> None:
        """Add the products of w and its tangent t_w, ``[g, m, n]``, with rows of `other`."""
        self.total[place] += product(w, other.x[where])
        self.tangent[place] += product(t_w, other.x[where])
        if other.u is not None:
            self.tangent[place] += product(w, other.u[where])

    def add_pairs(self, order, w: Tensor, t_w: Tensor, other: Side, where) -> None:
        """Add one pair for each row in `order`, with weights w and tangents t_w, ``[G, rows]``."""
        w, t_w, y = w.unsqueeze(-1), t_w.unsqueeze(-1), other.x[:, where]
        self.total[:, order] += w * y
        self.tangent[:, order] += t_w * y
        if other.u is not None:
            self.tangent[:, order] += w * other.u[:, where]

    def along_scale(self) -> Tensor:
        """The tangent ``[]`` of the scale's gradient."""
        t = (self.side.x * self.tangent).sum()
        return t if self.side.u is None else t + (self.side.u * self.total).sum()

    def finish(self, scale: Tensor, t_scale: Tensor | None) -> Tensor:
        """The tangent of the gradient of the set itself, in its dtype."""
        t = scale * self.tangent
        if t_scale is not None:
            t = t + t_scale * self.total
        return self.side.along_norm(scale * self.total, t).to(self.side.dtype)
