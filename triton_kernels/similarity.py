"""The similarity family's launchers, for the host program in fused_contrastive/backends/tiled.

Every function launches one kernel of the same name, except that `terms` launches
`prepare_backward`. An absent tensor is None for a kernel, too. The tiles come from the table in
configs.py, or from a measurement inside `autotune`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends.tiled import plan
from ..backends.tiled.operands import Operands, Side, Terms, positive_column
from ..backends.tiled.plan import ceil_div
from ..problem import Forward, Prepared, Problem, Saved, Upstream, Wanted
from . import configs, support
from .configs import Config, precision
from .finish import finish_backward as finish_backward_kernel
from .finish import finish_forward as finish_forward_kernel
from .finish import finish_weighted as finish_weighted_kernel
from .fused_rows import fused_rows as fused_rows_kernel
from .launch import accumulation_type, is_interpreted, launch
from .pair_reduce import pair_reduce as pair_reduce_kernel
from .pair_weight import HALF_RANGE as HALF_RANGE_CONSTANT
from .pair_weight import pair_weight as pair_weight_kernel
from .prepare import BOUNDS, prepare_backward
from .prepare import prepare as prepare_kernel

HALF_RANGE = HALF_RANGE_CONSTANT.value
"""float16 panels hold weights times this over the largest one."""

FUSED_D = 128
"""The largest D of `fused_rows`."""

ROWS, FEATURES = 8, 128
"""The rows of one program and the features of one step of the row-wise kernels."""

TERM_ROWS = 256
"""The rows of one program of `prepare_backward`, which reads a few numbers per row."""


def prepare(
    problem,  # Problem or SigmoidProblem, contiguous
    bias: Tensor | None,  # [G, N]
    prepared: Prepared,
) -> Tensor:
    """Fill the normalised, rounded rows and the inverse norms.

    Returns ``[3 G]`` float32: per group the largest norms of a and of b and the largest bias. For
    normalised rows without a bias nothing is written there, and nothing reads it.

    The kernel rounds both sets or none. Where only one needs it, the copy of the other is dropped.
    Without a second set it does not use that set's pointers, which are then those of the first.
    """
    a, b, normalize, dtype = problem.a, problem.b, problem.normalize, problem.dtype
    G, M, D = a.shape
    N = bias.shape[1] if bias is not None else (0 if b is None else b.shape[1])
    bound = torch.empty(G * BOUNDS, dtype=torch.float32, device=a.device)
    if not normalize or bias is not None:
        bound.zero_()
    a_hat, b_hat, a_inv, b_inv = prepared
    rounded = a_hat is not None or b_hat is not None
    if rounded and a_hat is None:
        a_hat = torch.empty_like(a)
    if rounded and b_hat is None:
        b_hat = a_hat if b is None else torch.empty_like(b)
    launch(
        prepare_kernel,
        G * (ceil_div(M, ROWS) + ceil_div(N, ROWS)),
        a,
        b,
        bias,
        a_hat if rounded else a,
        b_hat if rounded else b,
        a_inv if normalize else bound,
        (a_inv if b is None else b_inv) if normalize else bound,
        bound,
        M,
        N,
        D,
        NORMALIZE=normalize,
        ROUND=rounded,
        EVEN_K=D % FEATURES == 0,
        ACC=accumulation_type(dtype),
        INTERPRET=is_interpreted(),
        BLOCK=ROWS,
        BLOCK_K=FEATURES,
        num_warps=2,
    )
    return bound


def flat_sizes(operands: Operands) -> tuple[int, int, int, int, int]:
    """``(M, N, D, offset, stride)`` as the kernels take them."""
    _, M, N = operands.shape
    return M, N, operands.x.shape[2], operands.candidates.offset, operands.candidates.stride


def run(kernel: str, operands: Operands, start):
    """The result of `start` with the configuration of `kernel` for these operands."""
    x = operands.x
    keyed = operands.candidates.key_a is not None
    arch = configs.architecture(x.device)
    return configs.run(kernel, arch, x.dtype, D=x.shape[2], M=x.shape[1], keyed=keyed, start=start)


def tile_constants(operands: Operands, config: Config) -> dict:
    """The constants that every kernel over tiles has."""
    dtype = operands.x.dtype
    return {
        "KIND": operands.candidates.kind,
        "EVEN_K": operands.x.shape[2] % config.block_k == 0,
        "PRECISION": precision(dtype, configs.architecture(operands.x.device)),
        "ACC": accumulation_type(dtype),
        "INTERPRET": is_interpreted(),
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
    }


def super_tile(operands: Operands, symmetric: bool, config: Config) -> int:
    """The rows, and columns, of a super-tile, which holds whole tiles of this configuration."""
    _, M, N = operands.shape
    return plan.super_tile(M, N, symmetric, max(config.block_m, config.block_n))


def pair_reduce(
    operands: Operands,
    bound: Tensor,  # [3 G]
    problem: Problem,
    wanted: Wanted,
) -> tuple[Tensor, int]:
    """``(slots, super_rows)``: sums and maxima of the logits, per row and super-tile.

    The slots are ``[plan.slot_count(...)]`` in the accumulation dtype.
    """
    G, M, N = operands.shape
    D, symmetric = operands.x.shape[2], problem.one_set
    paired_rows = configs.architecture(operands.x.device) in configs.PAIRED_ROWS

    def start(config: Config) -> tuple[Tensor, int]:
        super_rows = super_tile(operands, symmetric, config)
        count = plan.slot_count(operands.shape, super_rows, symmetric, wanted.columns)
        slots = operands.scale.new_empty(count)
        launch(
            pair_reduce_kernel,
            G * ceil_div(M, super_rows) * ceil_div(N, super_rows),
            *operands.tensors,
            bound,
            slots,
            *flat_sizes(operands),
            super_rows,
            SYMMETRIC=symmetric,
            COLUMNS=symmetric or wanted.columns,
            NORMALIZED=problem.normalize,
            EXTREMA=wanted.extrema,
            RESIDENT=D <= config.block_k,
            FOLD=2 if paired_rows else 1,
            **tile_constants(operands, config),
        )
        return slots, super_rows

    return run("pair_reduce", operands, start)


def finish_forward(
    slots: Tensor,  # [plan.slot_count(...)]
    super_rows: int,
    operands: Operands,
    problem: Problem,
    found: Forward,
) -> None:
    """Fill log-sum-exps, positives' logits, losses and maxima from the slots."""
    G, M, N = operands.shape
    D = operands.x.shape[2]
    launch(
        finish_forward_kernel,
        G * ceil_div(max(M, N), ROWS),
        slots,
        operands.x,
        operands.y,
        operands.bias,
        operands.scale,
        found.row_lse.parts,
        None if found.col_lse is None else found.col_lse.parts,
        found.pos,
        found.loss,
        found.row_max,
        found.col_max,
        M,
        N,
        positive_column(problem),
        super_rows,
        D=D,
        SYMMETRIC=problem.one_set,
        EVEN_K=D % FEATURES == 0,
        ACC=accumulation_type(operands.x.dtype),
        BLOCK=ROWS,
        BLOCK_K=FEATURES,
        SLOTS=32,
    )


