"""The backend's two functions: fused_contrastive/ops.py has their contract."""

from __future__ import annotations

import math

import torch

from ..problem import KEYED
from . import configs
from . import support as guard
from .finish import finish_backward, finish_forward, finish_weighted
from .fused_rows import fused_rows
from .gradients import weighted_sums
from .launch import accumulation_type, ceil_div, is_interpreted, launch, precision
from .pair_reduce import pair_reduce
from .pair_weight import HALF_RANGE
from .prepare import BOUNDS, prepare, prepare_backward

FAR = 1 << 30
"""An offset beyond any index, small enough for 32-bit differences."""
FUSED_D = 128
"""Largest D of `fused_rows`."""


def resolve(kind: str, offset: int, stride: int, M: int, N: int) -> tuple[str, int, int]:
    """The same candidates with an offset and a stride of the order of M and N, and no mask where none is needed."""
    if kind == "not_pair":
        offset = (offset + stride // 2) % stride - stride // 2
        if stride < 2 * (M + N):
            return kind, offset % stride, stride
        kind = "not_self"
    if kind == "not_self" and not -M < offset < N:
        kind = "all"
    return kind, max(-FAR, min(offset, FAR)), 1


def super_tile(M: int, N: int, symmetric: bool, config: configs.Config) -> int:
    """Rows and columns of a super-tile: about 2000 programs once the matrix is large, of whole tiles."""
    unit = max(config.block_m, config.block_n)
    return max(1, ceil_div(math.isqrt(M * N // (4096 if symmetric else 2048)), unit)) * unit


ROWS, FEATURES = 8, 128
"""Rows of one program and features of one step of the row-wise kernels."""


def similarity_forward(
    a, b, scale, bias, key_a, key_b, kind, offset, stride, positive, normalize, columns, extrema, weighted, dtype
):  # fmt: skip
    """See ops.py."""
    G, M, D = a.shape
    one_set = b is None  # symmetric by the contract
    N = M if one_set else b.shape[1]
    kind, offset, stride = resolve(kind, offset, stride, M, N)
    a = a.contiguous()
    b = a if one_set else b.contiguous()
    bias = None if bias is None else bias.contiguous()
    key_a, key_b = keys_of(kind, key_a, key_b, one_set)

    def empty(present, *shape, dtype=scale.dtype):
        return torch.empty(shape if present else (0,), dtype=dtype, device=a.device)

    rounded = normalize or a.dtype != dtype
    a_hat, b_hat = (
        empty(rounded, G, M, D, dtype=dtype),
        empty(rounded and not one_set, G, N, D, dtype=dtype),
    )
    a_inv, b_inv = empty(normalize, G, M), empty(normalize and not one_set, G, N)
    bound = torch.empty(G * BOUNDS, dtype=torch.float32, device=a.device)
    if not normalize or bias is not None:
        bound.zero_()
    prepare_sets(
        a,
        None if one_set else b,
        bias,
        a_hat,
        b_hat,
        a_inv,
        b_inv,
        bound,
        normalize,
        rounded,
        dtype,
    )
    x = a_hat if rounded else a
    y = x if one_set else (b_hat if rounded else b)

    rows, cols = empty(True, 2, G, M), empty(columns, 2, G, N)
    row_max, col_max = empty(extrema, G, M), empty(extrema and columns, G, N)
    pos, loss = empty(positive >= 0, G, M), empty(positive >= 0, G, M)
    mean = empty(weighted, G, M, D)
    arguments = (x, y, bias, key_a, key_b, scale)
    if weighted and fits_fused_rows(x):
        weighted_rows(*arguments, rows, row_max, mean, kind, offset, stride)
    else:
        slots, super_rows = _reduce(
            *arguments, bound, kind, offset, stride, one_set, columns, normalize, extrema
        )
        _finish(
            slots,
            x,
            y,
            bias,
            scale,
            rows,
            cols,
            pos,
            loss,
            row_max,
            col_max,
            positive,
            super_rows,
            one_set,
        )
        if weighted:
            mean = _weighted_mean(*arguments, rows, kind, offset, stride)
    return rows, cols, pos, loss, row_max, col_max, a_hat, b_hat, a_inv, b_inv, mean


def present(tensor):
    return tensor if tensor is not None and tensor.numel() else None


def keys_of(kind, key_a, key_b, one_set):
    if kind not in KEYED:
        return None, None
    key_a = key_a.contiguous()
    return key_a, key_a if one_set else key_b.contiguous()


def prepare_sets(a, b, bias, a_hat, b_hat, a_inv, b_inv, bound, normalize, rounded, dtype):
    G, M, D = a.shape
    N = bias.shape[1] if bias is not None else (0 if b is None else b.shape[1])
    launch(
        prepare,
        G * (ceil_div(M, ROWS) + ceil_div(N, ROWS)),
        a, b, bias, a_hat if rounded else a, b_hat if rounded else b, a_inv if normalize else bound,
        b_inv if normalize else bound, bound, M, N, D,
        NORMALIZE=normalize, ROUND=rounded, EVEN_K=D % FEATURES == 0, ACC=accumulation_type(dtype),
        INTERPRET=is_interpreted(), BLOCK=ROWS, BLOCK_K=FEATURES, num_warps=2,
    )  # fmt: skip


def _reduce(
    x, y, bias, key_a, key_b, scale, bound, kind, offset, stride, one_set, columns, normalize, extrema
):  # fmt: skip
    """(slots, super_rows) of `pair_reduce`."""
    (G, M, D), N = x.shape, y.shape[1]
    arch = configs.architecture(x.device)

    def start(config: configs.Config):
        super_rows = super_tile(M, N, one_set, config)
        supers_m, supers_n = ceil_div(M, super_rows), ceil_div(N, super_rows)
        size = (supers_n + one_set) * G * M + (supers_m * G * N if columns else 0)
        slots = torch.empty(2 * size, dtype=scale.dtype, device=x.device)
        launch(
            pair_reduce,
            G * supers_m * supers_n,
            x, y, bias, key_a, key_b, scale, bound, slots, M, N, D, offset, stride, super_rows,
            KIND=kind, SYMMETRIC=one_set, COLUMNS=one_set or columns, NORMALIZED=normalize,
            EXTREMA=extrema, RESIDENT=D <= config.block_k, FOLD=2 if arch in configs.PAIRED_ROWS else 1,
            EVEN_K=D % config.block_k == 0, PRECISION=precision(x.dtype, arch), ACC=accumulation_type(x.dtype),
            INTERPRET=is_interpreted(), BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_K=config.block_k,
            num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip
        return slots, super_rows

    return configs.run("pair_reduce", arch, x.dtype, D, M, kind in KEYED, start)


def _finish(
    slots, x, y, bias, scale, rows, cols, pos, loss, row_max, col_max, positive, super_rows, one_set
):
    (G, M, D), N = x.shape, y.shape[1]
    launch(
        finish_forward,
        G * ceil_div(max(M, N), ROWS),
        slots, x, y, bias, scale, rows, present(cols), present(pos), present(loss), present(row_max), present(col_max),
        M, N, max(positive, 0) % N, super_rows,
        D=D, SYMMETRIC=one_set, EVEN_K=D % FEATURES == 0, ACC=accumulation_type(x.dtype), BLOCK=ROWS,
        BLOCK_K=FEATURES, SLOTS=32,
    )  # fmt: skip


def fits_fused_rows(x: torch.Tensor) -> bool:
    """Whether the weighted mean is `fused_rows`' work: 16-bit elements, small D, and an assembler to be trusted with it (guard.py)."""
    small = configs.element_class(x.dtype) == "half" and x.shape[2] <= FUSED_D
    return small and guard.register_operands_are_safe(configs.architecture(x.device))


def weighted_rows(x, y, bias, key_a, key_b, scale, rows, row_max, mean, kind, offset, stride):
    """Fill rows, row_max and mean by `fused_rows` and `finish_weighted`."""
    (G, M, D), N = x.shape, y.shape[1]
    arch = configs.architecture(x.device)
    block_k = max(16, 1 << (D - 1).bit_length())

    def start(config: configs.Config):
        tiles = G * ceil_div(M, config.block_m)
        splits = min(ceil_div(N, config.block_n), ceil_div(512, tiles))
        split_columns = ceil_div(ceil_div(N, splits), config.block_n) * config.block_n
        splits = ceil_div(N, split_columns)
        slots = torch.empty((2, splits, G, M), dtype=scale.dtype, device=x.device)
        partial = torch.empty((splits, G, M, D), dtype=scale.dtype, device=x.device)
        launch(
            fused_rows,
            tiles * splits,
            x, y, bias, key_a, key_b, scale, slots, partial, M, N, D, offset, stride, split_columns,
            KIND=kind, EVEN_K=D == block_k, PRECISION=precision(x.dtype, arch), ACC=accumulation_type(x.dtype),
            INTERPRET=is_interpreted(), BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_K=block_k,
            num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip
        return slots, partial, splits

    slots, partial, splits = configs.run("fused_rows", arch, x.dtype, D, M, kind in KEYED, start)
    launch(
        finish_weighted,
        G * ceil_div(M, ROWS),
        slots, partial, rows, present(row_max), mean, M, D, splits,
        ACC=accumulation_type(x.dtype), BLOCK=ROWS, BLOCK_K=FEATURES,
    )  # fmt: skip


def _weighted_mean(x, y, bias, key_a, key_b, scale, rows, kind, offset, stride):
    """Softmax-weighted mean of the columns by panels, for any D."""
    row_terms, _, _, unit = _terms(
        torch.ones_like(rows[0]), None, rows, None, None, 0, x.dtype, y.shape[1]
    )
    mean, _, _ = weighted_sums(
        x,
        y,
        bias,
        key_a,
        key_b,
        scale,
        row_terms,
        None,
        unit,
        kind,
        offset,
        stride,
        False,
        True,
        False,
        False,
    )
    return mean if unit is None else mean.mul_(unit / HALF_RANGE.value)


def _terms(g_rows, g_cols, rows, cols, pos, positive, dtype, N):
    """(row_terms, col_terms, pull, unit) of `prepare_backward`; absent ones are None."""
    _, G, M = rows.shape
    row_terms = rows.new_empty(G, M, 2)
    col_terms = None if cols is None else cols.new_empty(G, N, 2)
    pull = None if pos is None else pos.new_empty(G, M)
    unit = rows.new_zeros(1) if dtype == torch.float16 else None
    block = 256
    launch(
        prepare_backward,
        G * ceil_div(max(M, N), block),
        g_rows.contiguous(), None if g_cols is None else g_cols.contiguous(), rows, cols, pos,
        row_terms, col_terms, pull, unit, M, N, positive, BLOCK=block,
    )  # fmt: skip
    return row_terms, col_terms, pull, unit


def similarity_backward(
    g_rows, g_cols, a, b, scale, bias, key_a, key_b, rows, cols, pos, a_hat, b_hat, a_inv, b_inv, mean,
    kind, offset, stride, positive, normalize, dtype, need_a, need_b, need_scale, need_bias,
):  # fmt: skip
    """See ops.py."""
    one_set = b is None
    x = a_hat if a_hat.numel() else a.contiguous()
    y = x if one_set else (b_hat if b_hat.numel() else b.contiguous())
    M, N = x.shape[1], y.shape[1]
    kind, offset, stride = resolve(kind, offset, stride, M, N)
    cols, pos, bias = present(cols), present(pos), None if bias is None else bias.contiguous()
    key_a, key_b = keys_of(kind, key_a, key_b, one_set)
    positive = positive % N if positive >= 0 else 0
    need_b = need_b and not one_set
    from_a = need_a or (need_scale and not need_b)
    pull = unit = None
    if mean.numel() and not need_b and not need_bias:
        sum_a, sum_b, dbias = mean * g_rows.unsqueeze(-1), None, None
    else:
        row_terms, col_terms, pull, unit = _terms(
            g_rows, present(g_cols), rows, cols, pos, positive, x.dtype, N
        )
        sum_a, sum_b, dbias = weighted_sums(
            x, y, bias, key_a, key_b, scale, row_terms, row_terms if one_set else col_terms, unit, kind, offset, stride,
            one_set, from_a, need_b, need_bias,
        )  # fmt: skip
    da, radial = a.new_empty(0), None
    if from_a:
        da, radial = finish_set(
            sum_a, x, y, a, a_inv, pull, scale, unit, positive, True, one_set, 0.5 if one_set else 1.0,
            need_a, need_scale,
        )  # fmt: skip
    db = (a if one_set else b).new_empty(0)
    if need_b:
        db, other = finish_set(
            sum_b,
            y,
            x,
            b,
            b_inv,
            pull,
            scale,
            unit,
            positive,
            False,
            True,
            1.0,
            True,
            need_scale and not from_a,
        )
        radial = other if radial is None else radial
    if need_bias:
        dbias = _finish_bias(dbias, pull, unit, positive)
    dscale = radial.sum() if need_scale else scale.new_empty(0)
    return da, db, dscale, dbias if need_bias else scale.new_empty(0)


def finish_set(
    gradient, x, y, given, inv, pull, scale, unit, positive, near, far, share, need_x, need_scale
):
    """(gradient of the set `given`, whose rounded rows are x, or empty; partial sums of the scale's gradient or None)."""
    (G, X, D), Y = x.shape, y.shape[1]
    programs = G * ceil_div(X, ROWS)
    dx = torch.empty((G, X, D) if need_x else (0,), dtype=given.dtype, device=x.device)
    radial = scale.new_empty(programs) if need_scale else None
    launch(
        finish_backward,
        programs,
        gradient, x, y, given.contiguous(), present(inv), pull, scale, unit, present(dx), radial, X, Y, D, positive,
        NEAR=near and pull is not None, FAR=far and pull is not None, SHARE=share, EVEN_K=D % FEATURES == 0,
        ACC=accumulation_type(x.dtype), INTERPRET=is_interpreted(), BLOCK=ROWS, BLOCK_K=FEATURES, HALF_RANGE=HALF_RANGE.value,
    )  # fmt: skip
    return dx, radial


def _finish_bias(column_sums, pull, unit, positive):
    """Gradient of the bias: column sums of W less the positives' pull."""
    if unit is not None:
        column_sums = column_sums * (unit / HALF_RANGE.value)
    if pull is None:
        return column_sums
    M, N = pull.shape[1], column_sums.shape[1]
    column = (torch.arange(M, device=pull.device) + positive) % N
    return column_sums.index_add_(1, column, pull, alpha=-1)
