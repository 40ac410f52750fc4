"""The native CUDA backend: fused_contrastive/ops.py has the contract, csrc/cuda the kernels.

Every output and workspace is allocated here and filled by operators of one kernel each; products with panels of weights are library
GEMMs. One normalised set, below one panel: 3 kernels forward (prepare, pair_reduce, finish_forward), 4 kernels and products backward (terms,
pair_weight, one product, finish_backward); the scale's gradient takes 2 more (a sum and its rounding), float16 one (a fill). No host
synchronisation. Workspace: WORKSPACE bytes of weights, 16 bytes per row and super-tile.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from pathlib import Path

import torch

from ...problem import KINDS
from .._verified import verified
from ..panels import panel_products
from ..panels.force import force_backward  # noqa: F401
from ..tiled import plan as tiling
from ..tiled.plan import ceil_div, resolve
from . import force as cuda_force
from . import sigmoid as cuda_sigmoid
from ._tiles import (  # noqa: F401
    FMA,
    HALF_RANGE,
    TF32,
    TF32X3,
    TILE,
    TILE_SM90,
    as_upstream,
    finish_set,
    float32_products,
    keys_of,
    panel_size,
    super_unit,
)

FLAT = (
    "similarity_forward",
    "similarity_backward",
    "sigmoid_forward",
    "sigmoid_backward",
)
"""Functions that take the arguments of their op as they are."""

LIBRARIES: dict[str, object] = {}
"""Namespace of the operators by device type: "cuda" once the library is loaded (the tests add their host library for "cpu")."""

OLDER = "the CUDA library is older than this package: build it anew (FUSED_CONTRASTIVE_BUILD=cuda)"
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@functools.cache
def _load() -> str | None:
    """Load the library; the reason where there is none that works here."""
    try:
        versions = importlib.import_module("fused_contrastive._C_cuda").versions
    except ImportError as error:
        return f"the CUDA library is not built (FUSED_CONTRASTIVE_BUILD=cuda): {error}"
    except AttributeError:
        return OLDER
    reason = driver_refusal(*versions())
    if reason is None and not hasattr(torch.ops.fused_contrastive_cuda, "sigmoid_weight"):
        reason = OLDER
    if reason is None:
        LIBRARIES["cuda"] = torch.ops.fused_contrastive_cuda
    return reason


def driver_refusal(driver: int, runtime: int) -> str | None:
    """Why a driver cannot serve the CUDA runtime in the library, whose major version it must know; versions are 1000 major + 10 minor, a
    driver of 0 is none."""
    if driver == 0 or driver // 1000 >= runtime // 1000:
        return None
    return (
        f"the NVIDIA driver serves CUDA {driver // 1000}.{driver % 1000 // 10}, the library was built with CUDA "
        f"{runtime // 1000}.{runtime % 1000 // 10}: update the driver, or build with a toolkit of CUDA {driver // 1000}"
    )


def refusal(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this backend cannot serve tensors of this device and matrix dtype, or None when it can."""
    if dtype not in DTYPES:
        return f"{dtype} is none of float16, bfloat16, float32, float64"
    if device.type in LIBRARIES and device.type != "cuda":
        return None
    if device.type != "cuda" or torch.version.hip is not None:
        return f"no kernels for {device.type} tensors"
    reason = _load()
    if reason is None and torch.cuda.get_device_capability(device) < (8, 0):
        reason = "needs compute capability 8.0 or newer"
    return reason


def status() -> str:
    """One line for `fused_contrastive.backends()`."""
    reason = _load()
    if reason is not None:
        return f"unavailable: {reason}"
    where = (
        "available: GPU"
        if torch.cuda.is_available()
        else "unavailable: the library is loaded, but there is no GPU here"
    )
    return f"{where}; {verified(_source_hashes())}"


