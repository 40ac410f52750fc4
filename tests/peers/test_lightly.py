"""The integration of lightly agrees with its losses in one process."""

import itertools

import agreement
import lightly.loss as peer
import numpy as np
import pytest
import torch
from agreement import DTYPES, SIZES, agree, draw, same_error
from lightly.models.modules.memory_bank import MemoryBankModule

from fused_contrastive.integrations import lightly as ours

PAIRS = ("NTXentLoss", "DCLLoss", "DCLWLoss")
NAMES = (*PAIRS, "BarlowTwinsLoss")


def pair(name, **options):
    return getattr(ours, name)(**options), getattr(peer, name)(**options)


def squared_distance(a, b):
    return ((a - b) ** 2).sum(1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", (None, 0.07, -1.0))
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.filterwarnings("ignore:To copy construct")
def test_equal(name, temperature, dtype, streams):
    options = {} if temperature is None else {"temperature": temperature}
    for n, d in SIZES:
        if n > 1 or name == "NTXentLoss":
            agree(*pair(name, **options), draw((n, d), (n, d)), dtype)


@pytest.mark.parametrize("name", ("DCLLoss", "DCLWLoss"))
@pytest.mark.filterwarnings("ignore:To copy construct")
def test_no_negatives(name, streams):
    """One sample has no negatives, so that its log-sum-exp is minus infinity."""
    agree(*pair(name), draw((1, 3), (1, 3)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_barlow_twins(dtype, streams):
    for n, d in (*SIZES, (3, 20), (20, 3)):
        for options in ({}, {"lambda_param": 0.5}, {"gather_distributed": True}):
            if n > 1:
                agree(*pair("BarlowTwinsLoss", **options), draw((n, d), (n, d)), dtype)


@pytest.mark.parametrize("autocast", (torch.bfloat16, torch.float16))
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:To copy construct")
def test_equal_in_autocast(name, autocast, streams):
    """The losses are lightly's under autocast.

    In one dimension lightly computes no matrix products, and its results are float32.
    """
    for d, dtype in itertools.product((16, 1), (torch.float32, autocast, torch.float64)):
        agree(*pair(name), draw((13, d), (13, d)), dtype, autocast)


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32))
def test_weights(dtype, streams):
    """A weight is a function of the normalised views, through which the gradient flows."""
    agree(*pair("DCLLoss", weight_fn=squared_distance), draw((7, 4), (7, 4)), dtype)
    agree(*pair("DCLWLoss", sigma=0.2), draw((7, 4), (7, 4)), dtype)


@pytest.mark.parametrize("weight", (torch.float64, torch.float32, torch.float16, torch.int64, None))
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.float16))
def test_weights_of_other_dtypes(weight, dtype, streams):
    """The dtypes of weights and losses are promoted by torch's rules."""

    def weights(a, b):
        return torch.arange(len(a)).to(weight) if weight else squared_distance(a, b).mean().double()

    agree(*pair("DCLLoss", weight_fn=weights), draw((7, 4), (7, 4)), dtype)


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.float16))
def test_barlow_twins_with_a_tensor(dtype, streams):
    for weight in (torch.tensor(0.5), torch.tensor(0.5, dtype=torch.float64)):
        agree(*pair("BarlowTwinsLoss", lambda_param=weight), draw((7, 4), (7, 4)), dtype)


def test_barlow_twins_with_an_array_falls_back():
    losses = pair("BarlowTwinsLoss", lambda_param=torch.tensor([0.5]))
    agreement.falls_back(*losses, draw((7, 4), (7, 4)), "lambda_param")


@pytest.mark.filterwarnings("ignore:To copy construct")
def test_temperatures_of_numpy(streams):
    """A float32 temperature divides as a number, not with float32's precision."""
    for name in PAIRS:
        agree(*pair(name, temperature=np.float32(0.07)), draw((5, 4), (5, 4)))


@pytest.mark.no_poison
@pytest.mark.parametrize("autocast", (None, torch.bfloat16))
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:To copy construct")
def test_compiles_in_one_graph(name, autocast, streams):
    loss = pair(name, **({"weight_fn": squared_distance} if name == "DCLLoss" else {}))[0]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    agree(compiled, loss, draw((7, 4), (7, 4)), torch.float32, autocast)


