"""The sigmoid family's launchers, for the host program in fused_contrastive/backends/tiled.

Every function launches one kernel of the same name; an absent tensor is None for a kernel, too.
"""

from __future__ import annotations

from torch import Tensor

from ..backends.tiled.operands import Operands, Terms, contiguous, positive_column
from ..backends.tiled.plan import ceil_div
from ..problem import SigmoidForward, SigmoidProblem
from .configs import Config
from .launch import accumulation_type, launch
from .sigmoid_kernels import sigmoid_finish as sigmoid_finish_kernel
from .sigmoid_kernels import sigmoid_reduce as sigmoid_reduce_kernel
from .sigmoid_kernels import sigmoid_terms as sigmoid_terms_kernel
from .sigmoid_kernels import sigmoid_weight as sigmoid_weight_kernel
from .similarity import (
    FEATURES,
    HALF_RANGE,
    ROWS,
    TERM_ROWS,
    finish_backward,
    flat_sizes,
    prepare,
    run,
    super_tile,
    tile_constants,
)

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

    def start(config: Config) -> Tensor:
        super_rows = super_tile(operands, False, config)
        supers_m, supers_n = ceil_div(M, super_rows), ceil_div(N, super_rows)
        slots = operands.scale.new_empty(1 + extrema, supers_n, G, M)
        launch(
            sigmoid_reduce_kernel,
            G * supers_m * supers_n,
            x,
            operands.y,
            problem.row_bias,
            candidates.key_a,
            candidates.key_b,
            operands.scale,
            slots,
            *flat_sizes(operands),
            super_rows,
            SIGN=problem.sign,
            EXTREMA=extrema,
            RESIDENT=x.shape[2] <= config.block_k,
            **tile_constants(operands, config),
        )
        return slots

    return run("sigmoid_reduce", operands, start)


def sigmoid_finish(
    slots: Tensor,  # [1 or 2, S, G, M]
    operands: Operands,
    problem: SigmoidProblem,
    found: SigmoidForward,
) -> None:
    """Fill the rows' sums, positives' logits and maxima from the slots."""
    G, M, N = operands.shape
    D = operands.x.shape[2]
    launch(
        sigmoid_finish_kernel,
        G * ceil_div(M, ROWS),
        slots,
        operands.x,
        operands.y,
        problem.row_bias,
        operands.scale,
        found.rows,
        found.pos,
        found.row_max,
        M,
        N,
        positive_column(problem),
        slots.shape[1],
        D=D,
        SIGN=problem.sign,
        EVEN_K=D % FEATURES == 0,
        ACC=accumulation_type(operands.x.dtype),
        BLOCK=ROWS,
        BLOCK_K=FEATURES,
        SLOTS=32,
    )


def sigmoid_terms(
    g_rows: Tensor,  # [G, M]
    problem: SigmoidProblem,
    pos: Tensor | None,  # [G, M]
    terms: Terms,
) -> None:
    """Fill the terms of the gradient's weights.

    The kernel reads every upstream gradient, so a single one for all rows is copied.
    """
    G, M = g_rows.shape
    launch(
        sigmoid_terms_kernel,
        G * ceil_div(M, TERM_ROWS),
        g_rows.contiguous(),
        contiguous(problem.row_bias),
        pos,
        terms.row,
        terms.pull,
        terms.half_bound,
        M,
        SIGN=problem.sign,
        BLOCK=TERM_ROWS,
    )


def sigmoid_weight(
    operands: Operands,
    terms: Terms,
    sign: int,
    panel: Tensor,  # [g, m, leading dimension of n]
    need_sums: bool,
) -> Tensor | None:
    """Fill a panel of weights.

    Operands are contiguous, or rows of a single group. Returns the row sums by tile of columns,
    ``[tiles, g, m]``, where they are needed.
    """
    candidates = operands.candidates
    G, M, N = operands.shape

    def start(config: Config) -> Tensor | None:
        tiles_m, tiles_n = ceil_div(M, config.block_m), ceil_div(N, config.block_n)
        sums = operands.scale.new_empty(tiles_n, G, M) if need_sums else None
        launch(
            sigmoid_weight_kernel,
            G * tiles_m * tiles_n,
            operands.x,
            operands.y,
            candidates.key_a,
            candidates.key_b,
            operands.scale,
            terms.row,
            terms.half_bound,
            sums,
            panel,
            *flat_sizes(operands),
            SIGN=sign,
            GROUP=8,
            **tile_constants(operands, config),
        )
        return sums

    return run("sigmoid_weight", operands, start)
