"""The dense form of correlation matrices against the identity."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def correlation_loss(z1, z2, lamb=5e-3, scale_loss=0.025, *, group=None):
    """Correlation of samples with samples: ``c = a b^T / N`` of z1 and z2 ``[N, D]``.

    In a and b every sample is standardised over its features.
    """
    a, b = (F.batch_norm(z.T, None, None, training=True).T for z in (z1, z2))
    return against_identity(a @ b.T / len(z1), lamb, scale_loss, group)


def barlow_twins_loss(z1, z2, lamb=5e-3, scale_loss=1.0, *, group=None):
    """Barlow Twins (Zbontar et al. 2021, eq. 1): ``c = a^T b / N`` of z1 and z2 ``[N, D]``.

    In a and b every feature is standardised over the batch.
    """
    if len(z1) == 0:
        return (z1.sum() + z2.sum()) * float("nan")
    a, b = (F.batch_norm(z, None, None, training=True) for z in (z1, z2))
    return against_identity(a.T @ b / len(z1), lamb, scale_loss, group)


def against_identity(c, lamb, scale_loss, group):
    """How far the square matrix c is from the identity.

    It is ``scale_loss * (sum_i (c_ii - 1)^2 + lamb * sum_{i != j} c_ij^2)``. First c is averaged
    over the ranks of `group`.
    """
    if group is not None:
        from torch.distributed.nn.functional import all_reduce

        c = all_reduce(c / group.size(), group=group)
    identity = torch.eye(len(c), dtype=torch.bool, device=c.device)
    difference = (c - identity.to(c.dtype)).square()
    return scale_loss * torch.where(identity, difference, lamb * difference).sum()