def fits_fused_rows(
    x: Tensor,  # [G, M, D]
) -> bool:
    """Whether `fused_rows` computes the weighted mean.

    It takes 16-bit elements, a small D, and an assembler to be trusted with it (support.py).
    """
    small = configs.element_class(x.dtype) == "half" and x.shape[2] <= FUSED_D
    return small and support.register_operands_are_safe(configs.architecture(x.device))


def fused_rows(operands: Operands) -> tuple[Tensor, Tensor]:
    """``(slots [2, S, G, M], partial [S, G, M, D])`` of S splits of the columns.

    The slots are sums and maxima, `partial` the sums of columns weighted by exponentials.
    """
    G, M, N = operands.shape
    D = operands.x.shape[2]
    block_k = max(16, 1 << (D - 1).bit_length())

    def start(config: Config) -> tuple[Tensor, Tensor]:
        columns = plan.split_columns(operands.shape, config.block_m, config.block_n)
        splits = ceil_div(N, columns)
        slots = operands.scale.new_empty(2, splits, G, M)
        partial = operands.scale.new_empty(splits, G, M, D)
        constants = tile_constants(operands, config) | {"EVEN_K": D == block_k, "BLOCK_K": block_k}
        launch(
            fused_rows_kernel,
            G * ceil_div(M, config.block_m) * splits,
            *operands.tensors,
            slots,
            partial,
            *flat_sizes(operands),
            columns,
            **constants,
        )
        return slots, partial

    return run("fused_rows", operands, start)


