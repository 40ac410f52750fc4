"""The force family on the CUDA backend.

ops/force.py has the contract, and csrc/cuda/force_*.cuh the kernels.

Groups that fit into a block's shared memory take one kernel, with one block each. For other groups
each result takes one pass over the pairs. Their forces come from panels of weights. Library GEMMs,
in torch's float32 precision, multiply the weights with the centred coordinates. Then the row sums
times the row's own coordinates are subtracted. Every output and workspace is allocated here.
Nothing synchronises with the host, and no value of a tensor is read.

By groups force_forward takes 1 launch, and a copy more where inputs are strided. Otherwise:

- the scale takes 3 or 4, or a copy where it is given;
- log_sums takes 1, and 1 more for the columns unless all_rows;
- affinities takes 1;
- norms takes 1, or two fills where there is none;
- centring takes 3;
- each panel takes its weights, a product, row sums and their difference;
- half precision takes one conversion;
- where the columns are in parts, a merge follows each of log_sums and affinities.

By groups distance_gradient takes 1 launch. Otherwise it takes three of centring and four per panel,
and for half precision two conversions. distance_sums takes 1, or 2 where the columns are in parts.

Sizes: ``G`` groups of ``P`` points, ``K`` temperatures, ``D`` features.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...dtypes import accumulation_dtype
from ...problem import ABSENT, ForceForward, ForceProblem
from ..tiled import plan
from ..tiled.operands import contiguous
from ..tiled.plan import ceil_div

TILE = 64
STAGES = {torch.float32: 20480, torch.float64: 36864}
"""Bytes of shared memory for the coordinates in the loop over distances, by accumulation dtype."""
PARTS = 128
MOST_POINTS = 256
HOST_SHARED = 99 << 10
SMALL_WORK = 1 << 22
"""The P^2 D up to which a few groups are worth one block each.

