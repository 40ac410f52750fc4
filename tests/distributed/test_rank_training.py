"""Losses over ranks under DistributedDataParallel, FSDP2, torch.compile and what else goes with it.

A training step on several ranks is that of one process with the whole batch.
"""

import pytest
import torch
import torch.distributed as dist
from support.encoders import mlp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import fused_contrastive as fc
from fused_contrastive import cached_step

STRATEGIES = ("gather", "ring")
SIZES = {2: (5, 3), 3: (3, 1, 4), 4: (2, 3, 0, 3)}
STEPS = 3


class Model(nn.Module):
    """An encoder and a loss with what it learns."""

    def __init__(self, loss):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.loss = mlp(4, 6, 5), loss

    def forward(self, first, second):
        return self.loss(self.encoder(first), self.encoder(second))


LOSSES = {
    "nt_xent": lambda **where: fc.NTXentLoss(0.3, learnable=True, **where),
    "clip": lambda **where: fc.ClipLoss(4.0, learnable=True, **where),
    "siglip": lambda **where: fc.SigLipLoss(4.0, -2.0, learnable=True, **where),
}


def batch(step: int, n: int):
    """Two views of n samples."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(2, n, 4, dtype=torch.float64, generator=generator)


def trained(model, views_of, optimizer=None):
    """The parameters after some steps, and the losses."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.5, momentum=0.5)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = model(*views_of(step))
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def values(model) -> dict:
    return {name.removeprefix("module."): x.detach() for name, x in model.named_parameters()}


def own_batch(rank: int, sizes):
    """A function of the step that gives a rank's part of the batch."""
    return lambda step: (x.split(sizes)[rank] for x in batch(step, sum(sizes)))


def data_parallel(group, name: str, sizes, strategy: str):
    model = Model(LOSSES[name](group=group, strategy=strategy)).double()
    model = DistributedDataParallel(model, process_group=group)
    return trained(model, own_batch(dist.get_rank(group), sizes)), values(model)


def fully_sharded(group, sizes, strategy: str):
    """The encoder is sharded by FSDP2, which refuses parameters without dimensions.

    The temperature is a parameter of DistributedDataParallel.
    """
    world = dist.get_world_size(group)
    mesh = init_device_mesh("cpu", (world,))
    model = Model(LOSSES["nt_xent"](group=mesh, strategy=strategy)).double()
    with_dimensions = [p for p in model.parameters() if p.dim()]
    alone = {p for p in model.parameters() if not p.dim()}
    fully_shard(model, mesh=mesh, ignored_params=alone)
    assert len(alone) == 1 and len(with_dimensions) == 4
    for p in alone:
        # The mean over the ranks, as that of all other gradients.
        p.register_hook(lambda g: sum_of_ranks(g, group) / world)
    losses = trained(model, own_batch(dist.get_rank(group), sizes))
    found = {}
    for key, x in model.named_parameters():
        found[key] = (x.full_tensor() if hasattr(x, "full_tensor") else x).detach()
    return losses, found


def sum_of_ranks(x, group):
    x = x.clone()
    dist.all_reduce(x, group=group)
    return x


def check_training(name: str, sizes, results):
    model = Model(LOSSES[name](group=None)).double()
    losses = trained(model, lambda step: batch(step, sum(sizes)))
    expected = values(model)
    for step, loss in enumerate(losses):
        returned = sum(x[step] for x, _ in results) / len(results)
        torch.testing.assert_close(returned, loss, rtol=1e-10, atol=1e-10)
    for _, found in results:
        assert found.keys() == expected.keys()
        for key, x in expected.items():
            torch.testing.assert_close(found[key], x, rtol=1e-10, atol=1e-10, msg=key)


@pytest.mark.parametrize("world", SIZES)
@pytest.mark.parametrize("name", LOSSES)
def test_data_parallel(name, world, pool):
    """After three steps all parameters are those of one process, what the loss learns included."""
    strategy = STRATEGIES[world % 2]
    results = pool.run(world, data_parallel, name, SIZES[world], strategy)
    check_training(name, SIZES[world], results)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_fully_sharded(strategy, pool):
    """The same holds under FSDP2. The group is a mesh."""
    results = pool.run(4, fully_sharded, SIZES[4], strategy)
    check_training("nt_xent", SIZES[4], results)


