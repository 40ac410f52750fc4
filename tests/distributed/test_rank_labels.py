"""Labels over ranks, where a rank has other numbers of rows and of columns than the next one."""

import pytest
import torch
import torch.distributed as dist
from support.rank_cases import STRATEGIES

import fused_contrastive as fc

ROWS, COLUMNS, D = (4, 0, 5), (3, 7, 2), 5
CALLS = {
    "clip": lambda *sets, **o: fc.clip_loss(*sets, 2.0, ignore_index=4, **o),
    "info_nce": lambda *sets, **o: fc.info_nce_loss(*sets, None, 0.3, **o),
    "siglip": lambda *sets, **o: fc.siglip_loss(*sets, 2.0, -1.0, average_positives=True, **o),
}


def drawn() -> tuple[list, list]:
    """The sets of all ranks, and their labels."""
    generator = torch.Generator().manual_seed(0)
    sizes = sum(ROWS), sum(COLUMNS)
    sets = [torch.randn(n, D, generator=generator, dtype=torch.float64) for n in sizes]
    return sets, [torch.randint(0, 5, (n,), generator=generator) for n in sizes]


def on_one_rank(group, name: str, strategy: str):
    """What a rank returns and the gradients of its rows, of one reduction each."""
    rank, (sets, labels) = dist.get_rank(group), drawn()
    sets, labels = (
        [x.split(sizes)[rank].clone() for x, sizes in zip(pair, (ROWS, COLUMNS), strict=True)]
        for pair in (sets, labels)
    )
    found = []
    for reduction in ("mean", "sum"):
        leaves = [x.clone().requires_grad_() for x in sets]
        options = {"labels": tuple(labels), "reduction": reduction, "metrics": True}
        loss, metrics = CALLS[name](*leaves, **options, group=group, strategy=strategy)
        loss.backward()
        metrics = {key: x.item() for key, x in metrics.items()}
        found.append((loss.detach(), metrics, [x.grad for x in leaves]))
    return found


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", CALLS)
def test_one_process(name, strategy, pool):
    """The mean over ranks is the loss of one process, and gradients are three times its own."""
    results = pool.run(3, on_one_rank, name, strategy)
    sets, labels = drawn()
    for reduction, ranks in zip(("mean", "sum"), zip(*results, strict=True), strict=True):
        leaves = [x.clone().requires_grad_() for x in sets]
        options = {"labels": tuple(labels), "reduction": reduction, "metrics": True, "group": None}
        loss, metrics = CALLS[name](*leaves, **options)
        loss.backward()
        mean = torch.stack([x[0] for x in ranks]).mean()
        torch.testing.assert_close(mean, loss.detach(), rtol=1e-10, atol=0)
        for _, found, _ in ranks:
            assert found == pytest.approx(
                {key: x.item() for key, x in metrics.items()} | {"loss": loss.item()}
            )
        for i, leaf in enumerate(leaves):
            gradient = torch.cat([x[2][i] for x in ranks]) / 3
            torch.testing.assert_close(gradient, leaf.grad, rtol=1e-9, atol=1e-12)
