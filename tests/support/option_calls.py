"""These are calls of the losses with options on small inputs."""

from __future__ import annotations

import torch

import fused_contrastive as fc

IN_BATCH = {
    "nt_xent_loss": {},
    "info_nce_loss": {},
    "clip_loss": {"logit_scale": 3.0},
    "n_pairs_loss": {},
    "multiple_negatives_ranking_loss": {},
}
WITH_BIAS = [name for name in IN_BATCH if name != "multiple_negatives_ranking_loss"]


def call(name, first, second, backend=None, **options):
    return getattr(fc, name)(first, second, **IN_BATCH[name], backend=backend, **options)


def pair(n=9, d=5, device="cpu", dtype=torch.float64, seed=0):
    """Draw two leaf tensors that are correlated."""
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(2))
    return [x.to(device, dtype).requires_grad_() for x in (first, first + second)]