def compiled(group, strategy: str):
    """The differences to the eager call, for batches of several sizes."""
    rank, differences = dist.get_rank(group), []

    def loss(u, v, t):
        return fc.nt_xent_loss(u, v, t, group=group, strategy=strategy)

    def symmetric(u, v, t):
        found = fc.clip_loss(u, v, 1 / t, metrics=True, group=group, strategy=strategy)
        return found[0] + fc.siglip_loss(u, v, 1 / t, -t, group=group, strategy=strategy)

    for function in (loss, symmetric):
        fast = torch.compile(function, fullgraph=True, backend="aot_eager")
        for sizes in ((4, 4), (3, 5), (6, 2), (2, 7)):
            torch.manual_seed(rank)
            u, v = (torch.randn(sizes[rank], 5, dtype=torch.float64) for _ in range(2))
            t = torch.tensor(0.5, dtype=torch.float64)
            found = []
            for call in (function, fast):
                leaves = [x.clone().requires_grad_() for x in (u, v, t)]
                value = call(*leaves)
                value.backward()
                found.append([value.detach(), *(x.grad for x in leaves)])
            differences += [(x - y).abs().max().item() for x, y in zip(*found, strict=True)]
    return differences


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_compile(strategy, pool):
    """One graph holds a loss over ranks, and serves batches whose sizes differ between ranks."""
    results = pool.run(2, compiled, strategy, poisoned=False)
    assert all(max(differences) < 1e-12 for differences in results)


