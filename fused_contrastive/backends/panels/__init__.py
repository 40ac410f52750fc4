"""The streaming algorithm in torch operations over row panels: O(N D) memory on any device, no compiler, no Triton.

A panel is at most ``PANEL`` (32 times that on GPUs) similarities of consecutive rows against all columns (for one set: the columns from the panel's first row
on, so that only half the matrix is computed and each tile serves its rows and its columns). Products are library GEMMs.
Flops, one set: N^2 D forward, 3 N^2 D backward; two sets: 2 M N D and 6 M N D. Derivations: docs/maths.md.
"""

from __future__ import annotations

import torch

from ...checks import accumulation_dtype
from ...problem import KEYED, Candidates, candidate_mask
from ._running_sum import RunningSum, finite
from .force import distance_gradient, distance_sums, force_backward, force_forward  # noqa: F401

FLAT = (
    "similarity_forward",
    "similarity_backward",
    "sigmoid_forward",
    "sigmoid_backward",
)
"""Functions that take the arguments of their op as they are."""

PANEL = 1 << 19
"""Similarities per panel: 2 MiB in float32 stay in a CPU's caches; other devices get 32 times that."""

EPS = 1e-12
"""Norm floor, that of torch.nn.functional.normalize."""


def refusal(device: torch.device, dtype: torch.dtype) -> str | None:
    return None


def status() -> str:
    return "available: any device"


