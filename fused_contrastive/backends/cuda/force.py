"""The force family on the native CUDA backend: contract in force_ops.py, kernels in csrc/cuda/force_*.cuh.

Groups that fit into a block's shared memory take one kernel, one block each. Others take one pass over the pairs per result, with panels of
weights that library GEMMs (in torch's float32 precision) multiply with the centred coordinates, less the row sums times the row's own. Every
output and workspace is allocated here. No host synchronisation; no value of a tensor is read.

Launches of force_forward: 1 by groups (a copy more where inputs are strided). Else the scale 3 or 4 (given: a copy), log_sums (and of columns
unless all_rows), affinities, norms (else two fills), three of centring, and per panel weights, product, row sums, and their difference; half
precision one conversion; where the columns are in parts a merge after each of log_sums and affinities. distance_gradient: 1 by groups, else
three of centring and four per panel, and half precision two conversions. distance_sums: 1, with parts 2.
"""

from __future__ import annotations

import functools

import torch

from ...dtypes import accumulation_dtype
from ..tiled import plan as tiling
from ..tiled.plan import ceil_div

TILE = 64
STAGES = {torch.float32: 20480, torch.float64: 36864}
"""Bytes of shared memory in which the loop over distances holds coordinates, by accumulation dtype."""
PARTS = 128
MOST_POINTS = 256
HOST_SHARED = 99 << 10
SMALL_WORK = 1 << 22
"""P^2 D up to which a few groups are worth one block each: beyond, a GPU's other multiprocessors are worth more launches. A prediction."""
MANY_GROUPS = 32
BLOCKS = 512
"""Blocks that a pass over pairs should have, by parts of the columns if rows are few."""


def force_forward(
    operators, x, inverse_temperatures, scale, weight, rows, negatives, all_rows, mask, self_logit, floor, denominator,
    clip, rms, separate,
):  # fmt: skip
    """See force_ops.py."""
    x, inverse = x.contiguous(), inverse_temperatures.contiguous()
    scale, weight = _contiguous(scale), _contiguous(weight)
    G, P, D = x.shape
    K = inverse.shape[0]
    new = inverse.new_empty
    shift, sums = new((2, K, G, rows)), new((2, K, G, rows))
    rows_lse, cols_lse = (
        new((2, K, G, P if all_rows else rows)),
        new((1, 0) if all_rows else (2, K, G, P)),
    )
    lse_rows, lse_cols = rows_lse[0], cols_lse[0]
    wide = new((K, G), dtype=torch.float64)
    affinity = (self_logit, floor, denominator, clip)
    if by_groups(x, TILE if separate and K > 1 else 0):
        force, log_norm, scales = new((K if separate else 1, G, rows, D)), new((K, G)), new((G,))
        operators.force_group(
            x, inverse, scale, weight, force, log_norm, wide, scales, rows_lse, cols_lse, shift, sums, rows, negatives,
            all_rows, mask, *affinity, rms, separate,
        )  # fmt: skip
        return force, log_norm, scales, lse_rows, lse_cols, shift, sums
    scales = _mean_distance(operators, x) if scale is None else scale.clone()
    _log_sums(operators, x, inverse, scales, rows_lse, P, mask, clip)
    if not all_rows:
        _log_sums(operators, x, inverse, scales, cols_lse, rows, mask, clip)
    field = (x, inverse, scales, weight, rows_lse, cols_lse)
    splits = _splits(G * ceil_div(P if rms else rows, TILE), P)
    squares = new((splits, K, G, P) if rms else (0,), dtype=torch.float64)
    apart = new((splits, 2, K, G, rows) if separate and not rms else (0,))
    parts = (
        (shift, sums) if splits == 1 else (new((splits, *shift.shape)), new((splits, *shift.shape)))
    )
    operators.force_affinities(*field, *parts, squares, apart, rows, negatives, *affinity, splits)
    if splits > 1:
        operators.force_merge(*parts, new((0,)), shift, sums, splits)
    if rms or separate:
        log_norm = new((K, G))
        operators.force_norms(squares, shift, apart, scales, log_norm, wide, P, splits)
    else:
        log_norm, wide = inverse.new_zeros((K, G)), wide.zero_()

    def weights(g: slice, i: slice) -> torch.Tensor:
        panel = new((g.stop - g.start, K if separate else 1, i.stop - i.start, P))
        splits = _splits(panel.shape[0] * ceil_div(panel.shape[2], TILE), P)
        lse = (
            rows_lse[:, :, g].contiguous(),
            cols_lse[:, :, g].contiguous() if cols_lse.numel() else cols_lse,
        )
        operators.force_weights(
            x[g], inverse, scales[g], None if weight is None else weight[g], *lse, shift[:, :, g].contiguous(),
            sums[:, :, g].contiguous(), wide[:, g].contiguous(), panel, rows, negatives, i.start, *affinity,
            separate, splits,
        )  # fmt: skip
        return panel

    force = _weighted_differences(x, rows, K if separate else 1, inverse.dtype, weights)
    return force, log_norm, scales, lse_rows, lse_cols, shift, sums


