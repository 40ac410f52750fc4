"""Tangents of the similarity and sigmoid families' outputs and gradients, hence their second derivatives, streamed over row panels.

In torch operations, for every backend, in O(N D) memory and in the accumulation dtype. Of log-sum-exps: one pass over the panels of panels.py gives the means of the logits' tangents
under the softmax, which are the tangents of the log-sum-exps; a second one gives the weights' tangents and their products with the embeddings.
Flops: two sets 6 M N D for the tangents of the outputs, 24 M N D for all; one set half of that. Derivations: docs/maths.md.
"""

from __future__ import annotations

import torch

from ...dtypes import accumulation_dtype
from . import EPS, blocks, excess, logits, partners, product, signed_logits, undefined, widen
from ._running_sum import finite

FLAT = ("similarity_second", "sigmoid_second")
"""Functions that take the arguments of their op as they are."""


def similarity_second(
    t_a, t_b, t_scale, t_bias, g_rows, g_cols, a, b, scale, bias, key_a, key_b, rows, cols, pos, a_hat, b_hat, a_inv, b_inv, mean,
    kind, offset, stride, positive, normalize, dtype, need_a, need_b, need_scale, need_bias,
):  # fmt: skip
    """See ops.py."""
    one_set = b is None
    left = Side(a, a_hat, a_inv, t_a)
    right = left if one_set else Side(b, b_hat, b_inv, t_b)
    key_b = key_a if one_set else key_b
    (G, M, _), N = left.x.shape, right.x.shape[1]
    t_left, t_right = tangent_factors(left, right, scale, t_scale)

    def panels():
        """Slices of groups, rows, columns, and columns that no later panel has as rows; the logits and their tangents."""
        for g0, g1, i0, i1 in blocks(G, M, N, scale.device):
            g, i, j = slice(g0, g1), slice(i0, i1), slice(i0 if one_set else 0, N)
            s = logits(
                left.read, right.read, scale, bias, key_a, key_b, kind, offset, stride, g, i, j
            )
            t = product(t_left[g, i], t_right[g, j].transpose(1, 2))
            yield (
                g,
                i,
                j,
                slice(i1 if one_set else 0, N),
                s,
                t if t_bias is None else t.add_(t_bias[g, None, j]),
            )

    by_row = Softmax(rows[0])
    by_column = by_row if one_set else Softmax(cols[0]) if cols.numel() else None
    for g, i, j, rest, s, t in panels():
        by_row.add(g, i, s, t, 2)
        if by_column is not None:
            new = slice(rest.start - j.start, None)
            by_column.add(g, rest, s[:, :, new], t[:, :, new], 1)
    for softmax in {by_row, by_column} - {None}:
        softmax.close()

    d_cols = scale.new_empty(0)
    if positive >= 0:
        p = partners(M, N, positive, scale.device)
        t_pos = positive_tangents(t_left, t_right, t_bias, p)
        directions = [(by_row, rows, slice(None))]
        if cols.numel():
            directions.append((by_column, cols[..., p], p))
        d_rows, g_pos, t_g_pos = through_positive(g_rows, directions, pos, t_pos)
    else:
        d_rows = by_row.mean
        by_row.weigh(g_rows)
        if g_cols.numel():
            d_cols = by_column.mean
            by_column.weigh(g_cols)

    row_sums = Sums(left) if need_a or need_scale else None
    column_sums = row_sums if one_set else Sums(right) if need_b else None
    d_bias = torch.zeros_like(bias) if need_bias else scale.new_empty(0)
    for g, i, j, rest, s, t in panels() if need_a or need_b or need_scale or need_bias else ():
        w, t_w = by_row.weights(g, i, s, t, 2)
        if by_column is not None:
            more, t_more = by_column.weights(g, j, s, t, 1)
            w, t_w = w.add_(more), t_w.add_(t_more)
        if need_bias:
            d_bias[g] += t_w.sum(1)
        if row_sums is not None:
            row_sums.add((g, i), w, t_w, right, (g, j))
        if column_sums is not None:
            new = slice(rest.start - j.start, None)
            column_sums.add(
                (g, rest),
                w[:, :, new].transpose(1, 2),
                t_w[:, :, new].transpose(1, 2),
                left,
                (g, i),
            )
    if positive >= 0:
        if row_sums is not None:
            row_sums.add_pairs(slice(None), g_pos, t_g_pos, right, p)
        if column_sums is not None:
            column_sums.add_pairs(p, g_pos, t_g_pos, left, slice(None))
        if need_bias:
            d_bias.index_add_(1, p, t_g_pos)
    return (
        d_rows,
        d_cols,
        row_sums.finish(scale, t_scale) if need_a else a.new_empty(0),
        column_sums.finish(scale, t_scale) if need_b else a.new_empty(0),
        row_sums.along_scale() * (0.5 if one_set else 1.0) if need_scale else scale.new_empty(0),
        d_bias,
    )


