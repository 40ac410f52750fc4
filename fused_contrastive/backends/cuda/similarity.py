"""The similarity family's kernels on the CUDA backend, for the host program in backends/tiled.

Every function starts one operator, and an operator is one kernel. Products with panels of weights
are library GEMMs. One normalised set, below one panel, takes three kernels forward (prepare,
pair_reduce, finish_forward). Backward it takes four (terms, pair_weight, one product,
finish_backward). The gradient of the scale takes two more, a sum and its rounding, and float16
takes one, a fill. Nothing synchronises with the host. The workspace is plan.WORKSPACE bytes of
weights, and 16 bytes per row and super-tile.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...problem import KINDS, Candidates, Forward, Prepared, Problem, Saved, Upstream, Wanted
from ..tiled import plan
from ..tiled.operands import Operands, Side, Terms, positive_column
from . import _tiles
from ._tiles import FINISH_ROWS, HALF_RANGE, as_upstream, present

__all__ = [
    "HALF_RANGE",
    "finish_backward",
    "finish_forward",
    "finish_weighted",
    "fits_fused_rows",
    "fused_rows",
    "pair_reduce",
    "pair_weight",
    "prepare",
    "terms",
]

FUSED_TILE = 64
"""The rows, and columns, of a tile of `fused_rows`."""


def prepare(
    problem,  # Problem or SigmoidProblem, contiguous
    bias: Tensor | None,  # [G, N]
    prepared: Prepared,
) -> Tensor | None:
    """Fill the normalised, rounded rows and the inverse norms.

    Returns ``[G, 3]`` float32: the largest norms of a and of b and the largest bias. Without a bias
    normalised rows need no such bound, and the result is None.
    """
    a, normalize = problem.a, problem.normalize
    none, no_rows = problem.scale.new_empty(0), problem.scale.new_empty(0, dtype=problem.dtype)
    bound = None
    if not normalize or bias is not None:
        bound = torch.zeros((a.shape[0], 3), dtype=torch.float32, device=a.device)
    _tiles.operators(a).prepare(
        a,
        problem.b,
        bias,
        *(present(x, no_rows) for x in (prepared.a_hat, prepared.b_hat)),
        *(present(x, none) for x in (prepared.a_inv, prepared.b_inv)),
        present(bound, no_rows),
        no_rows,
        normalize,
    )
    return bound


def flat_candidates(candidates: Candidates) -> tuple[int, int, int]:
    """``(kind, offset, stride)`` as the operators take them."""
    return KINDS.index(candidates.kind), candidates.offset, candidates.stride


def pair_reduce(
    operands: Operands,
    bound: Tensor | None,  # [G, 3]
    problem: Problem,
    wanted: Wanted,
) -> tuple[Tensor, int]:
    """``(slots, super_rows)``: sums and maxima of the logits, per row and super-tile.

    The slots are ``[plan.slot_count(...)]`` in the accumulation dtype.
    """
    x, symmetric = operands.x, problem.one_set
    _, M, N = shape = operands.shape
    super_rows = plan.super_tile(M, N, symmetric, _tiles.super_unit(x))
    slots = problem.scale.new_empty(plan.slot_count(shape, super_rows, symmetric, wanted.columns))
    _tiles.operators(x).pair_reduce(
        *operands.tensors,
        present(bound, x.new_empty(0)),
        slots,
        *flat_candidates(operands.candidates),
        super_rows,
        symmetric,
        symmetric or wanted.columns,
        problem.normalize,
        wanted.extrema,
        _tiles.float32_products(x),
    )
    return slots, super_rows


def finish_forward(
    slots: Tensor,  # [plan.slot_count(...)]
    super_rows: int,
    operands: Operands,
    problem: Problem,
    found: Forward,
) -> None:
    """Fill log-sum-exps, positives' logits, losses and maxima from the slots."""
    none = problem.scale.new_empty(0)
    _tiles.operators(slots).finish_forward(
        slots,
        operands.x,
        operands.y,
        operands.bias,
        operands.scale,
        found.row_lse.parts,
        none if found.col_lse is None else found.col_lse.parts,
        *(present(x, none) for x in (found.pos, found.loss, found.row_max, found.col_max)),
        positive_column(problem),
        super_rows,
        problem.one_set,
    )


