"""The tests of the correlation losses use these inputs, oracles and errors."""

import math

import numpy as np
import torch
from oracles import correlation as oracle

NAMES = ("correlation_loss", "barlow_twins_loss")


def views(n, d, dtype=torch.float64, device="cpu", seed=0, spread=1.0, white=False):
    """Draw two leaves.

    With `white`, the features of the first one are orthogonal to each other.
    """
    generator = torch.Generator().manual_seed(seed)
    z1 = torch.randn(n, d, generator=generator, dtype=torch.float64)
    if white:
        z1 = torch.linalg.qr(z1 - z1.mean(0))[0] * math.sqrt(n)
    z2 = z1 + spread * torch.randn(n, d, generator=generator, dtype=torch.float64)
    return [z.to(device, dtype).requires_grad_() for z in (z1, z2)]


def truth(name, z1, z2, lamb, scale_loss, g=1.0):
    samples = name == "correlation_loss"
    arrays = tuple(z.detach().double().cpu().numpy() for z in (z1, z2))
    loss, [gradients] = oracle.correlation([arrays], lamb, scale_loss, g, samples)
    return loss, *gradients


def error(x, true) -> float:
    x = x.detach().double().cpu().numpy().astype(np.longdouble)
    return float(np.sqrt(((x - true) ** 2).sum() / max((true**2).sum(), np.longdouble("1e-60"))))
