"""The memory bank follows its rules of wrapping and serves MoCo training.

The tests compare each rule with its definition and a MoCo training step with dense code. They also
cover checkpoints, copies, compile and several ranks.
"""

import copy
import io
import pickle

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from support.processes import on_ranks

import fused_contrastive as fc
from fused_contrastive import MemoryBank

BATCHES = (3, 3, 5, 1, 4, 2, 7, 3)


def batches(D=4, sizes=BATCHES, device="cpu"):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, D, generator=generator).to(device) for n in sizes]


def lightly_rule(rows, ptr, batch):
    """Writes a batch by the published rule: a batch that reaches the end loses its tail."""
    if ptr + len(batch) >= len(rows):
        rows[ptr:] = batch[: len(rows) - ptr]
        return 0
    rows[ptr : ptr + len(batch)] = batch
    return ptr + len(batch)


def ring_rule(rows, ptr, batch):
    for row in batch:
        rows[ptr] = row
        ptr = (ptr + 1) % len(rows)
    return ptr


@pytest.mark.parametrize(
    ("wrap", "K", "sizes", "rule"),
    (
        ("drop", 8, (*BATCHES, 8, 2, 11, 3, 20), lightly_rule),
        ("around", 8, (*BATCHES, 8), ring_rule),
        ("exact", 12, (4, 4, 4, 4, 12, 6, 6, 3), ring_rule),
    ),
)
def test_wrap(wrap, K, sizes, rule, device):
    bank = MemoryBank(K, 4, wrap=wrap, device=device)
    rows, ptr = bank.negatives.clone(), 0
    for batch in batches(sizes=sizes, device=device):
        bank.enqueue(batch)
        ptr = rule(rows, ptr, batch)
        assert torch.equal(bank.negatives, rows) and bank.position == ptr and len(bank) == K


def test_random_rows(device):
    """In every dtype the first rows are unit vectors drawn from the global generator."""
    torch.manual_seed(3)
    expected = F.normalize(torch.randn(6, 5), dim=1)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        torch.manual_seed(3)
        bank = MemoryBank(6, 5, dtype=dtype).to(device)
        assert torch.equal(bank.negatives.cpu(), expected.to(dtype))
    bank.enqueue(torch.ones(2, 5, device=device))
    torch.manual_seed(3)
    bank.reset()
    assert bank.position == 0
    torch.testing.assert_close(bank.negatives.cpu(), expected.to(dtype))


@pytest.mark.parametrize("wrap", ("drop", "around"))
def test_fill_empty_with_labels(wrap, device):
    """Rows count once they are written, the oldest first, and the labels follow them."""
    bank = MemoryBank(7, 4, wrap=wrap, fill="empty", labels=True, device=device)
    assert bank.negatives.shape == (0, 4) and bank.labels.shape == (0,) and not len(bank)
    rows, labels, ptr, count = (
        torch.zeros(7, 4, device=device),
        torch.zeros(7, dtype=torch.long, device=device),
        0,
        0,
    )
    rule = lightly_rule if wrap == "drop" else ring_rule
    for batch in batches(device=device):
        own = torch.randint(0, 9, (len(batch),), device=device, dtype=torch.int32)
        bank.enqueue(batch, own)
        before, count = ptr, min(7, count + len(batch))
        ptr = rule(rows, before, batch)
        assert rule(labels, before, own) == ptr
        assert len(bank) == count and torch.equal(bank.negatives, rows[:count])
        assert torch.equal(bank.labels, labels[:count]) and bank.labels.dtype == torch.int64
        if wrap == "around":
            # The batch is where the docstring of the bank says it is.
            places = (bank.position - len(batch) + torch.arange(len(batch), device=device)) % 7
            assert torch.equal(bank.rows[places], batch)
    bank.reset()
    assert len(bank) == 0


def test_negatives_are_constants(device):
    """Enqueueing between loss and backward, as MoCo does, changes no gradient.

    The graph of the keys is not kept.
    """
    bank = MemoryBank(8, 4, device=device)
    query = torch.randn(3, 4, device=device, requires_grad=True)
    for normalize in (True, False):
        negatives = bank.negatives
        expected = torch.autograd.grad(
            fc.info_nce_loss(query, query + 1, negatives, normalize=normalize), query
        )
        loss = fc.info_nce_loss(query, query + 1, bank.negatives, normalize=normalize)
        bank.enqueue(query * 2)
        assert torch.equal(torch.autograd.grad(loss, query)[0], expected[0])
    assert not bank.negatives.requires_grad and not bank.rows.requires_grad


