"""The first derivatives of the similarity family and the primitive over it.

`similarity` is what every loss calls: it resolves dtype, autocast, groups and backend and returns row and column log-sum-exp, or the
one-positive loss ``softplus(lse - pos)`` where the positive never enters the sum (accurate relative to itself; docs/maths.md).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .. import reference
from ..backends import dispatch
from ..dtypes import matrix_dtype
from ..ops import similarity as ops
from ..problem import NO_SELF
from ._formulas import (
    Formula,
    below_autograd,
    first_derivative_context,
    is_plain,
    only,
    register_derivatives,
)


class Similarity(Formula):
    """Of the forward op (ops.py). Differentiable: ``rows[0]`` and ``cols[0]``, or loss where there is a positive."""

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        ctx.save_for_forward(*Similarity.remember(ctx, inputs, outputs))

    @staticmethod
    def remember(ctx, inputs, outputs):
        (
            *operands,
            kind,
            offset,
            stride,
            positive,
            normalize,
            columns,
            _extrema,
            _weighted,
            dtype,
            backend,
        ) = inputs
        rows, cols, pos, loss, row_max, col_max, *prepared = outputs
        constant = (rows, cols) if positive >= 0 else (loss,) if columns else (cols, loss)
        ctx.mark_non_differentiable(*constant, pos, row_max, col_max, *prepared)
        ctx.set_materialize_grads(False)
        saved = (*operands, rows, cols, pos, *prepared)
        ctx.save_for_backward(*saved)
        ctx.options = (kind, offset, stride, positive, normalize, dtype)
        ctx.backend = backend
        return saved

    @staticmethod
    def backward(ctx, g_rows, g_cols, _pos, g_loss, *_):
        saved = ctx.saved_tensors
        rows, cols, positive = saved[6], saved[7], ctx.options[3]
        if positive >= 0:
            g_rows, g_cols = g_loss, None
        else:
            g_rows, g_cols = (
                g[0] if g is not None and g.numel() else None for g in (g_rows, g_cols)
            )
        if g_rows is None:
            g_rows = torch.zeros_like(rows[0])
        if g_cols is None:
            g_cols = nothing_upstream(cols, positive)
        needed = ctx.needs_input_grad[:4]
        with first_derivative_context():
            gradients = ops.similarity_backward(
                g_rows, g_cols, *saved, *ctx.options, *needed, ctx.backend
            )
        return *only(needed, gradients), *[None] * 12

    @staticmethod
    def jvp(ctx, *tangents):
        saved, positive = ctx.saved_tensors, ctx.options[3]
        upstream = (torch.zeros_like(saved[6][0]), nothing_upstream(saved[7], positive))
        needs = (False,) * 4
        d_rows, d_cols, *_ = ops.similarity_second(
            *tangents[:4], *upstream, *saved, *ctx.options, *needs, ctx.backend
        )
        if positive >= 0:
            return None, None, None, d_rows, *[None] * 7
        in_two_parts = (
            torch.stack([d, torch.zeros_like(d)]) if d.numel() else None for d in (d_rows, d_cols)
        )
        return *in_two_parts, *[None] * 9


def nothing_upstream(cols, positive: int) -> torch.Tensor:
    """The upstream gradient of cols where it has none."""
    return cols.new_empty(0) if positive >= 0 or not cols.numel() else torch.zeros_like(cols[0])


register_derivatives(
    ops.similarity_forward, ops.similarity_backward, ops.similarity_second, Similarity
)


class DirectSimilarity(torch.autograd.Function):
    """The same for calls that no transform and no compiler looks at: 20 us less."""

    @staticmethod
    def forward(ctx, *arguments):
        with below_autograd():
            outputs = ops.similarity_forward(*arguments)
        Similarity.remember(ctx, arguments, outputs)
        return outputs

    backward = Similarity.backward


class Result(NamedTuple):
    """What `similarity` returns; tensors of the accumulation dtype, None when not asked for."""

    rows: torch.Tensor
    cols: torch.Tensor | None
    loss: torch.Tensor | None
    pos: torch.Tensor | None
    row_max: torch.Tensor | None
    col_max: torch.Tensor | None


def similarity(
    a: torch.Tensor,
    b: torch.Tensor | None,
    scale: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    key_a: torch.Tensor | None = None,
    key_b: torch.Tensor | None = None,
    kind: str = "all",
    offset: int = 0,
    stride: int = 1,
    positive: int = -1,
    normalize: bool = False,
    columns: bool = False,
    extrema: bool = False,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> Result:
    """Checked tensors in, `Result` out: ``a [..., M, D]``, ``b [..., N, D]`` or None, scale from `as_scalar`, bias ``[..., N]``.

    Leading dimensions must agree already. ``kind, offset, stride, positive``: candidates.py; the other options: ops.py. `dtype` is what the
    products read, None: `matrix_dtype` of a.
    """
    if backend is not None:
        dispatch.check_name(backend)
    dtype = matrix_dtype(a) if dtype is None else dtype
    M, D = a.shape[-2:]
    N = M if b is None else b.shape[-2]
    lead = a.shape[:-2]
    if a.numel() == 0 or N == 0 or dispatch.is_eager(backend):
        return Result(
            *reference.similarity(
                a,
                b,
                scale,
                bias,
                key_a,
                key_b,
                kind,
                offset,
                stride,
                positive,
                normalize,
                columns,
                extrema,
            )
        )
    name = dispatch.select(backend, a.device, dtype, D, "one_set" if b is None else "two_sets")
    if b is not None and b.dtype != a.dtype and not normalize:  # inside autocast
        a, b = a.to(dtype), b.to(dtype)
    both = columns and b is None
    if b is None and (bias is not None or offset not in (0, NO_SELF)):  # not symmetric
        b, key_b, both = a.clone(), key_a, False
    fixed = not columns and positive < 0 and b is not None and not b.requires_grad
    weighted = (
        fixed
        and a.requires_grad
        and (bias is None or not bias.requires_grad)
        and torch.is_grad_enabled()
    )
    call = DirectSimilarity.apply if is_plain() else ops.similarity_forward
    rows, cols, pos, loss, row_max, col_max, *_ = call(
        a.reshape(-1, M, D),
        None if b is None else b.reshape(-1, N, D),
        scale,
        None if bias is None else bias.to(scale.dtype).expand(*lead, N).reshape(-1, N),
        group_keys(key_a, lead, M),
        None if b is None else group_keys(key_b, lead, N),
        kind, offset, stride, positive, normalize, columns and not both, extrema, weighted, dtype, name,
    )  # fmt: skip
    rows, cols = rows[0], cols[0] if cols.numel() else cols
    if both:
        cols, col_max = rows, row_max

    def restore(x, present, size):
        return x.reshape(*lead, size) if present else None

    paired = positive >= 0
    return Result(
        restore(rows, True, M),
        restore(cols, columns, N),
        restore(loss, paired, M),
        restore(pos, paired, M),
        restore(row_max, extrema, M),
        restore(col_max, extrema and columns, N),
    )


def group_keys(key, lead, size):
    return None if key is None else key.to(torch.int64).expand(*lead, size).reshape(-1, size)
