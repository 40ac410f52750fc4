"""The registered torch ops of the sigmoid family: sums of softplus over candidates, forward and backward.

As in ops.py, the implementation hands every call to the backend named in its last argument: a module with functions of these names
and arguments (less ``backend``).

Contract, for every backend
---------------------------
Inputs: ``a, b, scale, key_a, key_b, kind, offset, stride, positive, normalize, dtype`` as in ops.py; ``row_bias [G, M]`` or None (0) in the
accumulation dtype; ``sign`` +1 or -1. With ``b=None`` the candidates are symmetric (offset 0 or NO_SELF), the logits need not be.

Definitions, in the accumulation dtype, with ``hat`` and ``inv`` as in ops.py: ``x_ij = scale * <a_hat_i, b_hat_j> + row_bias_i`` and
``y_ij = sign * x_ij``; p(i) the positive's column.

``sigmoid_forward`` returns seven tensors that share no memory with each other or the inputs, each empty (``[0]``) when absent:

    rows [G, M]                     sum over the candidates j of softplus(y_ij), 0 where there are none, plus, with
                                    ``positive >= 0``, softplus(-y_i,p(i)): the positive has the other sign
    pos [G, M]                      x at the positive                              with ``positive >= 0``
    row_max [G, M]                  maximum of y over the candidates, -inf where none         with ``extrema``
    a_hat, b_hat, a_inv, b_inv      as in ops.py

``sigmoid_backward`` takes the gradient ``g_rows [G, M]`` of rows and what forward saved. With ``W_ij = g_rows_i sign sigmoid(y_ij)`` at the candidates and,
apart from them, ``-g_rows_i sign sigmoid(-y_i,p(i))`` at the positive: ``G_a = W b_hat``, ``G_b = W^T a_hat``, and it returns ``da [G, M, D]`` and
``db [G, N, D]`` (times scale, through the normalisation, in the dtypes of a and b), ``dscale []`` = sum of W_ij <a_hat_i, b_hat_j> and
``dbias [G, M]``, the row sums of W, each empty unless its ``need_*`` is set. With b=None ``da`` is the whole gradient of the set.

``sigmoid_second`` has one implementation for all backends: as ``similarity_second`` (ops.py), it returns the tangent ``[G, M]`` of rows along those
of a, b, scale and row_bias, and the tangents of da, db, dscale and dbias.

softplus and sigmoid are accurate relative to themselves for arguments of either sign and any size (below the smallest normal number 0 will
do): 0 and 0 at -inf, +inf and 1 at +inf, so that an infinite row_bias removes a row or makes it infinite. Sums over columns have the
rounding of a few additions, however many columns there are.
"""

from __future__ import annotations

import torch

from ..backends.panels import second_derivatives
from ..dtypes import accumulation_dtype
from ._library import LIBRARY, implement, register_vmap

_CANDIDATES = "str kind, SymInt offset, SymInt stride, SymInt positive, int sign, bool normalize"
LIBRARY.define(
    "sigmoid_forward(Tensor a, Tensor? b, Tensor scale, Tensor? row_bias, Tensor? key_a, Tensor? key_b, "
    + _CANDIDATES
    + ", bool extrema, ScalarType dtype, str backend) -> ("
    + ", ".join(["Tensor"] * 7)
    + ")"
)
_GRADIENTS = (
    "Tensor g_rows, Tensor a, Tensor? b, Tensor scale, Tensor? row_bias, Tensor? key_a, Tensor? key_b, "
    "Tensor pos, Tensor a_hat, Tensor b_hat, Tensor a_inv, Tensor b_inv, "
    + _CANDIDATES
    + ", ScalarType dtype, bool need_a, bool need_b, bool need_scale, bool need_bias, str backend) -> (Tensor"
    + ", Tensor" * 3
)
LIBRARY.define(f"sigmoid_backward({_GRADIENTS})")
LIBRARY.define(
    f"sigmoid_second(Tensor? t_a, Tensor? t_b, Tensor? t_scale, Tensor? t_bias, {_GRADIENTS}, Tensor)"
)

implement("sigmoid_forward")
implement("sigmoid_backward")
implement("sigmoid_second", second_derivatives)
sigmoid_forward = torch.ops.fused_contrastive.sigmoid_forward.default
sigmoid_backward = torch.ops.fused_contrastive.sigmoid_backward.default
sigmoid_second = torch.ops.fused_contrastive.sigmoid_second.default


@torch.library.register_fake("fused_contrastive::sigmoid_forward", lib=LIBRARY)
def _(
    a, b, scale, row_bias, key_a, key_b, kind, offset, stride, positive, sign, normalize, extrema, dtype, backend
):  # fmt: skip
    G, M, D = a.shape
    N = M if b is None else b.shape[1]
    accumulate = accumulation_dtype(dtype)

    def tensor(present, *shape, dtype=accumulate):
        return a.new_empty(shape if present else (0,), dtype=dtype)

    return (
        tensor(True, G, M),
        tensor(positive >= 0, G, M),
        tensor(extrema, G, M),
        tensor(normalize or a.dtype != dtype, G, M, D, dtype=dtype),
        tensor(b is not None and (normalize or b.dtype != dtype), G, N, D, dtype=dtype),
        tensor(normalize, G, M),
        tensor(normalize and b is not None, G, N),
    )


def _gradients(a, b, scale, need_a, need_b, need_scale, need_bias):
    G, M, D = a.shape
    N = M if b is None else b.shape[1]
    return (
        a.new_empty((G, M, D) if need_a else (0,)),
        a.new_empty((G, N, D) if need_b else (0,), dtype=a.dtype if b is None else b.dtype),
        scale.new_empty(() if need_scale else (0,)),
        scale.new_empty((G, M) if need_bias else (0,)),
    )


@torch.library.register_fake("fused_contrastive::sigmoid_backward", lib=LIBRARY)
def _(
    g_rows, a, b, scale, row_bias, key_a, key_b, pos, a_hat, b_hat, a_inv, b_inv,
    kind, offset, stride, positive, sign, normalize, dtype, need_a, need_b, need_scale, need_bias, backend,
):  # fmt: skip
    return _gradients(a, b, scale, need_a, need_b, need_scale, need_bias)


@torch.library.register_fake("fused_contrastive::sigmoid_second", lib=LIBRARY)
def _(
    t_a, t_b, t_scale, t_bias, g_rows, a, b, scale, row_bias, key_a, key_b, pos, a_hat, b_hat, a_inv, b_inv,
    kind, offset, stride, positive, sign, normalize, dtype, need_a, need_b, need_scale, need_bias, backend,
):  # fmt: skip
    return scale.new_empty(a.shape[:2]), *_gradients(
        a, b, scale, need_a, need_b, need_scale, need_bias
    )


register_vmap(sigmoid_forward, *[0] * 7)
register_vmap(sigmoid_backward, 0, 0, None, 0)
register_vmap(sigmoid_second, 0, 0, 0, None, 0)
