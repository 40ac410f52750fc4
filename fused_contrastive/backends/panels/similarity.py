"""The similarity family over panels; ops/similarity.py has the contract."""

from __future__ import annotations

import torch
from torch import Tensor

from ...problem import (
    ABSENT,
    Forward,
    Gradients,
    LogSumExp,
    MaybeNone,
    Needs,
    Problem,
    Saved,
    Upstream,
    Wanted,
)
from ._panel import (
    finish,
    mask_,
    panels,
    partners,
    positive_dots,
    prepared_sets,
    product,
    saved_sets,
)
from ._running_sum import RunningSum, finite


def logits(
    problem: Problem,
    x: Tensor,  # [G, M, D]
    y: Tensor,  # [G, N, D]
    g: slice,
    i: slice,
    j: slice,
) -> Tensor:
    """The panel ``s [g, i, j]`` of logits, -inf where a pair is no candidate."""
    s = product(x[g, i], y[g, j].transpose(1, 2)).mul_(problem.scale)
    if problem.bias is not None:
        s += problem.bias[g, None, j]
    return mask_(s, problem.candidates.within(g, i, j))


def similarity_forward(problem: Problem, wanted: Wanted) -> Forward:
    """Log-sum-exps, positives, loss and extrema in one pass over the panels."""
    G, M, N, D = problem.sizes
    x, y, prepared = prepared_sets(problem)
    row_sums = RunningSum(problem.scale, G, M)
    column_sums = RunningSum(problem.scale, G, N) if wanted.columns else ABSENT
    mean = problem.scale.new_empty((G, M, D)) if wanted.mean else ABSENT
    for g, i, j in panels(problem, half=problem.one_set):
        s = logits(problem, x, y, g, i, j)
        terms = row_sums.add((g, i), s, 2)
        if wanted.mean:
            # There are two sets, so a panel has all columns of its rows.
            total = row_sums.total[g, i].unsqueeze(2)
            mean[g, i] = product(terms, y[g]).div_(total.masked_fill(total == 0, 1.0))
        if problem.one_set and i.stop < N:
            # The columns after the panel's rows are rows that are still to come.
            row_sums.add((g, slice(i.stop, N)), s[:, :, i.stop - i.start :], 1)
        if wanted.columns:
            column_sums.add(g, s, 1)
    row_lse = LogSumExp(row_sums.log())
    col_lse = LogSumExp(column_sums.log()) if wanted.columns else None
    pos = loss = None
    if problem.positive >= 0:
        pos = positive_dots(problem, x, y)
        if problem.bias is not None:
            pos = pos + problem.bias[:, partners(problem)]
        loss = paired_loss(problem, row_lse, col_lse, pos)
    return Forward(
        row_lse=row_lse,
        col_lse=col_lse,
        pos=pos,
        loss=loss,
        row_max=row_sums.maximum if wanted.extrema else None,
        col_max=column_sums.maximum if wanted.extrema and wanted.columns else None,
        prepared=prepared,
        mean=mean,
    )


def excess(
    lse: LogSumExp,  # [G, M]
    pos: Tensor,  # [G, M]
) -> Tensor:
    """``lse - pos``, ``[G, M]``, from both parts of the log-sum-exps."""
    return (lse.value - pos) + lse.lost


def undefined(
    lse: LogSumExp,  # [G, M]
    pos: Tensor,  # [G, M]
) -> Tensor:
    """NaN where cross entropy is NaN, at an infinite positive or candidate, else 0: ``[G, M]``."""
    return 0 * (pos + lse.value.clamp_min(0))


def paired_loss(
    problem: Problem,
    row_lse: LogSumExp,  # [G, M]
    col_lse: LogSumExp | None,  # [G, N]
    pos: Tensor,  # [G, M]
) -> Tensor:
    """``softplus(lse - pos)`` of every row, ``[G, M]``; with `col_lse` the mean of both directions.

    It is accurate relative to itself when it vanishes.
    """

    def direction(lse: LogSumExp) -> Tensor:
        return torch.nn.functional.softplus(excess(lse, pos), threshold=40)

    loss = direction(row_lse) + undefined(row_lse, pos)
    if col_lse is not None:
        col_lse = col_lse.at(partners(problem))
        loss = (loss + direction(col_lse) + undefined(col_lse, pos)) / 2
    return loss


