"""What the passes share: prepared sets, panels, their products, positives and gradients of inputs.

Sizes: ``G`` groups, ``M`` rows, ``N`` columns, ``D`` features. A panel is named by three slices
with bounds: `g` of the groups, `i` of the rows and `j` of the columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ...dtypes import accumulation_dtype
from ...problem import KEYED, Candidates, MaybeNone, Prepared, Problem, SigmoidProblem

PANEL = 1 << 19
"""A panel has at most this many similarities on a CPU, where 2 MiB in float32 stay in the caches.

Other devices get 32 times that.
"""

EPS = 1e-12
"""Smaller norms count as this one, as in torch.nn.functional.normalize."""


def prepare(
    x: Tensor,  # [G, M, D]
    normalize: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]:
    """``(hat [G, M, D], inv [G, M])``: prepared rows and their inverse norms.

    x is normalised in the accumulation dtype and rounded to `dtype`. Without `normalize` the
    inverse norms are None.
    """
    if not normalize:
        return x.to(dtype), None
    x = x.to(accumulation_dtype(dtype))
    inv = torch.linalg.vector_norm(x, dim=-1).clamp_min(EPS).reciprocal()
    return (x * inv.unsqueeze(-1)).to(dtype), inv


def prepared_sets(problem: Problem | SigmoidProblem) -> tuple[Tensor, Tensor, Prepared]:
    """``(x [G, M, D], y [G, N, D], prepared)``.

    These are both sets as the products read them, and what is saved of them.
    """
    a, b, normalize, dtype = problem.a, problem.b, problem.normalize, problem.dtype
    x, a_inv = prepare(a, normalize, dtype)
    y, b_inv = (x, None) if b is None else prepare(b, normalize, dtype)
    a_hat = x.contiguous() if normalize or a.dtype != dtype else None
    b_hat = y.contiguous() if b is not None and (normalize or b.dtype != dtype) else None
    return widen(x), widen(y), Prepared(a_hat, b_hat, a_inv, b_inv)


def saved_sets(problem: Problem | SigmoidProblem, prepared: Prepared) -> tuple[Tensor, Tensor]:
    """``(x [G, M, D], y [G, N, D])``.

    These are both sets as the products read them, from what a forward pass saved.
    """
    x = widen(problem.a if prepared.a_hat is None else prepared.a_hat)
    if problem.b is None:
        return x, x
    return x, widen(problem.b if prepared.b_hat is None else prepared.b_hat)


def on_tensor_cores(x: Tensor) -> bool:
    """Whether the library multiplies half-precision matrices into float32 results here."""
    return x.device.type == "cuda" and x.dtype in (torch.bfloat16, torch.float16)


def widen(x: Tensor) -> Tensor:
    """x of any shape as the products read it.

    That is the accumulation dtype, converted once, unless there are tensor cores for the dtype of x
    itself.
    """
    return x if on_tensor_cores(x) else x.to(accumulation_dtype(x.dtype))


def product(
    x: Tensor,  # [G, m, k]
    y: Tensor,  # [G, k, n]
) -> Tensor:
    """``x @ y [G, m, n]``. The result, and every partial sum, is in the accumulation dtype."""
    accumulate = accumulation_dtype(y.dtype)
    if x.dtype == y.dtype and on_tensor_cores(y):
        return torch.bmm(x, y, out_dtype=torch.float32)
    return torch.bmm(x.to(accumulate), y.to(accumulate))


def panel_products(
    x: Tensor,  # [G, M, D]
    y: Tensor,  # [G, N, D]
    plan: list[tuple[slice, slice, slice]],
    symmetric: bool,
    need_a: bool,
    need_b: bool,
    panel: Callable[[slice, slice, slice, Tensor], Tensor],
) -> tuple[Tensor | None, Tensor | None]:
    """``W y [G, M, D]`` and ``W^T x [G, N, D]``, for a kernel that writes W in panels.

    The results are in the accumulation dtype. Each product is None unless it is needed.

    Args:
        x: the rows.
        y: the columns.
        plan: the panels ``(g, i, j)`` that make up W.
        symmetric: W is symmetric, x is y, and the plan has the panels of j >= i alone.
        need_a: whether ``W y`` is needed.
        need_b: whether ``W^T x`` is needed.
        panel: ``panel(g, i, j, workspace)`` returns W of these slices, ``[g, i, j]``.
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

    def zeros(needed: bool, *shape: int) -> Tensor | MaybeNone:
        if not needed:
            return None
        return torch.zeros(shape, dtype=accumulation_dtype(x.dtype), device=x.device)

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


def panels(
    problem: Problem | SigmoidProblem, *, half: bool = False
) -> Iterator[tuple[slice, slice, slice]]:
    """The panels ``(g, i, j)`` of a problem.

    They hold whole groups while these fit into one panel, else consecutive rows of one group. With
    `half` a panel's columns start at its first row, else it has all columns.
    """
    G, M, N, _ = problem.sizes
    panel = PANEL if problem.scale.device.type == "cpu" else 32 * PANEL
    if M * N <= panel:
        step = max(1, panel // (M * N))
        for g in range(0, G, step):
            yield slice(g, min(g + step, G)), slice(0, M), slice(0, N)
        return
    step = max(1, panel // N)
    for g in range(G):
        for i in range(0, M, step):
            yield slice(g, g + 1), slice(i, min(i + step, M)), slice(i if half else 0, N)


def mask_(
    s: Tensor,  # [G, m, n]
    candidates: Candidates,
) -> Tensor:
    """The panel s, changed in place, with -inf where a pair is no candidate.

    Args:
        s: logits of a panel.
        candidates: those of the panel.
    """
    _, m, n = s.shape
    diagonals = candidates.excluded_diagonals(m, n)
    if candidates.kind in KEYED or len(diagonals) > 16:
        mask = candidates.mask(m, n, s.device)
        return s if mask is None else s.masked_fill_(~mask, float("-inf"))
    for diagonal in diagonals:
        s.diagonal(diagonal, 1, 2).fill_(float("-inf"))
    return s


def partners(problem: Problem | SigmoidProblem) -> Tensor:
    """p(i), the column of each row's positive: ``[M]``."""
    _, M, N, _ = problem.sizes
    return (torch.arange(M, device=problem.scale.device) + problem.positive) % N


def positive_dots(
    problem: Problem | SigmoidProblem,
    x: Tensor,  # [G, M, D]
    y: Tensor,  # [G, N, D]
) -> Tensor:
    """``scale * <x_i, y_p(i)>``, ``[G, M]``."""
    scale = problem.scale
    return scale * (x.to(scale.dtype) * y[:, partners(problem)].to(scale.dtype)).sum(-1)


def finish(
    gradient: Tensor,  # [G, M, D]
    x: Tensor,  # [G, M, D]
    inv: Tensor | None,  # [G, M]
    scale: Tensor,  # []
) -> Tensor:
    """The gradient of the input x, in its dtype.

    It is multiplied by scale, and taken through the normalisation where there is one. The
    normalisation is that of x, not of its rounded direction.

    Args:
        gradient: the unscaled gradient of the prepared rows.
        x: the input.
        inv: its inverse norms.
        scale: the logits' scale.
    """
    if inv is not None:
        inv = inv.unsqueeze(-1)
        unit = x.to(gradient.dtype) * inv
        radial = (unit * gradient).sum(-1, keepdim=True) * (inv < 1 / EPS)
        gradient = (gradient - radial * unit) * inv
    return (gradient * scale).to(x.dtype)
