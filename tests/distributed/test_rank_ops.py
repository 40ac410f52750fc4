"""The ops over ranks against dense code, for every kind of candidates and every backend."""

import itertools
from dataclasses import replace

import pytest
import torch
from conftest import BACKENDS, host_kernels, skip_unless_served
from support import rank_calls
from support.rank_calls import Call

STRATEGIES = ("gather", "ring")
KINDS = ("all", "not_self", "not_pair", "other_key", "same_key")
ROWS = {1: ((4,),), 2: ((4, 3), (5, 0)), 3: ((2, 3, 4), (1, 0, 5)), 4: ((2, 2, 2, 2), (3, 1, 0, 4))}
COLUMNS = {1: (6,), 2: (3, 6), 3: (0, 4, 2), 4: (1, 3, 4, 2)}


def calls(family: str, world: int) -> list[Call]:
    """Every kind with one set and two, each with one combination of the other options.

    The options take turns, so that all pairs of their values come up over the kinds.
    """
    found, turn = [], 0
    for kind, two, strategy, rows in itertools.product(
        KINDS, (False, True), STRATEGIES, ROWS[world]
    ):
        turn += 1
        options = {"extrema": turn % 2 == 0, "both": turn % 3 != 0, "bias": turn % 5 < 2}
        if family == "sigmoid":
            options["both"] = False
        options |= {"lead": (2,) if turn % 4 == 0 else (), "part": 2 if turn % 7 < 3 else 16384}
        if two:
            options |= {"columns": COLUMNS[world], "offset": turn % 3}
        found.append(Call(family, kind, rows, strategy=strategy, **options))
    return found


@pytest.mark.parametrize("world", ROWS)
@pytest.mark.parametrize("family", ("similarity", "sigmoid"))
def test_dense(family, world, pool):
    """Results and gradients in float64 are those of all rows in dense code."""
    runs = calls(family, world)
    results = pool.run(world, rank_calls.on_one_rank, runs)
    for call, found in zip(runs, zip(*results, strict=True), strict=True):
        compare(call, found, {"rtol": 1e-10, "atol": 1e-10})


def compare(call, results, tolerance):
    found, expected = rank_calls.together(call, list(results)), rank_calls.dense(call)
    assert found.keys() == expected.keys(), call
    for name, x in expected.items():
        torch.testing.assert_close(
            found[name], x, **tolerance, msg=lambda text, name=name: f"{call}: {name}: {text}"
        )


TOLERANCE = {
    torch.float64: {"rtol": 1e-10, "atol": 1e-10},
    torch.float32: {"rtol": 1e-4, "atol": 1e-5},
    torch.bfloat16: {"rtol": 2e-2, "atol": 5e-2},
    torch.float16: {"rtol": 5e-3, "atol": 1e-2},
}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", BACKENDS)
def test_backends(name, dtype, pool, monkeypatch):
    """Every backend computes the blocks, in every dtype that it serves.

    Where the products read another dtype than that of the gradients, the backward ops get operands
    in the latter that must not be read. They are NaN here, as all fresh memory.
    """
    device = torch.device("cpu")
    host_kernels(name, device, monkeypatch)
    skip_unless_served(name, device, dtype)
    where = {"backend": name, "dtype": dtype}
    runs = [
        Call("similarity", "not_self", (3, 4), bias=True, **where),
        Call("similarity", "same_key", (2, 3), **where, strategy="gather"),
        Call("similarity", "other_key", (3, 2), (2, 5), both=True, extrema=True, **where),
        Call("sigmoid", "not_self", (3, 2), (2, 4), bias=True, extrema=True, **where),
        Call("sigmoid", "other_key", (3, 2), **where, strategy="gather"),
    ]
    results = pool.run(2, rank_calls.on_one_rank, runs, timeout=300)
    for call, found in zip(runs, zip(*results, strict=True), strict=True):
        compare(call, found, TOLERANCE[dtype])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_parts(strategy, pool):
    """A shard may travel in parts of any size, and the results are the same up to rounding."""
    whole = Call("similarity", "not_self", (5, 2, 4, 3), bias=False, strategy=strategy)
    two = replace(whole, columns=(2, 6, 0, 3), both=True, bias=True, extrema=True)
    sigmoid = Call("sigmoid", "not_self", (5, 2, 4, 3), (3, 4, 4, 1), strategy=strategy)
    runs = [replace(call, part=part) for call in (whole, two, sigmoid) for part in (1, 2, 3, 5, 6)]
    results = pool.run(4, rank_calls.on_one_rank, runs)
    for call, found in zip(runs, zip(*results, strict=True), strict=True):
        compare(call, found, TOLERANCE[torch.float64])
