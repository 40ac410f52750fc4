"""Padding on the ranks of a group is as if it were not there."""

import math

import pytest
import torch
import torch.distributed as dist

import fused_contrastive as fc

N, D, OUT = 5, 3, 2
"""Each rank has N pairs, of which OUT is padding."""

LOSSES = {
    "nt_xent": lambda a, b, **options: fc.nt_xent_loss(a, b, 0.7, **options),
    "clip": lambda a, b, **options: fc.clip_loss(a, b, 2.0, **options),
    "symmetric": lambda a, b, **options: fc.info_nce_loss(
        a, b, None, 0.7, symmetric=True, **options
    ),
}


def views(rank: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(N, D, generator=generator, dtype=torch.float64) for _ in range(2)]


def step(group, name: str, strategy: str):
    """The loss of a rank whose pair OUT holds NaN, and its gradients."""
    a, b = views(dist.get_rank(group))
    weights, bias = torch.ones(N, dtype=torch.float64), torch.zeros(N, dtype=torch.float64)
    a[OUT] = b[OUT] = math.nan
    weights[OUT], bias[OUT] = 0, -math.inf
    a, b = a.requires_grad_(), b.requires_grad_()
    loss = LOSSES[name](a, b, weights=weights, bias=bias, group=group, strategy=strategy)
    return loss.detach(), *torch.autograd.grad(loss, (a, b))


@pytest.mark.parametrize("strategy", ("ring", "gather"))
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("world", (2, 3))
def test_padding(world, name, strategy, pool):
    found = pool.run(world, step, name, strategy)
    kept = [i for i in range(N) if i != OUT]
    together = [
        torch.cat(x) for x in zip(*([v[kept] for v in views(r)] for r in range(world)), strict=True)
    ]
    together = [x.requires_grad_() for x in together]
    expected = LOSSES[name](*together)
    torch.testing.assert_close(sum(x[0] for x in found) / world, expected.detach())
    wanted = torch.autograd.grad(expected, together)
    for view, x in enumerate(wanted):
        ours = torch.cat([rank[1 + view] for rank in found]) / world
        outside = torch.arange(len(ours)) % N != OUT
        torch.testing.assert_close(ours[outside], x, rtol=1e-10, atol=1e-12)
        assert (ours[~outside] == 0).all()
