"""The force family's functions of the backend: fused_contrastive/force_ops.py has their contract.

Small groups take one launch for all of them (force_group.py), larger ones a few passes over tiles
(force_tiles.py) whose results over splits of the columns are merged by torch.
"""

from __future__ import annotations

import math

import torch

from ..backends.panels._running_sum import finite
from ..backends.tiled.plan import ceil_div
from ..dtypes import accumulation_dtype
from . import configs, force_configs
from . import support as guard
from .configs import precision
from .force_configs import block
from .force_group import distance_group, force_group
from .force_kernels import distance_pull, distance_rows, force_lse, force_rows, force_sums
from .force_math import ROOM
from .launch import accumulation_type, is_interpreted, launch

PROGRAMS = 512
"""Programs of a pass over tiles, where splits of the columns can make that many."""


def is_small(x: torch.Tensor) -> bool:
    """Whether one program holds the distances of a group."""
    return x.shape[1] <= force_configs.group_points(x.shape[0], x.dtype)


def _factors(inverse_temperatures, scale):
    """``[2, K, G]``: inverse temperature over scale, and what its rounding lost."""
    exact = inverse_temperatures.double().unsqueeze(1) / scale.double().masked_fill(scale == 0, 1.0)
    high = exact.to(scale.dtype)
    return torch.stack([high, (exact - high).to(scale.dtype)])


def _given(weight):
    return None if weight is None else weight.contiguous()


def force_forward(
    x, inverse_temperatures, scale, weight, rows, negatives, all_rows, mask, self_logit, floor, denominator, clip, rms,
    separate,
):  # fmt: skip
    """See force_ops.py."""
    G, P, D = x.shape
    K = inverse_temperatures.shape[0]
    options = {"SELF": self_logit, "FLOOR": floor, "DENOMINATOR": denominator, "CLIP": clip}
    if not is_small(x):
        return _forward_by_tiles(
            x,
            inverse_temperatures,
            scale,
            _given(weight),
            rows,
            negatives,
            all_rows,
            mask,
            rms,
            separate,
            options,
        )
    new = inverse_temperatures.new_empty
    force = new((K if separate else 1, G, rows, D))
    log_norm = new((K, G))
    used = new((G,)) if scale is None else scale.clone()
    lse_rows = new((K, G, P if all_rows else rows))
    lse_cols = new((0,) if all_rows else (K, G, P))
    shift, sums = new((2, K, G, rows)), new((2, K, G, rows))
    config = _group(x)
    launch(
        force_group,
        G,
        x.contiguous(), inverse_temperatures.contiguous(), used, _given(weight), _scratch(x, config, 6 * K), force, log_norm,
        lse_rows, lse_cols, shift, sums, P, D, rows, negatives,
        K=K, MEAN=scale is None, ALL_ROWS=all_rows, MASK=mask, RMS=rms, SEPARATE=separate, **options,
        BLOCK_I=config.distance_m,
        BLOCK_M=config.block_m, **_constants(x, config),
    )  # fmt: skip
    return force, log_norm, used, lse_rows, lse_cols, shift, sums


def _group(x: torch.Tensor) -> force_configs.ForceConfig:
    return force_configs.group(x.shape[1], x.dtype, configs.architecture(x.device))


def _scratch(x: torch.Tensor, config: force_configs.ForceConfig, more: int) -> torch.Tensor:
    """For the transposed points of each group, a square of their pairs and `more` rows."""
    G, _, D = x.shape
    features = ceil_div(D, config.block_k) * config.block_k
    shape = (G, features + config.block_n + more, config.block_n)
    return torch.empty(shape, dtype=accumulation_dtype(x.dtype), device=x.device)


def _constants(x: torch.Tensor, config: force_configs.ForceConfig) -> dict:
    """Constants of a kernel that multiplies weights with coordinates, both in the accumulation dtype."""
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


def _precision(x: torch.Tensor) -> str:
    """That of float32 products. The weights may come from registers: no matrix instructions where that is unsafe (guard.py)."""
    arch = configs.architecture(x.device)
    safe = guard.register_operands_are_safe(arch)
    return precision(accumulation_dtype(x.dtype), arch) if safe else "ieee"


