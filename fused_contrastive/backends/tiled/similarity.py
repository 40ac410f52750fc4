"""The similarity family's host program on a GPU, shared by CUDA and Triton.

`kernels` is a module that starts the kernels: backends/cuda/similarity.py or
triton_kernels/similarity.py. backends/tiled/__init__.py lists the functions it has.
"""

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
    Prepared,
    Problem,
    Saved,
    Upstream,
    Wanted,
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


def forward(kernels, problem: Problem, wanted: Wanted) -> Forward:
    """The forward pass: prepare, reduce the tiles, merge what the super-tiles left.

    Where `fused_rows` serves the weighted mean, it replaces the reduction. Otherwise the mean is
    a backward pass by panels, for an upstream gradient of one.
    """
    a, b, bias = contiguous(problem.a), contiguous(problem.b), contiguous(problem.bias)
    problem = problem._replace(a=a, b=b, bias=bias)
    prepared = allocate_prepared(problem)
    bound = kernels.prepare(problem, bias, prepared)
    operands = operands_of(problem, prepared, bias)
    found = _allocate(problem, wanted, prepared)
    if wanted.mean and kernels.fits_fused_rows(operands.x):
        found = found._replace(mean=problem.scale.new_empty(a.shape))
        kernels.finish_weighted(*kernels.fused_rows(operands), found)
        return found
    slots, super_rows = kernels.pair_reduce(operands, bound, problem, wanted)
    kernels.finish_forward(slots, super_rows, operands, problem, found)
    if wanted.mean:
        found = found._replace(mean=_weighted_mean(kernels, operands, found))
    return found


def _allocate(problem: Problem, wanted: Wanted, prepared: Prepared) -> Forward:
    """Memory for the results of the reduction."""
    G, M, N, _ = problem.sizes
    paired = problem.positive >= 0

    def empty(present: bool, *shape: int) -> Tensor | MaybeNone:
        return problem.scale.new_empty(shape) if present else None

    return Forward(
        row_lse=LogSumExp(empty(True, 2, G, M)),
        col_lse=LogSumExp(empty(True, 2, G, N)) if wanted.columns else None,
        pos=empty(paired, G, M),
        loss=empty(paired, G, M),
        row_max=empty(wanted.extrema, G, M),
        col_max=empty(wanted.extrema and wanted.columns, G, N),
        prepared=prepared,
        mean=None,
    )


def _weighted_mean(kernels, operands: Operands, found: Forward) -> Tensor:
    """The softmax-weighted mean of the columns ``[G, M, D]`` by panels, for any D."""
    terms = allocate_terms(operands, None, columns=False)
    ones = torch.ones_like(found.row_lse.value)
    saved = Saved(found.row_lse, None, None, found.prepared, None)
    kernels.terms(operands, Upstream(ones, None), saved, terms)
    need = Needs(a=True, b=False, scale=False, bias=False)
    mean, _, _ = _weighted_sums(kernels, operands, terms, symmetric=False, need=need)
    return from_half(kernels, mean, terms)


def backward(kernels, upstream: Upstream, problem: Problem, saved: Saved, need: Needs) -> Gradients:
    """The backward pass: terms, panels of weights and their products, the gradients of each set.

    With the weighted mean in hand, and only a and the scale needed, no tile is computed.
    """
    operands = operands_of(problem, saved.prepared, problem.bias)
    sums_needed = Needs(reads_rows(problem, need), reads_columns(problem, need), False, need.bias)
    terms, dbias = Terms(), ABSENT
    if saved.mean is not None and not sums_needed.b and not need.bias:
        sum_a, sum_b = saved.mean * upstream.rows.unsqueeze(-1), ABSENT
    else:
        columns, positive = saved.col_lse is not None, positive_column(problem)
        terms = allocate_terms(operands, saved.pos, columns, positive)
        kernels.terms(operands, upstream, saved, terms)
        sum_a, sum_b, dbias = _weighted_sums(
            kernels,
            operands,
            terms._replace(col=terms.row) if problem.one_set else terms,
            symmetric=problem.one_set,
            need=sums_needed,
        )
    if need.bias:
        dbias = _finish_bias(from_half(kernels, dbias, terms), terms)
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
    kernels, operands: Operands, terms: Terms, *, symmetric: bool, need: Needs
) -> tuple[Tensor | MaybeNone, Tensor | MaybeNone, Tensor | MaybeNone]:
    """``W y [G, M, D]``, ``W^T x [G, N, D]`` and the column sums of W ``[G, N]``.

    W is what `pair_weight` writes, and `need` says which of the sums are computed. The results of
    float16 panels are relative (`from_half`). Only half of a symmetric W is computed. Its column
    terms are its row terms.
    """
    x, y = operands.x, operands.y
    G, M, N = operands.shape
    sum_bias = operands.scale.new_zeros(G, N) if need.bias else ABSENT

    def panel(g: slice, i: slice, j: slice, workspace: Tensor) -> Tensor:
        weights = plan.panel_of(workspace, g, i, j)
        mirror = symmetric and i == j
        kernels.pair_weight(operands.part(g, i, j), terms.part(g, i, j), weights, mirror)
        weights = weights[:, :, : j.stop - j.start]
        if need.bias:
            sum_bias[g, j] += weights.sum(1, dtype=sum_bias.dtype)
        return weights

    parts = plan.panels(G, M, N, symmetric, plan.WORKSPACE // x.element_size())
    sum_a, sum_b = panel_products(
        x, y, parts, symmetric=symmetric, need_a=need.a, need_b=need.b, panel=panel
    )
    return sum_a, sum_b, sum_bias


def _finish_bias(
    column_sums: Tensor,  # [G, N]
    terms: Terms,
) -> Tensor:
    """The gradient of the bias ``[G, N]``: column sums of W less the positives' pull."""
    if terms.pull is None:
        return column_sums
    M, N = terms.pull.shape[1], column_sums.shape[1]
    column = (torch.arange(M, device=column_sums.device) + terms.positive) % N
    return column_sums.index_add_(1, column, terms.pull, alpha=-1)
