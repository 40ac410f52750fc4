"""The sigmoid family's kernels on the CUDA backend, for the host program in backends/tiled.

Every function starts one operator, and an operator is one kernel. Below one panel there are two
kernels forward (sigmoid_reduce, sigmoid_finish), and a prepare where rows are normalised or
rounded. Backward there are four kernels and two products (sigmoid_terms, sigmoid_weight,
finish_backward for either set). The gradient of the scale takes two more, a sum and its rounding.
That of the rows' bias takes four: two fills, the sum of the tiles' sums, the positives. float16
takes one, a fill. Nothing synchronises with the host. The workspace is plan.WORKSPACE bytes of
weights, and 4 bytes per row and tile of 128 columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...problem import SigmoidForward, SigmoidProblem
from ..tiled import plan
from ..tiled.operands import Operands, Terms, positive_column
from . import _tiles
from ._tiles import HALF_RANGE, TILE, TILE_F64, as_upstream, present
from .similarity import finish_backward, flat_candidates, prepare

__all__ = [
    "HALF_RANGE",
    "finish_backward",
    "prepare",
    "sigmoid_finish",
    "sigmoid_reduce",
    "sigmoid_terms",
    "sigmoid_weight",
]


def sigmoid_reduce(operands: Operands, problem: SigmoidProblem, extrema: bool) -> Tensor:
    """``[1 or 2, S, G, M]``: sums, and with `extrema` maxima, by S super-tiles of columns."""
    x, candidates = operands.x, operands.candidates
    G, M, N = operands.shape
    super_rows = plan.super_tile(M, N, False, _tiles.super_unit(x))
    slots = operands.scale.new_empty(1 + extrema, plan.ceil_div(N, super_rows), G, M)
    _tiles.operators(x).sigmoid_reduce(
        x,
        operands.y,
        problem.row_bias,
        candidates.key_a,
        candidates.key_b,
        operands.scale,
        slots,
        *flat_candidates(candidates),
        super_rows,
        problem.sign,
        extrema,
        _tiles.float32_products(x),
    )
    return slots


def sigmoid_finish(
    slots: Tensor,  # [1 or 2, S, G, M]
    operands: Operands,
    problem: SigmoidProblem,
    found: SigmoidForward,
) -> None:
    """Fill the rows' sums, positives' logits and maxima from the slots."""
    none = slots.new_empty(0)
    _tiles.operators(slots).sigmoid_finish(
        slots,
        operands.x,
        operands.y,
        problem.row_bias,
        operands.scale,
        found.rows,
        present(found.pos, none),
        present(found.row_max, none),
        positive_column(problem),
        slots.shape[1],
        problem.sign,
    )


def sigmoid_terms(
    g_rows: Tensor,  # [G, M]
    problem: SigmoidProblem,
    pos: Tensor | None,  # [G, M]
    terms: Terms,
) -> None:
    """Fill the terms of the gradient's weights."""
    none, row_bias = problem.scale.new_empty(0), problem.row_bias
    _tiles.operators(g_rows).sigmoid_terms(
        as_upstream(g_rows),
        None if row_bias is None else as_upstream(row_bias),
        present(pos, none),
        terms.row,
        present(terms.pull, none),
        present(terms.half_bound, none),
        problem.sign,
    )


def sigmoid_weight(
    operands: Operands,
    terms: Terms,
    sign: int,
    panel: Tensor,  # [g, m, leading dimension of n]
    need_sums: bool,
) -> Tensor | None:
    """Fill a panel of weights.

    Returns its row sums by tile of columns, ``[tiles, g, m]``, where they are needed.
    """
    x, candidates = operands.x, operands.candidates
    G, M, N = operands.shape
    none = sums = operands.scale.new_empty(0)
    if need_sums:
        tiles = plan.ceil_div(N, TILE_F64 if x.dtype == torch.float64 else TILE)
        sums = operands.scale.new_zeros(tiles, G, M)
    _tiles.operators(x).sigmoid_weight(
        x,
        operands.y,
        candidates.key_a,
        candidates.key_b,
        operands.scale,
        terms.row,
        present(terms.half_bound, none),
        sums,
        panel,
        *flat_candidates(candidates),
        sign,
        _tiles.float32_products(x),
    )
    return sums if need_sums else None
