"""The sigmoid family over panels; ops/sigmoid.py has the contract."""

from __future__ import annotations

import torch
from torch import Tensor

from ...problem import ABSENT, Gradients, Needs, SigmoidForward, SigmoidProblem, SigmoidSaved
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


def signed_logits(
    problem: SigmoidProblem,
    x: Tensor,  # [G, M, D]
    y: Tensor,  # [G, N, D]
    g: slice,
    i: slice,
) -> Tensor:
    """The panel ``[g, i, N]`` of the signed logits ``y_ij``, -inf where a pair is no candidate."""
    s = product(x[g, i], y[g].transpose(1, 2)).mul_(problem.scale * problem.sign)
    if problem.row_bias is not None:
        s += (problem.row_bias[g, i] * problem.sign).unsqueeze(2)
    return mask_(s, problem.candidates.within(g, i, slice(0, y.shape[1])))


def softplus(y: Tensor) -> Tensor:
    """``log(1 + exp(y))`` of any shape, accurate relative to itself."""
    return torch.nn.functional.softplus(y, threshold=40)


def sigmoid_forward(problem: SigmoidProblem, extrema: bool) -> SigmoidForward:
    """Row sums of softplus, positives and, with `extrema`, row maxima in one pass."""
    G, M, _, _ = problem.sizes
    x, y, prepared = prepared_sets(problem)
    rows = problem.scale.new_empty((G, M))
    row_max = problem.scale.new_empty((G, M)) if extrema else ABSENT
    for g, i, _ in panels(problem):
        s = signed_logits(problem, x, y, g, i)
        if extrema:
            row_max[g, i] = s.amax(2)
        rows[g, i] = softplus(s).sum(2)
    pos = None
    if problem.positive >= 0:
        pos = positive_dots(problem, x, y)
        if problem.row_bias is not None:
            pos = pos + problem.row_bias
        rows += softplus(pos * -problem.sign)
    return SigmoidForward(rows, pos, row_max, prepared)


def sigmoid_backward(
    g_rows: Tensor,  # [G, M]
    problem: SigmoidProblem,
    saved: SigmoidSaved,
    need: Needs,
) -> Gradients:
    """The gradients in one pass over the panels."""
    G, M, N, D = problem.sizes
    one_set, scale, sign = problem.one_set, problem.scale, problem.sign
    x, y = saved_sets(problem, saved.prepared)
    by_row, by_column = need.a or need.scale, need.a or need.scale if one_set else need.b
    G_a = scale.new_zeros((G, M, D)) if by_row else ABSENT
    G_b = G_a if one_set else scale.new_zeros((G, N, D)) if need.b else ABSENT
    dbias = scale.new_zeros((G, M)) if need.bias else None
    c = g_rows * sign
    for g, i, _ in panels(problem):
        s = signed_logits(problem, x, y, g, i)
        w = s.sigmoid_().mul_(c[g, i].unsqueeze(2))
        if dbias is not None:
            dbias[g, i] = w.sum(2)
        if by_row:
            G_a[g, i] += product(w, y[g])
        if by_column:
            G_b[g] += product(w.transpose(1, 2), x[g, i])
    if problem.positive >= 0:
        p, c = partners(problem), -c * torch.sigmoid(saved.pos * -sign)
        if by_row:
            G_a += c.unsqueeze(-1) * y[:, p].to(c.dtype)
        if by_column:
            G_b.index_add_(1, p, c.unsqueeze(-1) * x.to(c.dtype))
        if dbias is not None:
            dbias += c
    dscale = None
    if need.scale:
        dscale = (x.to(scale.dtype) * G_a).sum() * (0.5 if one_set else 1.0)
    return Gradients(
        a=finish(G_a, problem.a, saved.prepared.a_inv, scale) if need.a else None,
        b=finish(G_b, problem.b, saved.prepared.b_inv, scale) if need.b and not one_set else None,
        scale=dscale,
        bias=dbias,
    )
