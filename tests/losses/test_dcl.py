"""The decoupled losses have their textbook form or value where one is known."""

import torch
from support.label_cases import above_the_kernels, draw

import fused_contrastive as fc


def test_dclw_weights(any_backend, device):
    """The weight is two minus B times the softmax of the pairs' similarities, without a gradient.

    As sigma goes to infinity, the loss becomes DCL.
    """
    z1, z2 = (draw(device, seed=seed) for seed in (0, 1))
    plain, flat = (
        fc.dcl_loss(z1, z2, reduction="none", backend=any_backend),
        fc.dclw_loss(z1, z2, sigma=1e9, reduction="none", backend=any_backend),
    )
    torch.testing.assert_close(flat, plain)
    sigma = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    loss = fc.dclw_loss(z1, z2, 0.1, sigma, reduction="none", backend=any_backend)
    cosine = torch.nn.functional.cosine_similarity(z1, z2)
    weight = 2 - len(z1) * (cosine / 0.5).softmax(0)
    torch.testing.assert_close(loss, plain + (1 - weight).repeat(2) * cosine.repeat(2) / 0.1)
    loss.sum().backward()
    assert sigma.grad is None


@above_the_kernels
def test_decoupled_pair_alone(any_backend, device):
    """A single pair has a loss of −inf, and its gradient is that of the positive.

    With B = 1 there are no negatives, and their log-sum-exp is −inf.
    """
    z1, z2 = (draw(device, n=1, seed=seed) for seed in (0, 1))
    loss = fc.dcl_loss(z1, z2, reduction="none", backend=any_backend)
    assert loss.isneginf().all()
    gradient = torch.autograd.grad(loss.sum(), z1)[0]
    cosine = torch.nn.functional.cosine_similarity(z1, z2).sum()
    torch.testing.assert_close(gradient, torch.autograd.grad(-2 * cosine / 0.1, z1)[0])
