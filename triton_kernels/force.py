"""The force family's functions of the Triton backend; ops/force.py has their contract.

Small groups take one launch for all of them (force_group.py). Larger ones take a few passes over
tiles (force_passes.py).

Sizes: ``G`` groups of ``P`` points, ``K`` temperatures, ``D`` features, and ``S`` planes of forces:
1, or K where the temperatures stay separate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends.tiled.plan import ceil_div
from ..dtypes import accumulation_dtype
from ..problem import ForceForward, ForceProblem
from . import configs, force_configs
from .force_distances import distance_pull
from .force_group import distance_group, force_group
from .force_passes import Passes, Tiles, affinity_constants, merged, product_constants
from .launch import launch


def is_small(x: Tensor) -> bool:
    """Whether one program holds the distances of a group of x ``[G, P, D]``."""
    return x.shape[1] <= force_configs.group_points(x.shape[0], x.dtype)


def force_forward(problem: ForceProblem) -> ForceForward:
    """The force on each row, and what the backward op reads; ops/force.py defines the fields."""
    if problem.weight is not None:
        problem = problem._replace(weight=problem.weight.contiguous())
    return _forward_by_groups(problem) if is_small(problem.x) else _forward_by_tiles(problem)


def distance_sums(
    x: Tensor,  # [G, P, D]
    weight: Tensor | None,  # [G, P]
    rows: int,
    clip: float,
) -> Tensor:
    """``sum_j d_ij weight_j`` over all columns: ``[G, rows]`` in the accumulation dtype."""
    weight = None if weight is None else weight.contiguous()
    return Tiles(x).distance_sums(weight, rows, clip)


def distance_gradient(
    g: Tensor,  # [G]
    x: Tensor,  # [G, P, D]
) -> Tensor:
    """g times the derivative of the sum of d over all P x P pairs: ``[G, P, D]``, dtype of x."""
    G, P, D = x.shape
    g = g.contiguous()
    if is_small(x):
        config = _group(x)
        dx = g.new_empty(x.shape)
        launch(
            distance_group,
            G,
            x.contiguous(),
            g,
            _scratch(x, config, 0),
            dx,
            P,
            D,
            BLOCK_I=config.distance_m,
            BLOCK_M=config.block_m,
            **product_constants(x, config),
        )
        return dx.to(x.dtype)
    tiles = Tiles(x)
    plan = tiles.split(P, P)
    out = tiles.new(plan[1], G, P, D)
    tiles.multiply(distance_pull, P, plan, g, out, (P, D))
    return merged(out).neg_().to(x.dtype)


def _forward_by_groups(problem: ForceProblem) -> ForceForward:
    """The forward pass in one launch, a program per group."""
    x, inverse, scale, weight, rows, negatives, all_rows, *_ = problem
    G, P, D = x.shape
    K = inverse.shape[0]
    new = inverse.new_empty
    found = ForceForward(
        force=new((K if problem.separate else 1, G, rows, D)),
        log_norm=new((K, G)),
        scale=new((G,)) if scale is None else scale.clone(),
        lse_rows=new((K, G, P if all_rows else rows)),
        lse_cols=None if all_rows else new((K, G, P)),
        shift=new((2, K, G, rows)),
        sums=new((2, K, G, rows)),
    )
    config = _group(x)
    launch(
        force_group,
        G,
        x.contiguous(),
        inverse.contiguous(),
        found.scale,
        weight,
        _scratch(x, config, 6 * K),
        found.force,
        found.log_norm,
        found.lse_rows,
        new((0,)) if all_rows else found.lse_cols,
        found.shift,
        found.sums,
        P,
        D,
        rows,
        negatives,
        K=K,
        MEAN=scale is None,
        ALL_ROWS=all_rows,
        MASK=problem.mask,
        RMS=problem.rms,
        SEPARATE=problem.separate,
        **affinity_constants(problem),
        BLOCK_I=config.distance_m,
        BLOCK_M=config.block_m,
        **product_constants(x, config),
    )
    return found


def _group(x: Tensor) -> force_configs.ForceConfig:
    """The tiles of a small group."""
    return force_configs.group(x.shape[1], x.dtype, configs.architecture(x.device))


def _scratch(x: Tensor, config: force_configs.ForceConfig, more: int) -> Tensor:
    """Room for each group's transposed points, a square of its pairs and `more` rows."""
    G, _, D = x.shape
    features = ceil_div(D, config.block_k) * config.block_k
    shape = (G, features + config.block_n + more, config.block_n)
    return torch.empty(shape, dtype=accumulation_dtype(x.dtype), device=x.device)


def _forward_by_tiles(problem: ForceProblem) -> ForceForward:
    """The forward pass with a launch for each result."""
    passes, P, rows = Passes(problem), problem.x.shape[1], problem.rows
    R = passes.lse(P if problem.all_rows else rows, P)
    C = R if problem.all_rows else passes.lse(P, rows)
    row_lse = R if R.shape[3] == rows else R[..., :rows].contiguous()
    shift, sums, norm = passes.sums(R if problem.rms else row_lse, C)
    force = passes.forces(row_lse, C, passes.terms(shift, sums, norm))
    return ForceForward(
        force,
        norm.to(passes.scale.dtype, copy=True),
        passes.scale,
        R[0].clone(),
        lse_cols=None if problem.all_rows else C[0].clone(),
        shift=shift,
        sums=sums,
    )
