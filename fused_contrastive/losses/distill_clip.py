"""Distillation of a CLIP model: the student's softmax against the teacher's, neither stored."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from .. import checks, reference
from ..autograd._formulas import refuse_transforms
from ..backends import dispatch
from ..distributed.groups import Ranks
from ..dtypes import matrix_dtype
from ..ops import similarity as ops
from ..ops import similarity_over_ranks as ops_over_ranks
from ..problem import (
    Candidates,
    LogSumExp,
    MaybeNone,
    Needs,
    Prepared,
    Problem,
    Saved,
    Upstream,
    Wanted,
)
from ..scalars import as_scalar
from ._arguments import asks_for_eager, check_settings, check_vectors, two_sets
from ._comparison import Comparison, as_read, dot, exact_rows
from ._module import Loss
from ._over_ranks import NOT_GIVEN, over_ranks
from ._reduction import one_positive, ratio, reduce

OTHERS = Candidates("not_self")
"""These are all columns but the pair's own, which is the positive and is counted apart."""


def teacher_problem(
    x: torch.Tensor,  # [N, D]
    y: torch.Tensor,  # [N, D]
    dtype: torch.dtype,
) -> Problem:
    """The dot products of x and y over all pairs but the own ones."""
    return Problem(
        a=x[None],
        b=y[None],
        scale=x.new_ones(()),
        bias=None,
        candidates=OTHERS,
        positive=-1,
        normalize=False,
        dtype=dtype,
    )


class Teacher(NamedTuple):
    """The teacher's rows, whose softmax the student learns."""

    x: torch.Tensor  # [N, T], times the teacher's scale
    y: torch.Tensor  # [N, T]
    own: torch.Tensor | MaybeNone  # [N], the logit of each pair; no backward pass needs it
    dtype: torch.dtype
    backend: str
    ranks: Ranks | None = None  # the pairs are then those of this rank with all ranks' columns

    def lse(self) -> tuple[torch.Tensor, ...]:
        """The row and column log-sum-exps over all pairs but the own ones, ``[2, 1, N]`` each.

        Over ranks their sizes ``[W, 2]`` follow.
        """
        wanted = Wanted(columns=True, extrema=False, mean=False)
        problem = teacher_problem(self.x, self.y, self.dtype)
        if self.ranks is None:
            found = ops.call_forward(problem, wanted, self.backend)
            return found.row_lse.parts, found.col_lse.parts
        where = self.backend, self.ranks
        found, sizes = ops_over_ranks.call_forward(problem, wanted, *where)
        return found.row_lse.parts, found.col_lse.parts, sizes