def _source_hashes() -> dict[str, str]:
    """Of the kernels' sources; none outside a checkout."""
    path = Path(__file__).resolve().parents[3] / "csrc/cuda/build.py"
    if not path.exists():
        return {}
    spec = importlib.util.spec_from_file_location("fused_contrastive_cuda_build", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.kernel_hashes()


def similarity_forward(
    a, b, scale, bias, key_a, key_b, kind, offset, stride, positive, normalize, columns, extrema, weighted, dtype
):  # fmt: skip
    """See ops.py."""
    G, M, D = a.shape
    one_set = b is None
    N = M if one_set else b.shape[1]
    kind, offset, stride = resolve(kind, offset, stride, M, N)
    a, b = a.contiguous(), None if one_set else b.contiguous()
    bias = None if bias is None else bias.contiguous()
    key_a, key_b = keys_of(kind, key_a, key_b, one_set)
    operators = LIBRARIES[a.device.type]

    def empty(present, *shape, dtype=scale.dtype):
        return torch.empty(shape if present else (0,), dtype=dtype, device=a.device)

    rounded = normalize or a.dtype != dtype
    rounded_b = not one_set and (normalize or b.dtype != dtype)
    a_hat, b_hat = empty(rounded, G, M, D, dtype=dtype), empty(rounded_b, G, N, D, dtype=dtype)
    a_inv, b_inv = empty(normalize, G, M), empty(normalize and not one_set, G, N)
    like = empty(False, dtype=dtype)
    bound = (
        like
        if normalize and bias is None
        else torch.zeros((G, 3), dtype=torch.float32, device=a.device)
    )
    operators.prepare(a, b, bias, a_hat, b_hat, a_inv, b_inv, bound, like, normalize)
    x = a_hat if rounded else a
    y = x if one_set else (b_hat if rounded_b else b)

    rows, cols = empty(True, 2, G, M), empty(columns, 2, G, N)
    row_max, col_max = empty(extrema, G, M), empty(extrema and columns, G, N)
    pos, loss = empty(positive >= 0, G, M), empty(positive >= 0, G, M)
    mean = empty(weighted, G, M, D)
    operands = (x, y, bias, key_a, key_b, scale)
    candidates = (KINDS.index(kind), offset, stride)
    float32 = float32_products(x)
    if weighted and fits_fused_rows(x):
        _weighted_rows(operators, operands, rows, row_max, mean, candidates, float32)
    else:
        super_rows = tiling.super_tile(M, N, one_set, super_unit(x))
        supers_m, supers_n = ceil_div(M, super_rows), ceil_div(N, super_rows)
        slots = empty(True, 2 * G * ((supers_n + one_set) * M + (supers_m * N if columns else 0)))
        operators.pair_reduce(
            *operands,
            bound,
            slots,
            *candidates,
            super_rows,
            one_set,
            one_set or columns,
            normalize,
            extrema,
            float32,
        )
        operators.finish_forward(
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
            max(positive, 0) % N,
            super_rows,
            one_set,
        )
        if weighted:
            mean = _weighted_mean(operators, operands, rows, (kind, offset, stride))
    return rows, cols, pos, loss, row_max, col_max, a_hat, b_hat, a_inv, b_inv, mean


def fits_fused_rows(x: torch.Tensor) -> bool:
    return x.shape[2] <= (64 if x.dtype == torch.float64 else 128)


def _weighted_rows(operators, operands, rows, row_max, mean, candidates, float32):
    """Log-sum-exp, maximum and weighted mean by `fused_rows`: the columns split so that about 512 blocks are under way."""
    x, y = operands[:2]
    (G, M, D), N = x.shape, y.shape[1]
    tiles = G * ceil_div(M, 64)
    columns = ceil_div(ceil_div(N, min(ceil_div(N, 64), ceil_div(512, tiles))), 64) * 64
    splits = ceil_div(N, columns)
    slots, partial = rows.new_empty(2, splits, G, M), rows.new_empty(splits, G, M, D)
    operators.fused_rows(*operands, slots, partial, *candidates, columns, float32)
    operators.finish_weighted(slots, partial, rows, row_max, mean, x.new_empty(0))


def _weighted_mean(operators, operands, rows, candidates):
    """Softmax-weighted mean of the columns by panels, for any D."""
    x, y = operands[:2]
    none = rows.new_empty(0)
    row_terms, _, _, unit = _terms(
        operators, torch.ones_like(rows[0]), none, rows, none, none, 0, x.dtype, y.shape[1]
    )
    mean, _, _ = weighted_sums(
        operators, operands, row_terms, none, unit, candidates, False, True, False, False
    )
    return mean.mul_(unit / HALF_RANGE) if unit.numel() else mean


def _terms(operators, g_rows, g_cols, rows, cols, pos, positive, dtype, N):
    """(row_terms, col_terms, pull, unit) of the kernel `terms`; absent ones are empty."""
    _, G, M = rows.shape
    none = rows.new_empty(0)
    row_terms = rows.new_empty(G, M, 2)
    col_terms = rows.new_empty(G, N, 2) if cols.numel() else none
    pull = torch.empty_like(pos)
    unit = rows.new_zeros(1) if dtype == torch.float16 else none
    operators.terms(
        as_upstream(g_rows),
        as_upstream(g_cols),
        rows,
        cols,
        pos,
        row_terms,
        col_terms,
        pull,
        unit,
        positive,
    )
    return row_terms, col_terms, pull, unit


def similarity_backward(
    g_rows, g_cols, a, b, scale, bias, key_a, key_b, rows, cols, pos, a_hat, b_hat, a_inv, b_inv, mean,
    kind, offset, stride, positive, normalize, dtype, need_a, need_b, need_scale, need_bias,
):  # fmt: skip
    """See ops.py."""
    one_set = b is None
    x = a_hat if a_hat.numel() else a.contiguous()
    y = x if one_set else (b_hat if b_hat.numel() else b.contiguous())
    (_, M, _), N = x.shape, y.shape[1]
    candidates = resolve(kind, offset, stride, M, N)
    bias = None if bias is None else bias.contiguous()
    operands = (x, y, bias, *keys_of(candidates[0], key_a, key_b, one_set), scale)
    operators = LIBRARIES[x.device.type]
    positive = positive % N if positive >= 0 else 0
    need_b = need_b and not one_set
    from_a = need_a or (need_scale and not need_b)
    pull = unit = scale.new_empty(0)
    if mean.numel() and not need_b and not need_bias:
        sum_a, sum_b, dbias = mean * g_rows.unsqueeze(-1), None, None
    else:
        row_terms, col_terms, pull, unit = _terms(
            operators, g_rows, g_cols, rows, cols, pos, positive, x.dtype, N
        )
        sum_a, sum_b, dbias = weighted_sums(
            operators,
            operands,
            row_terms,
            row_terms if one_set else col_terms,
            unit,
            candidates,
            one_set,
            from_a,
            need_b,
            need_bias,
        )
    finish = functools.partial(
        finish_set, operators, pull=pull, scale=scale, unit=unit, positive=positive
    )
    da, db, radial = a.new_empty(0), a.new_empty(0), None
    if from_a:
        da, radial = finish(
            sum_a, x, y, a, a_inv, near=True, far=one_set, need_x=need_a, need_scale=need_scale
        )
    if need_b:
        db, other = finish(
            sum_b,
            y,
            x,
            b,
            b_inv,
            near=False,
            far=True,
            need_x=True,
            need_scale=need_scale and not from_a,
        )
        radial = other if radial is None else radial
    if need_bias:
        dbias = _finish_bias(dbias, pull, unit, positive)
    dscale = radial.sum().to(scale.dtype) if need_scale else scale.new_empty(0)
    return da, db, dscale, dbias if need_bias else scale.new_empty(0)


def _finish_bias(column_sums, pull, unit, positive):
    """Gradient of the bias: column sums of W less the positives' pull."""
    if unit.numel():
        column_sums = column_sums * (unit / HALF_RANGE)
    if not pull.numel():
        return column_sums
    column = (torch.arange(pull.shape[1], device=pull.device) + positive) % column_sums.shape[1]
    return column_sums.index_add_(1, column, pull, alpha=-1)


def weighted_sums(
    operators,
    operands,
    row_terms,
    col_terms,
    unit,
    candidates,
    one_set: bool,
    need_a: bool,
    need_b: bool,
    need_bias: bool,
):
    """``W y [G, M, D]``, ``W^T x [G, N, D]`` and the column sums of W ``[G, N]``, each None unless needed.

    W is `pair_weight`'s; with `unit` (float16) the results are multiples of it. `one_set`: W is symmetric, ``col_terms`` are the row
    terms and half of it is computed.
    """
    x, y, bias, key_a, key_b, scale = operands
    (G, M, _), N = x.shape, y.shape[1]
    kind, offset, stride = candidates
    float32 = float32_products(x)
    sum_bias = torch.zeros((G, N), dtype=scale.dtype, device=x.device) if need_bias else None

    def panel(g, i, j, workspace):
        shifted = (
            offset + i.start - j.start if kind in ("not_self", "not_pair", "same_key") else offset
        )
        panel = workspace[: panel_size(g, i, j)].view(g.stop - g.start, i.stop - i.start, -1)
        operators.pair_weight(
            x[g, i], y[g, j], None if bias is None else bias[g, j], None if key_a is None else key_a[g, i],
            None if key_b is None else key_b[g, j], scale, row_terms[g, i], col_terms[g, j] if col_terms.numel() else col_terms, unit,
            panel, KINDS.index(kind), shifted % stride if kind == "not_pair" else shifted, stride, one_set and i == j, float32,
        )  # fmt: skip
        w = panel[:, :, : j.stop - j.start]
        if need_bias:
            sum_bias[g, j] += w.sum(1, dtype=scale.dtype)
        return w

    plan = tiling.panels(G, M, N, one_set, tiling.WORKSPACE // x.element_size())
    return *panel_products(x, y, plan, one_set, need_a, need_b, panel), sum_bias


def force_forward(problem):
    """The force on each row, and what the backward op reads; ops/force.py has the contract."""
    return cuda_force.force_forward(LIBRARIES[problem.x.device.type], problem)


def distance_sums(x, weight, rows, clip):
    """Sums of distances; ops/force.py has the contract."""
    return cuda_force.distance_sums(LIBRARIES[x.device.type], x, weight, rows, clip)


def distance_gradient(g, x):
    """The gradient of the sum of all distances; ops/force.py has the contract."""
    return cuda_force.distance_gradient(LIBRARIES[x.device.type], g, x)


def sigmoid_forward(a, *arguments):
    """See sigmoid_ops.py."""
    return cuda_sigmoid.sigmoid_forward(LIBRARIES[a.device.type], a, *arguments)


def sigmoid_backward(g_rows, *arguments):
    """See sigmoid_ops.py."""
    return cuda_sigmoid.sigmoid_backward(LIBRARIES[g_rows.device.type], g_rows, *arguments)