class Moco:
    """Writes out algorithm 1 of He et al. 2020.

    It has a momentum encoder, a queue of keys, logits and cross entropy.
    """

    def __init__(self, encoder, queue, temperature, momentum):
        self.query_encoder, self.key_encoder = encoder, copy.deepcopy(encoder)
        self.queue, self.ptr, self.temperature, self.momentum = queue, 0, temperature, momentum

    def encode(self, x_query, x_key):
        with torch.no_grad():
            for q, k in zip(
                self.query_encoder.parameters(), self.key_encoder.parameters(), strict=True
            ):
                k.mul_(self.momentum).add_(q, alpha=1 - self.momentum)
            key = F.normalize(self.key_encoder(x_key), dim=1)
        return F.normalize(self.query_encoder(x_query), dim=1), key

    def loss(self, x_query, x_key):
        query, key = self.encode(x_query, x_key)
        logits = (
            torch.cat([(query * key).sum(1, keepdim=True), query @ self.queue.T], 1)
            / self.temperature
        )
        loss = F.cross_entropy(
            logits, torch.zeros(len(query), dtype=torch.long, device=query.device)
        )
        self.queue = self.queue.clone()
        self.queue[self.ptr : self.ptr + len(key)] = key
        self.ptr = (self.ptr + len(key)) % len(self.queue)
        return loss


class MocoWithBank(Moco):
    def loss(self, x_query, x_key):
        query, key = self.encode(x_query, x_key)
        loss = fc.info_nce_loss(query, key, self.queue.negatives, self.temperature)
        self.queue.enqueue(key)
        return loss


def test_moco_training(backend, device):
    """Five training steps give the loss, gradients, queue and parameters of the dense code."""
    torch.manual_seed(0)
    encoder = (
        torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 5))
        .to(device)
        .double()
    )
    bank = MemoryBank(12, 5, wrap="exact", dtype=torch.float64).to(device)
    dense = Moco(copy.deepcopy(encoder), bank.negatives, 0.2, 0.9)
    ours = MocoWithBank(encoder, bank, 0.2, 0.9)
    optimizers = [torch.optim.SGD(m.query_encoder.parameters(), lr=0.5) for m in (dense, ours)]
    for _ in range(5):
        x = torch.randn(2, 4, 6, dtype=torch.float64, device=device)
        losses = [m.loss(*x) for m in (dense, ours)]
        torch.testing.assert_close(losses[1], losses[0])
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for p, q in zip(
            ours.query_encoder.parameters(), dense.query_encoder.parameters(), strict=True
        ):
            torch.testing.assert_close(p.grad, q.grad)
        torch.testing.assert_close(bank.negatives, dense.queue)


@pytest.mark.parametrize("fill", ("random", "empty"))
def test_checkpoints_and_copies(fill, device):
    """A bank restored half way goes on as the original does. A copy shares nothing with it."""
    bank = MemoryBank(9, 4, wrap="around", fill=fill, labels=True, device=device)
    *first, last = batches(sizes=(3, 2, 5), device=device)

    def enqueue(bank, batch):
        bank.enqueue(batch, torch.arange(len(batch), device=device))

    for batch in first:
        enqueue(bank, batch)
    saved = io.BytesIO()
    torch.save(bank.state_dict(), saved)
    saved.seek(0)
    restored = MemoryBank(9, 4, wrap="around", fill=fill, labels=True, device=device)
    restored.load_state_dict(torch.load(saved))
    assigned = MemoryBank(9, 4, wrap="around", fill=fill, labels=True, device="meta")
    assigned.load_state_dict(bank.state_dict(), assign=True)
    assigned = copy.deepcopy(assigned)
    twins = [restored, assigned, copy.deepcopy(bank), pickle.loads(pickle.dumps(bank))]
    before = bank.negatives
    for twin in twins:
        assert torch.equal(twin.negatives, before) and len(twin) == len(bank)
        enqueue(twin, last)
    assert torch.equal(bank.negatives, before)
    enqueue(bank, last)
    for twin in twins:
        assert torch.equal(twin.negatives, bank.negatives) and torch.equal(twin.labels, bank.labels)
        assert twin.position == bank.position
    assert not MemoryBank(9, 4, labels=True, persistent=False).state_dict()
    assert repr(bank) == f"MemoryBank(9, 4, wrap='around', fill={fill!r}, labels=True)"


@pytest.mark.no_poison
def test_compile(device):
    """A step with the bank is one graph, which no position of the bank recompiles."""
    torch.compiler.reset()
    bank = MemoryBank(8, 4, device=device)
    twin = copy.deepcopy(bank)

    def step(bank, query, key):
        loss = fc.info_nce_loss(query, key, bank.negatives)
        bank.enqueue(key)
        return loss

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for count in range(5):
        query, key = (torch.randn(3, 4, device=device) for _ in range(2))
        query.requires_grad_()
        with torch.compiler.set_stance("fail_on_recompile" if count else "default"):
            loss = compiled(bank, query, key)
        expected = step(twin, query, key)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(*(torch.autograd.grad(x, query)[0] for x in (loss, expected)))
        assert torch.equal(bank.rows, twin.rows) and bank.position == twin.position
    torch.compiler.reset()


def _gathering(rank, world, sizes):
    bank = MemoryBank(12, 4, wrap="around", fill="empty", labels=True)
    for n in sizes:
        keys = torch.full((n, 4), float(rank)) + torch.arange(n)[:, None]
        bank.enqueue(keys, torch.full((n,), rank), group=dist.group.WORLD)
    return bank.state_dict()


