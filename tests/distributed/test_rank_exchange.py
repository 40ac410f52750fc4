"""How much the ranks compute and send, and in which order. The numbers are counted in the calls."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

import fused_contrastive as fc
from fused_contrastive.distributed import exchange
from fused_contrastive.distributed.groups import Ranks
from fused_contrastive.ops import _similarity_exchange as similarity_ops
from fused_contrastive.ops import sigmoid_over_ranks as sigmoid_ops
from fused_contrastive.problem import Candidates, Needs, Problem, Saved, Upstream, Wanted

STRATEGIES = ("gather", "ring")
D = 6


def watch(patch) -> list[tuple]:
    """Note what the exchange does, in order.

    The list gets ``("pairs", rows, columns, one set)``, ``("sent", bytes)`` and ``("waited",)``.
    """
    events, world = [], dist.get_world_size

    def noted(owner, name, note):
        function = getattr(owner, name)

        def call(*arguments, **options):
            events.append(note(*arguments, **options))
            return waited(function(*arguments, **options))

        patch.setattr(owner, name, call)

    def waited(work):
        if isinstance(work, list):
            return [waited(x) for x in work]
        if not isinstance(work, dist.Work):
            return work
        return SimpleNamespace(wait=lambda: (events.append(("waited",)), work.wait()))

    def pairs(problem, *_):
        a, b = problem[:2]
        return "pairs", a.shape[1], (a if b is None else b).shape[1], b is None

    def size(x):
        return x.numel() * x.element_size()

    noted(similarity_ops, "call_forward", pairs)
    noted(similarity_ops, "call_backward", lambda upstream, problem, *_: pairs(problem))
    noted(sigmoid_ops, "sigmoid_forward", lambda a, b, *_: pairs((a, b)))
    noted(sigmoid_ops, "sigmoid_backward", lambda g, a, b, *_: pairs((a, b)))

    def sends(messages):
        return "sent", sum(size(x.tensor) for x in messages if x.op is dist.isend)

    noted(dist, "batch_isend_irecv", sends)

    def others(group):
        return world(group) - 1

    noted(
        exchange,
        "all_gather_single",
        lambda y, x, group, **_: ("sent", size(x) * others(group)),
    )
    noted(dist, "all_to_all_single", lambda y, x, **_: ("sent", size(x)))
    return events


LOSSES = {
    "nt_xent": lambda u, v, **where: fc.nt_xent_loss(u, v, 0.5, **where),
    "clip": lambda u, v, **where: fc.clip_loss(u, v, 2.0, **where),
    "siglip": lambda u, v, **where: fc.siglip_loss(u, v, 2.0, -1.0, **where),
}


def counted(group, loss: str, sizes, strategy: str, part: int):
    """The events of a rank in the forward pass, and in the backward pass."""
    n = sizes[dist.get_rank(group)]
    u, v = (torch.randn(n, D, requires_grad=True) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exchange, "PIECE", part)
        events = watch(patch)
        value = LOSSES[loss](u, v, group=group, strategy=strategy)
        forward = list(events)
        value.backward()
        return forward, events[len(forward) :]


def total(events: list[tuple], kind: str) -> int:
    """The pairs of rows that are computed, or the bytes that are sent.

    A set compared with itself has each pair once.
    """
    found = 0
    for name, *numbers in events:
        if name == kind == "sent":
            found += numbers[0]
        elif name == kind == "pairs":
            m, n, one_set = numbers
            found += n * (n + 1) // 2 if one_set else m * n
    return found


SIZES = ((4,), (4, 4), (5, 2), (3, 0), (4, 4, 4), (1, 5, 2), (4, 4, 4, 4), (3, 1, 0, 4))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_pairs(sizes, strategy, pool):
    """All ranks together compute each pair of rows once in each pass, as one process does.

    Of one set it is each unordered pair. Two sets take one pass for both directions. Of even
    shards every rank computes as much.
    """
    n, world = sum(sizes), len(sizes)
    for loss, expected in (
        ("nt_xent", n * (2 * n + 1)),
        ("clip", n * n),
        ("siglip", n * n),
    ):
        results = pool.run(world, counted, loss, sizes, strategy, exchange.PIECE)
        for passes in zip(*results, strict=True):
            pairs = [total(events, "pairs") for events in passes]
            assert sum(pairs) == expected, (loss, pairs)
            if len(set(sizes)) == 1:
                assert len(set(pairs)) == 1, (loss, pairs)


@pytest.mark.parametrize("part", (exchange.PIECE, 3))
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("world", (2, 3, 4))
def test_bytes(world, strategy, part, pool):
    """A rank sends the columns as the products read them, and what is found out about columns.

    In a ring with one set the columns go half the way around. Log-sum-exps are sent in float64.
    In the backward pass a column comes with three numbers of 64 bits where its weights need its
    log-sum-exp and its upstream gradient. The gradient travels in float32.
    """
    n = 4
    for loss in LOSSES:
        one_set = loss == "nt_xent"
        rows = 2 * n if one_set else n
        met = rows * (world // 2 if one_set else world - 1)
        sent = met if strategy == "ring" else rows * (world - 1)
        found = 0 if loss == "siglip" else 8
        results = pool.run(world, counted, loss, (n,) * world, strategy, part)
        for rank, passes in enumerate(results):
            home = met
            if (
                one_set
                and rank >= world // 2
                and (world == 2 or (world, strategy) == (4, "gather"))
            ):
                # This side meets half of the last shard. Around a ring of four that half is sent
                # as a part of the sums of the whole shard.
                home -= rows // 2
            forward = sent * 4 * D + home * found
            backward = sent * (4 * D + 3 * found) + home * 4 * D
            assert [total(events, "sent") for events in passes] == [forward, backward], loss


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("world", (2, 3, 4))
def test_order(world, strategy, pool):
    """What is sent overlaps with what is computed: a message is posted before the next tile.

    Nobody waits for it until the tile has been computed.
    """
    for loss in LOSSES:
        for passes in pool.run(world, counted, loss, (4,) * world, strategy, exchange.PIECE):
            for events in passes:
                kinds = [name for name, *_ in events]
                tiles = [i for i, kind in enumerate(kinds) if kind == "pairs"]
                # The columns of the next step are under way during all tiles but the last.
                overlapping = tiles[:-1] if strategy == "ring" else tiles[:1]
                for tile in overlapping:
                    assert kinds[tile - 1] == "sent", (loss, kinds)
                    assert "waited" in kinds[tile:], (loss, kinds)
                assert kinds[0] == "sent", (loss, kinds)


def without_values(group, strategy: str, one_set: bool) -> None:
    """Run both passes of both families on tensors that have no values."""
    ranks = Ranks(group.group_name, strategy, "test()").encode()
    nothing = SimpleNamespace(wait=lambda: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "batch_isend_irecv", lambda messages: [nothing])
        for owner, name in (
            (exchange, "all_gather_single"),
            (dist, "all_to_all_single"),
        ):
            patch.setattr(owner, name, lambda *_, **__: nothing)
        n, meta = 3 + dist.get_rank(group), {"device": "meta"}
        a, scale = torch.empty(1, n, D, **meta), torch.empty((), **meta)
        b = None if one_set else torch.empty(1, n, D, **meta)
        key = torch.empty(1, n, dtype=torch.int64, **meta)
        keys = (key, key)
        kinds = "other_key", 0, 1
        bias = None if one_set else torch.empty(1, n, **meta)
        among = Candidates("other_key", 0, 1, *keys)
        problem = Problem(a, b, scale, bias, among, 0, normalize=True, dtype=torch.float32)
        where = "panels", Ranks.decode(ranks)
        wanted = Wanted(columns=not one_set, extrema=True, mean=False)
        found, sizes = similarity_ops.forward(problem, wanted, *where)
        saved = Saved(found.row_lse, found.col_lse, found.pos, found.prepared, mean=None)
        g = torch.empty(1, n, **meta)
        need = Needs(a=True, b=not one_set, scale=True, bias=bias is not None)
        where = {"backend": "panels", "ranks": Ranks.decode(ranks)}
        call = Upstream(g, None), problem, saved, need, [n for _, n in sizes]
        assert similarity_ops.backward(*call, **where).a.shape == a.shape
        operands = a, b, scale, g, *keys
        kinds = (*kinds, 0, 1)
        options = True, torch.float32, "panels", ranks
        _, pos, _, sizes = sigmoid_ops.forward(*operands, *kinds, *options)
        saved = pos, sizes, *kinds, torch.float32, True, not one_set, True, True
        found = sigmoid_ops.backward(g, *operands, *saved, "panels", ranks)
        assert found[0].shape == a.shape


@pytest.mark.parametrize("one_set", (True, False))
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_value_is_read(strategy, one_set, pool):
    """The host reads no value of a tensor of the device, which it would have to wait for.

    Tensors of the device "meta" have none, so reading one is an error. What is agreed on lies on
    the host.
    """
    for world in (2, 3, 4):
        pool.run(world, without_values, strategy, one_set, poisoned=False)


def chosen(group, strategy: str, bytes_gathered: int) -> set[str]:
    """The strategies that the exchanges of a step choose."""
    used = set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exchange, "GATHERED_BYTES", bytes_gathered)
        for name in ("_gather", "_ring"):
            engine = getattr(exchange, name)

            def noted(*arguments, engine=engine, name=name):
                used.add(name)
                return engine(*arguments)

            patch.setattr(exchange, name, noted)
        u, v = (torch.randn(3, D, requires_grad=True) for _ in range(2))
        fc.clip_loss(u, v, 2.0, group=group, strategy=strategy).backward()
    return used


def test_strategy(pool):
    """A strategy is what it says, and "auto" gathers where the columns of all ranks are few."""
    for strategy, limit, expected in (
        ("ring", 1 << 26, "_ring"),
        ("gather", 0, "_gather"),
        ("auto", 1 << 26, "_gather"),
        ("auto", 0, "_ring"),
    ):
        assert pool.run(2, chosen, strategy, limit) == [{expected}] * 2