class Tiles:
    """The points of one call, transposed for the tiled kernels, and how these are launched over them."""

    def __init__(self, x: torch.Tensor):
        G, P, D = x.shape
        self.x, self.config = (
            x.contiguous(),
            force_configs.tiles(x.dtype, configs.architecture(x.device)),
        )
        self.features = ceil_div(D, self.config.block_k) * self.config.block_k
        self.LD = ceil_div(P, self.config.block_n) * self.config.block_n
        self.points = x.new_zeros((G, self.features, self.LD), dtype=accumulation_dtype(x.dtype))
        self.points[:, :D, :P] = x.transpose(1, 2)
        self._centred: torch.Tensor | None = None

    def split(self, M: int, N: int) -> tuple[int, int, int]:
        """(rows of a program, splits, columns of a split)."""
        config = self.config
        block_m = min(config.block_m, block(M))
        tiles = self.x.shape[0] * ceil_div(M, block_m)
        splits = min(ceil_div(N, config.block_n), ceil_div(PROGRAMS, tiles))
        columns = ceil_div(ceil_div(N, splits), config.block_n) * config.block_n
        return block_m, ceil_div(N, columns), columns

    def new(self, *shape: int) -> torch.Tensor:
        return self.points.new_empty(shape)

    def launch(
        self, kernel, M: int, plan: tuple[int, int, int], *arguments, num_warps: int, **constants
    ) -> None:
        """A kernel without a product."""
        block_m, splits, _ = plan
        launch(
            kernel, self.x.shape[0] * ceil_div(M, block_m) * splits, self.points, *arguments, **constants,
            ACC=accumulation_type(self.x.dtype), BLOCK_M=block_m, BLOCK_N=self.config.block_n,
            BLOCK_K=self.config.block_k, num_warps=num_warps,
        )  # fmt: skip

    def multiply(self, kernel, M: int, plan: tuple[int, int, int], *arguments, **constants) -> None:
        """A kernel with one. Its last arguments: scratch for a tile of each program, and sizes."""
        block_m, splits, columns = plan
        *arguments, sizes = arguments
        programs, constants = (
            self.x.shape[0] * ceil_div(M, block_m) * splits,
            constants | _constants(self.x, self.config),
        )
        tile = self.new(programs, block_m, self.config.block_n)
        launch(
            kernel, programs, self.points, self.centred(), *arguments, tile, *sizes, columns, **constants, BLOCK_M=block_m,
            EVEN_K=self.x.shape[2] % constants["BLOCK_D"] == 0,
        )  # fmt: skip

    def centred(self) -> torch.Tensor:
        """``[G, LD, D]``: the points less the mean of their group, which no force depends on (0 where all are equal); zeros past P."""
        if self._centred is None:
            G, P, D = self.x.shape
            x = self.x.to(self.points.dtype)
            x = x - x[:, :1]
            self._centred = self.points.new_zeros((G, self.LD, D))
            torch.sub(x, x.mean(1, keepdim=True), out=self._centred[:, :P])
        return self._centred

    def distance_sums(self, weight, rows: int, clip: float) -> torch.Tensor:
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
        return _merged(out)

    def lse(self, factors, M: int, N: int, mask: bool, clip: float) -> torch.Tensor:
        """``[2, K, G, M]``: of the first M points over the first N, and what its rounding lost."""
        _, K, G = factors.shape
        plan = self.split(M, N)
        out = self.new(plan[1], 2, K, G, M)
        self.launch(
            force_lse, M, plan, factors, out, M, N, self.features, self.LD, plan[2],
            K=K, KP=1 << (K - 1).bit_length(), MASK=mask, CLIP=clip,
            num_warps=self.config.num_warps if K == 1 else self.config.weighted_warps,
        )  # fmt: skip
        top, total = _merged_sums(out[:, 0], out[:, 1])
        exact = finite(top).double() + total.double().log()
        lse = exact.to(out.dtype)
        return torch.stack([lse, (exact - lse).masked_fill_(~lse.isfinite(), 0.0).to(out.dtype)])

    def sums(
        self,
        factors,
        lse_rows,
        lse_cols,
        weight,
        rows: int,
        negatives: int,
        rms: bool,
        apart: bool,
        options,
    ):
        """(shift, sums, extra): extra is with `rms` log sum of (d A)^2 ``[K, G]`` in float64, with `apart` the shifts over the points that do not
        equal the row, else None."""
        (_, K, G), P = factors.shape, self.x.shape[1]
        M = P if rms else rows
        plan = self.split(M, P)
        out = self.new(plan[1], 2, 2, K, G, rows)
        extra = self.new(plan[1], 2, K, G, M) if rms or apart else None
        self.launch(
            force_sums, M, plan, factors, lse_rows, lse_cols, weight, out, extra, M, P, rows, negatives,
            self.features, self.LD, plan[2], K=K, KP=1 << (K - 1).bit_length(), RMS=rms, APART=apart, **options,
            num_warps=self.config.weighted_warps,
        )  # fmt: skip
        if rms:
            top, total = extra.double().unbind(1)
            extra = (finite(top) + total.log()).transpose(0, 2).flatten(2).logsumexp(2).T
        elif apart:
            extra = extra.amax(0)
        return *_merged_sums(out[:, 0], out[:, 1]), extra

    def forces(
        self,
        factors,
        lse_rows,
        lse_cols,
        terms,
        weight,
        rows: int,
        negatives: int,
        separate: bool,
        options,
    ):
        (_, K, G), (_, P, D) = factors.shape, self.x.shape
        plan = self.split(rows, P)
        out = self.new(plan[1], K if separate else 1, G, rows, D)
        self.multiply(
            force_rows, rows, plan, factors, lse_rows, lse_cols, terms, weight, out, (rows, P, D, negatives),
            K=K, SEPARATE=separate, **options,
        )  # fmt: skip
        return _merged(out)


