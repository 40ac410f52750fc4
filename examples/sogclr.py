"""Small batches get the gradient of the whole data set: SogCLR's moving averages.

The loss of a small batch has the logarithm of a sum over few negatives, and its gradient is biased.
SogCLR (Yuan et al. 2022, arXiv:2202.12387, algorithm 1) keeps for every sample a moving average of
the mean over its negatives, and divides by this instead. `dcl_loss` returns the log-sum-exp of each
row's negatives with ``metrics=True``, which is all that the averages need.

The example compares the mean gradient of an epoch of small batches with that of one batch of all
samples. It takes a few seconds.
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import nn

from fused_contrastive import dcl_loss


class SogCLR(nn.Module):
    """The loss of two views ``[B, D]`` of the samples that ``index [B]`` names.

    With n = 2 (B - 1) negatives per row, the row i of a view has the mean ``g_i = sum_j exp(s_ij) /
    n``. The average of its sample becomes ``u = (1 - gamma) u + gamma mean(g)`` over its two views.
    The gradient of a row is that of ``(g_i / u) log g_i - s_i+``, where ``g_i / u`` is a constant.
    All of this is kept as logarithms, so that nothing overflows.
    """

    def __init__(self, samples: int, temperature: float = 0.1, gamma: float = 0.1):
        super().__init__()
        self.temperature, self.gamma = temperature, gamma
        # An average that no batch has reached yet is 0.
        self.register_buffer("log_u", torch.full((samples,), -math.inf))

    def forward(self, z1: torch.Tensor, z2: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        options = {"reduction": "none", "metrics": True}
        loss, metrics = dcl_loss(z1, z2, self.temperature, **options)
        log_g = (metrics["logsumexp"] - math.log(2 * (len(z1) - 1))).view(2, -1)
        # The loss of a row is its log-sum-exp less this.
        cosine = nn.functional.cosine_similarity(z1, z2)
        positive = (cosine / self.temperature).repeat(2)
        log_u = self.updated(log_g.logsumexp(0) - math.log(2), index)
        weight = (log_g - log_u).exp().flatten()
        return (weight * (loss + positive) - positive).mean()

    def updated(self, log_g: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """The logarithms ``[B]`` of the averages, once ``g [B]`` has entered them."""
        old = self.log_u[index]
        gamma = torch.where(old == -math.inf, 1.0, self.gamma)
        log_u = torch.logaddexp(old + (1 - gamma).log(), log_g + gamma.log())
        self.log_u[index] = log_u.to(self.log_u.dtype)
        return log_u


def gradient(loss: torch.Tensor, encoder: nn.Linear) -> torch.Tensor:
    return torch.autograd.grad(loss, encoder.weight)[0]


def epoch(loss, encoder: nn.Linear, views, size: int, generator) -> torch.Tensor:
    """The mean gradient of ``loss(z1, z2, index)`` over the batches of an epoch."""
    order = torch.randperm(len(views[0]), generator=generator)
    batches = order[: len(order) // size * size].view(-1, size)
    gradients = [gradient(loss(*(encoder(x[i]) for x in views), i), encoder) for i in batches]
    return torch.stack(gradients).mean(0)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Prints and returns the relative errors of the mean gradients of small batches."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=100)
    options = parser.parse_args(arguments)
    generator = torch.Generator().manual_seed(0)
    center = torch.randn(options.samples, 16, generator=generator)
    views = [center + 0.3 * torch.randn(center.shape, generator=generator) for _ in range(2)]
    encoder = nn.Linear(16, 8, bias=False)
    nn.init.normal_(encoder.weight, std=0.25, generator=generator)
    moving = SogCLR(options.samples)

    def plain(z1, z2, index):
        return dcl_loss(z1, z2, moving.temperature)

    truth = gradient(plain(*map(encoder, views), None), encoder)
    found = {}
    for name, loss in (("DCL", plain), ("SogCLR", moving)):
        epochs = [
            epoch(loss, encoder, views, options.batch, generator) for _ in range(options.epochs)
        ]
        # In the first half the averages still settle.
        mean = torch.stack(epochs[options.epochs // 2 :]).mean(0)
        found[name] = ((mean - truth).norm() / truth.norm()).item()
        print(f"{name}: batches of {options.batch} miss the gradient of all by {found[name]:.1%}")
    return found


if __name__ == "__main__":
    main()
