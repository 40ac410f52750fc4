"""The ops of the similarity family: forward, backward and second derivatives.

The autograd functions call these, so that `torch.compile(fullgraph=True)`, `opcheck` and export see
single opaque nodes. torch.compile caches graphs on disk by the names of their ops. A release that
changes an output's shape therefore renames the op. The implementation hands every call to the
backend that is named in its last argument (backends/__init__.py).

Contract, for every backend
---------------------------
Inputs, with any strides and G, M, N, D >= 1:

    a [G, M, D]        rows
    b [G, N, D]        columns; None: b is a, and N = M
    scale []           in the accumulation dtype (float64 for a float64 ``dtype``, else float32),
                       on the device of a
    bias [G, N]        in the same dtype, or None
    key_a [G, M]       int64, or None
    key_b [G, N]       int64, or None; with ``b=None`` the columns' keys are key_a
    kind, offset, stride, positive    candidates and positives, as problem.py describes them
    dtype              the matrix dtype: what the products read

With ``b=None`` the problem is symmetric: there is no bias, no ``columns``, and the offset is 0 or
NO_SELF. Otherwise autograd/similarity.py passes a copy as b. A positive needs M <= N.

Definitions, in the accumulation dtype. With ``normalize``, ``inv = 1 / max(|x|, 1e-12)`` for every
row, and ``hat = round(x * inv)`` to ``dtype``. Without, ``hat = round(x)``. The logits are
``s_ij = scale * <a_hat_i, b_hat_j> + bias_j``, and p(i) is the positive's column.

``similarity_forward`` returns eleven tensors. They share no memory with each other or with the
inputs. Each is empty (``[0]``) unless the condition in its last line holds:

    rows [2, G, M]     log-sum-exp of s over the candidate columns, -inf where there are none; and
                       what its rounding has lost (0 where it is not finite). The log-sum-exp is the
                       sum of both. This output is never empty
    cols [2, G, N]     the same over the candidate rows of each column.
                       With ``columns``
    pos [G, M]         s at the positive.
                       With ``positive >= 0``
    loss [G, M]        softplus(rows - pos). With ``columns`` (then M = N) it is the mean of that
                       and softplus(cols[p(i)] - pos). NaN where pos is infinite or a log-sum-exp
                       is +inf, as cross entropy, and then NaN in all that backward makes of that
                       row.
                       With ``positive >= 0``
    row_max [G, M]     maximum of s over the candidates, -inf where there are none.
                       With ``extrema``
    col_max [G, N]     the same for columns.
                       With ``extrema`` and ``columns``
    a_hat [G, M, D]    in ``dtype``, contiguous.
                       With ``normalize``, or where a has another dtype
    b_hat [G, N, D]    the same for b.
                       With ``normalize``, or where b has another dtype; never with ``b=None``
    a_inv [G, M]       inv of a.
                       With ``normalize``
    b_inv [G, N]       inv of b.
                       With ``normalize``, unless ``b=None``
    mean [G, M, D]     sum_j softmax_ij b_hat_j, unscaled, 0 for rows without candidates.
                       With ``weighted``

``weighted`` is asked for only with b, without ``columns`` and without a positive.

``similarity_backward`` takes the upstream gradients and what forward saved, where absent tensors
are the empty ones. It returns ``da [G, M, D]`` and ``db [G, N, D]`` in the dtypes of a and b, and
``dscale []`` and ``dbias [G, N]`` in the accumulation dtype. Each is empty unless its ``need_*`` is
set. Without a positive, ``g_rows [G, M]`` and ``g_cols [G, N]`` (empty unless ``columns``) belong
to the log-sum-exps. With one, ``g_rows`` belongs to loss and ``g_cols`` is empty. When ``mean`` is
present and only a and scale are needed, no tile is computed. With ``b=None``, ``da`` is the whole
gradient of the set. Rows (columns) without candidates get no gradient from their log-sum-exp.
Through the normalisation ``dx = (G - <u, G> u) inv`` with ``u = x inv``, which is not rounded.
Below the norm floor (|x| < 1e-12), ``dx = G / 1e-12``.

``similarity_second`` has one implementation for all backends
(backends/panels/second_derivatives.py). It takes tangents ``t_*`` of a, b, scale and bias in their
dtypes, where None stands for 0. It returns the tangents of the outputs. They are ``[G, M]`` of the
log-sum-exps, or of loss where there is a positive. ``[G, N]`` follows, which is empty unless
``g_cols`` is given. Then follow those of da, db, dscale and dbias, with their shapes and dtypes,
for constant upstream gradients. Second derivatives are symmetric. So the same numbers are the
gradients, with respect to g_rows, g_cols, a, b, scale and bias, of
``<t_a, da> + <t_b, db> + t_scale dscale + <t_bias, dbias>``.
"""

