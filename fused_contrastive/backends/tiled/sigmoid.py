"""The sigmoid family's host program on a GPU, shared by CUDA and Triton.

`kernels` is a module that starts the kernels: backends/cuda/sigmoid.py or
triton_kernels/sigmoid.py. backends/tiled/__init__.py lists the functions it has. One set counts as
two equal sets.
"""

from __future__ import annotations

from torch import Tensor

from ...problem import (
    ABSENT,
    Gradients,
    MaybeNone,
    Needs,
    SigmoidForward,
    SigmoidProblem,
    SigmoidSaved,
)
from ..panels import panel_products
from . import plan
from .operands import (
    Operands,
    Terms,
    allocate_prepared,
    allocate_terms,
    contiguous,
    finish_sets,
    from_half,
    operands_of,
    positive_column,
    reads_columns,
    reads_rows,
)


def forward(kernels, problem: SigmoidProblem, extrema: bool) -> SigmoidForward:
    """The forward pass; rows are prepared only where they are normalised or rounded."""
    a, b, row_bias = contiguous(problem.a), contiguous(problem.b), contiguous(problem.row_bias)
    problem = problem._replace(a=a, b=b, row_bias=row_bias)
    prepared = allocate_prepared(problem)
    if prepared.a_hat is not None or prepared.b_hat is not None:
        kernels.prepare(problem, None, prepared)
    operands = operands_of(problem, prepared)
    G, M, _, _ = problem.sizes
    new = problem.scale.new_empty
    found = SigmoidForward(
        rows=new(G, M),
        pos=new(G, M) if problem.positive >= 0 else None,
        row_max=new(G, M) if extrema else None,
        prepared=prepared,
    )
    slots = kernels.sigmoid_reduce(operands, problem, extrema)
    kernels.sigmoid_finish(slots, operands, problem, found)
    return found


def backward(
    kernels,
    g_rows: Tensor,  # [G, M]
    problem: SigmoidProblem,
    saved: SigmoidSaved,
    need: Needs,
) -> Gradients:
    """The backward pass: terms, panels of weights and their products, the gradients of each set.

    With one set both products are gradients of the same points, and they are added.
    """
    operands = operands_of(problem, saved.prepared)
    terms = allocate_terms(operands, saved.pos, columns=False, positive=positive_column(problem))
    kernels.sigmoid_terms(g_rows, problem, saved.pos, terms)
    rows_needed = reads_rows(problem, need)
    both = problem.one_set and rows_needed
    sums_needed = Needs(rows_needed, reads_columns(problem, need) or both, False, need.bias)
    sum_a, sum_b, dbias = _weighted_sums(kernels, operands, terms, problem.sign, sums_needed)
    if both:
        sum_a += sum_b
    if need.bias:
        dbias = from_half(kernels, dbias, terms)
        dbias = dbias if terms.pull is None else dbias - terms.pull
    found = finish_sets(
        kernels,
        (sum_a, sum_b),
        operands,
        terms,
        problem=problem,
        prepared=saved.prepared,
        need=need,
    )
    return found._replace(bias=dbias)


def _weighted_sums(
    kernels, operands: Operands, terms: Terms, sign: int, need: Needs
) -> tuple[Tensor | MaybeNone, Tensor | MaybeNone, Tensor | MaybeNone]:
    """``W y [G, M, D]``, ``W^T x [G, N, D]`` and the row sums of W ``[G, M]``.

    W is what `sigmoid_weight` writes, and `need` says which of the sums are computed.
    """
    x, y = operands.x, operands.y
    G, M, N = operands.shape
    sums = operands.scale.new_zeros(G, M) if need.bias else ABSENT

    def panel(g: slice, i: slice, j: slice, workspace: Tensor) -> Tensor:
        weights = plan.panel_of(workspace, g, i, j)
        part = operands.part(g, i, j)
        by_tile = kernels.sigmoid_weight(part, terms.part(g, i, j), sign, weights, need.bias)
        if need.bias:
            sums[g, i] += by_tile.sum(0)
        return weights[:, :, : j.stop - j.start]

    parts = plan.panels(G, M, N, False, plan.WORKSPACE // x.element_size())
    sum_a, sum_b = panel_products(
        x, y, parts, symmetric=False, need_a=need.a, need_b=need.b, panel=panel
    )
    return sum_a, sum_b, sums
