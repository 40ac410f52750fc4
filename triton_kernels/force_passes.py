"""The passes of the force family over tiles: how its kernels are launched.

The columns of a pass are split where the rows alone are too few programs, and torch merges the
results of the splits.

Sizes: ``G`` groups of ``P`` points, ``K`` temperatures, ``D`` features, and ``S`` planes of forces:
1, or K where the temperatures stay separate.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..backends.panels._running_sum import finite
from ..backends.tiled.plan import ceil_div
from ..dtypes import accumulation_dtype
from ..problem import ForceProblem
from . import configs, force_configs, support
from .configs import precision
from .force_configs import block
from .force_distances import distance_rows
from .force_kernels import force_lse, force_rows, force_sums
from .force_math import ROOM
from .launch import accumulation_type, is_interpreted, launch

PROGRAMS = 512
"""A pass over tiles has about this many programs where splits of the columns allow it."""


def affinity_constants(problem: ForceProblem) -> dict:
    """The constants that every kernel with affinities takes."""
    return {
        "SELF": problem.self_logit,
        "FLOOR": problem.floor,
        "DENOMINATOR": problem.denominator,
        "CLIP": problem.clip,
    }


def product_constants(x: Tensor, config: force_configs.ForceConfig) -> dict:
    """The constants of a kernel that multiplies weights with coordinates.

    Both are in the accumulation dtype of x ``[G, P, D]``.
    """
    return {
        "PRECISION": _precision(x),
        "ACC": accumulation_type(x.dtype),
        "INTERPRET": is_interpreted(),
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "BLOCK_D": block(x.shape[2], config.block_d),
        "SLICE": min(config.slice, config.block_n),
        "num_warps": config.weighted_warps,
    }


def _precision(x: Tensor) -> str:
    """The precision of float32 products.

    The weights may come from registers. Where that is unsafe (support.py) the products use no
    matrix instructions.
    """
    arch = configs.architecture(x.device)
    safe = support.register_operands_are_safe(arch)
    return precision(accumulation_dtype(x.dtype), arch) if safe else "ieee"


class Tiles:
    """The points of one call, transposed for the tiled kernels, and the launches over them.

    A plan is ``(rows of a program, splits of the columns, columns of a split)``.
    """

    def __init__(self, x: Tensor):
        G, P, D = x.shape
        self.x = x.contiguous()
        self.config = force_configs.tiles(x.dtype, configs.architecture(x.device))
        self.features = ceil_div(D, self.config.block_k) * self.config.block_k
        self.LD = ceil_div(P, self.config.block_n) * self.config.block_n
        self.points = x.new_zeros((G, self.features, self.LD), dtype=accumulation_dtype(x.dtype))
        self.points[:, :D, :P] = x.transpose(1, 2)
        self._centred: Tensor | None = None

    def split(self, M: int, N: int) -> tuple[int, int, int]:
        """The plan of a pass over M rows and N columns."""
        config = self.config
        block_m = min(config.block_m, block(M))
        tiles = self.x.shape[0] * ceil_div(M, block_m)
        splits = min(ceil_div(N, config.block_n), ceil_div(PROGRAMS, tiles))
        columns = ceil_div(ceil_div(N, splits), config.block_n) * config.block_n
        return block_m, ceil_div(N, columns), columns

    def new(self, *shape: int) -> Tensor:
        """A tensor of this shape in the accumulation dtype, not filled."""
        return self.points.new_empty(shape)

    def launch(
        self, kernel, M: int, plan: tuple[int, int, int], *arguments, num_warps: int, **constants
    ) -> None:
        """Launch a kernel without a product over M rows."""
        block_m, splits, _ = plan
        launch(
            kernel,
            self.x.shape[0] * ceil_div(M, block_m) * splits,
            self.points,
            *arguments,
            **constants,
            ACC=accumulation_type(self.x.dtype),
            BLOCK_M=block_m,
            BLOCK_N=self.config.block_n,
            BLOCK_K=self.config.block_k,
            num_warps=num_warps,
        )

    def multiply(self, kernel, M: int, plan: tuple[int, int, int], *arguments, **constants) -> None:
        """Launch a kernel with a product over M rows.

        The last of its arguments is a tuple of sizes. Scratch for a tile of each program goes
        before them.
        """
        block_m, splits, columns = plan
        *tensors, sizes = arguments
        programs = self.x.shape[0] * ceil_div(M, block_m) * splits
        constants = constants | product_constants(self.x, self.config)
        tile = self.new(programs, block_m, self.config.block_n)
        launch(
            kernel,
            programs,
            self.points,
            self.centred(),
            *tensors,
            tile,
            *sizes,
            columns,
            **constants,
            BLOCK_M=block_m,
            EVEN_K=self.x.shape[2] % constants["BLOCK_D"] == 0,
        )

    def centred(self) -> Tensor:
        """``[G, LD, D]``: the points less the mean of their group, zeros past P.

        No force depends on that mean. Where all points are equal they become exactly 0.
        """
        if self._centred is None:
            G, P, D = self.x.shape
            x = self.x.to(self.points.dtype)
            x = x - x[:, :1]
            self._centred = self.points.new_zeros((G, self.LD, D))
            torch.sub(x, x.mean(1, keepdim=True), out=self._centred[:, :P])
        return self._centred

    def distance_sums(self, weight: Tensor | None, rows: int, clip: float) -> Tensor:
        """``[G, rows]``: sums of distances with weight ``[G, P]`` or 1."""
        G, P, _ = self.x.shape
        plan = self.split(rows, P)
        out = self.new(plan[1], G, rows)
        self.launch(
            distance_rows,
            rows,
            plan,
            weight,
            out,
            rows,
            P,
            self.features,
            self.LD,
            plan[2],
            CLIP=clip,
            num_warps=self.config.num_warps,
        )
        return merged(out)


class Passes:
    """The passes of one forward call over tiles.

    Log-sum-exps and factors come in two parts: their values, and what the rounding of these lost.
    """

    def __init__(self, problem: ForceProblem):
        self.problem, self.tiles = problem, Tiles(problem.x)
        P = problem.x.shape[1]
        if problem.scale is None:
            total = self.tiles.distance_sums(None, P, problem.clip).sum(1, dtype=torch.float64)
            self.scale = total.to(self.tiles.points.dtype) / P**2
        else:
            self.scale = problem.scale.clone()
        self.safe_scale = self.scale.double().masked_fill(self.scale == 0, 1.0)  # [G]
        exact = problem.inverse_temperatures.double().unsqueeze(1) / self.safe_scale
        high = exact.to(self.scale.dtype)
        self.factors = torch.stack([high, (exact - high).to(self.scale.dtype)])  # [2, K, G]
        K = problem.inverse_temperatures.shape[0]
        self.temperatures = {"K": K, "KP": 1 << (K - 1).bit_length()}

    def lse(self, M: int, N: int) -> Tensor:
        """``[2, K, G, M]``: the log-sum-exps of the first M points over the first N."""
        tiles, (_, K, G) = self.tiles, self.factors.shape
        plan = tiles.split(M, N)
        out = tiles.new(plan[1], 2, K, G, M)
        tiles.launch(
            force_lse,
            M,
            plan,
            self.factors,
            out,
            M,
            N,
            tiles.features,
            tiles.LD,
            plan[2],
            **self.temperatures,
            MASK=self.problem.mask,
            CLIP=self.problem.clip,
            num_warps=tiles.config.num_warps if K == 1 else tiles.config.weighted_warps,
        )
        top, total = _merged_sums(out[:, 0], out[:, 1])
        exact = finite(top).double() + total.double().log()
        lse = exact.to(out.dtype)
        return torch.stack([lse, (exact - lse).masked_fill_(~lse.isfinite(), 0.0).to(out.dtype)])

    def sums(
        self,
        lse_rows: Tensor,  # [2, K, G, rows]; with rms [2, K, G, P]
        lse_cols: Tensor,  # [2, K, G, P]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``(shift, sums, norm)``: ``[2, K, G, rows]`` twice, and log_norm ``[K, G]``.

        With rms the norm is in float64.
        """
        tiles, problem, (_, K, G) = self.tiles, self.problem, self.factors.shape
        P, rows, rms = problem.x.shape[1], problem.rows, problem.rms
        apart = problem.separate and not rms
        M = P if rms else rows
        plan = tiles.split(M, P)
        out = tiles.new(plan[1], 2, 2, K, G, rows)
        # With rms it gets the log of each row's sum of (d A)^2, in two parts. With apart it gets
        # the row's shifts over the points that do not equal the row.
        extra: Any = tiles.new(plan[1], 2, K, G, M) if rms or apart else None
        tiles.launch(
            force_sums,
            M,
            plan,
            self.factors,
            lse_rows,
            lse_cols,
            problem.weight,
            out,
            extra,
            M,
            P,
            rows,
            problem.negatives,
            tiles.features,
            tiles.LD,
            plan[2],
            **self.temperatures,
            RMS=rms,
            APART=apart,
            **affinity_constants(problem),
            num_warps=tiles.config.weighted_warps,
        )
        shift, sums = _merged_sums(out[:, 0], out[:, 1])
        if rms:
            top, total = extra.double().unbind(1)
            log_squares = (finite(top) + total.log()).transpose(0, 2).flatten(2).logsumexp(2).T
            return shift, sums, log_squares / 2 - math.log(P) - self.safe_scale.log()
        if apart:
            return shift, sums, finite((shift + extra.amax(0).flip(0)).amax((0, 3)))
        return shift, sums, torch.zeros_like(self.factors[0])

    def terms(self, shift: Tensor, sums: Tensor, norm: Tensor) -> Tensor:
        """``[2 (level, coefficient), 2 (side of the column), K, G, rows]``.

        A weight is the coefficient times ``exp(a - level)``, as with `unit_and_excess` in
        force_math.py.

        Args:
            shift, sums: ``[2, K, G, rows]``.
            norm: ``[K, G]``.
        """
        room = finite(norm).double().unsqueeze(2) - shift.flip(0)
        level = shift.where(~(shift > room + ROOM.value), (room + ROOM.value).to(shift.dtype))
        unit = (level - room).exp().masked_fill((norm == -math.inf).unsqueeze(2), 0.0)
        unit = unit.to(shift.dtype)
        return torch.stack([finite(level), torch.stack([-unit[0] * sums[1], unit[1] * sums[0]])])

    def forces(
        self,
        lse_rows: Tensor,  # [2, K, G, rows]
        lse_cols: Tensor,  # [2, K, G, P]
        terms: Tensor,  # [2, 2, K, G, rows]
    ) -> Tensor:
        """``[S, G, rows, D]``."""
        tiles, problem, (_, K, G) = self.tiles, self.problem, self.factors.shape
        _, P, D = problem.x.shape
        rows, separate = problem.rows, problem.separate
        plan = tiles.split(rows, P)
        out = tiles.new(plan[1], K if separate else 1, G, rows, D)
        given = (self.factors, lse_rows, lse_cols, terms, problem.weight)
        tiles.multiply(
            force_rows,
            rows,
            plan,
            *given,
            out,
            (rows, P, D, problem.negatives),
            K=K,
            SEPARATE=separate,
            **affinity_constants(problem),
        )
        return merged(out)


def _merged_sums(tops: Tensor, totals: Tensor) -> tuple[Tensor, Tensor]:
    """The maximum, and the sum relative to it, of parts ``[splits, ...]``."""
    if tops.shape[0] == 1:
        return tops[0].clone(), totals[0].clone()
    top = tops.amax(0)
    return top, (totals * (tops - finite(top)).exp()).sum(0)


def merged(parts: Tensor) -> Tensor:
    """The sum of parts ``[splits, ...]``."""
    return parts[0] if parts.shape[0] == 1 else parts.sum(0)
