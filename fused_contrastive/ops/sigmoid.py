"""The ops of the sigmoid family, sums of softplus: forward, backward and second derivatives.

As in ops/similarity.py, the implementation hands every call to the backend that is named in its
last argument.

Contract, for every backend
---------------------------
Inputs: ``a, b, scale, key_a, key_b, kind, offset, stride, positive, normalize, dtype`` as in
ops/similarity.py. ``row_bias [G, M]`` is in the accumulation dtype, and None stands for 0. ``sign``
is +1 or -1. With ``b=None`` the candidates are symmetric (offset 0 or NO_SELF). The logits need not
be.

Definitions, in the accumulation dtype, with ``hat`` and ``inv`` as in ops/similarity.py:
``x_ij = scale * <a_hat_i, b_hat_j> + row_bias_i`` and ``y_ij = sign * x_ij``. p(i) is the
positive's column.

``sigmoid_forward`` returns seven tensors. They share no memory with each other or with the inputs.
Each is empty (``[0]``) when it is absent:

    rows [G, M]        sum over the candidates j of softplus(y_ij), 0 where there are none. With
                       ``positive >= 0``, softplus(-y_i,p(i)) is added: the positive has the other
                       sign
    pos [G, M]         x at the positive, with ``positive >= 0``
    row_max [G, M]     maximum of y over the candidates, -inf where there are none, with ``extrema``
    a_hat, b_hat, a_inv, b_inv    as in ops/similarity.py

``sigmoid_backward`` takes the gradient ``g_rows [G, M]`` of rows and what forward saved. The
weights are ``W_ij = g_rows_i sign sigmoid(y_ij)`` at the candidates. The positive has its own,
apart from them: ``-g_rows_i sign sigmoid(-y_i,p(i))``. With ``G_a = W b_hat`` and
``G_b = W^T a_hat`` the op returns

    da [G, M, D], db [G, N, D]    G_a and G_b times scale, through the normalisation, in the
                                  dtypes of a and b
    dscale []                     the sum of W_ij <a_hat_i, b_hat_j>
    dbias [G, M]                  the row sums of W

Each is empty unless its ``need_*`` is set. With ``b=None``, ``da`` is the whole gradient of the
set.

``sigmoid_second`` has one implementation for all backends, as ``similarity_second``. It returns the
tangent ``[G, M]`` of rows along those of a, b, scale and row_bias, and the tangents of da, db,
dscale and dbias.

softplus and sigmoid are accurate relative to themselves for arguments of either sign and any size.
Below the smallest normal number 0 will do. They are 0 and 0 at -inf, and +inf and 1 at +inf. So an
infinite row_bias removes a row or makes it infinite. Sums over columns have the rounding of a few
additions, however many columns there are.
"""

from __future__ import annotations

import torch

from ..backends.panels import second_derivatives
from . import _fakes
from ._library import LIBRARY, implement, register_vmap

_OPERANDS = "Tensor a, Tensor? b, Tensor scale, Tensor? row_bias, Tensor? key_a, Tensor? key_b, "
_CANDIDATES = "str kind, SymInt offset, SymInt stride, SymInt positive, int sign, bool normalize, "
_GRADIENTS = (
    "Tensor g_rows, "
    + _OPERANDS
    + "Tensor pos, Tensor a_hat, Tensor b_hat, Tensor a_inv, Tensor b_inv, "
    + _CANDIDATES
    + "ScalarType dtype, bool need_a, bool need_b, bool need_scale, bool need_bias, str backend"
)
LIBRARY.define(
    f"sigmoid_forward({_OPERANDS}{_CANDIDATES}bool extrema, ScalarType dtype, str backend) -> ("
    + ", ".join(["Tensor"] * 7)
    + ")"
)
LIBRARY.define(f"sigmoid_backward({_GRADIENTS}) -> (Tensor, Tensor, Tensor, Tensor)")
LIBRARY.define(
    "sigmoid_second(Tensor? t_a, Tensor? t_b, Tensor? t_scale, Tensor? t_bias, "
    f"{_GRADIENTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)

implement("sigmoid_forward")
implement("sigmoid_backward")
implement("sigmoid_second", second_derivatives)
sigmoid_forward = torch.ops.fused_contrastive.sigmoid_forward.default
sigmoid_backward = torch.ops.fused_contrastive.sigmoid_backward.default
sigmoid_second = torch.ops.fused_contrastive.sigmoid_second.default


@torch.library.register_fake("fused_contrastive::sigmoid_forward", lib=LIBRARY)
def _(a, b, scale, *rest):
    *_, positive, _sign, normalize, extrema, dtype, _backend = rest
    prepared = _fakes.prepared(a, b, normalize, dtype)

    def tensor(present):
        return a.new_empty(a.shape[:2] if present else (0,), dtype=prepared[2].dtype)

    return tensor(True), tensor(positive >= 0), tensor(extrema), *prepared


@torch.library.register_fake("fused_contrastive::sigmoid_backward", lib=LIBRARY)
def _(g_rows, a, b, scale, *rest):
    return _fakes.gradients(a, b, scale, rest[-5:-1], a.shape[:2])


@torch.library.register_fake("fused_contrastive::sigmoid_second", lib=LIBRARY)
def _(t_a, t_b, t_scale, t_bias, g_rows, a, b, scale, *rest):
    gradients = _fakes.gradients(a, b, scale, rest[-5:-1], a.shape[:2])
    return scale.new_empty(a.shape[:2]), *gradients


register_vmap(sigmoid_forward, (0,) * 7)
register_vmap(sigmoid_backward, (0, 0, None, 0))
register_vmap(sigmoid_second, (0, 0, 0, None, 0))
