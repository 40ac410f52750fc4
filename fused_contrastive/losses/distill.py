"""Distillation of a CLIP model: the student's softmax against the teacher's, neither stored."""

from __future__ import annotations

import torch

from .. import checks, dispatch, ops, reference
from ..functions import FirstDerivative, as_scalar, matrix_dtype, similarity
from .common import exact_rows, two_sets
from .options import check_vectors


class TeacherMean(torch.autograd.Function):
    """``<a_i, Σ_j P_ij b_j>`` and ``<b_j, Σ_i Q_ij a_i>``, ``[N]`` each, P and Q the row and column softmax of ``<x_i, y_j>``.

    One forward op gives a row softmax's mean of whatever features stand behind the y_j, where x_i has zeros, and one backward op both
    sums ``(g P + h Q) b`` and ``(g P + h Q)ᵀ a`` (docs/maths.md).
    """

    @staticmethod
    def forward(a, b, x, y, dtype, backend):
        one = a.new_ones(())
        products, sums = [], []
        for rows, columns, left, right in ((x, y, a, b), (y, x, b, a)):
            first = torch.cat([rows, torch.zeros_like(right)], 1)
            out = ops.similarity_forward(
                first[None], torch.cat([columns, right], 1)[None], one, None, None, None, "all", 0, 1, -1, False, False,
                False, True, dtype, backend,
            )  # fmt: skip
            sums.append(out[0])
            products.append((left * out[-1][0, :, rows.shape[1] :]).sum(1))
        return (*products, *sums)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        a, b, x, y, dtype, backend = inputs
        ctx.mark_non_differentiable(*outputs[2:])
        ctx.save_for_backward(a, b, x, y, *outputs[2:])
        ctx.options = dtype, backend

    @staticmethod
    def backward(ctx, g, h, *_):
        a, b, x, y, rows, cols = ctx.saved_tensors
        dtype, backend = ctx.options
        left, right = torch.cat([x, a, torch.zeros_like(b)], 1)[None], torch.cat([y, torch.zeros_like(a), b], 1)[None]
        empty, one = a.new_empty(0), a.new_ones(())
        hats = [empty if v.dtype == dtype else v.to(dtype) for v in (left, right)]
        da, db, *_ = ops.similarity_backward(
            g[None], h[None], left, right, one, None, None, None, rows, cols, empty, *hats, empty, empty, empty, "all", 0, 1,
            -1, False, dtype, True, True, False, False, backend,
        )  # fmt: skip
        D, width = x.shape[1], a.shape[1]
        gradients = da[0, :, D + width :], db[0, :, D : D + width]
        if torch.is_grad_enabled():  # create_graph=True
            gradients = FirstDerivative.apply(2, *gradients, g, h, a, b)
        return (*gradients, None, None, None, None)


def distill_clip_loss(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    logit_scale: float | torch.Tensor,
    teacher_image_features: torch.Tensor,
    teacher_text_features: torch.Tensor,
    teacher_logit_scale: float | torch.Tensor,
    *,
    weights: torch.Tensor | None = None,
    reduction: str = "mean",
    backend: str | None = None,
):
    """The distillation term of open_clip's DistillClipLoss: cross entropy of the student's softmax against the teacher's, the mean of both
    directions. Add it to `clip_loss`.

    Args:
        image_features, text_features: ``[N, D]`` of the student, normalised by the caller.
        logit_scale: multiplies the student's dot products.
        teacher_image_features, teacher_text_features: ``[N, T]`` of the teacher, normalised by the caller; constants.
        teacher_logit_scale: multiplies the teacher's dot products; a constant.
        weights: ``[N]``, of the pairs; see `fused_contrastive.losses`.

    Returns:
        ``[N]`` with ``reduction="none"``, else a scalar: ``½ (−Σ_j P_ij log p_ij − Σ_j Q_ji log q_ji)``.
    """
    two_sets("image_features", image_features, "text_features", text_features)
    two_sets("teacher_image_features", teacher_image_features, "teacher_text_features", teacher_text_features)
    checks.embeddings("teacher_image_features", teacher_image_features, like=("image_features", image_features))
    N = len(image_features)
    if len(teacher_image_features) != N:
        raise ValueError(f"teacher_image_features must have {N} rows, got shape {tuple(teacher_image_features.shape)}")
    checks.number("logit_scale", logit_scale, image_features.device)
    checks.number("teacher_logit_scale", teacher_logit_scale, image_features.device)
    checks.choice("reduction", reduction, checks.REDUCTIONS)
    check_vectors(image_features, N, (N,), None, weights, None)
    if backend is not None:
        dispatch.check_name(backend)
    if N == 0 or dispatch.is_eager(backend):
        return reference.distill_clip_loss(
            image_features, text_features, logit_scale, teacher_image_features, teacher_text_features, teacher_logit_scale,
            weights=weights, reduction=reduction,
        )  # fmt: skip
    dtype, scale = matrix_dtype(image_features), as_scalar(logit_scale, image_features)
    a, b = exact_rows(image_features, False), exact_rows(text_features, False)
    result = similarity(a, b, scale, columns=True, dtype=dtype, backend=backend)
    with torch.no_grad():
        x = teacher_image_features.to(scale.dtype) * as_scalar(teacher_logit_scale, image_features)
        y = teacher_text_features.to(scale.dtype)
    name = dispatch.select(backend, a.device, dtype, a.shape[1] + x.shape[1], "two_sets")
    of_rows, of_columns, *_ = TeacherMean.apply(a, b, x, y, dtype, name)
    loss = (result.rows - scale * of_rows + result.cols - scale * of_columns) / 2
    return reference.reduce(loss, reduction, weights)
