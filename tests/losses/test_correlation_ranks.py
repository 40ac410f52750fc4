"""The correlation losses over several ranks are those of the averaged correlation matrix.

This holds for the loss and for every rank's gradients.
"""

import numpy as np
import torch
import torch.distributed as dist
from oracles import correlation as oracle
from support.correlation_cases import NAMES, views
from support.processes import on_ranks
from torch.nn.parallel import DistributedDataParallel

import fused_contrastive as fc
from fused_contrastive.reference.correlation import against_identity

SHAPES = ((8, 5), (5, 8), (3, 20), (20, 3), (2, 9))
"""Correlation matrices are both below and above twice the rows.

The rows are a rank's own, and those of all ranks.
"""
SCALE = 0.5


def shard(rank, n, d):
    return views(n, d, seed=rank)


def upstream(rank):
    return 1.0 + rank / 2


def encoder():
    torch.manual_seed(7)
    return torch.nn.Linear(6, 12, bias=False).double()


def batch(rank):
    return torch.randn(2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(rank))


def on_one_rank(rank, world):
    """Return the loss and gradients of every case, fused and eager.

    The gradient of a model that DistributedDataParallel averages is returned too.
    """
    found = {}
    for name in NAMES:
        for shape in SHAPES:
            for backend in (None, "eager"):
                z1, z2 = shard(rank, *shape)
                loss = getattr(fc, name)(
                    z1, z2, 0.2, SCALE, group=dist.group.WORLD, backend=backend
                )
                loss.backward(torch.full_like(loss, upstream(rank)))
                found[name, shape, backend] = [x.detach() for x in (loss, z1.grad, z2.grad)]
        model = DistributedDataParallel(encoder())
        x1, x2 = batch(rank)
        z1, z2 = model(torch.cat([x1, x2])).chunk(2)
        getattr(fc, name)(z1, z2, group=dist.group.WORLD).backward()
        found[name] = model.module.weight.grad
    alone = dist.new_group([0])
    if rank == 0:
        z1, z2 = shard(0, 8, 5)
        found["alone"] = fc.barlow_twins_loss(z1, z2, group=alone), fc.barlow_twins_loss(z1, z2)
    else:
        z1, z2 = shard(0, 8, 5)
        try:
            fc.barlow_twins_loss(z1, z2, group=alone)
        except TypeError as error:
            found["refused"] = str(error)
    return found


def test_ranks():
    world = 3
    results = on_ranks(world, on_one_rank)
    # Inputs receive the gradient of the sum of the ranks' losses.
    g = sum(upstream(rank) for rank in range(world))
    for name in NAMES:
        samples = name == "correlation_loss"
        for shape in SHAPES:
            shards = [
                tuple(z.detach().numpy() for z in shard(rank, *shape)) for rank in range(world)
            ]
            loss, gradients = oracle.correlation(shards, 0.2, SCALE, g, samples)
            for backend in (None, "eager"):
                for rank, result in enumerate(results):
                    expected = (loss, *gradients[rank])
                    for x, true in zip(result[name, shape, backend], expected, strict=True):
                        np.testing.assert_allclose(
                            x.numpy(), true.astype(float), rtol=1e-9, atol=1e-12
                        )
        model = encoder()
        pairs = [model(torch.cat(tuple(batch(rank)))).chunk(2) for rank in range(world)]
        c = sum(dense_matrix(*pair, samples) for pair in pairs) / world
        lamb, scale_loss = 5e-3, 0.025 if samples else 1.0
        against_identity(c, lamb, scale_loss, None).backward()
        for result in results:
            torch.testing.assert_close(result[name], model.weight.grad)
    torch.testing.assert_close(*results[0]["alone"])
    assert all(
        "ProcessGroup that this rank belongs to" in result["refused"] for result in results[1:]
    )


def dense_matrix(z1, z2, samples):
    if samples:
        a, b = (torch.nn.functional.batch_norm(z.T, None, None, training=True) for z in (z1, z2))
    else:
        a, b = (torch.nn.functional.batch_norm(z, None, None, training=True) for z in (z1, z2))
    return a.T @ b / len(z1)
