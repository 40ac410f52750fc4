"""The registered torch ops of the similarity family, forward, backward and second derivatives, with schemas, fakes and vmap rules.

The autograd functions call these, so `torch.compile(fullgraph=True)`, `opcheck` and export see single opaque nodes. torch.compile
caches graphs on disk by the names of their ops: a release that changes an output's shape renames the op. The
implementation hands every call to the backend named in its last argument: a module with functions
`similarity_forward` and `similarity_backward` of exactly these arguments (less ``backend``).

Contract, for every backend
---------------------------
Inputs: ``a [G, M, D]``, ``b [G, N, D]`` or None (b is a, N = M), any strides, G, M, N, D >= 1. ``scale []`` and ``bias [G, N]``
in the accumulation dtype (float64 for a float64 ``dtype``, else float32), on the device of ``a``. ``key_a [G, M]``,
``key_b [G, N]`` int64 (with ``b=None`` the keys are ``key_a``). ``kind, offset, stride, positive``: candidates.py. With ``b=None`` the
problem is symmetric: no bias, no ``columns``, offset 0 or NO_SELF (functions.py passes a copy as b otherwise). A positive needs M <= N.
``dtype`` is the matrix dtype: what the products read.

Definitions, in the accumulation dtype: ``inv = 1 / max(|x|, 1e-12)`` per row with ``normalize``; ``hat = round(x * inv)`` to ``dtype``
(``round(x)`` without ``normalize``); ``s_ij = scale * <a_hat_i, b_hat_j> + bias_j``; p(i) the positive's column.

Forward returns eleven tensors that share no memory with each other or the inputs, each empty (``[0]``) when absent:

    rows [2, G, M]     log-sum-exp of s over the candidate columns, -inf where there are none; and what
                       its rounding lost (0 where it is not finite): the log-sum-exp is the sum of both
    cols [2, G, N]     the same over the candidate rows of each column            with ``columns``
    pos [G, M]         s at the positive                                          with ``positive >= 0``
    loss [G, M]        softplus(rows - pos); with ``columns`` (then M = N) the mean of it and
                       softplus(cols[p(i)] - pos); NaN where pos is infinite or a log-sum-exp +inf (as
                       cross entropy), and then NaN in all that backward makes of that row
                                                                                 with ``positive >= 0``
    row_max [G, M]     maximum of s over the candidates, -inf where none          with ``extrema``
    col_max [G, N]     the same for columns                                       with ``extrema`` and ``columns``
    a_hat [G, M, D]    in ``dtype``, contiguous; absent when ``a`` is it already (not ``normalize``, same dtype)
    b_hat [G, N, D]    likewise for b; absent with ``b=None``
    a_inv [G, M]       with ``normalize``
    b_inv [G, N]       with ``normalize`` and b
    mean [G, M, D]     sum_j softmax_ij b_hat_j, unscaled (rows without candidates: 0)   with ``weighted``
                       (``weighted`` only with b, without ``columns`` and without a positive)

Backward takes the upstream gradients and what forward saved (absent tensors are the empty ones) and returns
``da [G, M, D]`` and ``db [G, N, D]`` in the dtypes of a and b, ``dscale []`` and ``dbias [G, N]`` in the accumulation dtype, each empty
unless its ``need_*`` is set. Without a positive ``g_rows [G, M]`` and ``g_cols [G, N]`` (empty unless ``columns``) belong to the log-sum-exps; with one,
``g_rows`` belongs to loss and ``g_cols`` is empty. With ``mean`` present and only a and scale needed no tile is computed.
With b=None ``da`` is the whole gradient of the set. Rows (columns) without candidates get no gradient from their lse.
Through the normalisation ``dx = (G - <u, G> u) inv`` with ``u = x inv``,
not rounded; below the norm floor (|x| < 1e-12) ``dx = G / 1e-12``.

``similarity_second`` has one implementation for all backends (second_panels.py). Along tangents ``t_*`` of a, b, scale and bias (None: 0; dtypes
of those) it returns the tangents of the outputs, ``[G, M]`` (of lse, or of loss where there is a positive) and ``[G, N]`` (empty unless
``g_cols`` is given), and those of da, db, dscale and dbias above, with their shapes and dtypes, for constant upstream gradients. As
second derivatives are symmetric, the same are the gradients, with respect to g_rows, g_cols, a, b, scale and bias,
of ``<t_a, da> + <t_b, db> + t_scale dscale + <t_bias, dbias>``.
"""

from __future__ import annotations

import torch

from ..backends.panels import second_derivatives
from ..dtypes import accumulation_dtype
from ..problem import Forward, Gradients, Needs, Problem, Saved, Upstream, Wanted
from . import _codec
from ._library import LIBRARY, implement, register_vmap

