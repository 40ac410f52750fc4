"""Second derivatives of the similarity and sigmoid families, over panels.

They are the tangents of the outputs and of the gradients. One implementation serves every backend.
It is made of torch operations, takes O(N D) memory and computes in the accumulation dtype. The
log-sum-exps need two passes. The first gives the means of the logits' tangents under the softmax,
which are the tangents of the log-sum-exps. The second gives the weights' tangents and their
products with the embeddings.

With two sets the tangents of the outputs take 6 M N D flops, and all tangents take 24 M N D. One
set takes half of that. docs/maths.md has the derivations.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ...problem import (
    ABSENT,
    Gradients,
    LogSumExp,
    MaybeNone,
    Needs,
    Prepared,
    Problem,
    Saved,
    SigmoidProblem,
    SigmoidSaved,
    Upstream,
)
from ._panel import panels, partners, product
from ._tangents import EVERY, Side, Softmax, Sums
from .sigmoid import signed_logits
from .similarity import excess, logits, undefined

Direction = tuple[Softmax, LogSumExp, slice | Tensor]
"""A softmax, its log-sum-exps, and the order of its rows, for `through_positive`."""


def similarity_second(
    tangents: Gradients, upstream: Upstream, problem: Problem, saved: Saved, need: Needs
) -> tuple[Upstream, Gradients]:
    """The tangents of the outputs and of the gradients along `tangents`.

    ops/similarity.py has the contract.
    """
    one_set, scale = problem.one_set, problem.scale
    left, right = sides(problem, saved.prepared, tangents)
    by_row = Softmax(saved.row_lse)
    of_columns = None if one_set else saved.col_lse
    two = of_columns is not None
    by_column = by_row if one_set else ABSENT if of_columns is None else Softmax(of_columns)
    factors = tangent_factors(left, right, scale, tangents.scale)
    for part in logits_and_tangents(problem, left, right, factors, tangents.bias):
        by_row.add(part.g, part.i, part.s, part.t, 2)
        if two or one_set:
            by_column.add(part.g, part.rest, part.s[:, :, part.new], part.t[:, :, part.new], 1)
    by_row.close()
    if two:
        by_column.close()

    d_cols = None
    if problem.positive >= 0:
        p = partners(problem)
        t_pos = positive_tangents(factors, tangents.bias, p)
        directions: list[Direction] = [(by_row, saved.row_lse, EVERY)]
        if saved.col_lse is not None:
            directions.append((by_column, saved.col_lse.at(p), p))
        d_rows, g_pos, t_g_pos = through_positive(upstream.rows, directions, saved.pos, t_pos)
    else:
        d_rows = by_row.mean
        by_row.weigh(upstream.rows)
        if upstream.cols is not None:
            d_cols = by_column.mean
            by_column.weigh(upstream.cols)

    row_sums = Sums(left) if need.a or need.scale else ABSENT
    column_sums = row_sums if one_set else Sums(right) if need.b else ABSENT
    d_bias = torch.zeros_like(problem.bias) if need.bias else None
    parts = logits_and_tangents(problem, left, right, factors, tangents.bias) if any(need) else ()
    for part in parts:
        w, t_w = by_row.weights(part.g, part.i, part.s, part.t, 2)
        if by_column is not None:
            more, t_more = by_column.weights(part.g, part.j, part.s, part.t, 1)
            w, t_w = w.add_(more), t_w.add_(t_more)
        if d_bias is not None:
            d_bias[part.g] += t_w.sum(1)
        if row_sums is not None:
            row_sums.add((part.g, part.i), w, t_w, right, (part.g, part.j))
        if column_sums is not None:
            w, t_w = w[:, :, part.new].transpose(1, 2), t_w[:, :, part.new].transpose(1, 2)
            column_sums.add((part.g, part.rest), w, t_w, left, (part.g, part.i))
    if problem.positive >= 0:
        if row_sums is not None:
            row_sums.add_pairs(EVERY, g_pos, t_g_pos, right, p)
        if column_sums is not None:
            column_sums.add_pairs(p, g_pos, t_g_pos, left, EVERY)
        if d_bias is not None:
            d_bias.index_add_(1, p, t_g_pos)
    found = gradient_tangents(problem, tangents, need, row_sums, column_sums)
    return Upstream(d_rows, d_cols), found._replace(bias=d_bias)


def sigmoid_second(
    tangents: Gradients,
    g_rows: Tensor,  # [G, M]
    problem: SigmoidProblem,
    saved: SigmoidSaved,
    need: Needs,
) -> tuple[Tensor, Gradients]:
    """The tangents of the rows ``[G, M]`` and of the gradients.

    ops/sigmoid.py has the contract. It takes one pass. Two sets take 6 M N D flops for the tangents
    of the outputs and 18 M N D for all. One set takes the same.
    """
    one_set, scale, sign = problem.one_set, problem.scale, problem.sign
    left, right = sides(problem, saved.prepared, tangents)
    t_left, t_right = tangent_factors(left, right, scale, tangents.scale)
    t_bias = tangents.bias
    row_sums = Sums(left) if need.a or need.scale else ABSENT
    column_sums = row_sums if one_set else Sums(right) if need.b else ABSENT
    d_rows = torch.zeros_like(g_rows)
    d_bias = scale.new_zeros(g_rows.shape) if need.bias else None
    for g, i, _ in panels(problem):
        y = signed_logits(problem, left.read, right.read, g, i)
        t = product(t_left[g, i], t_right[g].transpose(1, 2))
        if t_bias is not None:
            t += t_bias[g, i].unsqueeze(2)
        c, p = g_rows[g, i].unsqueeze(2), torch.sigmoid(y)
        d_rows[g, i] = sign * (p * t).sum(2)
        w, t_w = p * (c * sign), y.neg_().sigmoid_().mul_(p).mul_(t).mul_(c)
        if d_bias is not None:
            d_bias[g, i] = t_w.sum(2)
        if row_sums is not None:
            row_sums.add((g, i), w, t_w, right, g)
        if column_sums is not None:
            column_sums.add(g, w.transpose(1, 2), t_w.transpose(1, 2), left, (g, i))
    if problem.positive >= 0:
        order, away = partners(problem), torch.sigmoid(-sign * saved.pos)
        t = (t_left * t_right[:, order]).sum(-1)
        t = t if t_bias is None else t + t_bias
        d_rows -= sign * away * t
        w, t_w = -sign * g_rows * away, g_rows * away * torch.sigmoid(sign * saved.pos) * t
        if d_bias is not None:
            d_bias += t_w
        if row_sums is not None:
            row_sums.add_pairs(EVERY, w, t_w, right, order)
        if column_sums is not None:
            column_sums.add_pairs(order, w, t_w, left, EVERY)
    found = gradient_tangents(problem, tangents, need, row_sums, column_sums)
    return d_rows, found._replace(bias=d_bias)


class Part(NamedTuple):
    """A panel of logits and of their tangents, ``[g, i, j]``."""

    g: slice
    i: slice
    j: slice
    rest: slice  # of j, the columns that no later panel has as rows
    new: slice  # the same columns, counted from the panel's first
    s: Tensor
    t: Tensor


def logits_and_tangents(
    problem: Problem,
    left: Side,
    right: Side,
    factors: tuple[Tensor, Tensor],  # [G, M, k] and [G, N, k]
    t_bias: Tensor | None,  # [G, N]
) -> Iterator[Part]:
    """The panels of the problem.

    `factors` are those of `tangent_factors`, `t_bias` is the tangent of the bias.
    """
    t_left, t_right = factors
    for g, i, j in panels(problem, half=problem.one_set):
        s = logits(problem, left.read, right.read, g, i, j)
        t = product(t_left[g, i], t_right[g, j].transpose(1, 2))
        if t_bias is not None:
            t.add_(t_bias[g, None, j])
        rest = slice(i.stop, j.stop) if problem.one_set else j
        new = slice(rest.start - j.start, None)
        yield Part(g, i, j, rest, new, s=s, t=t)


def gradient_tangents(
    problem: Problem | SigmoidProblem,
    tangents: Gradients,
    need: Needs,
    row_sums: Sums | MaybeNone,
    column_sums: Sums | MaybeNone,
) -> Gradients:
    """The tangents of the gradients of a, b and scale, from the sums of both sides."""
    scale, t_scale = problem.scale, tangents.scale
    return Gradients(
        a=row_sums.finish(scale, t_scale) if need.a else None,
        b=column_sums.finish(scale, t_scale) if need.b else None,
        scale=row_sums.along_scale() * (0.5 if problem.one_set else 1.0) if need.scale else None,
        bias=None,
    )


def sides(
    problem: Problem | SigmoidProblem, prepared: Prepared, tangents: Gradients
) -> tuple[Side, Side]:
    """The rows' and the columns' side, which are one object with one set."""
    left = Side(problem.a, prepared.a_hat, prepared.a_inv, tangents.a)
    if problem.one_set:
        return left, left
    return left, Side(problem.b, prepared.b_hat, prepared.b_inv, tangents.b)


def tangent_factors(
    left: Side, right: Side, scale: Tensor, t_scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``p [G, M, k]``, ``q [G, N, k]``: ``p @ q.T`` is the tangent of ``scale * x @ y.T``."""
    of_left = None if left.u is None else scale * left.u
    if t_scale is not None:
        of_left = t_scale * left.x if of_left is None else of_left + t_scale * left.x
    p, q = ([], []) if of_left is None else ([of_left], [right.x])
    if right.u is not None:
        p, q = [*p, scale * left.x], [*q, right.u]
    return (torch.cat(p, -1), torch.cat(q, -1)) if p else (left.x[..., :0], right.x[..., :0])


def positive_tangents(
    factors: tuple[Tensor, Tensor],  # [G, M, k] and [G, N, k]
    t_bias: Tensor | None,  # [G, N]
    p: Tensor,  # [M]
) -> Tensor:
    """The tangents ``[G, M]`` of the positives' logits."""
    t_left, t_right = factors
    t = (t_left * t_right[:, p]).sum(-1)
    return t if t_bias is None else t + t_bias[:, p]


def through_positive(
    g: Tensor,  # [G, M]
    directions: list[Direction],
    pos: Tensor,  # [G, M]
    t_pos: Tensor,  # [G, M]
) -> tuple[Tensor, Tensor, Tensor]:
    """The tangent of the loss, the positives' weights, and their tangents: ``[G, M]`` each.

    The loss is ``softplus(lse - pos)``, or the mean of both directions where there are two. The
    softmaxes get their upstream factors here.

    Args:
        g: upstream gradient of the loss.
        directions: a softmax, its log-sum-exps in the rows' order, and which of the softmax's rows
            or columns they are.
        pos: the positives' logits.
        t_pos: their tangents.
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