def distance_sums(operators, x, weight, rows, clip):
    """See force_ops.py."""
    x = x.contiguous()
    return _distance_sums(operators, x, _contiguous(weight), rows, clip)


def distance_gradient(operators, g, x):
    """See force_ops.py."""
    x, g = x.contiguous(), g.contiguous()
    if by_groups(x):
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        operators.force_group_gradient(g, x, dx)
        return dx
    P = x.shape[1]

    def inverses(group: slice, i: slice) -> torch.Tensor:
        panel = g.new_empty((group.stop - group.start, 1, i.stop - i.start, P))
        splits = _splits(panel.shape[0] * ceil_div(panel.shape[2], TILE), P)
        operators.force_inverses(g[group], x[group], panel[:, 0], i.start, splits)
        return panel

    return _weighted_differences(x, P, 1, g.dtype, inverses)[0].to(x.dtype)


def by_groups(x: torch.Tensor, panel_rows: int = 0) -> bool:
    """Whether a block per group computes everything: it must fit into shared memory, and be worth it."""
    G, P, D = x.shape
    dtype = accumulation_dtype(x.dtype)
    width = 4 * (ceil_div(P, 4) | 1)
    elements = (P + panel_rows) * width
    fits = P <= MOST_POINTS and STAGES[dtype] + PARTS + elements * dtype.itemsize <= _shared_memory(
        x.device
    )
    return fits and (G >= MANY_GROUPS or P * P * D <= SMALL_WORK)


@functools.cache
def _shared_memory(device: torch.device) -> int:
    """Bytes that a block can have."""
    if device.type != "cuda":
        return HOST_SHARED
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


def _contiguous(x):
    return None if x is None else x.contiguous()


def _splits(blocks: int, columns: int) -> int:
    """Parts of the columns, each at least one tile."""
    return max(1, min(ceil_div(columns, TILE), BLOCKS // blocks))


def _distance_sums(operators, x, weight, rows, clip):
    G, P, _ = x.shape
    splits = _splits(G * ceil_div(rows, TILE), P)
    out = torch.empty((splits, G, rows), dtype=accumulation_dtype(x.dtype), device=x.device)
    operators.force_distances(x, weight, out, clip)
    return out[0] if splits == 1 else out.sum(0)


def _mean_distance(operators, x) -> torch.Tensor:
    """``[G]``, over all pairs."""
    G, P, _ = x.shape
    splits = _splits(G * ceil_div(P, TILE), P)
    out = torch.empty((splits, G, P), dtype=accumulation_dtype(x.dtype), device=x.device)
    operators.force_distances(x, None, out, 0.0)
    return (out.sum((0, 2), dtype=torch.float64) / (P * P)).to(out.dtype)


def _log_sums(operators, x, inverse, scales, lse, columns, mask, clip) -> None:
    """Fills lse ``[2, K, G, n]`` of the first n points over the first `columns`."""
    _, K, G, rows = lse.shape
    splits = _splits(G * ceil_div(rows, TILE), columns)
    parts = lse.new_empty((2, splits, K, G, rows) if splits > 1 else (2, 0))
    operators.force_log_sums(x, inverse, scales, lse, *parts, rows, columns, mask, clip, splits)
    if splits > 1:
        none = lse.new_empty(0)
        operators.force_merge(*parts, lse, none, none, splits)


def _weighted_differences(x, rows, planes, dtype, panel_of) -> torch.Tensor:
    """``[planes, G, rows, D]``: ``sum_j w_ij (x_j - x_i)`` with w the panels ``[g, planes, i, P]``."""
    G, P, D = x.shape
    y = x.to(dtype)
    y = y - y[:, :1]
    y -= y.mean(1, keepdim=True)
    plan = _panels(G, rows, planes * P * dtype.itemsize)
    out = None if len(plan) == 1 else y.new_empty((planes, G, rows, D))
    for g, i in plan:
        panel = panel_of(g, i)
        product = torch.bmm(panel.flatten(1, 2), y[g]).view(*panel.shape[:3], D)
        product.addcmul_(panel.sum(3, keepdim=True), y[g, i].unsqueeze(1), value=-1)
        if out is None:
            return product.transpose(0, 1).contiguous()
        out[:, g, i] = product.transpose(0, 1)
    return out


def _panels(G: int, rows: int, row_bytes: int) -> list[tuple[slice, slice]]:
    """``(groups, rows)`` of panels of at most about tiling.WORKSPACE bytes: several groups at once, or parts of one."""
    most = max(1, tiling.WORKSPACE // row_bytes)
    if rows <= most:
        step = max(1, min(G, most // rows))
        return [(slice(g, min(g + step, G)), slice(0, rows)) for g in range(0, G, step)]
    step = most // TILE * TILE or most
    parts = [slice(i, min(i + step, rows)) for i in range(0, rows, step)]
    return [(slice(g, g + 1), i) for g in range(G) for i in parts]