_CANDIDATES = "str kind, SymInt offset, SymInt stride, SymInt positive"
LIBRARY.define(
    "similarity_forward(Tensor a, Tensor? b, Tensor scale, Tensor? bias, Tensor? key_a, Tensor? key_b, "
    + _CANDIDATES
    + ", bool normalize, bool columns, bool extrema, bool weighted, ScalarType dtype, str backend) -> ("
    + ", ".join(["Tensor"] * 11)
    + ")"
)
LIBRARY.define(
    "similarity_backward(Tensor g_rows, Tensor g_cols, Tensor a, Tensor? b, Tensor scale, Tensor? bias, "
    "Tensor? key_a, Tensor? key_b, Tensor rows, Tensor cols, Tensor pos, Tensor a_hat, Tensor b_hat, Tensor a_inv, "
    "Tensor b_inv, Tensor mean, "
    + _CANDIDATES
    + ", bool normalize, ScalarType dtype, bool need_a, bool need_b, bool need_scale, bool need_bias, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)
LIBRARY.define(
    "similarity_second(Tensor? t_a, Tensor? t_b, Tensor? t_scale, Tensor? t_bias, Tensor g_rows, Tensor g_cols, "
    "Tensor a, Tensor? b, Tensor scale, Tensor? bias, Tensor? key_a, Tensor? key_b, Tensor rows, Tensor cols, Tensor pos, "
    "Tensor a_hat, Tensor b_hat, Tensor a_inv, Tensor b_inv, Tensor mean, "
    + _CANDIDATES
    + ", bool normalize, ScalarType dtype, bool need_a, bool need_b, bool need_scale, bool need_bias, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


implement("similarity_forward")
implement("similarity_backward")
implement("similarity_second", second_derivatives)
similarity_forward = torch.ops.fused_contrastive.similarity_forward.default
similarity_backward = torch.ops.fused_contrastive.similarity_backward.default
similarity_second = torch.ops.fused_contrastive.similarity_second.default


@torch.library.register_fake("fused_contrastive::similarity_forward", lib=LIBRARY)
def _(
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
    weighted,
    dtype,
    backend,
):
    G, M, D = a.shape
    N = M if b is None else b.shape[1]
    accumulate = accumulation_dtype(dtype)

    def tensor(present, *shape, dtype=accumulate):
        return a.new_empty(shape if present else (0,), dtype=dtype)

    paired = positive >= 0
    return (
        tensor(True, 2, G, M),
        tensor(columns, 2, G, N),
        tensor(paired, G, M),
        tensor(paired, G, M),
        tensor(extrema, G, M),
        tensor(extrema and columns, G, N),
        tensor(normalize or a.dtype != dtype, G, M, D, dtype=dtype),
        tensor(b is not None and (normalize or b.dtype != dtype), G, N, D, dtype=dtype),
        tensor(normalize, G, M),
        tensor(normalize and b is not None, G, N),
        tensor(weighted, G, M, D),
    )


@torch.library.register_fake("fused_contrastive::similarity_backward", lib=LIBRARY)
def _(
    g_rows, g_cols, a, b, scale, bias, key_a, key_b, rows, cols, pos, a_hat, b_hat, a_inv, b_inv, mean,
    kind, offset, stride, positive, normalize, dtype, need_a, need_b, need_scale, need_bias, backend,
):  # fmt: skip
    G, M, D = a.shape
    N = M if b is None else b.shape[1]
    return (
        a.new_empty((G, M, D) if need_a else (0,)),
        a.new_empty((G, N, D) if need_b else (0,), dtype=a.dtype if b is None else b.dtype),
        scale.new_empty(() if need_scale else (0,)),
        scale.new_empty((G, N) if need_bias else (0,)),
    )


@torch.library.register_fake("fused_contrastive::similarity_second", lib=LIBRARY)
def _(
    t_a, t_b, t_scale, t_bias, g_rows, g_cols, a, b, scale, bias, key_a, key_b, rows, cols, pos, a_hat, b_hat, a_inv, b_inv, mean,
    kind, offset, stride, positive, normalize, dtype, need_a, need_b, need_scale, need_bias, backend,
):  # fmt: skip
    G, M, D = a.shape
    N = M if b is None else b.shape[1]
    return (
        scale.new_empty(G, M),
        scale.new_empty((G, N) if g_cols.numel() else (0,)),
        a.new_empty((G, M, D) if need_a else (0,)),
        a.new_empty((G, N, D) if need_b else (0,), dtype=a.dtype if b is None else b.dtype),
        scale.new_empty(() if need_scale else (0,)),
        scale.new_empty((G, N) if need_bias else (0,)),
    )


register_vmap(similarity_forward, 1, 1, *[0] * 9)
register_vmap(similarity_backward, 0, 0, None, 0)
register_vmap(similarity_second, 0, 0, 0, 0, None, 0)


def call_forward(problem: Problem, wanted: Wanted, backend: str) -> Forward:
    """The forward op on named arguments, for callers that are not in a hurry."""
    operands, candidates = _codec.similarity_operands(problem)
    flags = (problem.normalize, *wanted)
    return _codec.similarity_outputs(
        similarity_forward(*operands, *candidates, *flags, problem.dtype, backend)
    )


def call_backward(
    upstream: Upstream, problem: Problem, saved: Saved, need: Needs, backend: str
) -> Gradients:
    """The backward op on named arguments."""
    operands, candidates = _codec.similarity_operands(problem)
    cols = problem.scale.new_empty(0) if upstream.cols is None else upstream.cols
    tensors = (upstream.rows, cols, *operands, *_codec.similarity_inputs(saved, problem))
    options = (*candidates, problem.normalize, problem.dtype)
    found = similarity_backward(*tensors, *options, *need, backend)
    return Gradients(*(x if needed else None for x, needed in zip(found, need, strict=True)))
