"""What both families hand to their kernels, and how weighted sums become gradients.

`Operands` is a problem as the tile kernels read it. `Terms` is what the gradient's weights are made
of. `Side` is one of the two sets while its gradient is finished.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...problem import (
    ABSENT,
    Candidates,
    Gradients,
    MaybeNone,
    Needs,
    Prepared,
    Problem,
    SigmoidProblem,
)


class Operands(NamedTuple):
    """A problem as the tile kernels read it, or the part of it that one panel covers."""

    x: Tensor  # [G, M, D] rounded rows
    y: Tensor  # [G, N, D] rounded columns; with one set they are x
    scale: Tensor  # []
    bias: Tensor | MaybeNone  # [G, N]; the sigmoid family has none
    candidates: Candidates  # with offset and stride resolved

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(G, M, N)``: that of the matrix of logits."""
        G, M, _ = self.x.shape
        return G, M, self.y.shape[1]

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """The tensors in the order in which every kernel over tiles takes them."""
        return self.x, self.y, self.bias, self.candidates.key_a, self.candidates.key_b, self.scale

    def part(self, g: slice, i: slice, j: slice) -> Operands:
        """The operands of the panel with groups `g`, rows `i` and columns `j`."""
        bias = None if self.bias is None else self.bias[g, j]
        candidates = self.candidates.within(g, i, j)
        return Operands(self.x[g, i], self.y[g, j], self.scale, bias, candidates)


class Terms(NamedTuple):
    """What the weights of the gradient are made of, beside the logits.

    Where only a given weighted mean is needed, all tensors are None.
    """

    row: Tensor | MaybeNone = None  # [G, M, 2]
    col: Tensor | MaybeNone = None  # [G, N, 2]; None: the columns have no weights of their own
    pull: Tensor | MaybeNone = None  # [G, M] weight of each row's positive, negated
    half_bound: Tensor | MaybeNone = None  # [1] largest weight; float16 panels are relative to it
    positive: int = 0  # offset of the positive's column

    def part(self, g: slice, i: slice, j: slice) -> Terms:
        """The terms of the panel with groups `g`, rows `i` and columns `j`."""
        return self._replace(row=self.row[g, i], col=None if self.col is None else self.col[g, j])


class Side(NamedTuple):
    """One of the two sets, whose gradient is finished. The other set has Y points."""

    x: Tensor  # [G, X, D] this set's rounded rows
    y: Tensor  # [G, Y, D] those of the other set
    given: Tensor  # [G, X, D] this set as the caller gave it
    inv: Tensor | MaybeNone  # [G, X] inverse norms; None: nothing is normalised
    near: bool  # whether points of this set have positives in the other one
    far: bool  # whether points of this set are positives of the other one

    @property
    def share(self) -> float:
        """How much of the scale's gradient this set's sum is: half where both sets are one."""
        return 0.5 if self.near and self.far else 1.0


def contiguous(x: Tensor | None) -> Tensor | MaybeNone:
    """x in contiguous memory, of any shape; None stays None."""
    return None if x is None else x.contiguous()


def positive_column(problem: Problem | SigmoidProblem) -> int:
    """The offset of the positive's column in ``[0, N)``; 0 where there is no positive."""
    return max(problem.positive, 0) % problem.sizes[2]


def allocate_prepared(problem: Problem | SigmoidProblem) -> Prepared:
    """Memory for the rows that must be normalised or rounded, and for their inverse norms.

    Each set is judged by its own dtype, as the contract asks. What needs no work stays None.
    """

    def rows(x: Tensor | None) -> Tensor | None:
        if x is None or not (problem.normalize or x.dtype != problem.dtype):
            return None
        return torch.empty(x.shape, dtype=problem.dtype, device=x.device)

    def inverse_norms(x: Tensor | None) -> Tensor | None:
        if x is None or not problem.normalize:
            return None
        return problem.scale.new_empty(x.shape[:2])

    a, b = problem.a, problem.b
    return Prepared(rows(a), rows(b), inverse_norms(a), inverse_norms(b))


def operands_of(
    problem: Problem | SigmoidProblem,
    prepared: Prepared,
    bias: Tensor | None = None,  # [G, N]
) -> Operands:
    """The operands of the whole problem."""
    _, M, N, _ = problem.sizes
    x = problem.a.contiguous() if prepared.a_hat is None else prepared.a_hat
    y = x
    if not problem.one_set:
        y = problem.b.contiguous() if prepared.b_hat is None else prepared.b_hat
    candidates = problem.candidates.resolved(M, N)
    return Operands(x, y, problem.scale, contiguous(bias), candidates)


def allocate_terms(
    operands: Operands,
    pos: Tensor | None,  # [G, M]
    columns: bool,
    positive: int = 0,
) -> Terms:
    """Memory for the terms of a backward pass; `columns`: the columns have terms of their own."""
    G, M, N = operands.shape
    new = operands.scale.new_empty
    is_half = operands.x.dtype == torch.float16
    return Terms(
        row=new(G, M, 2),
        col=new(G, N, 2) if columns else None,
        pull=None if pos is None else torch.empty_like(pos),
        half_bound=operands.scale.new_zeros(1) if is_half else None,
        positive=positive,
    )


def from_half(
    kernels,
    sums: Tensor,  # any shape
    terms: Terms,
) -> Tensor:
    """Sums of a panel's weights in their true size: those of float16 panels are relative."""
    if terms.half_bound is None:
        return sums
    return sums * (terms.half_bound / kernels.HALF_RANGE)


def reads_rows(problem: Problem | SigmoidProblem, need: Needs) -> bool:
    """Whether the weighted sum over the columns is needed, for a or for the scale.

    The scale's gradient is a sum over either set. The rows serve it unless only b is needed.
    """
    return need.a or (need.scale and not reads_columns(problem, need))


def reads_columns(problem: Problem | SigmoidProblem, need: Needs) -> bool:
    """Whether the weighted sum over the rows is needed, for a second set."""
    return need.b and not problem.one_set


def finish_sets(
    kernels,
    sums: tuple[Tensor | None, Tensor | None],  # [G, M, D] and [G, N, D], accumulation dtype
    operands: Operands,
    terms: Terms,
    *,
    problem: Problem | SigmoidProblem,
    prepared: Prepared,
    need: Needs,
) -> Gradients:
    """The gradients of a, b and the scale from ``W y`` and ``W^T x``."""
    x, y, scale = operands.x, operands.y, operands.scale
    da = db = dscale = radial = ABSENT
    if reads_rows(problem, need):
        side = Side(x, y, problem.a, prepared.a_inv, near=True, far=problem.one_set)
        da, radial = kernels.finish_backward(sums[0], side, terms, scale, need.a, need.scale)
    if reads_columns(problem, need):
        side = Side(y, x, problem.b, prepared.b_inv, near=False, far=True)
        unsummed = need.scale and radial is None
        db, of_columns = kernels.finish_backward(sums[1], side, terms, scale, True, unsummed)
        radial = of_columns if radial is None else radial
    if need.scale:
        dscale = radial.sum().to(scale.dtype)
    return Gradients(da, db, dscale, None)
