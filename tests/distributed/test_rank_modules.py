"""Modules over ranks average the gradients of what they learn where they are asked to."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

import fused_contrastive as fc

MODULES = {
    "temperature": lambda **where: fc.NTXentLoss(0.5, **where),
    "clip": lambda **where: fc.ClipLoss(10.0, **where),
    "siglip": lambda **where: fc.SigLipLoss(10.0, -10.0, **where),
}


def rows(rank: int, step: int) -> torch.Tensor:
    """Two views of a rank, ``[2, n, D]``. Every rank has another n."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    return F.normalize(torch.randn(2, 3 + rank, 5, generator=generator), dim=-1)


def learning(group, name: str, learnable, compiled: bool) -> tuple:
    """The parameters after 50 steps, and their gradients in the first one."""
    module = MODULES[name](group=group, learnable=learnable)
    loss = torch.compile(module, fullgraph=True, backend="aot_eager") if compiled else module
    optimizer, first = torch.optim.Adam(module.parameters(), lr=0.1), None
    for step in range(50):
        optimizer.zero_grad()
        loss(*rows(dist.get_rank(group), step)).backward()
        if first is None:
            first = [x.grad.clone() for x in module.parameters()]
        optimizer.step()
    return torch.stack([x.detach() for x in module.parameters()]), torch.stack(first)


@pytest.mark.parametrize("name", MODULES)
def test_parameters_stay_equal(name, pool):
    """Without a module that averages gradients, parameters drift apart unless the loss does it."""
    for world in (2, 3):
        averaged = pool.run(world, learning, name, "averaged", False)
        for parameters, gradients in averaged[1:]:
            assert torch.equal(parameters, averaged[0][0])
            assert torch.equal(gradients, averaged[0][1])
        alone = pool.run(world, learning, name, True, False)
        assert not torch.equal(alone[0][0], alone[1][0])
        # The gradient is that of one process with the whole batch.
        batch = [torch.cat(x) for x in zip(*(rows(rank, 0) for rank in range(world)), strict=True)]
        module = MODULES[name](group=None, learnable=True)
        module(*batch).backward()
        expected = torch.stack([x.grad for x in module.parameters()])
        torch.testing.assert_close(averaged[0][1], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.no_poison
def test_compile(pool):
    """The averaging is an op of the compiled graph."""
    eager = pool.run(2, learning, "siglip", "averaged", False)
    compiled = pool.run(2, learning, "siglip", "averaged", True, poisoned=False)
    assert torch.equal(compiled[0][0], compiled[1][0])
    torch.testing.assert_close(compiled[0][0], eager[0][0])


def read_by_one(group) -> tuple[float, float]:
    """The temperature that one rank logs alone, and the loss that all ranks compute after it."""
    module = fc.NTXentLoss(0.5, learnable="averaged", group=group)
    value = module.temperature.item() if dist.get_rank(group) == 0 else 0.5
    return value, module(*rows(dist.get_rank(group), 0)).item()


def test_one_rank_reads_the_temperature(pool):
    """Reading it exchanges nothing."""
    for value, loss in pool.run(2, read_by_one, timeout=30):
        assert value == 0.5 and loss == loss


def test_averaging_needs_a_group():
    with pytest.raises(ValueError, match="learnable='averaged' needs a group"):
        fc.NTXentLoss(0.5, learnable="averaged")
    with pytest.raises(ValueError, match="learnable must be one of"):
        fc.ClipLoss(10.0, learnable="mean")
