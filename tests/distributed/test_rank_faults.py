"""A rank that raises, disagrees, ends or is late is an error on every rank, and nothing hangs."""

import os
import time
import warnings

import pytest
import torch
import torch.distributed as dist
from support.processes import ENDED, Pool

import fused_contrastive as fc
from fused_contrastive.distributed import exchange
from fused_contrastive.losses import _over_ranks

STRATEGIES = ("gather", "ring")


def views(n=4, d=3, dtype=torch.float32):
    return [torch.randn(n, d, dtype=dtype, requires_grad=True) for _ in range(2)]


def usable(group) -> bool:
    """Whether the group computes a loss and its gradients."""
    u, v = views()
    loss = fc.nt_xent_loss(u, v, group=group)
    loss.backward()
    return bool(loss.isfinite() and u.grad.isfinite().all())


def caught(function, *arguments, **options) -> str:
    """The error that a call raises, with its type, or "no error"."""
    try:
        function(*arguments, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


WRONG = {
    "temperature": lambda u, v, **where: fc.nt_xent_loss(u, v, 0.0, **where),
    "reduction": lambda u, v, **where: fc.clip_loss(u, v, 2.0, reduction="most", **where),
    "shape": lambda u, v, **where: fc.info_nce_loss(u, v[:2], **where),
    "eager": lambda u, v, **where: fc.siglip_loss(u, v, 2.0, 0.0, backend="eager", **where),
    "backend": lambda u, v, **where: fc.clip_loss(u, v, 2.0, backend="none", **where),
}


def raising(group, name: str, strategy: str):
    """Rank 1 makes a wrong call, and the others a good one."""
    u, v = views()
    where = {"group": group, "strategy": strategy}
    if dist.get_rank(group) == 1:
        error = caught(WRONG[name], u, v, **where)
    else:
        error = caught(fc.nt_xent_loss, u, v, **where)
    return error, usable(group)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", WRONG)
def test_a_rank_raises(name, strategy, pool):
    """The others raise an error that tells what the rank has raised, and the group goes on."""
    for world in (2, 3):
        results = pool.run(world, raising, name, strategy, timeout=30)
        own = results[1][0]
        assert own.startswith("ValueError") and "rank 1" not in own
        for rank in {*range(world)} - {1}:
            assert results[rank][0].startswith("RuntimeError"), results[rank]
            assert f"rank 1 raised {own}" in results[rank][0]
        assert all(fine for _, fine in results)


CALLS = {
    "dtype": ({}, {"dtype": torch.float64}, "torch.float64"),
    "D": ({}, {"d": 4}, "[..., 4]"),
    "temperature": ({"temperature": 0.5}, {"temperature": 0.25}, "0.25"),
    "margin": ({}, {"margin": 0.5}, "margin=0.5"),
    "metrics": ({}, {"metrics": True}, "metrics=True"),
    "reduction": ({}, {"reduction": "sum"}, "reduction='sum'"),
    "normalize": ({"normalize": True}, {"normalize": False}, "normalize=False"),
    "keys": ({}, {"keys": torch.arange(4)}, "keys=[n] torch.int64"),
    "strategy": ({"strategy": "gather"}, {"strategy": "ring"}, "ring"),
    "gradients": ({}, {"constant": True}, "gradients"),
    "loss": ({}, {"loss": "info_nce_loss"}, "info_nce_loss("),
}


def disagreeing(group, *calls):
    """Rank 1 makes another call than the others."""
    options = dict(calls[dist.get_rank(group) == 1])
    size = {key: options.pop(key) for key in ("dtype", "d") if key in options}
    u, v = views(**size)
    if options.pop("constant", False):
        u, v = u.detach(), v.detach()
    loss = getattr(fc, options.pop("loss", "nt_xent_loss"))
    return caught(loss, u, v, group=group, **options), usable(group)


@pytest.mark.parametrize("what", CALLS)
def test_ranks_disagree(what, pool):
    """Every rank raises one error that tells which rank makes which call, and the group goes on."""
    *calls, text = CALLS[what]
    for world in (2, 4):
        results = pool.run(world, disagreeing, *calls, timeout=30)
        (error,) = {error for error, _ in results}
        assert error.startswith("ValueError: the ranks of the group must make the same call")
        others = ", ".join(str(rank) for rank in range(world) if rank != 1)
        assert f"rank {others}: " in error
        assert text in error.partition("rank 1: ")[2].partition("\n")[0], error
        assert all(fine for _, fine in results)


def ends_before(group):
    """Rank 1 ends, and the others call."""
    if dist.get_rank(group) == 1:
        os._exit(3)
    return timed(group)


def stops_between(group, strategy: str, backward: bool, how: str):
    """Rank 1 ends, or is late, at its first tile of the forward or of the backward pass."""
    u, v = views()

    def stopping(self, columns, compute):
        def tile(visit, met):
            if how == "ends":
                os._exit(3)
            if how == "raises":
                raise MemoryError("no memory for a tile")
            time.sleep(1.5 * PATIENCE)
            return compute(visit, met)

        return run(self, columns, tile)

    run, first = exchange.Exchange.run, dist.get_rank(group) == 1

    def step():
        with pytest.MonkeyPatch.context() as patch:
            if first and not backward:
                patch.setattr(exchange.Exchange, "run", stopping)
            loss = fc.clip_loss(u, v, 2.0, group=group, strategy=strategy)
            if first:
                patch.setattr(exchange.Exchange, "run", stopping)
            loss.backward()

    return timed(group, step)


def timed(group, step=None):
    """The error of a step, and how long it took to be raised."""
    began = time.monotonic()
    u, v = views()
    error = caught(step or (lambda: fc.nt_xent_loss(u, v, group=group)))
    return error, time.monotonic() - began


PATIENCE = 2.0


def test_a_rank_ends_before_a_call():
    """The others raise an error that says so, long before the test's own limit."""
    with Pool(3, PATIENCE) as pool:
        results = pool.run(3, ends_before, timeout=20, ends=(1,))
    assert results[1] == ENDED
    for rank in (0, 2):
        error, seconds = results[rank]
        assert error.startswith(f"RuntimeError: rank {rank} waited in vain"), error
        assert "nt_xent_loss with group=; one of them has ended" in error
        assert seconds < PATIENCE + 5


@pytest.mark.parametrize(
    ("strategy", "backward", "how"),
    (
        ("ring", False, "ends"),
        ("ring", True, "ends"),
        ("gather", False, "ends"),
        ("gather", True, "ends"),
        ("ring", False, "is late"),
        ("gather", True, "is late"),
        ("ring", True, "raises"),
        ("gather", False, "raises"),
    ),
)
def test_a_rank_stops_in_an_exchange(strategy, backward, how):
    """The other ranks raise an error about the timeout of the group later, or at once."""
    ends = (1,) if how == "ends" else ()
    with Pool(3, PATIENCE) as pool:
        results = pool.run(3, stops_between, strategy, backward, how, timeout=30, ends=ends)
    if how == "ends":
        assert results[1] == ENDED
    else:
        assert results[1][0] != "no error"
    for rank in (0, 2):
        error, seconds = results[rank]
        assert error.startswith("RuntimeError"), error
        assert seconds < 2 * PATIENCE + 5


def late(group):
    """Rank 1 calls when the others have given up."""
    if dist.get_rank(group) == 1:
        time.sleep(1.5 * PATIENCE)
    return timed(group)


def test_a_rank_is_late():
    """The others give up after the timeout of the group, and the late one raises an error, too."""
    with Pool(2, PATIENCE) as pool:
        results = pool.run(2, late, timeout=30)
    for rank, (error, seconds) in enumerate(results):
        assert error.startswith(f"RuntimeError: rank {rank} waited in vain"), error
        assert seconds < PATIENCE + 5


def test_before_there_are_ranks():
    """The group "world" needs an initialised torch.distributed."""
    assert not dist.is_initialized()
    u, v = views()
    with pytest.raises(ValueError, match="init_process_group to be called first"):
        fc.nt_xent_loss(u, v, group="world")
    with pytest.raises(ValueError, match="strategy must be one of"):
        fc.nt_xent_loss(u, v, strategy="star")
    for group, text in ((3, "got int"), ("all", "got 'all'"), (u, "got Tensor")):
        with pytest.raises(TypeError, match=f"group must be a torch.distributed.*{text}"):
            fc.nt_xent_loss(u, v, group=group)


def wrong_groups(group):
    """The errors of a group of other ranks, of a mesh of two dimensions, and of eager."""
    u, v = views()
    alone = dist.new_group([0])
    mesh = dist.device_mesh.init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model"))
    return (
        caught(fc.nt_xent_loss, u, v, group=alone) if dist.get_rank() else "no error",
        caught(fc.nt_xent_loss, u, v, group=mesh),
        caught(fc.nt_xent_loss, u, v, group=group, backend="eager"),
    )


def test_wrong_groups(pool):
    """The error of a wrong group says what is expected."""
    results = pool.run(4, wrong_groups)
    for rank, (member, mesh, eager) in enumerate(results):
        if rank:
            assert member.startswith("TypeError: group must be"), member
            assert "that this rank belongs to" in member
        assert mesh.startswith("ValueError: group must be a one-dimensional DeviceMesh"), mesh
        assert "got 2 dimensions" in mesh
        assert eager.startswith("ValueError: backend='eager' is the dense form"), eager


def warned(group):
    """How often calls without and with a group warn."""
    u, v = views()
    found = []
    for where in ({"group": None}, {"group": group}, {}, {}):
        with warnings.catch_warnings(record=True) as caught_warnings:
            warnings.simplefilter("always")
            fc.nt_xent_loss(u, v, **where)
        found.append([str(w.message) for w in caught_warnings])
    _over_ranks._warned = False
    return found


def test_warning(pool):
    """A loss of one rank's batch warns once where several ranks run, unless it says group=None."""
    for none, given, first, second in pool.run(4, warned):
        assert none == given == second == []
        assert len(first) == 1 and "the other 3 ranks are not among its negatives" in first[0]