def test_gather_distributed_in_one_process(streams):
    for name in PAIRS:
        agree(*pair(name, gather_distributed=True), draw((5, 4), (5, 4)))


@pytest.mark.parametrize("size", ((1, 4), (8, 4), (32, 4)))
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32))
def test_memory_bank(size, dtype, streams):
    """Losses and banks are lightly's while the bank fills, wraps around and drops the tail.

    Without a gradient nothing is stored.
    """
    mine, package = pair("NTXentLoss", temperature=0.2, memory_bank_size=size)
    assert isinstance(mine.memory_bank, MemoryBankModule)
    bank = mine.memory_bank.bank.to(dtype)
    for step in range(6):
        inputs = draw((3, 4), (3, 4), seed=step)
        banks = []
        for loss in (mine, package):
            loss.memory_bank.bank = bank.clone()
        start = package.memory_bank.bank_ptr.clone()

        def call(loss, start=start, banks=banks, bank=bank):
            def value(*x):
                loss.memory_bank.bank = bank.to(x[0].dtype, copy=True)
                loss.memory_bank.bank_ptr = start.clone()
                out = loss(*x)
                banks.append(loss.memory_bank.bank)
                return out

            return value

        agree(call(mine), call(package), inputs, dtype)
        torch.testing.assert_close(banks[-1], banks[0])
        assert torch.equal(mine.memory_bank.bank_ptr, package.memory_bank.bank_ptr)
        bank = banks[0].to(dtype)
    with torch.no_grad():
        mine(*(x.to(dtype) for x in inputs))
    torch.testing.assert_close(mine.memory_bank.bank, banks[-1], rtol=0, atol=0)


def test_memory_bank_in_autocast(streams):
    mine, package = pair("NTXentLoss", memory_bank_size=(16, 8))
    bank = mine.memory_bank.bank.double()

    def call(loss):
        def value(*x):
            loss.memory_bank.bank = bank.to(x[0].dtype, copy=True)
            return loss(*x)

        return value

    agree(call(mine), call(package), draw((5, 8), (5, 8)), torch.float32, torch.bfloat16)
    mine, package = pair("NTXentLoss", memory_bank_size=(16, 8))
    with torch.autocast("cpu", torch.bfloat16):
        # The inputs are float64 and the bank is float32.
        same_error(mine, package, *draw((5, 8), (5, 8)))


@pytest.mark.parametrize("name", NAMES)
def test_signature(name):
    agreement.same_signature(getattr(ours, name), getattr(peer, name))
    assert {*vars(pair(name)[0])} == {*vars(pair(name)[1])}


def test_state_is_the_packages():
    mine, package = pair("NTXentLoss", memory_bank_size=(4, 3))
    assert {*mine.state_dict()} == {*package.state_dict()}
    assert [n for n, _ in mine.named_buffers()] == [n for n, _ in package.named_buffers()]


def test_errors():
    for options in (
        {"temperature": 0.0},
        {"memory_bank_size": 4},
        {"memory_bank_size": -1},
        {"memory_bank_size": (4, 3, 2)},
    ):
        same_error(ours.NTXentLoss, peer.NTXentLoss, **options)
    a, b, c = draw((5, 3), (4, 3), (5, 2))
    same_error(*pair("BarlowTwinsLoss"), a[:1], a[:1])
    for name in NAMES:
        if name != "BarlowTwinsLoss":
            same_error(*pair(name), a[:0], a[:0])
        for x, y in ((a, b), (a, c), (a, a.float()), (a[0], a[0]), (a[None], a[None])):
            same_error(*pair(name), x, y)
    same_error(*pair("NTXentLoss", memory_bank_size=(4, 2)), a, a)
    # The inputs are float64 and the bank is float32.
    same_error(*pair("NTXentLoss", memory_bank_size=(4, 3)), a, a)


@pytest.mark.filterwarnings("ignore:To copy construct")
def test_odd_temperatures_fall_back():
    for name in ("DCLLoss", "DCLWLoss"):
        agreement.falls_back(*pair(name, temperature=0), draw((4, 3), (4, 3)), "temperature=0")
    infinite = [*pair("NTXentLoss", temperature=float("inf"))]
    agreement.falls_back(*infinite, draw((4, 3), (4, 3)), "temperature=inf")