def fits_fused_rows(
    x: Tensor,  # [G, M, D]
) -> bool:
    """Whether a tile of `fused_rows` holds rows of this many features."""
    return x.shape[2] <= (64 if x.dtype == torch.float64 else 128)


def fused_rows(operands: Operands) -> tuple[Tensor, Tensor]:
    """``(slots [2, S, G, M], partial [S, G, M, D])`` of S splits of the columns.

    The slots are sums and maxima, `partial` the sums of columns weighted by exponentials.
    """
    x = operands.x
    G, M, N = operands.shape
    columns = plan.split_columns(operands.shape, FUSED_TILE, FUSED_TILE)
    splits = plan.ceil_div(N, columns)
    slots = operands.scale.new_empty(2, splits, G, M)
    partial = operands.scale.new_empty(splits, G, M, x.shape[2])
    _tiles.operators(x).fused_rows(
        *operands.tensors,
        slots,
        partial,
        *flat_candidates(operands.candidates),
        columns,
        _tiles.float32_products(x),
    )
    return slots, partial


def finish_weighted(
    slots: Tensor,  # [2, S, G, M]
    partial: Tensor,  # [S, G, M, D]
    found: Forward,
) -> None:
    """Fill log-sum-exp, maximum and weighted mean of the rows from those of the splits."""
    none = slots.new_empty(0)
    _tiles.operators(slots).finish_weighted(
        slots, partial, found.row_lse.parts, present(found.row_max, none), found.mean, none
    )


def terms(operands: Operands, upstream: Upstream, saved: Saved, terms: Terms) -> None:
    """Fill the terms of the gradient's weights."""
    none = operands.scale.new_empty(0)
    _tiles.operators(operands.x).terms(
        as_upstream(upstream.rows),
        none if upstream.cols is None else as_upstream(upstream.cols),
        saved.row_lse.parts,
        none if saved.col_lse is None else saved.col_lse.parts,
        present(saved.pos, none),
        terms.row,
        *(present(x, none) for x in (terms.col, terms.pull, terms.half_bound)),
        terms.positive,
    )


def pair_weight(
    operands: Operands,
    terms: Terms,
    panel: Tensor,  # [g, m, leading dimension of n]
    mirror: bool,
) -> None:
    """Fill a panel of weights. With `mirror` it is symmetric, and half of it is computed."""
    x = operands.x
    none = operands.scale.new_empty(0)
    _tiles.operators(x).pair_weight(
        *operands.tensors,
        terms.row,
        present(terms.col, none),
        present(terms.half_bound, none),
        panel,
        *flat_candidates(operands.candidates),
        mirror,
        _tiles.float32_products(x),
    )


def finish_backward(
    gradient: Tensor,  # [G, X, D] accumulation dtype
    side: Side,
    terms: Terms,
    scale: Tensor,  # []
    need_x: bool,
    need_scale: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """The gradient of one set ``[G, X, D]``, and partial sums of the scale's gradient.

    The partial sums are ``[G * blocks of rows]`` in float64. What is not needed is None.
    """
    G, X, _ = side.x.shape
    given, none = side.given, scale.new_empty(0)
    dx = torch.empty(side.x.shape, dtype=given.dtype, device=given.device) if need_x else None
    partial = G * plan.ceil_div(X, FINISH_ROWS) if need_scale else 0
    radial = scale.new_empty(partial, dtype=torch.float64)
    paired = terms.pull is not None
    _tiles.operators(gradient).finish_backward(
        gradient,
        side.x,
        side.y,
        given.contiguous(),
        *(present(x, none) for x in (side.inv, terms.pull)),
        scale,
        present(terms.half_bound, none),
        given.new_empty(0) if dx is None else dx,
        radial,
        terms.positive,
        side.near and paired,
        side.far and paired,
        side.share == 0.5,
    )
    return dx, radial if need_scale else None
