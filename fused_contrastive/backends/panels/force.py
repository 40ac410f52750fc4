"""The force family in torch operations over row panels: O(P (D + K)) memory on any device.

ops/force.py has the contract. Each pass computes the distances of a panel of rows to all points
again, unless one panel holds whole groups.

Flops per group of P points with M rows: each pass over all points (sums of distances,
log-sum-exps) takes 3 P^2 D. Each pass over rows (sums of affinities, forces) takes 3 M P D. A pass
takes K exponentials per pair. The product with the coordinates takes 2 M P D.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ...dtypes import accumulation_dtype
from ...problem import ABSENT, ForceForward, ForceProblem
from ._force_backward import Backward
from ._force_field import Field, centred, differences, distances, first_rows, row_panels, unit, wide
from ._running_sum import finite


class Chunk(NamedTuple):
    """Some groups of a call, and what is known of them, all wide."""

    field: Field
    R: Tensor  # [K, G, rows]; [K, G, P] where every point is a row of the softmaxes
    C: Tensor  # [K, G, P]
    shift: Tensor  # [2, K, G, rows]
    sums: Tensor  # [2, K, G, rows]


def force_forward(problem: ForceProblem) -> ForceForward:
    """The force on each row, and what the backward op reads; ops/force.py defines the fields."""
    x, inverse, scale, weight, rows, *_ = problem
    x = x.to(inverse.dtype)
    G, P, D = x.shape
    K = inverse.shape[0]
    new = x.new_empty
    all_rows, rms = problem.all_rows, problem.rms
    found = ForceForward(
        force=new((K if problem.separate else 1, G, rows, D)),
        log_norm=new((K, G)),
        scale=new((G,)),
        lse_rows=new((K, G, P if all_rows else rows)),
        lse_cols=None if all_rows else new((K, G, P)),
        shift=new((2, K, G, rows)),
        sums=new((2, K, G, rows)),
    )
    for g, panels in row_panels(G, P, x.device):
        field = Field(problem._replace(x=x[g], weight=None if weight is None else weight[g]))
        if scale is None:
            total = sum(field.distances(i).sum((1, 2), dtype=torch.float64) for i in panels)
            found.scale[g] = total / (P * P)
        else:
            found.scale[g] = scale[g]
        field.rescale(found.scale[g].masked_fill(found.scale[g] == 0, 1.0))
        row_parts = first_rows(panels, rows)
        R, C = _log_sums(field, panels if all_rows else row_parts)
        found.lse_rows[:, g] = R
        if not all_rows:
            found.lse_cols[:, g] = C
        shift, sums = (R.new_empty((2, K, R.shape[1], rows)) for _ in range(2))
        chunk = Chunk(field, R, C, shift, sums)
        log_norm = _sums(chunk, panels if rms else row_parts)
        _forces(chunk, row_parts, log_norm, found.force[:, g])
        found.log_norm[:, g], found.shift[:, :, g], found.sums[:, :, g] = log_norm, shift, sums
    return found


def _log_sums(field: Field, panels: list[slice]) -> tuple[Tensor, Tensor]:
    """R and C of the rows in `panels`, wide: ``[K, G, rows or P]`` and ``[K, G, P]``."""
    R, C = [], []
    for k in range(len(field.problem.inverse_temperatures)):
        rows, columns = [], []
        for i in panels:
            s = field.log_kernel(i, k)
            rows.append(s.logsumexp(2))
            if not field.problem.all_rows:
                columns.append(s.logsumexp(1))
        R.append(torch.cat(rows, 1))
        C.append(torch.stack(columns).logsumexp(0) if columns else R[-1])
    return torch.stack(R), torch.stack(C)


def _sums(chunk: Chunk, panels: list[slice]) -> Tensor:
    """Fill shift and sums of the rows in `panels`, and return log_norm ``[K, G]``."""
    field, R, C, shift, _ = chunk
    K, G, P = C.shape
    rows = shift.shape[-1]
    rms, separate = field.problem.rms, field.problem.separate
    squares: list[list[Tensor]] = [[] for _ in range(K)]
    largest = shift.new_full((K, G), -math.inf)
    for k in range(K):
        for i in panels:
            a, d = field.log_affinity(i, k, R[k, :, i], C[k]), field.distances(i)
            if rms:
                squares[k].append(_log_squares(a, d))
            if i.start >= rows:
                continue
            i = slice(i.start, min(i.stop, rows))
            a, d = a[:, : i.stop - i.start], d[:, : i.stop - i.start]
            _side_sums(chunk, i, k, a)
            if separate:
                apart = a.masked_fill_(d == 0, -math.inf)
                for side, columns in enumerate(field.sides):
                    if apart[..., columns].shape[2] > 0:
                        exponent = shift[1 - side, k, :, i] + apart[..., columns].amax(2)
                        largest[k] = torch.maximum(largest[k], exponent.amax(1))
    if rms:
        return torch.stack([torch.stack(parts).logsumexp(0) / 2 for parts in squares]) - math.log(P)
    if separate:
        # Callers multiply by the exponential of the unit after it has been rounded.
        return finite(largest).to(field.x.dtype)
    return shift.new_zeros((K, G))


def _side_sums(chunk: Chunk, i: slice, k: int, a: Tensor) -> None:
    """Fill shift and sums of the rows `i` at temperature k from their a ``[G, |i|, P]``."""
    field, shift, sums = chunk.field, chunk.shift, chunk.sums
    for side, columns in enumerate(field.sides):
        part = a[..., columns]
        if part.shape[2] == 0:
            shift[side, k, :, i], sums[side, k, :, i] = -math.inf, 0.0
            continue
        shift[side, k, :, i] = part.amax(2)
        e = (part - finite(shift[side, k, :, i]).unsqueeze(2)).exp_()
        weighted = e if field.weight is None else e * field.weight[..., columns]
        sums[side, k, :, i] = weighted.sum(2)


def _log_squares(a: Tensor, d: Tensor) -> Tensor:
    """The log of a panel's sum of (d A)^2: ``[G]`` of a and d ``[G, |i|, P]``.

    The terms are taken relative to the largest A of a pair with d > 0.
    """
    a = a.masked_fill(d == 0, -math.inf).flatten(1)
    top = a.amax(1, keepdim=True)
    terms = (a - finite(top)).exp_().mul_(d.flatten(1)).square_()
    return 2 * finite(top).squeeze(1) + terms.sum(1).log()


def _forces(chunk: Chunk, panels: list[slice], log_norm: Tensor, force: Tensor) -> None:
    """Fill `force` ``[S, G, rows, D]`` of the rows in `panels`, given log_norm ``[K, G]``."""
    field, R, C, shift, sums = chunk
    y = centred(field.x)
    K = len(log_norm)
    units = unit(shift, log_norm)
    for i in panels:
        total = ABSENT
        for k in range(K):
            a = field.log_affinity(i, k, R[k, :, i], C[k])
            for side, columns in enumerate(field.sides):
                e = a[..., columns].sub_(finite(shift[side, k, :, i]).unsqueeze(2)).exp_()
                e.mul_((units[k, :, i] * sums[1 - side, k, :, i] * (2 * side - 1)).unsqueeze(2))
            if field.weight is not None:
                a.mul_(field.weight)
            if len(force) == K:
                force[k, :, i] = differences(y, i, a, field.distances(i))
            else:
                total = a if total is None else total.add_(a)
        if len(force) < K:
            force[0, :, i] = differences(y, i, total, field.distances(i))


def force_backward(
    g: Tensor,  # [1, G, rows, D]
    x: Tensor,  # [G, P, D]
    inverse_temperature: Tensor,  # [1]
    log_norm: Tensor,  # [1, G]
    lse: Tensor,  # [1, G, P]
    shift: Tensor,  # [2, 1, G, rows]
    sums: Tensor,  # [2, 1, G, rows]
    rows: int,
    mask: bool,
    floor: float,
    rms: bool,
) -> tuple[Tensor, Tensor]:
    """``(dx [G, P, D], dinverse [1])`` of the force at one temperature and a scale of 1."""
    dtype, x = x.dtype, x.to(inverse_temperature.dtype)
    G, P, D = x.shape
    dx, df = x.new_empty(x.shape), x.new_zeros(1)
    g, log_norm, lse, shift, sums = (
        wide(t) for t in (g[0], log_norm[0], lse[0], shift[:, 0], sums[:, 0])
    )
    # The other points are rows without an affinity, whose force has no upstream gradient.
    none = shift.new_full((2, G, P - rows), -math.inf)
    shift, sums = torch.cat([shift, none], 2), torch.cat([sums, none.clamp_min(0.0)], 2)
    g = torch.cat([g, g.new_zeros((G, P - rows, D))], 1)
    for chunk, panels in row_panels(G, P, x.device):
        problem = ForceProblem(
            x[chunk],
            inverse_temperature,
            scale=None,
            weight=None,
            rows=rows,
            negatives=rows,
            mask=mask,
            floor=floor,
            rms=rms,
        )
        part = Backward(
            Field(problem),
            g=g[chunk],
            lse=lse[chunk],
            log_norm=log_norm[chunk],
            shift=shift[:, chunk],
            sums=sums[:, chunk],
        )
        df += part.run(panels, dx[chunk])
    return dx.to(dtype), df


def distance_sums(
    x: Tensor,  # [G, P, D]
    weight: Tensor | None,  # [G, P]
    rows: int,
    clip: float,
) -> Tensor:
    """``sum_j d_ij weight_j`` over all columns: ``[G, rows]`` in the accumulation dtype."""
    accumulate = accumulation_dtype(x.dtype)
    x = x.to(accumulate)
    G, P, _ = x.shape
    out = x.new_empty((G, rows))
    for g, panels in row_panels(G, P, x.device):
        for i in first_rows(panels, rows):
            d = distances(x[g], i, clip)
            out[g, i] = (
                d.sum(2) if weight is None else (d @ wide(weight[g]).unsqueeze(2)).squeeze(2)
            )
    return out


def distance_gradient(
    g: Tensor,  # [G]
    x: Tensor,  # [G, P, D]
) -> Tensor:
    """g times the derivative of the sum of d over all P x P pairs: ``[G, P, D]``, dtype of x."""
    points = x.to(accumulation_dtype(x.dtype))
    G, P, _ = x.shape
    dx = torch.empty_like(points)
    for chunk, panels in row_panels(G, P, x.device):
        y = centred(points[chunk])
        for i in panels:
            d = distances(points[chunk], i, 0.0)
            w = torch.where(d > 0, 2 * g[chunk, None, None] / d, 0.0)
            dx[chunk, i] = w.sum(2, keepdim=True) * y[:, i] - w @ y
    return dx.to(x.dtype)