Beyond it a GPU's other multiprocessors are worth more launches. This is a prediction.
"""
MANY_GROUPS = 32
BLOCKS = 512
"""The blocks that a pass over pairs should have; where rows are few, the columns are in parts."""


def force_forward(operators, problem: ForceProblem) -> ForceForward:
    """The force on each row, and what the backward op reads; ops/force.py defines the fields."""
    problem = problem._replace(
        x=problem.x.contiguous(),
        inverse_temperatures=problem.inverse_temperatures.contiguous(),
        scale=contiguous(problem.scale),
        weight=contiguous(problem.weight),
    )
    separate, K = problem.separate, problem.inverse_temperatures.shape[0]
    if by_groups(problem.x, TILE if separate and K > 1 else 0):
        return _forward_by_groups(operators, problem)
    return _forward_by_passes(operators, problem)


def _lse(problem: ForceProblem) -> tuple[Tensor, Tensor | None]:
    """Room for R ``[2, K, G, rows or P]`` and C ``[2, K, G, P]``, each with what its rounding lost.

    With all_rows C is None.
    """
    G, P, _ = problem.x.shape
    K = problem.inverse_temperatures.shape[0]
    new, all_rows = problem.inverse_temperatures.new_empty, problem.all_rows
    return new((2, K, G, P if all_rows else problem.rows)), None if all_rows else new((2, K, G, P))


def _forward_by_groups(operators, problem: ForceProblem) -> ForceForward:
    """The forward pass in one launch, a block per group."""
    x, inverse, scale, weight, rows, negatives, all_rows, mask, *_ = problem
    G, _, D = x.shape
    K = inverse.shape[0]
    new = inverse.new_empty
    shift, sums = new((2, K, G, rows)), new((2, K, G, rows))
    rows_lse, cols_lse = _lse(problem)
    wide = new((K, G), dtype=torch.float64)
    force, log_norm = new((K if problem.separate else 1, G, rows, D)), new((K, G))
    scales = new((G,))
    operators.force_group(
        x,
        inverse,
        scale,
        weight,
        force,
        log_norm,
        wide,
        scales,
        rows_lse,
        new((1, 0)) if cols_lse is None else cols_lse,
        shift,
        sums,
        rows,
        negatives,
        all_rows,
        mask,
        *_affinity(problem),
        problem.rms,
        problem.separate,
    )
    lse_cols = None if cols_lse is None else cols_lse[0]
    return ForceForward(
        force, log_norm, scales, rows_lse[0], lse_cols=lse_cols, shift=shift, sums=sums
    )


def _affinity(problem: ForceProblem) -> tuple[float, float, float, float]:
    """The options of the affinity, in the order in which an operator takes them."""
    return problem.self_logit, problem.floor, problem.denominator, problem.clip


def _forward_by_passes(operators, problem: ForceProblem) -> ForceForward:
    """The forward pass with a launch for each result."""
    x, inverse, scale, weight, rows, negatives, *_ = problem
    G, P, _ = x.shape
    K = inverse.shape[0]
    new = inverse.new_empty
    rms, separate = problem.rms, problem.separate
    shift, sums = new((2, K, G, rows)), new((2, K, G, rows))
    rows_lse, cols_lse = _lse(problem)
    wide = new((K, G), dtype=torch.float64)
    scales = _mean_distance(operators, x) if scale is None else scale.clone()
    problem = problem._replace(scale=scales)
    _log_sums(operators, problem, rows_lse, P)
    if cols_lse is None:
        lse = (rows_lse, new((1, 0)))
    else:
        _log_sums(operators, problem, cols_lse, rows)
        lse = (rows_lse, cols_lse)
    splits = _splits(G * ceil_div(P if rms else rows, TILE), P)
    squares = new((splits, K, G, P) if rms else (0,), dtype=torch.float64)
    apart = new((splits, 2, K, G, rows) if separate and not rms else (0,))
    parts = (
        (shift, sums) if splits == 1 else (new((splits, *shift.shape)), new((splits, *shift.shape)))
    )
    operators.force_affinities(
        x,
        inverse,
        scales,
        weight,
        *lse,
        *parts,
        squares,
        apart,
        rows,
        negatives,
        *_affinity(problem),
        splits,
    )
    if splits > 1:
        operators.force_merge(*parts, new((0,)), shift, sums, splits)
    if rms or separate:
        log_norm = new((K, G))
        operators.force_norms(squares, shift, apart, scales, log_norm, wide, P, splits)
    else:
        log_norm, wide = inverse.new_zeros((K, G)), wide.zero_()

    def weights(g: slice, i: slice) -> Tensor:
        """The weights of the rows `i` of the groups `g`: ``[g, S, i, P]``."""
        panel = new((g.stop - g.start, K if separate else 1, i.stop - i.start, P))
        splits = _splits(panel.shape[0] * ceil_div(panel.shape[2], TILE), P)
        operators.force_weights(
            x[g],
            inverse,
            scales[g],
            None if weight is None else weight[g],
            rows_lse[:, :, g].contiguous(),
            lse[1] if cols_lse is None else cols_lse[:, :, g].contiguous(),
            shift[:, :, g].contiguous(),
            sums[:, :, g].contiguous(),
            wide[:, g].contiguous(),
            panel,
            rows,
            negatives,
            i.start,
            *_affinity(problem),
            separate,
            splits,
        )
        return panel

    force = _weighted_differences(x, rows, K if separate else 1, inverse.dtype, weights)
    lse_cols = None if cols_lse is None else cols_lse[0]
    return ForceForward(
        force, log_norm, scales, rows_lse[0], lse_cols=lse_cols, shift=shift, sums=sums
    )


def distance_sums(
    operators,
    x: Tensor,  # [G, P, D]
    weight: Tensor | None,  # [G, P]
    rows: int,
    clip: float,
) -> Tensor:
    """``sum_j d_ij weight_j`` over all columns: ``[G, rows]`` in the accumulation dtype."""
    x = x.contiguous()
    out = _distances(operators, x, contiguous(weight), rows, clip)
    return out[0] if out.shape[0] == 1 else out.sum(0)


def distance_gradient(
    operators,
    g: Tensor,  # [G]
    x: Tensor,  # [G, P, D]
) -> Tensor:
    """g times the derivative of the sum of d over all P x P pairs: ``[G, P, D]``, dtype of x."""
    x, g = x.contiguous(), g.contiguous()
    if by_groups(x):
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        operators.force_group_gradient(g, x, dx)
        return dx
    P = x.shape[1]

    def inverses(group: slice, i: slice) -> Tensor:
        """``2 g / d`` of the rows `i` of the groups: ``[group, 1, i, P]``."""
        panel = g.new_empty((group.stop - group.start, 1, i.stop - i.start, P))
        splits = _splits(panel.shape[0] * ceil_div(panel.shape[2], TILE), P)
        operators.force_inverses(g[group], x[group], panel[:, 0], i.start, splits)
        return panel

    return _weighted_differences(x, P, 1, g.dtype, inverses)[0].to(x.dtype)


def by_groups(x: Tensor, panel_rows: int = 0) -> bool:
    """Whether one block per group computes everything.

    The group must fit into shared memory, and the block must be worth it.

    Args:
        x: ``[G, P, D]``.
        panel_rows: rows of weights that the block holds beside its distances.
    """
    G, P, D = x.shape
    dtype = accumulation_dtype(x.dtype)
    width = 4 * (ceil_div(P, 4) | 1)
    elements = (P + panel_rows) * width
    needed = STAGES[dtype] + PARTS + elements * dtype.itemsize
    fits = P <= MOST_POINTS and needed <= _shared_memory(x.device)
    return fits and (G >= MANY_GROUPS or P * P * D <= SMALL_WORK)


@functools.cache
def _shared_memory(device: torch.device) -> int:
    """The bytes of shared memory that a block can have."""
    if device.type != "cuda":
        return HOST_SHARED
    # The stubs of torch lack this field.
    properties: Any = torch.cuda.get_device_properties(device)
    return properties.shared_memory_per_block_optin


def _splits(blocks: int, columns: int) -> int:
    """How many parts the columns are divided into, each of at least one tile."""
    return max(1, min(ceil_div(columns, TILE), BLOCKS // blocks))


def _distances(operators, x: Tensor, weight: Tensor | None, rows: int, clip: float) -> Tensor:
    """Sums of weighted distances over parts of the columns: ``[splits, G, rows]``.

    Args:
        x: ``[G, P, D]``.
        weight: ``[G, P]``, or None.
    """
    G, P, _ = x.shape
    splits = _splits(G * ceil_div(rows, TILE), P)
    out = torch.empty((splits, G, rows), dtype=accumulation_dtype(x.dtype), device=x.device)
    operators.force_distances(x, weight, out, clip)
    return out


def _mean_distance(operators, x: Tensor) -> Tensor:
    """The mean distance over all pairs of x ``[G, P, D]``: ``[G]``."""
    P = x.shape[1]
    out = _distances(operators, x, None, P, 0.0)
    return (out.sum((0, 2), dtype=torch.float64) / (P * P)).to(out.dtype)


def _log_sums(
    operators,
    problem: ForceProblem,
    lse: Tensor,  # [2, K, G, n]
    columns: int,
) -> None:
    """Fill the log-sum-exps of the first n points over the first `columns` points."""
    _, K, G, rows = lse.shape
    splits = _splits(G * ceil_div(rows, TILE), columns)
    parts = lse.new_empty((2, splits, K, G, rows) if splits > 1 else (2, 0))
    operators.force_log_sums(
        problem.x,
        problem.inverse_temperatures,
        problem.scale,
        lse,
        *parts,
        rows,
        columns,
        problem.mask,
        problem.clip,
        splits,
    )
    if splits > 1:
        none = lse.new_empty(0)
        operators.force_merge(*parts, lse, none, none, splits)


def _weighted_differences(
    x: Tensor,  # [G, P, D]
    rows: int,
    planes: int,
    dtype: torch.dtype,
    panel_of: Callable[[slice, slice], Tensor],
) -> Tensor:
    """``sum_j w_ij (x_j - x_i)``: ``[planes, G, rows, D]`` in `dtype`.

    Args:
        panel_of: the weights of some groups and rows, ``[g, planes, i, P]``.
    """
    G, P, D = x.shape
    y = x.to(dtype)
    y = y - y[:, :1]
    y -= y.mean(1, keepdim=True)
    parts = _panels(G, rows, planes * P * dtype.itemsize)
    out = ABSENT if len(parts) == 1 else y.new_empty((planes, G, rows, D))
    for g, i in parts:
        panel = panel_of(g, i)
        product = torch.bmm(panel.flatten(1, 2), y[g]).view(*panel.shape[:3], D)
        product.addcmul_(panel.sum(3, keepdim=True), y[g, i].unsqueeze(1), value=-1)
        if out is None:
            return product.transpose(0, 1).contiguous()
        out[:, g, i] = product.transpose(0, 1)
    return out


def _panels(G: int, rows: int, row_bytes: int) -> list[tuple[slice, slice]]:
    """``(groups, rows)`` of panels of at most about plan.WORKSPACE bytes.

    A panel is several groups at once, or a part of one.
    """
    most = max(1, plan.WORKSPACE // row_bytes)
    if rows <= most:
        step = max(1, min(G, most // rows))
        return [(slice(g, min(g + step, G)), slice(0, rows)) for g in range(0, G, step)]
    step = most // TILE * TILE or most
    parts = [slice(i, min(i + step, rows)) for i in range(0, rows, step)]
    return [(slice(g, g + 1), i) for g in range(G) for i in parts]
