"""The ops of the force family: forward, backward, and the sums of distances with their gradient.

As in ops/similarity.py, the implementation hands every call to the backend that is named in its
last argument.

Contract, for every backend
---------------------------
There is one set of points ``x [G, P, D]``, the negatives and then the positives. It has any dtype,
any strides and G, P, D >= 1. The rows are its first ``rows`` points (1 <= rows <= P). Of the
columns the first ``negatives`` points are negative and the others positive (rows <= negatives <=
P). There are ``K`` temperatures. Everything else is in the accumulation dtype (float64 for float64
x, else float32) and on the device of x. Distances are made of squared differences, never of ``|x|^2
+ |y|^2 - 2 x y``. So
``d_ij = sqrt(max(|x_i - x_j|^2, clip))``, and 0 where it is 0.

``force_forward`` takes ``inverse_temperatures [K]``, ``scale [G]`` or None, and ``weight [G, P]``
of any sign or None (1). Without a scale it is the mean of d over the group's P x P pairs, self
pairs included. Then ``clip`` is 0 and there are no weights. In this order:

    f_gk = inverse_temperatures_k / scale_g (here and below with 1 in place of a scale of 0)
    R_i = log sum_j exp(-f d_ij), rows i over all columns j; C_j the same over rows i. With
        ``all_rows`` every point is a row of the softmaxes, so C = R. With ``mask`` self pairs are
        left out of both. A sum over nothing gives -inf.
    a_ij = max(-f d_ij - max(R_i + C_j, denominator) / 2, floor), and self_logit for self pairs
    E_ij = exp(a_ij - shift_i) weight_j. shift_i is the maximum of a_ij over the side's columns
        (-inf: E = 0), for the negative and the positive side apart
    s_i = sum E_ij over the side
    force_i = exp(shift_neg + shift_pos - log_norm_k)
        * (s_neg sum_pos E_ij (x_j - x_i) - s_pos sum_neg E_ij (x_j - x_i))

In the last line x_i drops out. Points with d_ij = 0, whose E may exceed all others by far, must add
exactly nothing.

    log_norm_k = log sqrt(mean of (d_ij / scale * exp(a_ij))^2 over the P x P pairs) with ``rms``
        (all_rows, no weights). Else, with ``separate``, it is the largest exponent of a term: the
        maximum over rows, sides and j with d_ij > 0 of a_ij + shift_i of the other side (0 where
        that is -inf). This is only a unit, so any number near it will do. Else it is 0.

The op returns

    force [S, G, rows, D]    summed over the temperatures (S = 1), or each of them with
                             ``separate`` (S = K);
                             0 where log_norm is -inf; in the coordinates of x, not divided by scale
    log_norm [K, G]
    scale [G]                given or computed
    lse_rows [K, G, rows]    R; [K, G, P] with all_rows
    lse_cols [K, G, P]       C; empty ([0]) with all_rows
    shift, sums [2, K, G, rows]   of the negative, then of the positive side

``force_backward`` has one implementation for all backends (backends/panels/force.py). It serves
K = 1, no weights, ``all_rows``, a scale of 1, negatives = rows, self_logit -inf, no denominator and
clip 0. It takes the upstream gradient ``g [1, G, rows, D]`` and what forward saved, and returns
``(dx [G, P, D], dinverse [1])``. log_norm is differentiated through with ``rms``, else it is a
constant. The derivative of d is 0 at d = 0. Where the floor of a is active the derivative of a is
0.

``distance_sums`` returns ``sum_j d_ij weight_j`` over all columns, ``[G, rows]``.
``distance_gradient`` takes ``g [G]`` and returns ``dx [G, P, D]`` in the dtype of x. That is g
times the derivative of the sum of d over all P x P pairs, namely ``2 g sum_j (x_i - x_j) / d_ij``.
"""

from __future__ import annotations

import torch

from ..backends.panels import force
from ..dtypes import accumulation_dtype
from ._library import LIBRARY, implement

LIBRARY.define(
    "force_forward(Tensor x, Tensor inverse_temperatures, Tensor? scale, Tensor? weight, "
    "SymInt rows, SymInt negatives, bool all_rows, bool mask, float self_logit, float floor, "
    "float denominator, float clip, bool rms, bool separate, str backend) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
LIBRARY.define(
    "force_backward(Tensor g, Tensor x, Tensor inverse_temperature, Tensor log_norm, Tensor lse, "
    "Tensor shift, Tensor sums, SymInt rows, bool mask, float floor, bool rms, str backend) -> "
    "(Tensor, Tensor)"
)
LIBRARY.define(
    "distance_sums(Tensor x, Tensor? weight, SymInt rows, float clip, str backend) -> Tensor"
)
LIBRARY.define("distance_gradient(Tensor g, Tensor x, str backend) -> Tensor")

implement("force_forward")
implement("force_backward", force)
implement("distance_sums")
implement("distance_gradient")
force_forward = torch.ops.fused_contrastive.force_forward.default
force_backward = torch.ops.fused_contrastive.force_backward.default
distance_sums = torch.ops.fused_contrastive.distance_sums.default
distance_gradient = torch.ops.fused_contrastive.distance_gradient.default


@torch.library.register_fake("fused_contrastive::force_forward", lib=LIBRARY)
def _(x, inverse_temperatures, scale, weight, rows, negatives, all_rows, *rest):
    *_, separate, _backend = rest
    G, P, D = x.shape
    K = inverse_temperatures.shape[0]
    new = inverse_temperatures.new_empty
    return (
        new((K if separate else 1, G, rows, D)),
        new((K, G)),
        new((G,)),
        new((K, G, P if all_rows else rows)),
        new((0,) if all_rows else (K, G, P)),
        new((2, K, G, rows)),
        new((2, K, G, rows)),
    )


@torch.library.register_fake("fused_contrastive::force_backward", lib=LIBRARY)
def _(g, x, inverse_temperature, log_norm, lse, shift, sums, rows, mask, floor, rms, backend):
    return x.new_empty(x.shape), inverse_temperature.new_empty(1)


@torch.library.register_fake("fused_contrastive::distance_sums", lib=LIBRARY)
def _(x, weight, rows, clip, backend):
    return x.new_empty((x.shape[0], rows), dtype=accumulation_dtype(x.dtype))


@torch.library.register_fake("fused_contrastive::distance_gradient", lib=LIBRARY)
def _(g, x, backend):
    return x.new_empty(x.shape)
