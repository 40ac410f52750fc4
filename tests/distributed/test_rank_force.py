"""The force and drift losses over the ranks of a group are those of one process."""

import itertools

import pytest
import torch
import torch.distributed as dist
from support.processes import on_ranks

import fused_contrastive as fc

# Each rank has so many negatives and positives.
LAYOUTS = {
    1: [[(4, 3)]],
    2: [[(4, 3), (4, 3)], [(5, 0), (0, 4)], [(0, 0), (3, 4)]],
    3: [[(1, 2), (0, 3), (4, 0)]],
    4: [[(2, 2), (1, 0), (0, 1), (3, 3)]],
}
OPTIONS = list(
    itertools.product(
        ("ring", "gather"),
        ("sum", "softmax"),
        (None, "dist_affinity_rms", "force_rms"),
        (0.0, 1e-3),
        ("attached", "detached", "given"),
    )
)
GROUPS = {1: [3], 2: [3, 0], 3: [0, 2, 1], 4: [1, 2, 0, 1]}


def loss_and_gradients(positive, negative, g, options, group):
    strategy, mask, normalizer, floor, scale = options
    points = [x.clone().requires_grad_() for x in (positive, negative)]
    given = torch.full((2,), 1.7, dtype=torch.float64, requires_grad=True)
    loss = fc.contrastive_force_loss(
        *points,
        (0.01, 0.2),
        mask_self=mask,
        normalizer=normalizer,
        affinity_floor=floor,
        scale=given if scale == "given" else None,
        detach_scale=scale == "detached",
        group=group,
        strategy=strategy,
    )
    (loss * g).sum().backward()
    return (
        loss.detach(),
        *(torch.zeros_like(x) if x.grad is None else x.grad for x in points),
        (torch.zeros_like(given) if given.grad is None else given.grad),
    )


def force_errors(rank, world):
    torch.manual_seed(0)
    errors = []
    for layout in LAYOUTS[world]:
        negatives, positives = zip(*layout, strict=True)
        negative, g = torch.randn(2, 2, sum(negatives), 6, dtype=torch.float64)
        positive = torch.randn(2, sum(positives), 6, dtype=torch.float64)
        own = [x.split(n, 1)[rank] for x, n in ((positive, positives), (negative, negatives))]
        for options in OPTIONS:
            whole = loss_and_gradients(positive, negative, g, options, None)
            mine = loss_and_gradients(*own, g.split(negatives, 1)[rank], options, "world")
            dist.all_reduce(mine[3])
            sizes = (negatives, positives, negatives)
            parts = [x.split(n, 1)[rank] for x, n in zip(whole[:3], sizes, strict=True)]
            for x, y, top in zip(mine, (*parts, whole[3]), whole, strict=True):
                if x.numel() and not (x - y).abs().max() <= 1e-9 * top.abs().max():
                    errors.append((layout, options))
    return errors


def drift_errors(rank, world):
    torch.manual_seed(0)
    sizes, errors = GROUPS[world], []
    gen, positive, negative = (torch.randn(sum(sizes), n, 4).double() for n in (3, 5, 2))
    weight = torch.rand(sum(sizes), 5).double()
    for weighted in (False, True):
        found = []
        for group in (None, "world"):
            every = (gen, positive, negative, weight)
            if group is not None:
                every = [x.split(sizes)[rank] for x in every]
            own = every[0].clone().requires_grad_()
            weights = {"weight_positive": every[3]} if weighted else {}
            loss, info = fc.drift_loss(own, *every[1:3], group=group, **weights)
            loss.sum().backward()
            found.append((loss.detach(), own.grad, torch.stack(list(info.values()))))
        whole, mine = found
        parts = *(x.split(sizes)[rank] for x in whole[:2]), whole[2]
        for x, y in zip(mine, parts, strict=True):
            if not torch.allclose(x, y, rtol=1e-9, atol=1e-12):
                errors.append(weighted)
    return errors


def all_errors(rank, world):
    return force_errors(rank, world), drift_errors(rank, world)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_over_ranks_is_one_process(world):
    """Values and gradients are those of one process, with uneven and empty shards, too."""
    for of_force, of_drift in on_ranks(world, all_errors):
        assert not of_force
        assert not of_drift


def gathered_force(group, layout) -> list[float]:
    """The largest errors of forces and gradients on a rank, for all normalisers and masks."""
    rank, errors = dist.get_rank(group), []
    torch.manual_seed(0)
    negatives, positives = zip(*layout, strict=True)
    negative, g = torch.randn(2, 2, sum(negatives), 6, dtype=torch.float64)
    positive = torch.randn(2, sum(positives), 6, dtype=torch.float64)
    for normalizer, mask in itertools.product(
        (None, "dist_affinity_rms", "force_rms"), ("sum", "softmax")
    ):
        found = []
        for where in (None, group):
            points, upstream = (positive, negative), g
            if where is not None:
                points = [
                    x.split(n, 1)[rank] for x, n in zip(points, (positives, negatives), strict=True)
                ]
                upstream = g.split(negatives, 1)[rank]
            points = [x.clone().requires_grad_() for x in points]
            t = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
            options = {"normalizer": normalizer, "mask_self": mask, "group": where}
            force = fc.contrastive_force(*points, t, **options)
            gradients = torch.autograd.grad((force * upstream).sum(), (*points, t))
            found.append((force.detach(), *gradients))
        whole, mine = found
        temperature = mine[3].clone()
        dist.all_reduce(temperature, group=group)
        sizes = (negatives, positives, negatives)
        parts = [x.split(n, 1)[rank] for x, n in zip(whole[:3], sizes, strict=True)]
        pairs = [*zip(mine[:3], parts, strict=True), (temperature, whole[3])]
        errors += [
            (x - y).abs().max().item() / (1 + y.abs().max().item()) for x, y in pairs if x.numel()
        ]
    return errors


@pytest.mark.parametrize("world", LAYOUTS)
def test_force(world, pool):
    """The force on a rank's negatives, and its gradients, are those of the points of all ranks."""
    for layout in LAYOUTS[world]:
        for errors in pool.run(world, gathered_force, tuple(layout)):
            assert max(errors) < 1e-10, layout


def ring_of_forces(group) -> str:
    """The error of a strategy that forces do not have."""
    with pytest.raises(ValueError, match="strategy must be one of 'auto', 'gather'") as error:
        fc.contrastive_force(torch.ones(2, 3), torch.ones(2, 3), 0.3, group=group, strategy="ring")
    return str(error.value)


def test_force_has_no_ring(pool):
    assert all(pool.run(2, ring_of_forces))