def test_ranks_write_one_bank():
    """Every rank's bank holds every rank's keys, in rank order."""
    states = on_ranks(2, _gathering, (2, 3, 3))
    expected = MemoryBank(12, 4, wrap="around", fill="empty", labels=True)
    for n in (2, 3, 3):
        keys = torch.cat(
            [torch.full((n, 4), float(r)) + torch.arange(n)[:, None] for r in range(2)]
        )
        expected.enqueue(keys, torch.arange(2).repeat_interleave(n))
    for state in states:
        assert all(torch.equal(state[name], x) for name, x in expected.state_dict().items())


def _banks_of_other_kinds(rank, world):
    """The errors of ranks whose banks differ, and whether equal ones still serve after that."""
    found = []
    kinds = ({"labels": rank == 1}, {"dtype": (torch.float32, torch.float64)[rank]}, {"dim": rank})
    for kind in kinds:
        bank = MemoryBank(8, 3 + kind.pop("dim", 0), **kind)
        labels = torch.arange(2) if bank.labels is not None else None
        with pytest.raises(ValueError) as caught:
            bank.enqueue(torch.ones(2, bank.rows.shape[1]), labels, group="world")
        found.append(str(caught.value))
    bank = MemoryBank(8, 3, fill="empty")
    with pytest.raises((ValueError, RuntimeError)) as caught:
        bank.enqueue(torch.ones(2, 3 + rank), group="world")
    found.append(str(caught.value))
    bank.enqueue(torch.ones(2, 3), group="world")
    return found, len(bank)


def test_ranks_with_banks_of_other_kinds():
    """They raise one error that tells them apart, and nothing is exchanged."""
    first, second = on_ranks(2, _banks_of_other_kinds)
    assert first[1] == second[1] == 4
    for mine, other in zip(first[0][:3], second[0][:3], strict=True):
        assert mine == other and mine.startswith("the ranks of the group must make the same call")
    # Rank 1 raises its own error, and tells rank 0.
    assert "rank 1 raised ValueError: keys must have shape [n, 3]" in first[0][3]
    assert second[0][3].startswith("keys must have shape [n, 3]")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    (
        ({"size": 0}, ValueError, "size must be positive"),
        ({"size": 2.0}, TypeError, "size must be an integer"),
        ({"dim": True}, TypeError, "dim must be an integer"),
        ({"dim": -1}, ValueError, "dim must be positive"),
        ({"wrap": "ring"}, ValueError, "wrap must be one of"),
        ({"fill": "zeros"}, ValueError, "fill must be one of"),
        ({"labels": "yes"}, ValueError, "labels must be one of"),
        ({"dtype": torch.int64}, TypeError, "dtype must be a floating-point dtype"),
    ),
)
def test_constructor_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        MemoryBank(**{"size": 4, "dim": 3} | arguments)


@pytest.mark.parametrize(
    ("options", "arguments", "error", "message"),
    (
        ({}, (torch.ones(2, 3, 1),), ValueError, "keys must have 2 dimensions"),
        ({}, (torch.ones(2, 4),), ValueError, r"keys must have shape \[n, 3\]"),
        ({}, (torch.ones(2, 3).long(),), TypeError, "keys must be a floating-point"),
        (
            {},
            (torch.ones(2, 3, device="meta"),),
            ValueError,
            "keys must be on the device of the bank",
        ),
        (
            {},
            (torch.ones(2, 3), torch.ones(2).long()),
            ValueError,
            "labels must be given exactly when",
        ),
        ({"labels": True}, (torch.ones(2, 3),), ValueError, "labels must be given exactly when"),
        (
            {"labels": True},
            (torch.ones(2, 3), torch.ones(2)),
            TypeError,
            "labels must be an integer tensor",
        ),
        (
            {"labels": True},
            (torch.ones(2, 3), torch.ones(3).long()),
            ValueError,
            "labels must have shape",
        ),
        ({"wrap": "exact"}, (torch.ones(3, 3),), ValueError, "keys must divide the bank's 8 rows"),
        (
            {"wrap": "around"},
            (torch.ones(9, 3),),
            ValueError,
            "keys must not outnumber the bank's 8 rows",
        ),
    ),
)
def test_enqueue_errors(options, arguments, error, message):
    bank = MemoryBank(8, 3, **options)
    before = copy.deepcopy(bank.state_dict())
    with pytest.raises(error, match=message):
        bank.enqueue(*arguments)
    assert all(torch.equal(x, before[name]) for name, x in bank.state_dict().items())


def test_group_must_be_a_group():
    with pytest.raises(TypeError, match=r"group must be a torch\.distributed\.ProcessGroup"):
        MemoryBank(8, 3).enqueue(torch.ones(2, 3), group="ranks")
    with pytest.raises(ValueError, match="init_process_group"):
        MemoryBank(8, 3).enqueue(torch.ones(2, 3), group="world")


def test_an_empty_batch_changes_nothing(device):
    for wrap in ("drop", "exact", "around"):
        bank = MemoryBank(8, 3, wrap=wrap, device=device)
        before = bank.negatives
        bank.enqueue(torch.ones(0, 3, device=device))
        assert torch.equal(bank.negatives, before) and bank.position == 0