def sigmoid_second(
    t_a, t_b, t_scale, t_bias, g_rows, a, b, scale, row_bias, key_a, key_b, pos, a_hat, b_hat, a_inv, b_inv,
    kind, offset, stride, positive, sign, normalize, dtype, need_a, need_b, need_scale, need_bias,
):  # fmt: skip
    """See sigmoid_ops.py. One pass, two sets 6 M N D for the tangents of the outputs, 18 M N D for all; one set the same."""
    one_set = b is None
    left = Side(a, a_hat, a_inv, t_a)
    right = left if one_set else Side(b, b_hat, b_inv, t_b)
    key_b = key_a if one_set else key_b
    (G, M, _), N = left.x.shape, right.x.shape[1]
    t_left, t_right = tangent_factors(left, right, scale, t_scale)
    row_sums = Sums(left) if need_a or need_scale else None
    column_sums = row_sums if one_set else Sums(right) if need_b else None
    d_rows, d_bias = torch.zeros_like(g_rows), scale.new_zeros((G, M) if need_bias else (0,))
    for g0, g1, i0, i1 in blocks(G, M, N, scale.device):
        g, i = slice(g0, g1), slice(i0, i1)
        y = signed_logits(
            left.read, right.read, scale, row_bias, key_a, key_b, kind, offset, stride, sign, g, i
        )
        t = product(t_left[g, i], t_right[g].transpose(1, 2))
        if t_bias is not None:
            t += t_bias[g, i].unsqueeze(2)
        c, p = g_rows[g, i].unsqueeze(2), torch.sigmoid(y)
        d_rows[g, i] = sign * (p * t).sum(2)
        w, t_w = p * (c * sign), y.neg_().sigmoid_().mul_(p).mul_(t).mul_(c)
        if need_bias:
            d_bias[g, i] = t_w.sum(2)
        if row_sums is not None:
            row_sums.add((g, i), w, t_w, right, g)
        if column_sums is not None:
            column_sums.add(g, w.transpose(1, 2), t_w.transpose(1, 2), left, (g, i))
    if positive >= 0:
        order, away = partners(M, N, positive, scale.device), torch.sigmoid(-sign * pos)
        t = (t_left * t_right[:, order]).sum(-1)
        t = t if t_bias is None else t + t_bias
        d_rows -= sign * away * t
        w, t_w = -sign * g_rows * away, g_rows * away * torch.sigmoid(sign * pos) * t
        if need_bias:
            d_bias += t_w
        if row_sums is not None:
            row_sums.add_pairs(slice(None), w, t_w, right, order)
        if column_sums is not None:
            column_sums.add_pairs(order, w, t_w, left, slice(None))
    return (
        d_rows,
        row_sums.finish(scale, t_scale) if need_a else a.new_empty(0),
        column_sums.finish(scale, t_scale) if need_b else a.new_empty(0),
        row_sums.along_scale() * (0.5 if one_set else 1.0) if need_scale else scale.new_empty(0),
        d_bias,
    )


class Side:
    """One set: ``read``, as the products of the logits read it; ``x``, the same in the accumulation dtype; and ``u``, the tangent of its
    normalised rows along the tangent `t` of the set itself (None: 0). Shapes ``[G, rows, D]``."""

    def __init__(self, given, hat, inv, t):
        self.dtype = given.dtype
        self.read = widen(hat if hat.numel() else given)
        self.x = self.read.to(accumulation_dtype(self.read.dtype))
        self.t = None if t is None else t.to(self.x.dtype)
        self.inv = self.unit = None
        if inv.numel():
            self.inv = inv.unsqueeze(-1)
            self.unit = given.to(self.x.dtype) * self.inv
        self.u = None if t is None else self.through_norm(self.t)

    def radial(self, x):
        """``<unit, x>``, 0 below the norm floor, where the norm is a constant."""
        return (self.unit * x).sum(-1, keepdim=True) * (self.inv < 1 / EPS)

    def through_norm(self, x):
        """x times the normalisation's Jacobian, which is symmetric."""
        return x if self.inv is None else (x - self.radial(x) * self.unit) * self.inv

    def along_norm(self, x, t_x):
        """The tangent of `through_norm(x)`."""
        if self.inv is None:
            return t_x
        t = self.through_norm(t_x)
        if self.u is None:
            return t
        moved = (self.u * x).sum(-1, keepdim=True) * self.unit + self.radial(x) * self.u
        live = self.inv < 1 / EPS
        return t - (moved * live + self.through_norm(x) * self.radial(self.t)) * self.inv


