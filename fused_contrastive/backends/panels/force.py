"""The force family in torch operations over row panels: O(P (D + K)) memory on any device. Contract: force_ops.py.

Each pass computes the distances of a panel of rows to all points again, unless one panel holds whole groups.
Flops per group of P points, of which M rows: 3 P^2 D of each pass over all points (sums of distances, log-sum-exps) and 3 M P D
of each over rows (sums of affinities, forces), K exponentials per pair and pass, 2 M P D for the product with the coordinates.
"""

from __future__ import annotations

import math

import torch

from ...dtypes import accumulation_dtype
from ._running_sum import finite

PANEL = 1 << 19
"""Pairs per panel on a CPU; other devices get 32 times that. A temperature's temporaries are a few of them."""


def _panels(G: int, P: int, device: torch.device):
    """``(groups, row panels)``: whole groups while one panel holds them, else row panels of one group."""
    panel = PANEL if device.type == "cpu" else 32 * PANEL
    if P * P <= panel:
        step = panel // (P * P)
        return [(slice(g, min(g + step, G)), [slice(0, P)]) for g in range(0, G, step)]
    step = max(1, panel // P)
    rows = [slice(i, min(i + step, P)) for i in range(0, P, step)]
    return [(slice(g, g + 1), rows) for g in range(G)]


def _distances(x: torch.Tensor, i: slice, clip: float) -> torch.Tensor:
    """``[G, |i|, P]``: of the rows `i` to all points, from differences, wide."""
    x = wide(x)
    d = torch.cdist(x[:, i], x, compute_mode="donot_use_mm_for_euclid_dist")
    return d.clamp_min_(math.sqrt(clip)) if clip > 0 else d


def _self_pairs(x: torch.Tensor, i: slice) -> torch.Tensor:
    """The pairs of a row with itself, as a view ``[G, |i|]`` of a panel ``[G, |i|, P]``."""
    return x.diagonal(i.start, 1, 2)


def _centred(x: torch.Tensor) -> torch.Tensor:
    """x less the mean of its group, which no force depends on, wide; exactly 0 where all points are equal."""
    x = wide(x)
    x = x - x[:, :1]
    return x - x.mean(1, keepdim=True)


def wide(x: torch.Tensor) -> torch.Tensor:
    """x in float64, where the device has it: an exponent of three digits costs its exponential as many."""
    return x if x.device.type == "mps" else x.double()


class _Field:
    """The affinities of one chunk of groups: what is described in force_ops.py, a panel and a temperature at a time, in float64."""

    def __init__(
        self, x, inverse_temperatures, weight, negatives, mask, self_logit, floor, denominator, clip
    ):
        self.x, self.inverse_temperatures, self.weight = x, inverse_temperatures, weight
        self.sides = (slice(0, negatives), slice(negatives, x.shape[1]))
        self.mask, self.self_logit, self.floor, self.denominator, self.clip = (
            mask,
            self_logit,
            floor,
            denominator,
            clip,
        )
        self.scale = self.place = self.panel = None

    def rescale(self, scale: torch.Tensor) -> None:
        """From here on distances are in units of the scale ``[G]``."""
        self.scale, self.place = scale, None

    def distances(self, i: slice) -> torch.Tensor:
        """In units of the scale, where there is one, and wide; those of the last panel are kept."""
        if self.place != (i.start, i.stop):
            self.place, self.panel = (i.start, i.stop), _distances(self.x, i, self.clip)
            if self.scale is not None:
                self.panel = self.panel / self.scale[:, None, None]
        return self.panel

    def log_kernel(self, i: slice, k: int) -> torch.Tensor:
        """``-f d``, −inf at self pairs with `mask`."""
        s = self.distances(i) * -self.inverse_temperatures[k]
        if self.mask:
            _self_pairs(s, i).fill_(-math.inf)
        return s

    def log_affinity(self, i: slice, k: int, R: torch.Tensor, C: torch.Tensor) -> torch.Tensor:
        """a of the rows `i`; R ``[G, |i|]`` of those rows, C ``[G, P]`` of all points."""
        total = R.unsqueeze(2) + C.unsqueeze(1)
        if self.denominator > -math.inf:
            total.clamp_min_(self.denominator)
        a = (self.distances(i) * -self.inverse_temperatures[k]).sub_(total, alpha=0.5)
        if self.floor > -math.inf:
            a = a.clamp_min(self.floor)
        _self_pairs(a, i).fill_(self.self_logit)
        return a


def force_forward(
    x, inverse_temperatures, scale, weight, rows, negatives, all_rows, mask, self_logit, floor, denominator, clip, rms,
    separate,
):  # fmt: skip
    """See force_ops.py."""
    x = x.to(inverse_temperatures.dtype)
    G, P, D = x.shape
    K = inverse_temperatures.shape[0]
    new = x.new_empty
    force = new((K if separate else 1, G, rows, D))
    log_norm, scales = new((K, G)), new((G,))
    lse_rows = new((K, G, P if all_rows else rows))
    lse_cols = new((0,) if all_rows else (K, G, P))
    shift, sums = new((2, K, G, rows)), new((2, K, G, rows))
    for g, panels in _panels(G, P, x.device):
        field = _Field(
            x[g], inverse_temperatures, None if weight is None else weight[g].unsqueeze(1),
            negatives, mask, self_logit, floor, denominator, clip,
        )  # fmt: skip
        if scale is None:
            scales[g] = sum(field.distances(i).sum((1, 2), dtype=torch.float64) for i in panels) / (
                P * P
            )
        else:
            scales[g] = scale[g]
        field.rescale(scales[g].masked_fill(scales[g] == 0, 1.0))
        row_panels = panels if all_rows else _rows_only(panels, rows)
        R, C = _log_sums(field, row_panels, lse_rows[:, g], None if all_rows else lse_cols[:, g])
        tops, totals = (R.new_empty((2, K, R.shape[1], rows)) for _ in range(2))
        norm = _sums(
            field, panels if rms else _rows_only(panels, rows), R, C, tops, totals, rms, separate
        )
        _forces(field, _rows_only(panels, rows), R, C, tops, totals, norm, force[:, g])
        log_norm[:, g], shift[:, :, g], sums[:, :, g] = norm, tops, totals
    return force, log_norm, scales, lse_rows, lse_cols, shift, sums


def _rows_only(panels: list[slice], rows: int) -> list[slice]:
    return [slice(i.start, min(i.stop, rows)) for i in panels if i.start < rows]


def _log_sums(field: _Field, panels, lse_rows, lse_cols) -> tuple[torch.Tensor, torch.Tensor]:
    """Fills the log-sum-exps and returns R and C ``[K, G, ...]``, wide."""
    R, C = [], []
    for k in range(len(lse_rows)):
        rows, columns = [], []
        for i in panels:
            s = field.log_kernel(i, k)
            rows.append(s.logsumexp(2))
            if lse_cols is not None:
                columns.append(s.logsumexp(1))
        R.append(torch.cat(rows, 1))
        C.append(R[-1] if lse_cols is None else torch.stack(columns).logsumexp(0))
    R, C = torch.stack(R), torch.stack(C)
    lse_rows.copy_(R)
    if lse_cols is not None:
        lse_cols.copy_(C)
    return R, C


def _sums(field: _Field, panels, R, C, shift, sums, rms: bool, separate: bool) -> torch.Tensor:
    """Fills shift and sums of the rows; returns log_norm ``[K, G]``."""
    K, G, P = C.shape
    rows = shift.shape[-1]
    squares, largest = [[] for _ in range(K)], shift.new_full((K, G), -math.inf)
    for k in range(K):
        for i in panels:
            a, d = field.log_affinity(i, k, R[k, :, i], C[k]), field.distances(i)
            if rms:
                squares[k].append(_log_squares(a, d))
            if i.start >= rows:
                continue
            i = slice(i.start, min(i.stop, rows))
            for side, columns in enumerate(field.sides):
                part = a[:, : i.stop - i.start, columns]
                if part.shape[2] == 0:
                    shift[side, k, :, i], sums[side, k, :, i] = -math.inf, 0.0
                    continue
                shift[side, k, :, i] = part.amax(2)
                e = (part - finite(shift[side, k, :, i]).unsqueeze(2)).exp_()
                sums[side, k, :, i] = (
                    e if field.weight is None else e * field.weight[..., columns]
                ).sum(2)
            if separate:
                apart = a[:, : i.stop - i.start].masked_fill_(
                    d[:, : i.stop - i.start] == 0, -math.inf
                )
                for side, columns in enumerate(field.sides):
                    if apart[..., columns].shape[2] > 0:
                        exponent = shift[1 - side, k, :, i] + apart[..., columns].amax(2)
                        largest[k] = torch.maximum(largest[k], exponent.amax(1))
    if rms:
        return torch.stack([torch.stack(parts).logsumexp(0) / 2 for parts in squares]) - math.log(P)
    if separate:  # callers multiply by its exponential, as it is once rounded
        return finite(largest).to(field.x.dtype)
    return shift.new_zeros((K, G))


def _log_squares(a: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """Log of the panel's sum of (d A)^2, relative to the largest A of a pair with d > 0: ``[G]``."""
    a = a.masked_fill(d == 0, -math.inf).flatten(1)
    top = a.amax(1, keepdim=True)
    terms = (a - finite(top)).exp_().mul_(d.flatten(1)).square_()
    return 2 * finite(top).squeeze(1) + terms.sum(1).log()


def _unit(shift: torch.Tensor, log_norm: torch.Tensor) -> torch.Tensor:
    """``exp(shift_neg + shift_pos - log_norm)``, 0 where log_norm is -inf; shift ``[2, ..., rows]``, log_norm ``[...]``."""
    log_norm = log_norm.unsqueeze(-1)
    return (shift.sum(0) - finite(log_norm)).exp().masked_fill_(log_norm == -math.inf, 0.0)


def _forces(field: _Field, panels, R, C, shift, sums, log_norm, force) -> None:
    y = _centred(field.x)
    K = len(log_norm)
    unit = _unit(shift, log_norm)
    for i in panels:
        total = None
        for k in range(K):
            a = field.log_affinity(i, k, R[k, :, i], C[k])
            for side, columns in enumerate(field.sides):
                e = a[..., columns].sub_(finite(shift[side, k, :, i]).unsqueeze(2)).exp_()
                e.mul_((unit[k, :, i] * sums[1 - side, k, :, i] * (2 * side - 1)).unsqueeze(2))
            if field.weight is not None:
                a.mul_(field.weight)
            if len(force) == K:
                force[k, :, i] = _product(y, i, a, field.distances(i))
            else:
                total = a if total is None else total.add_(a)
        if len(force) < K:
            force[0, :, i] = _product(y, i, total, field.distances(i))


def _product(y: torch.Tensor, i: slice, w: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """``sum_j w_ij (y_j - y_i)``: equal points, whose weights may exceed all others by far, add exactly nothing."""
    w = w.masked_fill_(d == 0, 0.0)
    return w @ y - w.sum(2, keepdim=True) * y[:, i]


def force_backward(g, x, inverse_temperature, log_norm, lse, shift, sums, rows, mask, floor, rms):
    """See force_ops.py."""
    given, x = x, x.to(inverse_temperature.dtype)
    G, P, D = x.shape
    dx, df = x.new_empty(x.shape), x.new_zeros(1)
    g, log_norm, lse, shift, sums = (
        wide(t) for t in (g[0], log_norm[0], lse[0], shift[:, 0], sums[:, 0])
    )
    none = shift.new_full((2, G, P - rows), -math.inf)
    shift, sums = torch.cat([shift, none], 2), torch.cat([sums, none.clamp_min(0.0)], 2)
    g = torch.cat([g, g.new_zeros((G, P - rows, D))], 1)
    for chunk, panels in _panels(G, P, x.device):
        field = _Field(
            x[chunk], inverse_temperature, None, rows, mask, -math.inf, floor, -math.inf, 0.0
        )
        part = _Backward(
            field,
            g[chunk],
            lse[chunk],
            log_norm[chunk],
            shift[:, chunk],
            sums[:, chunk],
            floor,
            rms,
        )
        df += part.run(panels, dx[chunk])
    return dx.to(given.dtype), df


class _Backward:
    """Gradient of one chunk of groups; rows that are no rows of the force have no affinity and g = 0.

    ``q_ij`` is the derivative by ``log A_ij``, p_ij the share of pair ij in the mean of (d A)^2. Derivation: docs/maths.md.
    """

    def __init__(self, field, g, lse, log_norm, shift, sums, floor, rms):
        self.field, self.g, self.lse, self.log_norm = field, g, lse, log_norm
        self.sums, self.floor, self.rms = sums, floor, rms
        self.y, self.shift = _centred(field.x), finite(shift)
        self.unit = _unit(shift, log_norm)
        self.pulls = torch.zeros_like(sums)  # sum over the side of E <g, y>
        self.power = None  # <g, force> of each group

    def affinity(self, i):
        """``a`` of rows i, and E relative to each side's shift."""
        a = self.field.log_affinity(i, 0, self.lse[:, i], self.lse)
        e = [
            (a[..., columns] - self.shift[side, :, i].unsqueeze(2)).exp_()
            for side, columns in enumerate(self.field.sides)
        ]
        return a, torch.cat(e, 2)

    def by_affinity(self, i, e, gy):
        """The force's part of q for rows i: ``unit E (s_neg <g, y> - pull_neg)``, or its mirror for negative columns."""
        q = torch.empty_like(e)
        for side, columns in enumerate(self.field.sides):
            sign, other = 2 * side - 1, 1 - side
            pull = gy[..., columns] * self.sums[other, :, i].unsqueeze(2) - self.pulls[
                other, :, i
            ].unsqueeze(2)
            q[..., columns] = e[..., columns] * pull * (sign * self.unit[:, i]).unsqueeze(2)
        return q

    def shares(self, i, a):
        """``p_ij``, 0 where d = 0."""
        d = self.field.distances(i)
        p = (
            (d.log() + a - finite(self.log_norm)[:, None, None])
            .mul_(2)
            .exp_()
            .div_(d.shape[2] ** 2)
        )
        return p.masked_fill_((self.log_norm == -math.inf)[:, None, None], 0.0)

    def unclipped(self, i, a, q):
        """q where the floor of `a` is not active."""
        return q if self.floor == -math.inf else q.masked_fill_(a <= self.floor, 0.0)

    def run(self, panels, dx) -> torch.Tensor:
        for i in panels:
            _, e = self.affinity(i)
            weighted = e * (self.g[:, i] @ self.y.mT)
            for side, columns in enumerate(self.field.sides):
                self.pulls[side, :, i] = weighted[..., columns].sum(2)
        self.power = (
            self.unit * (self.sums[0] * self.pulls[1] - self.sums[1] * self.pulls[0])
        ).sum(1)
        by_row, by_column = torch.zeros_like(self.lse), torch.zeros_like(self.lse)
        value = torch.zeros_like(self.y)
        for i in panels:
            a, e = self.affinity(i)
            q = self.by_affinity(i, e, self.g[:, i] @ self.y.mT)
            for side, columns in enumerate(self.field.sides):
                coefficient = (
                    self.unit[:, i] * self.sums[1 - side, :, i] * (2 * side - 1)
                ).unsqueeze(2)
                value[:, columns] += (e[..., columns] * coefficient).mT @ self.g[:, i]
            q = self.unclipped(i, a, self.less_norm(i, a, q))
            by_row[:, i] = q.sum(2)
            by_column += q.sum(1)
        through_lse = (by_row + by_column) / -2
        df = self.lse.new_zeros(())
        for i in panels:
            h, part = self.by_distance(i, through_lse)
            df += part
            d = self.field.distances(i)
            w = torch.where(d > 0, h / d, 0.0)
            dx[:, i] = w.sum(2, keepdim=True) * self.y[:, i] - w @ self.y
        dx += value
        return df

    def less_norm(self, i, a, q):
        return q - self.power[:, None, None] * self.shares(i, a) if self.rms else q

    def by_distance(self, i, through_lse):
        """The derivative by d_ij as ij and as ji, of rows i; and its part of the derivative by the factor."""
        field, factor = self.field, self.field.inverse_temperatures[0]
        d = field.distances(i)
        a, e = self.affinity(i)
        own = self.less_norm(i, a, self.by_affinity(i, e, self.g[:, i] @ self.y.mT))
        mirrored = self.less_norm(i, a, self.mirrored(i, a))
        s = field.log_kernel(i, 0)
        softmax = (s - self.lse[:, i].unsqueeze(2)).exp_()
        own = self.unclipped(i, a, own) + through_lse[:, i].unsqueeze(2) * softmax
        softmax = (s - self.lse.unsqueeze(1)).exp_()
        both = own + self.unclipped(i, a, mirrored) + through_lse.unsqueeze(1) * softmax
        df = -(own * d).sum()
        h = both * -factor
        if self.rms:
            h -= torch.where(d > 0, 2 * self.power[:, None, None] * self.shares(i, a) / d, 0.0)
        return h, df

    def mirrored(self, i, a):
        """The force's part of q_ji for the points i as columns of the rows j."""
        sides = self.field.sides
        gy = self.y[:, i] @ self.g.mT
        q = torch.empty_like(a)
        for side, columns in enumerate(sides):  # rows of this block that are columns of that side
            block = slice(
                max(i.start, columns.start) - i.start, max(min(i.stop, columns.stop) - i.start, 0)
            )
            sign, other = 2 * side - 1, 1 - side
            e = (a[:, block] - self.shift[side].unsqueeze(1)).exp()
            pull = gy[:, block] * self.sums[other].unsqueeze(1) - self.pulls[other].unsqueeze(1)
            q[:, block] = e * pull * (sign * self.unit).unsqueeze(1)
        return q


def distance_sums(x, weight, rows, clip):
    """See force_ops.py."""
    accumulate = accumulation_dtype(x.dtype)
    x = x.to(accumulate)
    G, P, _ = x.shape
    out = x.new_empty((G, rows))
    for g, panels in _panels(G, P, x.device):
        for i in _rows_only(panels, rows):
            d = _distances(x[g], i, clip)
            out[g, i] = (
                d.sum(2) if weight is None else (d @ wide(weight[g]).unsqueeze(2)).squeeze(2)
            )
    return out


def distance_gradient(g, x):
    """See force_ops.py."""
    points = x.to(accumulation_dtype(x.dtype))
    G, P, _ = x.shape
    dx = torch.empty_like(points)
    for chunk, panels in _panels(G, P, x.device):
        y = _centred(points[chunk])
        for i in panels:
            d = _distances(points[chunk], i, 0.0)
            w = torch.where(d > 0, 2 * g[chunk, None, None] / d, 0.0)
            dx[chunk, i] = w.sum(2, keepdim=True) * y[:, i] - w @ y
    return dx.to(x.dtype)
