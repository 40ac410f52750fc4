"""Gradient caching works under DistributedDataParallel."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from support.encoders import Momentum, mlp
from support.processes import on_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fused_contrastive as fc
from fused_contrastive import cached_forward, cached_step


class Normalized(nn.Module):
    """This module holds a DistributedDataParallel module."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return F.normalize(self.module(x), dim=1)


def on_one_rank(rank, world, own_backward):
    """Takes a cached and a plain step of two models, and counts how often each model was reduced.

    One model is used twice and the other once.
    """
    torch.manual_seed(0)
    first, second = mlp(4, 5).double(), mlp(3, 5).double()
    x, y, t = (
        torch.randn(8, d, generator=torch.Generator().manual_seed(rank)).double() for d in (4, 4, 3)
    )

    def loss_fn(a, b, c):
        return fc.info_nce_loss(a, b) + fc.info_nce_loss(b, c, normalize=False)

    results = []
    for cached in (True, False):
        counts = [0, 0]

        def hook(index, bucket, counts=counts):
            counts[index] += 1
            return (
                dist.all_reduce(bucket.buffer().div_(world), async_op=True)
                .get_future()
                .then(lambda f: f.value()[0])
            )

        models = [DistributedDataParallel(copy.deepcopy(m)) for m in (first, second)]
        for index, model in enumerate(models):
            model.register_comm_hook(index, hook)
        encoders = [models[0], models[0], Normalized(models[1])]
        for _ in range(2):
            if cached and own_backward:
                loss = cached_forward(encoders, (x, y, t), loss_fn, chunk_size=(3, 2, 4))
                loss.backward()
            elif cached:
                loss = cached_step(encoders, (x, y, t), loss_fn, chunk_size=(3, 2, 4))
            else:
                # A plain step that uses one model twice needs one call of it.
                a, b = encoders[0](torch.cat([x, y])).chunk(2)
                loss = loss_fn(a, b, encoders[2](t))
                loss.backward()
        results.append((loss.detach(), counts, [p.grad for m in models for p in m.parameters()]))
    model = DistributedDataParallel(Momentum())
    for _ in range(3):
        cached_step(model, (x.float(), y.float()), fc.NTXentLoss(), chunk_size=4)
    return results, model.module.returned


@pytest.mark.parametrize("own_backward", (False, True))
def test_distributed_data_parallel(own_backward):
    """Every rank has the gradients of the plain step, and each model is reduced once per step.

    Rank 0's buffers are sent at the start of both encodings. Both encodings return the same.
    """
    for ((loss, counts, grads), (expected, wanted, gradients)), returned in on_ranks(
        2, on_one_rank, own_backward
    ):
        torch.testing.assert_close(loss, expected)
        assert counts == wanted == [2, 2]
        for x, y in zip(grads, gradients, strict=True):
            torch.testing.assert_close(x, y)
        assert len(returned) == 3 * 8
        for step in range(3):
            first, second = (torch.stack(returned[k : k + 4]) for k in (8 * step, 8 * step + 4))
            assert torch.equal(first, second), step