def compiled_in_order(group) -> float:
    """The difference to the eager call of a loss that exchanges several things."""
    rank = dist.get_rank(group)
    torch.manual_seed(rank)
    n = (5, 3)[rank]
    u, v = (torch.randn(n, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weights, keys = torch.rand(n, dtype=torch.float64), torch.randint(0, 3, (n,))
    options = {"label_smoothing": 0.1, "tau_plus": 0.1, "group": group}

    def loss(u, v, keys, weights):
        return fc.nt_xent_loss(u, v, keys=keys, weights=weights, **options)

    found = []
    for call in (loss, torch.compile(loss, fullgraph=True)):
        value = call(u, v, keys, weights)
        found.append((value, *torch.autograd.grad(value, (u, v))))
    return max((x - y).abs().max().item() for x, y in zip(*found, strict=True))


def test_compile_keeps_the_order(pool):
    """The default compiler reorders what is independent, but not exchanges.

    It would do so differently on ranks whose shards have different sizes, and all would wait.
    """
    results = pool.run(2, compiled_in_order, poisoned=False, timeout=300)
    assert max(results) < 1e-12


def in_autocast(group, sizes):
    """Losses and gradients of a step inside autocast, for some losses."""
    rank, found = dist.get_rank(group), []
    for name, make in LOSSES.items():
        model = Model(make(group=None if group is None else group)).float()
        first, second = (x.float() for x in own_batch(rank, sizes)(0))
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(first, second)
        loss.backward()
        found.append((name, loss.detach(), {k: p.grad for k, p in model.named_parameters()}))
    return found


def test_autocast(pool):
    """Inside autocast the products read bfloat16, and results agree with one process's."""
    results = pool.run(3, in_autocast, SIZES[3])
    for several in zip(*results, strict=True):
        name = several[0][0]
        model = Model(LOSSES[name](group=None)).float()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(*(x.float() for x in batch(0, sum(SIZES[3]))))
        loss.backward()
        assert several[0][1].dtype == torch.float32
        torch.testing.assert_close(sum(x[1] for x in several) / 3, loss.detach(), atol=1e-3, rtol=0)
        for key, p in model.named_parameters():
            total = sum(x[2][key] for x in several) / 3
            error = (total - p.grad).norm() / p.grad.norm()
            assert error < 2e-2, (name, key, error)


def cached(group, sizes, strategy: str):
    """The gradients of a cached step of DistributedDataParallel, and the loss."""
    model = mlp(4, 6, 5).double()
    torch.manual_seed(0)
    for p in model.parameters():
        nn.init.normal_(p, std=0.5)
    model = DistributedDataParallel(model, process_group=group)
    criterion = LOSSES["nt_xent"](group=group, strategy=strategy).double()
    views = tuple(own_batch(dist.get_rank(group), sizes)(0))
    loss = cached_step(model, views, criterion, chunk_size=2)
    gradients = {key.removeprefix("module."): p.grad for key, p in model.named_parameters()}
    return loss, gradients, criterion.log_temperature.grad


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_cached_step(strategy, pool):
    """A cached step with a loss over ranks has the gradients of one process's plain step."""
    sizes = (5, 2, 1)
    results = pool.run(3, cached, sizes, strategy)
    model = mlp(4, 6, 5).double()
    torch.manual_seed(0)
    for p in model.parameters():
        nn.init.normal_(p, std=0.5)
    criterion = LOSSES["nt_xent"](group=None).double()
    loss = criterion(*(model(x) for x in batch(0, sum(sizes))))
    loss.backward()
    torch.testing.assert_close(sum(x[0] for x in results) / 3, loss.detach())
    for _, gradients, _ in results:
        for key, p in model.named_parameters():
            torch.testing.assert_close(gradients[key], p.grad, rtol=1e-10, atol=1e-10)
    # No module of several ranks owns the temperature: the ranks have shares of its gradient.
    torch.testing.assert_close(sum(x[2] for x in results) / 3, criterion.log_temperature.grad)


def refused(group):
    """The errors of second derivatives and of torch.func, and gradcheck in a world of one."""
    u, v = (torch.randn(3, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    errors = []
    for loss in (
        lambda u, v: fc.nt_xent_loss(u, v, group=group),
        lambda u, v: fc.clip_loss(u, v, 2.0, group=group),
        lambda u, v: fc.siglip_loss(u, v, 2.0, -1.0, group=group),
    ):
        (g,) = torch.autograd.grad(loss(u, v), u, create_graph=True)
        for attempt in (
            lambda g=g: g.sum().backward(),
            lambda loss=loss: torch.func.grad(loss)(u.detach(), v.detach()),
            lambda loss=loss: torch.func.vmap(loss)(u.detach()[None], v.detach()[None]),
            lambda loss=loss: torch.func.jvp(loss, (u.detach(), v.detach()), (u, v)),
        ):
            try:
                attempt()
                errors.append("no error")
            except Exception as error:
                errors.append(f"{type(error).__name__}: {error}")
    return errors


def test_derivatives_that_are_refused(pool):
    """Second derivatives and the transforms of torch.func are errors that say so, on every rank."""
    for errors in pool.run(2, refused):
        for error in errors:
            assert error.startswith("NotImplementedError"), errors


def checked(group) -> bool:
    """gradcheck of the losses of one rank, with everything that has a gradient."""
    n, double = 4, torch.float64
    u, v = (torch.randn(n, 3, dtype=double, requires_grad=True) for _ in range(2))
    t = torch.tensor(0.7, dtype=double, requires_grad=True)
    w, bias = (torch.rand(n, dtype=double, requires_grad=True) for _ in range(2))
    keys = torch.tensor([0, 1, 0, 2])
    for strategy in STRATEGIES:
        where = {"group": group, "strategy": strategy}
        for loss in (
            lambda u, v, t, w, b, where=where: fc.nt_xent_loss(
                u, v, t, weights=w, bias=b, **where, reduction="none"
            ),
            lambda u, v, t, w, b, where=where: fc.clip_loss(
                u, v, 1 / t, weights=w, bias=b, keys=keys, **where
            ),
            lambda u, v, t, w, b, where=where: (
                fc.info_nce_loss(u, v, temperature=t, weights=w, symmetric=True, **where)
                + 0 * b.sum()
            ),
            lambda u, v, t, w, b, where=where: (
                fc.siglip_loss(u, v, 1 / t, -t, weights=w, **where) + 0 * b.sum()
            ),
        ):
            assert torch.autograd.gradcheck(loss, (u, v, t, w, bias))
    return True


def test_gradcheck(pool):
    """gradcheck accepts the losses over ranks in a world of one."""
    assert pool.run(1, checked) == [True]


def of_parts(group):
    """The losses of sub-groups of two ranks, which compute at the same time.

    They are made as groups and as the dimensions of a mesh.
    """
    rank = dist.get_rank(group)
    pairs = [dist.new_group(x) for x in ([0, 1], [2, 3])]
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
    found = []
    for part in (pairs[rank // 2], mesh["inner"], mesh["outer"], group, "world"):
        u, v = (x.float().requires_grad_() for x in batch(rank, 2 + rank))
        loss = fc.nt_xent_loss(u, v, group=part)
        loss.backward()
        found.append((loss.detach(), u.grad))
    return found


def test_sub_groups(pool):
    """A loss over a sub-group, or over one dimension of a mesh, is of its ranks' rows alone."""
    results = pool.run(4, of_parts)
    halves, across, everyone = [(0, 1), (2, 3)], [(0, 2), (1, 3)], [(0, 1, 2, 3)]
    for place, parts in enumerate((halves, halves, across, everyone, everyone)):
        for members in parts:
            shards = [batch(rank, 2 + rank).float() for rank in members]
            u, v = (torch.cat(x).requires_grad_() for x in zip(*shards, strict=True))
            loss = fc.nt_xent_loss(u, v, group=None)
            loss.backward()
            found = [results[rank][place] for rank in members]
            torch.testing.assert_close(sum(x[0] for x in found) / len(members), loss.detach())
            gradient = torch.cat([x[1] for x in found]) / len(members)
            torch.testing.assert_close(gradient, u.grad)