def tangent_factors(left, right, scale, t_scale):
    """``p [G, M, k]``, ``q [G, N, k]``: ``p @ q.T`` is the tangent of ``scale * x @ y.T``."""
    of_left = None if left.u is None else scale * left.u
    if t_scale is not None:
        of_left = t_scale * left.x if of_left is None else of_left + t_scale * left.x
    p, q = ([], []) if of_left is None else ([of_left], [right.x])
    if right.u is not None:
        p, q = [*p, scale * left.x], [*q, right.u]
    return (torch.cat(p, -1), torch.cat(q, -1)) if p else (left.x[..., :0], right.x[..., :0])


def positive_tangents(t_left, t_right, t_bias, p):
    """The tangents of the positives' logits."""
    t = (t_left * t_right[:, p]).sum(-1)
    return t if t_bias is None else t + t_bias[:, p]


def through_positive(g, directions, pos, t_pos):
    """The tangent of ``loss = softplus(lse - pos)``, the mean of both directions where there are two; the positives' weights and their tangents.

    `directions`: softmax, log-sum-exps, and which of the softmax's rows (columns) those belong to. The softmaxes get their upstream factors.
    """
    d_loss, weight, t_weight = torch.zeros_like(pos), torch.zeros_like(pos), torch.zeros_like(pos)
    for softmax, lse, order in directions:
        e, t_e = excess(lse, pos), softmax.mean[:, order] - t_pos
        sigmoid = torch.sigmoid(e) / len(directions) + undefined(lse, pos)
        c, t_c = g * sigmoid, g * sigmoid * torch.sigmoid(-e) * t_e
        softmax.weigh(c, t_c, order)
        d_loss += sigmoid * t_e
        weight -= c
        t_weight -= t_c
    return d_loss, weight, t_weight


class Softmax:
    """The softmax of one direction: sums and, of the logits' tangents, means under it ``[G, size]``; then the factors of its weights.

    ``exp(s - lse)`` is divided by its own sum, so that weights sum to 1 also where another kernel made lse."""

    def __init__(self, lse):
        self.lse = finite(lse)
        self.total, self.mean = torch.zeros_like(lse), torch.zeros_like(lse)
        self.c = self.t_c = None

    def add(self, g, k, s, t, dim):
        p = torch.sub(s, self.lse[g, k].unsqueeze(dim)).exp_()
        self.total[g, k] += p.sum(dim)
        self.mean[g, k] += p.mul_(t).sum(dim)

    def close(self):
        self.total.masked_fill_(self.total == 0, 1.0)
        self.mean /= self.total

    def weigh(self, c, t_c=None, order=slice(None)):
        """Upstream gradients of the log-sum-exps, and their tangents (None: 0), of the rows in `order`."""
        self.c, self.t_c = torch.zeros_like(self.total), torch.zeros_like(self.total)
        self.c[:, order] = c
        if t_c is not None:
            self.t_c[:, order] = t_c
        self.c, self.t_c = self.c / self.total, self.t_c / self.total

    def weights(self, g, k, s, t, dim):
        """``W = c softmax`` of a panel, and its tangent."""
        lse, mean, c, t_c = (
            x[g, k].unsqueeze(dim) for x in (self.lse, self.mean, self.c, self.t_c)
        )
        p = torch.sub(s, lse).exp_()
        t_w = torch.sub(t, mean).mul_(c).add_(t_c).mul_(p)
        return p.mul_(c), t_w


class Sums:
    """``W y``, unscaled, of the rows of one side, and its tangent."""

    def __init__(self, side):
        self.side = side
        self.total, self.tangent = torch.zeros_like(side.x), torch.zeros_like(side.x)

    def add(self, place, w, t_w, other, where):
        self.total[place] += product(w, other.x[where])
        self.tangent[place] += product(t_w, other.x[where])
        if other.u is not None:
            self.tangent[place] += product(w, other.u[where])

    def add_pairs(self, order, w, t_w, other, where):
        """Add one pair for each of the rows in `order`, of weights ``[G, rows]``."""
        w, t_w, y = w.unsqueeze(-1), t_w.unsqueeze(-1), other.x[:, where]
        self.total[:, order] += w * y
        self.tangent[:, order] += t_w * y
        if other.u is not None:
            self.tangent[:, order] += w * other.u[:, where]

    def along_scale(self):
        t = (self.side.x * self.tangent).sum()
        return t if self.side.u is None else t + (self.side.u * self.total).sum()

    def finish(self, scale, t_scale):
        """The tangent of the gradient of the set itself, in its dtype."""
        t = scale * self.tangent
        if t_scale is not None:
            t = t + t_scale * self.total
        return self.side.along_norm(scale * self.total, t).to(self.side.dtype)