def share(lse: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """The share that all other pairs have in a row's softmax, ``[N]``.

    `lse` is their log-sum-exp ``[2, 1, N]`` in both parts, and `own` the logit ``[N]`` of the pair
    itself.
    """
    return torch.sigmoid((lse[0, 0] - own) + lse[1, 0])


def teacher_sums(
    a: torch.Tensor,  # [N, D]
    b: torch.Tensor,  # [N, D]
    teacher: Teacher,
    lse: tuple[torch.Tensor, ...],  # as `Teacher.lse` returns them
    g: torch.Tensor,  # [N]
    h: torch.Tensor,  # [N]
) -> tuple[torch.Tensor, torch.Tensor]:
    """``W b`` and ``Wᵀ a``, ``[N, D]`` each, with ``W_ij = g_i P_ij + h_j Q_ij`` for j ≠ i.

    P and Q are the row and the column softmax of ``<x_i, y_j>`` over the pairs j ≠ i. One backward
    op computes both. In it a and b stand beside the teacher's features, and zeros keep them apart.
    """
    x, y, dtype = teacher.x, teacher.y, teacher.dtype
    left = torch.cat([x, a, torch.zeros_like(b)], 1)
    right = torch.cat([y, torch.zeros_like(a), b], 1)
    problem = teacher_problem(left, right, dtype)
    a_hat, b_hat = (None if v.dtype == dtype else v.to(dtype) for v in (problem.a, problem.b))
    saved = Saved(
        row_lse=LogSumExp(lse[0]),
        col_lse=LogSumExp(lse[1]),
        pos=None,
        prepared=Prepared(a_hat, b_hat, None, None),
        mean=None,
    )
    need = Needs(a=True, b=True, scale=False, bias=False)
    call = Upstream(g[None], h[None]), problem, saved, need
    if teacher.ranks is None:
        found = ops.call_backward(*call, teacher.backend)
    else:
        where: dict[str, Any] = {"backend": teacher.backend, "ranks": teacher.ranks}
        found = ops_over_ranks.call_backward(*call, lse[2], **where)
    T, D = x.shape[1], a.shape[1]
    return found.a[0, :, T + D :], found.b[0, :, T : T + D]


class TeacherRows(torch.autograd.Function):
    """The products ``p_i <a_i, Σ_j P_ij b_j>`` and ``q_i <b_i, Σ_j Q_ji a_j>`` of all pairs.

    The sums are over j ≠ i, and p and q are the teacher's shares of these j. The results after the
    products are these shares and the two log-sum-exps. The mean of the features under a row's
    softmax comes from the same pass as its log-sum-exp. Over ranks it does not, and further results
    are those of `Teacher.lse`.
    """

    @staticmethod
    def forward(a, b, x, y, own, dtype, backend, ranks):
        if ranks is not None:
            *found, lse = summed_rows(a, b, Teacher(x, y, own, dtype, backend, ranks))
            return (*found, *lse)
        products, shares, sums = [], [], []
        for rows, columns, mine, others in ((x, y, a, b), (y, x, b, a)):
            padded = torch.cat([rows, torch.zeros_like(others)], 1)
            beside = torch.cat([columns, others], 1)
            wanted = Wanted(columns=False, extrema=False, mean=True)
            found = ops.call_forward(teacher_problem(padded, beside, dtype), wanted, backend)
            lse, mean = found.row_lse.parts, found.mean
            sums.append(lse)
            shares.append(share(lse, own))
            products.append(shares[-1] * (mine * mean[0, :, rows.shape[1] :]).sum(1))
        return (*products, *shares, *sums)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        *tensors, _, ctx.dtype, ctx.backend, ctx.ranks = inputs
        ctx.mark_non_differentiable(*outputs[2:])
        ctx.save_for_backward(*tensors, *outputs[2:])

    @staticmethod
    def backward(ctx, g, h, *_):
        a, b, x, y, p, q, *lse = ctx.saved_tensors
        teacher = Teacher(x, y, None, ctx.dtype, ctx.backend, ctx.ranks)
        return (*teacher_sums(a, b, teacher, tuple(lse), g * p, h * q), *[None] * 6)


def summed_rows(a: torch.Tensor, b: torch.Tensor, teacher: Teacher):
    """The first four results of `TeacherRows` for a and b ``[N, D]``, and `Teacher.lse`.

    For one process the operations are differentiable, as exported programs need it, because these
    keep no formulas of Python.
    """
    lse = teacher.lse()
    p, q = (share(one, teacher.own) for one in lse[:2])
    nothing = torch.zeros_like(p)
    of_a, _ = teacher_sums(a, b, teacher, lse, p, nothing)
    _, of_b = teacher_sums(a, b, teacher, lse, nothing, q)
    return (a * of_a).sum(1), (b * of_b).sum(1), p, q, lse


class TeacherTotal(torch.autograd.Function):
    """Terms ``[N]`` with the sum of both products of `TeacherRows`, for constant weights w ``[N]``.

    The further results are the shares p and q, the gradients and the log-sum-exps. It has half the
    cost, because the gradients are found in the same pass.
    """

    @staticmethod
    def forward(a, b, x, y, own, w, dtype, backend):
        teacher = Teacher(x, y, own, dtype, backend)
        lse = teacher.lse()
        p, q = (share(one, own) for one in lse)
        of_a, of_b = (z.contiguous() for z in teacher_sums(a, b, teacher, lse, w * p, w * q))
        return (a * of_a).sum(1), p, q, of_a, of_b, *lse

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        *tensors, _, w, ctx.dtype, ctx.backend = inputs
        ctx.mark_non_differentiable(*outputs[1:])
        ctx.save_for_backward(*tensors, w, *outputs[1:])

    @staticmethod
    def backward(ctx, g, *_):
        a, b, x, y, w, p, q, of_a, of_b, *lse = ctx.saved_tensors
        if torch.is_grad_enabled():
            # This is create_graph=True.
            teacher = Teacher(x, y, own=None, dtype=ctx.dtype, backend=ctx.backend)
            gradients = teacher_sums(a, b, teacher, tuple(lse), g * w * p, g * w * q)
        else:
            gradients = g[:1] * of_a, g[:1] * of_b
        return (*gradients, None, None, None, None, None, None)


@over_ranks
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
    group=NOT_GIVEN,
    strategy: str = "auto",
    backend: str | None = None,
):
    """The distillation term of open_clip's DistillClipLoss, to be added to `clip_loss`.

    It is the cross entropy of the student's softmax against the teacher's, the mean of both
    directions.

    Args:
        image_features, text_features: ``[N, D]`` of the student, normalised by the caller.
        logit_scale: multiplies the student's dot products.
        teacher_image_features, teacher_text_features: ``[N, T]`` of the teacher, normalised by the
            caller; constants.
        teacher_logit_scale: multiplies the teacher's dot products; a constant.
        weights: ``[N]``, one for each pair; see `fused_contrastive.losses`.
        group, strategy: the ranks that share the batch; see `fused_contrastive.losses`.

    Returns:
        ``½ (−Σ_j P_ij log p_ij − Σ_j Q_ji log q_ji)``: ``[N]`` with ``reduction="none"``, else a
            scalar.

    >>> import torch, fused_contrastive
    >>> teacher = student = torch.eye(4)
    >>> loss = fused_contrastive.distill_clip_loss(student, student, 2.0, teacher, teacher, 2.0)
    >>> round(loss.item(), 4)
    0.9183
    """
    two_sets("image_features", image_features, "text_features", text_features)
    two_sets(
        "teacher_image_features",
        teacher_image_features,
        "teacher_text_features",
        teacher_text_features,
    )
    checks.embeddings(
        "teacher_image_features", teacher_image_features, like=("image_features", image_features)
    )
    N = image_features.shape[0]
    if teacher_image_features.shape[0] != N:
        raise ValueError(
            f"teacher_image_features must have {N} rows, "
            f"got shape {tuple(teacher_image_features.shape)}"
        )
    checks.number("logit_scale", logit_scale, image_features.device)
    checks.number("teacher_logit_scale", teacher_logit_scale, image_features.device)
    check_settings(reduction=reduction)
    check_vectors(image_features, N, (N,), weights=weights)
    student = image_features, text_features, logit_scale
    operands = *student, teacher_image_features, teacher_text_features, teacher_logit_scale
    eager = asks_for_eager(backend, group)
    if eager or (group is None and teacher_image_features.numel() == 0):
        return reference.distill_clip_loss(*operands, weights=weights, reduction=reduction)
    settings = {"weights": weights, "reduction": reduction}
    return _fused(*operands, group=group, backend=backend, **settings)