def prepare(
    x: torch.Tensor, normalize: bool, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """``(hat, inv)``: x ``[G, M, D]`` normalised in the accumulation dtype, rounded to `dtype`; ``inv`` is empty without `normalize`."""
    if not normalize:
        return x.to(dtype), x.new_empty(0, dtype=accumulation_dtype(dtype))
    x = x.to(accumulation_dtype(dtype))
    inv = torch.linalg.vector_norm(x, dim=-1).clamp_min(EPS).reciprocal()
    return (x * inv.unsqueeze(-1)).to(dtype), inv


def on_tensor_cores(x: torch.Tensor) -> bool:
    """Whether the library multiplies half-precision matrices into float32 results on this device."""
    return x.device.type == "cuda" and x.dtype in (torch.bfloat16, torch.float16)


def widen(x: torch.Tensor) -> torch.Tensor:
    """x as the products read it: in the accumulation dtype, converted once, unless there are tensor cores for its own."""
    return x if on_tensor_cores(x) else x.to(accumulation_dtype(x.dtype))


def product(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """``x @ y`` of ``[G, m, k]`` and ``[G, k, n]`` with the result, and every partial sum, in the accumulation dtype."""
    accumulate = accumulation_dtype(y.dtype)
    if x.dtype == y.dtype and on_tensor_cores(y):
        return torch.bmm(x, y, out_dtype=torch.float32)
    return torch.bmm(x.to(accumulate), y.to(accumulate))


def panel_products(x, y, plan, symmetric: bool, need_a: bool, need_b: bool, panel):
    """``W y [G, M, D]`` and ``W^T x [G, N, D]`` in the accumulation dtype, each None unless needed, for a kernel that writes W in panels:
    ``panel(g, i, j, workspace)`` returns that of the slices `g`, `i`, `j`, for all of `plan`. `symmetric`: W is symmetric, x is y, and the plan
    has the panels of j >= i alone.
    """
    (G, M, D), N = x.shape, y.shape[1]
    sizes = (
        (g.stop - g.start) * (i.stop - i.start) * -(-(j.stop - j.start) // 16) * 16
        for g, i, j in plan
    )
    workspace = torch.empty(max(sizes), dtype=x.dtype, device=x.device)
    if len(plan) == 1:
        w = panel(*plan[0], workspace)
        return product(w, y) if need_a else None, product(w.transpose(1, 2), x) if need_b else None

    def zeros(needed, *shape):
        return (
            torch.zeros(shape, dtype=accumulation_dtype(x.dtype), device=x.device)
            if needed
            else None
        )

    sum_a, sum_b = zeros(need_a, G, M, D), zeros(need_b, G, N, D)
    for g, i, j in plan:
        w = panel(g, i, j, workspace)
        if need_a:
            sum_a[g, i] += product(w, y[g, j])
        if need_b:
            sum_b[g, j] += product(w.transpose(1, 2), x[g, i])
        if symmetric and i != j:
            sum_a[g, j] += product(w.transpose(1, 2), x[g, i])
    return sum_a, sum_b


def blocks(G: int, M: int, N: int, device: torch.device):
    """``(g0, g1, i0, i1)`` of the panels: whole groups while they fit into one, else row panels of one group."""
    panel = PANEL if device.type == "cpu" else 32 * PANEL
    if M * N <= panel:
        step = max(1, panel // (M * N))
        for g in range(0, G, step):
            yield g, min(g + step, G), 0, M
        return
    step = max(1, panel // N)
    for g in range(G):
        for i in range(0, M, step):
            yield g, g + 1, i, min(i + step, M)


def logits(x, y, scale, bias, key_x, key_y, kind, offset, stride, g, i, j):
    """The panel ``s [g, i, j]`` of candidate logits, −inf elsewhere; `g`, `i`, `j` are slices with bounds."""
    s = product(x[g, i], y[g, j].transpose(1, 2)).mul_(scale)
    if bias is not None:
        s += bias[g, None, j]
    return mask_(s, key_x, key_y, kind, offset, stride, g, i, j)


def mask_(s, key_x, key_y, kind, offset, stride, g, i, j):
    """The panel s ``[g, i, j]`` with −inf where a pair is no candidate, in place."""
    diagonals = Candidates(kind, offset + i.start - j.start, stride).excluded_diagonals(
        *s.shape[1:]
    )
    if kind in KEYED or len(diagonals) > 16:
        rows = torch.arange(i.start, i.stop, device=s.device)
        columns = torch.arange(j.start, j.stop, device=s.device)
        keys = (None, None) if key_x is None else (key_x[g, i], key_y[g, j])
        return s.masked_fill_(
            ~candidate_mask(kind, offset, stride, rows, columns, *keys), float("-inf")
        )
    for diagonal in diagonals:
        s.diagonal(diagonal, 1, 2).fill_(float("-inf"))
    return s


def similarity_forward(
    a, b, scale, bias, key_a, key_b, kind, offset, stride, positive, normalize, columns, extrema, weighted, dtype
):  # fmt: skip
    """See ops.py."""
    G, M, D = a.shape
    x, a_inv = prepare(a, normalize, dtype)
    y, b_inv = (x, scale.new_empty(0)) if b is None else prepare(b, normalize, dtype)
    a_hat = x.contiguous() if normalize or a.dtype != dtype else x.new_empty(0)
    b_hat = y.contiguous() if b is not None and (normalize or b.dtype != dtype) else y.new_empty(0)
    x, y = widen(x), widen(y)
    key_b = key_a if b is None else key_b
    N = y.shape[1]

    row_sums, column_sums = RunningSum(scale, G, M), RunningSum(scale, G, N if columns else 0)
    mean = scale.new_empty((G, M, D) if weighted else (0,))
    for g0, g1, i0, i1 in blocks(G, M, N, x.device):
        g, i, j = slice(g0, g1), slice(i0, i1), slice(i0 if b is None else 0, N)
        s = logits(x, y, scale, bias, key_a, key_b, kind, offset, stride, g, i, j)
        terms = row_sums.add((g, i), s, 2)
        if weighted:  # a panel has all columns of its rows
            total = row_sums.total[g, i].unsqueeze(2)
            mean[g, i] = product(terms, y[g]).div_(total.masked_fill(total == 0, 1.0))
        if b is None and i1 < N:  # the columns after the panel's rows are rows still to come
            row_sums.add((g, slice(i1, N)), s[:, :, i1 - i0 :], 1)
        if columns:
            column_sums.add(g, s, 1)

    def given(present, x):
        return x if present else scale.new_empty(0)

    rows, cols = row_sums.log(), given(columns, column_sums.log())
    row_max, col_max = (
        given(extrema, row_sums.maximum),
        given(extrema and columns, column_sums.maximum),
    )
    pos, loss = scale.new_empty(0), scale.new_empty(0)
    if positive >= 0:
        pos = positive_logits(x, y, scale, bias, positive)
        loss = paired_loss(rows, cols, pos, positive)
    return rows, cols, pos, loss, row_max, col_max, a_hat, b_hat, a_inv, b_inv, mean


def partners(M: int, N: int, positive: int, device: torch.device) -> torch.Tensor:
    """p(i): the column of each row's positive, ``[M]``."""
    return (torch.arange(M, device=device) + positive) % N


def positive_logits(x, y, scale, bias, positive: int) -> torch.Tensor:
    p = partners(x.shape[1], y.shape[1], positive, x.device)
    pos = scale * (x.to(scale.dtype) * y[:, p].to(scale.dtype)).sum(-1)
    return pos if bias is None else pos + bias[:, p]


def excess(lse, pos):
    """lse − pos, of the log-sum-exps in both parts."""
    return (lse[0] - pos) + lse[1]


def undefined(lse, pos):
    """NaN where cross entropy is: an infinite positive or candidate; else 0."""
    return 0 * (pos + lse[0].clamp_min(0))


def paired_loss(rows, cols, pos, positive: int) -> torch.Tensor:
    """softplus(lse − pos) per row, the mean of both directions with `cols`: accurate relative to itself when it vanishes."""
    loss = torch.nn.functional.softplus(excess(rows, pos), threshold=40) + undefined(rows, pos)
    if cols.numel():
        p = partners(rows.shape[2], cols.shape[2], positive, rows.device)
        cols = cols[..., p]
        loss = (
            loss
            + torch.nn.functional.softplus(excess(cols, pos), threshold=40)
            + undefined(cols, pos)
        ) / 2
    return loss


def upstream(g_rows, g_cols, rows, cols, pos, positive: int):
    """``(c [G, M], h [G, N] or None, g_pos [G, M] or None)``: the gradients of row lse, column lse and positive logit."""
    if positive < 0:
        return g_rows, g_cols if g_cols.numel() else None, None
    if not cols.numel():
        c = g_rows * torch.sigmoid(excess(rows, pos)) + undefined(rows, pos)
        return c, None, -c
    p = partners(rows.shape[2], cols.shape[2], positive, rows.device)
    c = g_rows * torch.sigmoid(excess(rows, pos)) / 2 + undefined(rows, pos)
    h_row = g_rows * torch.sigmoid(excess(cols[..., p], pos)) / 2 + undefined(cols[..., p], pos)
    return c, torch.zeros_like(cols[0]).index_copy_(1, p, h_row), -(c + h_row)


def similarity_backward(
    g_rows, g_cols, a, b, scale, bias, key_a, key_b, rows, cols, pos, a_hat, b_hat, a_inv, b_inv, mean,
    kind, offset, stride, positive, normalize, dtype, need_a, need_b, need_scale, need_bias,
):  # fmt: skip
    """See ops.py."""
    x = widen(a_hat if a_hat.numel() else a)
    y = x if b is None else widen(b_hat if b_hat.numel() else b)
    key_b = key_a if b is None else key_b
    M, N = x.shape[1], y.shape[1]
    c, h, g_pos = upstream(g_rows, g_cols, rows, cols, pos, positive)
    G_a, G_b, dbias = scale.new_zeros(0), scale.new_zeros(0), scale.new_zeros(0)
    if mean.numel() and not need_b and not need_bias:
        G_a = mean * c.unsqueeze(-1)
    else:
        G_a, G_b, dbias = weighted_sums(
            c, h, x, y, scale, bias, key_a, key_b, rows, cols, kind, offset, stride,
            b is None, need_a or need_scale, need_b, need_bias,
        )  # fmt: skip
    if g_pos is not None:
        p = partners(M, N, positive, a.device)
        if G_a.numel():
            G_a += g_pos.unsqueeze(-1) * y[:, p].to(G_a.dtype)
        if b is None or need_b:
            (G_a if b is None else G_b).index_add_(1, p, g_pos.unsqueeze(-1) * x.to(G_a.dtype))
        if need_bias:
            dbias.index_add_(1, p, g_pos)
    dscale = scale.new_empty(0)
    if need_scale:
        dscale = (x.to(G_a.dtype) * G_a).sum() * (0.5 if b is None else 1.0)
    return (
        finish(G_a, a, a_inv, scale) if need_a else a.new_empty(0),
        finish(G_b, b, b_inv, scale) if need_b else a.new_empty(0),
        dscale,
        dbias,
    )


def weighted_sums(
    c, h, x, y, scale, bias, key_a, key_b, rows, cols, kind, offset, stride, one_set, need_a, need_b, need_bias
):  # fmt: skip
    """``W y``, ``Wᵀ x`` and the column sums of W, ``W_ij = c_i exp(s_ij − rows_i) + h_j exp(s_ij − cols_j)``; for one set ``(W + Wᵀ) x``."""
    (G, M, D), N = x.shape, y.shape[1]
    G_a = scale.new_zeros((G, M, D) if need_a or one_set else (0,))
    G_b = scale.new_zeros((G, N, D) if need_b else (0,))
    dbias = scale.new_zeros((G, N) if need_bias else (0,))
    c, rows = (c * torch.exp(-rows[1])).unsqueeze(2), finite(rows[0]).unsqueeze(2)
    if one_set:
        h, cols = c.transpose(1, 2), rows.transpose(1, 2)
    elif h is not None:
        h, cols = (h * torch.exp(-cols[1])).unsqueeze(1), finite(cols[0]).unsqueeze(1)
    for g0, g1, i0, i1 in blocks(G, M, N, x.device):
        g, i, j = slice(g0, g1), slice(i0, i1), slice(i0 if one_set else 0, N)
        s = logits(x, y, scale, bias, key_a, key_b, kind, offset, stride, g, i, j)
        w = torch.sub(s, rows[g, i]).exp_().mul_(c[g, i])
        if h is not None:
            w += s.sub_(cols[g, :, j]).exp_().mul_(h[g, :, j])
        if need_bias:
            dbias[g] += w.sum(1)
        if G_a.numel():
            G_a[g, i] += product(w, y[g, j])
        if one_set and i1 < N:
            G_a[g, i1:] += product(w[:, :, i1 - i0 :].transpose(1, 2), x[g, i])
        if need_b:
            G_b[g] += product(w.transpose(1, 2), x[g, i])
    return G_a, G_b, dbias


def finish(gradient, x, inv, scale) -> torch.Tensor:
    """Gradient of the input x: times scale, through the normalisation where there is one (of x, not of its rounded direction)."""
    if inv.numel():
        inv = inv.unsqueeze(-1)
        unit = x.to(gradient.dtype) * inv
        radial = (unit * gradient).sum(-1, keepdim=True) * (inv < 1 / EPS)
        gradient = (gradient - radial * unit) * inv
    return (gradient * scale).to(x.dtype)


def signed_logits(x, y, scale, row_bias, key_x, key_y, kind, offset, stride, sign, g, i):
    """The panel ``y [g, i, :]`` of sigmoid_ops.py over all columns, −inf where a pair is no candidate."""
    s = product(x[g, i], y[g].transpose(1, 2)).mul_(scale * sign)
    if row_bias is not None:
        s += (row_bias[g, i] * sign).unsqueeze(2)
    return mask_(s, key_x, key_y, kind, offset, stride, g, i, slice(0, y.shape[1]))


def softplus(y: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.softplus(y, threshold=40)


def sigmoid_forward(
    a, b, scale, row_bias, key_a, key_b, kind, offset, stride, positive, sign, normalize, extrema, dtype
):  # fmt: skip
    """See sigmoid_ops.py."""
    G, M, _ = a.shape
    x, a_inv = prepare(a, normalize, dtype)
    y, b_inv = (x, scale.new_empty(0)) if b is None else prepare(b, normalize, dtype)
    a_hat = x.contiguous() if normalize or a.dtype != dtype else x.new_empty(0)
    b_hat = y.contiguous() if b is not None and (normalize or b.dtype != dtype) else y.new_empty(0)
    x, y = widen(x), widen(y)
    key_b = key_a if b is None else key_b
    rows = scale.new_empty((G, M))
    row_max = scale.new_empty((G, M) if extrema else (0,))
    for g0, g1, i0, i1 in blocks(G, M, y.shape[1], x.device):
        g, i = slice(g0, g1), slice(i0, i1)
        s = signed_logits(x, y, scale, row_bias, key_a, key_b, kind, offset, stride, sign, g, i)
        if extrema:
            row_max[g, i] = s.amax(2)
        rows[g, i] = softplus(s).sum(2)
    pos = scale.new_empty(0)
    if positive >= 0:
        pos = positive_logits(x, y, scale, None, positive)
        if row_bias is not None:
            pos = pos + row_bias
        rows += softplus(pos * -sign)
    return rows, pos, row_max, a_hat, b_hat, a_inv, b_inv


def sigmoid_backward(
    g_rows, a, b, scale, row_bias, key_a, key_b, pos, a_hat, b_hat, a_inv, b_inv,
    kind, offset, stride, positive, sign, normalize, dtype, need_a, need_b, need_scale, need_bias,
):  # fmt: skip
    """See sigmoid_ops.py."""
    one_set = b is None
    x = widen(a_hat if a_hat.numel() else a)
    y = x if one_set else widen(b_hat if b_hat.numel() else b)
    key_b = key_a if one_set else key_b
    (G, M, D), N = x.shape, y.shape[1]
    G_a = scale.new_zeros((G, M, D) if need_a or need_scale else (0,))
    G_b = G_a if one_set else scale.new_zeros((G, N, D) if need_b else (0,))
    dbias = scale.new_zeros((G, M) if need_bias else (0,))
    c = g_rows * sign
    for g0, g1, i0, i1 in blocks(G, M, N, x.device):
        g, i = slice(g0, g1), slice(i0, i1)
        s = signed_logits(x, y, scale, row_bias, key_a, key_b, kind, offset, stride, sign, g, i)
        w = s.sigmoid_().mul_(c[g, i].unsqueeze(2))
        if need_bias:
            dbias[g, i] = w.sum(2)
        if G_a.numel():
            G_a[g, i] += product(w, y[g])
        if G_b.numel():
            G_b[g] += product(w.transpose(1, 2), x[g, i])
    if positive >= 0:
        p, c = partners(M, N, positive, a.device), -c * torch.sigmoid(pos * -sign)
        if G_a.numel():
            G_a += c.unsqueeze(-1) * y[:, p].to(c.dtype)
        if G_b.numel():
            G_b.index_add_(1, p, c.unsqueeze(-1) * x.to(c.dtype))
        if need_bias:
            dbias += c
    dscale = scale.new_empty(0)
    if need_scale:
        dscale = (x.to(G_a.dtype) * G_a).sum() * (0.5 if one_set else 1.0)
    return (
        finish(G_a, a, a_inv, scale) if need_a else a.new_empty(0),
        finish(G_b, b, b_inv, scale) if need_b and not one_set else a.new_empty(0),
        dscale,
        dbias,
    )