def logit_gradients(
    upstream: Upstream, problem: Problem, saved: Saved
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """``(c [G, M], h [G, N], g_pos [G, M])``.

    These are the gradients of row and column log-sum-exps and of the positives' logits.
    """
    if problem.positive < 0:
        return upstream.rows, upstream.cols, None
    g, row_lse, col_lse, pos = upstream.rows, saved.row_lse, saved.col_lse, saved.pos
    if col_lse is None:
        c = g * torch.sigmoid(excess(row_lse, pos)) + undefined(row_lse, pos)
        return c, None, -c
    p = partners(problem)
    c = g * torch.sigmoid(excess(row_lse, pos)) / 2 + undefined(row_lse, pos)
    paired = col_lse.at(p)
    h = g * torch.sigmoid(excess(paired, pos)) / 2 + undefined(paired, pos)
    return c, torch.zeros_like(col_lse.value).index_copy_(1, p, h), -(c + h)


def similarity_backward(
    upstream: Upstream, problem: Problem, saved: Saved, need: Needs
) -> Gradients:
    """The gradients in one pass over the panels, or in none where forward has kept the means."""
    x, y = saved_sets(problem, saved.prepared)
    scale, one_set = problem.scale, problem.one_set
    c, h, g_pos = logit_gradients(upstream, problem, saved)
    if saved.mean is not None and not need.b and not need.bias:
        G_a, G_b, dbias = saved.mean * c.unsqueeze(-1), ABSENT, ABSENT
    else:
        G_a, G_b, dbias = weighted_sums(problem, x, y, saved, (c, h), need)
    if g_pos is not None:
        p, of_columns = partners(problem), G_a if one_set else G_b
        if need.a or need.scale or one_set:
            G_a += g_pos.unsqueeze(-1) * y[:, p].to(scale.dtype)
        if one_set or need.b:
            of_columns.index_add_(1, p, g_pos.unsqueeze(-1) * x.to(scale.dtype))
        if need.bias:
            dbias.index_add_(1, p, g_pos)
    dscale = None
    if need.scale:
        dscale = (x.to(scale.dtype) * G_a).sum() * (0.5 if one_set else 1.0)
    return Gradients(
        a=finish(G_a, problem.a, saved.prepared.a_inv, scale) if need.a else None,
        b=finish(G_b, problem.b, saved.prepared.b_inv, scale) if need.b else None,
        scale=dscale,
        bias=dbias,
    )


def weighted_sums(
    problem: Problem,
    x: Tensor,  # [G, M, D]
    y: Tensor,  # [G, N, D]
    saved: Saved,
    factors: tuple[Tensor, Tensor | None],  # [G, M] and [G, N]
    need: Needs,
) -> tuple[Tensor | MaybeNone, Tensor | MaybeNone, Tensor | MaybeNone]:
    """``W y [G, M, D]``, ``W^T x [G, N, D]`` and the column sums of W, ``[G, N]``.

    Each is None unless needed. ``W_ij = c_i exp(s_ij - row_lse_i) + h_j exp(s_ij - col_lse_j)``
    with the `factors` c and h. For one set the first result is ``(W + W^T) x``.
    """
    G, M, N, D = problem.sizes
    one_set, zeros = problem.one_set, problem.scale.new_zeros
    by_row = need.a or need.scale or one_set
    G_a = zeros((G, M, D)) if by_row else ABSENT
    G_b = zeros((G, N, D)) if need.b else None
    dbias = zeros((G, N)) if need.bias else None
    c, h = factors
    c, rows = (c * torch.exp(-saved.row_lse.lost)).unsqueeze(2), finite(saved.row_lse.value)
    rows = rows.unsqueeze(2)
    if one_set:
        h, cols = c.transpose(1, 2), rows.transpose(1, 2)
    elif h is not None:
        h = (h * torch.exp(-saved.col_lse.lost)).unsqueeze(1)
        cols = finite(saved.col_lse.value).unsqueeze(1)
    for g, i, j in panels(problem, half=one_set):
        s = logits(problem, x, y, g, i, j)
        w = torch.sub(s, rows[g, i]).exp_().mul_(c[g, i])
        if h is not None:
            w += s.sub_(cols[g, :, j]).exp_().mul_(h[g, :, j])
        if dbias is not None:
            dbias[g] += w.sum(1)
        if by_row:
            G_a[g, i] += product(w, y[g, j])
        if one_set and i.stop < N:
            later = w[:, :, i.stop - i.start :].transpose(1, 2)
            G_a[g, i.stop :] += product(later, x[g, i])
        if G_b is not None:
            G_b[g] += product(w.transpose(1, 2), x[g, i])
    return G_a, G_b, dbias