def _merged_sums(tops: torch.Tensor, totals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(maximum, sum relative to it) of parts ``[splits, ...]``."""
    if tops.shape[0] == 1:
        return tops[0].clone(), totals[0].clone()
    top = tops.amax(0)
    return top, (totals * (tops - finite(top)).exp()).sum(0)


def _merged(parts: torch.Tensor) -> torch.Tensor:
    return parts[0] if parts.shape[0] == 1 else parts.sum(0)


def _forward_by_tiles(
    x, inverse_temperatures, scale, weight, rows, negatives, all_rows, mask, rms, separate, options
):  # fmt: skip
    P = x.shape[1]
    tiles = Tiles(x)
    if scale is None:
        scale = (
            tiles.distance_sums(None, P, options["CLIP"])
            .sum(1, dtype=torch.float64)
            .to(tiles.points.dtype)
            / P**2
        )
    else:
        scale = scale.clone()
    factors = _factors(inverse_temperatures, scale)
    R = tiles.lse(factors, P if all_rows else rows, P, mask, options["CLIP"])
    C = R if all_rows else tiles.lse(factors, P, rows, mask, options["CLIP"])
    row_lse = R if R.shape[3] == rows else R[..., :rows].contiguous()
    apart = separate and not rms
    shift, sums, extra = tiles.sums(
        factors, R if rms else row_lse, C, weight, rows, negatives, rms, apart, options
    )
    if rms:
        norm = extra / 2 - math.log(P) - scale.double().masked_fill(scale == 0, 1.0).log()
    elif apart:
        norm = finite((shift + extra.flip(0)).amax((0, 3)))
    else:
        norm = torch.zeros_like(factors[0])
    room = finite(norm).double().unsqueeze(2) - shift.flip(
        0
    )  # as unit_and_excess in force_common.py
    level = shift.where(~(shift > room + ROOM.value), (room + ROOM.value).to(shift.dtype))
    unit = (level - room).exp().masked_fill((norm == -math.inf).unsqueeze(2), 0.0).to(scale.dtype)
    terms = torch.stack([finite(level), torch.stack([-unit[0] * sums[1], unit[1] * sums[0]])])
    force = tiles.forces(factors, row_lse, C, terms, weight, rows, negatives, separate, options)
    lse_cols = scale.new_empty(0) if all_rows else C[0].clone()
    return force, norm.to(scale.dtype, copy=True), scale, R[0].clone(), lse_cols, shift, sums


def distance_sums(x, weight, rows, clip):
    """See force_ops.py."""
    return Tiles(x).distance_sums(_given(weight), rows, clip)


def distance_gradient(g, x):
    """See force_ops.py."""
    G, P, D = x.shape
    g = g.contiguous()
    if is_small(x):
        config = _group(x)
        dx = g.new_empty(x.shape)
        launch(
            distance_group, G, x.contiguous(), g, _scratch(x, config, 0), dx, P, D, BLOCK_I=config.distance_m,
            BLOCK_M=config.block_m, **_constants(x, config),
        )  # fmt: skip
        return dx.to(x.dtype)
    tiles = Tiles(x)
    plan = tiles.split(P, P)
    out = tiles.new(plan[1], G, P, D)
    tiles.multiply(distance_pull, P, plan, g, out, (P, D))
    return _merged(out).neg_().to(x.dtype)