def _fused(
    image_features,
    text_features,
    logit_scale,
    teacher_image_features,
    teacher_text_features,
    teacher_logit_scale,
    *,
    group,
    backend,
    weights,
    reduction,
):
    refuse_transforms(
        image_features, text_features, logit_scale, teacher_image_features, teacher_text_features
    )
    dtype, scale = matrix_dtype(image_features), as_scalar(logit_scale, image_features)
    # The scale is part of the rows, because its gradient cancels between the two models row by row.
    a = as_read(scale * image_features.to(scale.dtype), dtype)
    b = exact_rows(text_features, False)
    with torch.no_grad():
        teacher_scale = as_scalar(teacher_logit_scale, image_features)
        x = as_read(teacher_scale * teacher_image_features.to(scale.dtype), dtype)
        y = exact_rows(teacher_text_features, False)
        own = dot(x, y, scale.dtype)
    name = dispatch.select(backend, a.device, dtype)
    unit = as_scalar(1.0, image_features)
    compared = Comparison(a, b, unit, dtype, backend=backend, ranks=group)
    pos = compared.dot(b)
    result = compared.lse(OTHERS, columns=True)
    student = (one_positive(result.rows, pos) + one_positive(result.cols, pos)) / 2
    exporting = torch.compiler.is_exporting()
    by_rows = reduction == "none" or (weights is not None and weights.requires_grad)
    # `TeacherTotal` does not know which part of its sum belongs to the rows of which rank.
    if exporting or by_rows or group is not None:
        if exporting:
            found = summed_rows(a, b, Teacher(x, y, own, dtype, name))
        else:
            found = TeacherRows.apply(a, b, x, y, own, *(dtype, name, group))
        of_rows, of_columns, p, q, *_ = found
        loss = student + ((p + q) * pos - (of_rows + of_columns)) / 2
        return reduce(loss, reduction, weights, group=group)
    weights = torch.ones_like(pos) if weights is None else weights.to(pos.dtype)
    terms, p, q, *_ = TeacherTotal.apply(a, b, x, y, own, weights, dtype, name)
    total = (weights * student + (weights * (p + q) * pos - terms) / 2).sum()
    return total if reduction == "sum" else ratio(total, weights.sum())


class DistillClipLoss(Loss):
    """Module form of `distill_clip_loss`, all of whose tensors go to `forward`.

    >>> import torch, fused_contrastive
    >>> teacher = student = torch.eye(4)
    >>> loss = fused_contrastive.DistillClipLoss()(student, student, 2.0, teacher, teacher, 2.0)
    >>> round(loss.item(), 4)
    0.9183
    """

    def __init__(self, *, reduction="mean", group=NOT_GIVEN, strategy="auto", backend=None):
        where = {"group": group, "strategy": strategy, "backend": backend}
        super().__init__(reduction=reduction, **where)

    def forward(
        self,
        image_features,
        text_features,
        logit_scale,
        teacher_image_features,
        teacher_text_features,
        teacher_logit_scale,
        *,
        weights=None,
    ):
        student = image_features, text_features, logit_scale
        operands = *student, teacher_image_features, teacher_text_features, teacher_logit_scale
        return distill_clip_loss(*operands, weights=weights, **self.options)