def finish_weighted(
    slots: Tensor,  # [2, S, G, M]
    partial: Tensor,  # [S, G, M, D]
    found: Forward,
) -> None:
    """Fill log-sum-exp, maximum and weighted mean of the rows from those of the splits."""
    splits, G, M, D = partial.shape
    launch(
        finish_weighted_kernel,
        G * ceil_div(M, ROWS),
        slots,
        partial,
        found.row_lse.parts,
        found.row_max,
        found.mean,
        M,
        D,
        splits,
        ACC=accumulation_type(partial.dtype),
        BLOCK=ROWS,
        BLOCK_K=FEATURES,
    )


def terms(operands: Operands, upstream: Upstream, saved: Saved, terms: Terms) -> None:
    """Fill the terms of the gradient's weights.

    The kernel reads every upstream gradient, so a single one for all rows is copied.
    """
    rows, cols = saved.row_lse.parts, None if saved.col_lse is None else saved.col_lse.parts
    G, M, N = operands.shape
    launch(
        prepare_backward,
        G * ceil_div(max(M, N), TERM_ROWS),
        upstream.rows.contiguous(),
        None if upstream.cols is None else upstream.cols.contiguous(),
        rows,
        cols,
        saved.pos,
        terms.row,
        terms.col,
        terms.pull,
        terms.half_bound,
        M,
        N,
        terms.positive,
        BLOCK=TERM_ROWS,
    )


def pair_weight(
    operands: Operands,
    terms: Terms,
    panel: Tensor,  # [g, m, leading dimension of n]
    mirror: bool,
) -> None:
    """Fill a panel of weights. With `mirror` it is symmetric, and half of it is computed.

    Operands are contiguous, or rows of a single group.
    """
    G, M, N = operands.shape

    def start(config: Config) -> None:
        launch(
            pair_weight_kernel,
            G * ceil_div(M, config.block_m) * ceil_div(N, config.block_n),
            *operands.tensors,
            terms.row,
            terms.col,
            terms.half_bound,
            panel,
            *flat_sizes(operands),
            MIRROR=mirror,
            COLUMNS=terms.col is not None,
            GROUP=8,
            **tile_constants(operands, config),
        )

    run("pair_weight", operands, start)


def finish_backward(
    gradient: Tensor,  # [G, X, D] accumulation dtype
    side: Side,
    terms: Terms,
    scale: Tensor,  # []
    need_x: bool,
    need_scale: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """The gradient of one set ``[G, X, D]``, and partial sums of the scale's gradient.

    The partial sums are ``[programs]`` in the accumulation dtype. What is not needed is None.
    """
    (G, X, D), Y = side.x.shape, side.y.shape[1]
    given, paired = side.given, terms.pull is not None
    programs = G * ceil_div(X, ROWS)
    dx = torch.empty(side.x.shape, dtype=given.dtype, device=given.device) if need_x else None
    radial = scale.new_empty(programs) if need_scale else None
    launch(
        finish_backward_kernel,
        programs,
        gradient,
        side.x,
        side.y,
        given.contiguous(),
        side.inv,
        terms.pull,
        scale,
        terms.half_bound,
        dx,
        radial,
        X,
        Y,
        D,
        terms.positive,
        NEAR=side.near and paired,
        FAR=side.far and paired,
        SHARE=side.share,
        EVEN_K=D % FEATURES == 0,
        ACC=accumulation_type(side.x.dtype),
        INTERPRET=is_interpreted(),
        BLOCK=ROWS,
        BLOCK_K=FEATURES,
        HALF_RANGE=HALF_RANGE,
    )
    return dx, radial
