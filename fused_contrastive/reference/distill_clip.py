"""The dense form of the distillation of CLIP."""

from __future__ import annotations

from ._reduction import reduce


def distill_clip_loss(
    image_features,
    text_features,
    logit_scale,
    teacher_image_features,
    teacher_text_features,
    teacher_logit_scale,
    *,
    weights=None,
    reduction="mean",
):
    """Cross entropy of the student's softmax against the teacher's (open_clip's DistillClipLoss).

    Both directions are averaged. The student's features are ``[N, D]``, the teacher's ``[N, E]``.
    """
    student = logit_scale * image_features @ text_features.T
    teacher = (teacher_logit_scale * teacher_image_features @ teacher_text_features.T).detach()
    forward, backward = (
        -(t.softmax(1) * s.log_softmax(1)).sum(1)
        for s, t in ((student, teacher), (student.T, teacher.T))
    )
    return reduce((forward + backward) / 2, reduction, weights)