from __future__ import annotations

import torch

from ..backends.panels import second_derivatives
from ..dtypes import accumulation_dtype
from ..problem import Forward, Gradients, Needs, Problem, Saved, Upstream, Wanted
from . import _codec, _fakes
from ._library import LIBRARY, implement, register_vmap

_OPERANDS = "Tensor a, Tensor? b, Tensor scale, Tensor? bias, Tensor? key_a, Tensor? key_b, "
_CANDIDATES = "str kind, SymInt offset, SymInt stride, SymInt positive, bool normalize, "
_GRADIENTS = (
    "Tensor g_rows, Tensor g_cols, "
    + _OPERANDS
    + "Tensor rows, Tensor cols, Tensor pos, Tensor a_hat, Tensor b_hat, Tensor a_inv, "
    "Tensor b_inv, Tensor mean, "
    + _CANDIDATES
    + "ScalarType dtype, bool need_a, bool need_b, bool need_scale, bool need_bias, str backend"
)


def _returning(count: int) -> str:
    return "(" + ", ".join(["Tensor"] * count) + ")"


LIBRARY.define(
    f"similarity_forward({_OPERANDS}{_CANDIDATES}bool columns, bool extrema, bool weighted, "
    f"ScalarType dtype, str backend) -> {_returning(11)}"
)
LIBRARY.define(f"similarity_backward({_GRADIENTS}) -> {_returning(4)}")
LIBRARY.define(
    "similarity_second(Tensor? t_a, Tensor? t_b, Tensor? t_scale, Tensor? t_bias, "
    f"{_GRADIENTS}) -> {_returning(6)}"
)

implement("similarity_forward")
implement("similarity_backward")
implement("similarity_second", second_derivatives)
similarity_forward = torch.ops.fused_contrastive.similarity_forward.default
similarity_backward = torch.ops.fused_contrastive.similarity_backward.default
similarity_second = torch.ops.fused_contrastive.similarity_second.default


@torch.library.register_fake("fused_contrastive::similarity_forward", lib=LIBRARY)
def _(a, b, scale, *rest):
    *_, positive, normalize, columns, extrema, weighted, dtype, _backend = rest
    G, M, D = a.shape
    N = M if b is None else b.shape[1]
    accumulate = accumulation_dtype(dtype)

    def tensor(present, *shape):
        return a.new_empty(shape if present else (0,), dtype=accumulate)

    paired = positive >= 0
    return (
        tensor(True, 2, G, M),
        tensor(columns, 2, G, N),
        tensor(paired, G, M),
        tensor(paired, G, M),
        tensor(extrema, G, M),
        tensor(extrema and columns, G, N),
        *_fakes.prepared(a, b, normalize, dtype),
        tensor(weighted, G, M, D),
    )


def _fake_gradients(a, b, scale, rest):
    G, N, _ = (a if b is None else b).shape
    return _fakes.gradients(a, b, scale, rest[-5:-1], (G, N))


@torch.library.register_fake("fused_contrastive::similarity_backward", lib=LIBRARY)
def _(g_rows, g_cols, a, b, scale, *rest):
    return _fake_gradients(a, b, scale, rest)


@torch.library.register_fake("fused_contrastive::similarity_second", lib=LIBRARY)
def _(t_a, t_b, t_scale, t_bias, g_rows, g_cols, a, b, scale, *rest):
    d_rows = scale.new_empty(a.shape[:2])
    d_cols = scale.new_empty((a if b is None else b).shape[:2] if g_cols.numel() else (0,))
    return d_rows, d_cols, *_fake_gradients(a, b, scale, rest)


register_vmap(similarity_forward, (1, 1, *[0] * 9))
register_vmap(similarity_backward, (0, 0, None, 0))
register_vmap(similarity_second, (0, 0, 0, 0, None, 0))


def call_forward(problem: Problem, wanted: Wanted, backend: str) -> Forward:
    """Call the forward op on named arguments, where the time of the translation does not matter."""
    operands, candidates = _codec.similarity_operands(problem)
    flags = (problem.normalize, *wanted)
    return _codec.similarity_outputs(
        similarity_forward(*operands, *candidates, *flags, problem.dtype, backend)
    )


def call_backward(
    upstream: Upstream, problem: Problem, saved: Saved, need: Needs, backend: str
) -> Gradients:
    """Call the backward op on named arguments."""
    operands, candidates = _codec.similarity_operands(problem)
    cols = problem.scale.new_empty(0) if upstream.cols is None else upstream.cols
    tensors = (upstream.rows, cols, *operands, *_codec.similarity_inputs(saved, problem))
    options = (*candidates, problem.normalize, problem.dtype)
    found = similarity_backward(*tensors, *options, *need, backend)
    return Gradients(*(x if needed else None for x, needed in zip(found, need, strict=True)))
