"""`use_backend` holds in its context, `set_backend` in the process, and compiled code follows both.

The warning that a slower backend serves points at the line of the user.
"""

import asyncio
import contextvars
import inspect
import threading
import warnings

import pytest
import torch

import fused_contrastive as fc
from fused_contrastive.backends import _warnings, dispatch

CPU = torch.device("cpu")


def chosen() -> str:
    return dispatch.select(None, CPU, torch.float32)


def in_a_thread(function, *arguments):
    """Return what `function` returns in a thread of its own."""
    found = []
    thread = threading.Thread(target=lambda: found.append(function(*arguments)))
    thread.start()
    thread.join(60)
    return found[0]


@pytest.fixture
def default():
    """Return the backend that serves where nothing was chosen; undo `set_backend` afterwards."""
    yield chosen()
    fc.set_backend(None)


@pytest.fixture(autouse=True)
def told_again():
    """Every test is told again what it may have been told before."""
    _warnings._said.clear()


def test_set_backend_holds_in_all_threads(default):
    fc.set_backend("panels")
    assert chosen() == in_a_thread(chosen) == "panels"
    fc.set_backend(None)
    assert chosen() == in_a_thread(chosen) == default


def test_a_block_comes_before_the_process(default):
    """`use_backend(None)` is the device's default, not the choice of the process."""
    fc.set_backend("eager")
    with fc.use_backend("panels"):
        assert chosen() == "panels"
        fc.set_backend("panels")
        with fc.use_backend(None):
            assert chosen() == default
        fc.set_backend("eager")
        assert chosen() == "panels"
    assert chosen() == "eager" and dispatch.is_eager(None)


def test_unknown_names_change_nothing(default):
    fc.set_backend("panels")
    for wrong in ("none", dispatch.DEFAULT):
        with pytest.raises(ValueError, match="backend must be one of"):
            fc.set_backend(wrong)
        with pytest.raises(ValueError, match="backend must be one of"), fc.use_backend(wrong):
            pass
    assert chosen() == "panels"


def test_a_block_is_not_seen_by_other_threads(default):
    """Two threads that overlap keep a choice each, and leave none behind."""
    entered, leave = threading.Barrier(2), threading.Barrier(2)

    def choose(name):
        with fc.use_backend(name):
            entered.wait(60)
            found = chosen()
            leave.wait(60)
        return found, chosen()

    with fc.use_backend("panels"):
        with_context = contextvars.copy_context()
        assert in_a_thread(with_context.run, chosen) == "panels"
    found = {}
    threads = [
        threading.Thread(target=lambda name=name: found.update({name: choose(name)}))
        for name in ("panels", "eager")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {"panels": ("panels", default), "eager": ("eager", default)}


def test_a_block_belongs_to_its_task(default):
    """Tasks that take turns keep a choice each. A task takes over that of its creator."""

    async def choose(name, turn, other):
        with fc.use_backend(name):
            turn.set()
            await other.wait()
            return chosen()

    async def inherit():
        await asyncio.sleep(0)
        return chosen()

    async def main():
        one, two = asyncio.Event(), asyncio.Event()
        with fc.use_backend("panels"):
            late = asyncio.create_task(inherit())
        both = await asyncio.gather(choose("panels", one, two), choose("eager", two, one))
        return [*both, chosen(), await late]

    assert asyncio.run(main()) == ["panels", "eager", default, "panels"]


def test_backward_uses_the_backend_of_forward(default, monkeypatch):
    z = torch.randn(6, 4, requires_grad=True)
    with fc.use_backend("panels"):
        loss = fc.nt_xent_loss(z, torch.randn(6, 4))
    from fused_contrastive.backends import panels

    served = []
    original = panels.similarity_backward
    monkeypatch.setattr(panels, "similarity_backward", lambda *a: served.append(1) or original(*a))
    loss.backward()
    assert served == [1]


@pytest.fixture
def compiled(monkeypatch):
    """Return a compiled loss, and the names that were asked for while it was traced."""
    torch._dynamo.reset()
    traced = []
    original = dispatch.refusal
    monkeypatch.setattr(dispatch, "refusal", lambda *a: traced.append(a[0]) or original(*a))
    yield torch.compile(fc.nt_xent_loss, fullgraph=True, backend="aot_eager"), traced
    torch._dynamo.reset()


@pytest.mark.no_poison
def test_compiled_code_follows_the_choice(default, compiled):
    """Each choice is a constant of a graph of its own. Going back to one compiles nothing."""
    loss, traced = compiled
    z = torch.randn(6, 4)
    for _ in range(2):
        loss(z, z + 1)
        with fc.use_backend("panels"):
            loss(z, z + 1)
    assert traced == [default, "panels"]
    del traced[:]
    fc.set_backend("panels")
    loss(z, z + 1)
    with fc.use_backend("eager"):
        torch.testing.assert_close(loss(z, z + 1), fc.nt_xent_loss(z, z + 1, backend="eager"))
    assert traced == ["panels"]


@pytest.mark.no_poison
def test_compiled_code_follows_the_choice_of_each_task(default, compiled):
    loss, traced = compiled
    z = torch.randn(6, 4)

    async def choose(name, turn, other):
        with fc.use_backend(name):
            for _ in range(2):
                turn.set()
                await other.wait()
                other.clear()
                loss(z, z + 1)
            turn.set()

    async def main():
        one, two = asyncio.Event(), asyncio.Event()
        await asyncio.gather(choose("panels", one, two), choose(None, two, one))

    asyncio.run(main())
    assert sorted(traced) == sorted({default, "panels"})


@pytest.mark.no_poison
def test_a_block_inside_compiled_code(default, compiled):
    """It holds for the calls inside, and is over when the compiled code returns."""
    _, traced = compiled

    def step(z):
        with fc.use_backend("panels"):
            first = fc.nt_xent_loss(z, z + 1)
        return first + fc.nt_xent_loss(z, z + 2)

    z = torch.randn(6, 4)
    found = torch.compile(step, fullgraph=True, backend="aot_eager")(z)
    torch.testing.assert_close(found, step(z))
    assert traced[:2] == ["panels", default] and chosen() == default


def refuse_all(monkeypatch):
    monkeypatch.setattr(dispatch, "refusal", lambda *a: "the test says so")


@pytest.mark.parametrize("call", ("function", "module", "compiled"))
def test_the_warning_points_at_the_user(monkeypatch, call):
    """It names the file and line of the call, also through a module and through torch.compile."""
    refuse_all(monkeypatch)
    z = torch.randn(4, 3)
    loss = {
        "function": fc.nt_xent_loss,
        "module": fc.NTXentLoss(),
        "compiled": torch.compile(fc.nt_xent_loss, backend="eager"),
    }[call]
    with pytest.warns(UserWarning, match="the slower backend 'panels' serves") as told:
        line = inspect.currentframe().f_lineno + 1
        loss(z, z + 1)
    told = [w for w in told if "slower" in str(w.message)]
    assert [(w.filename, w.lineno) for w in told] == [(__file__, line)]


def test_the_warning_comes_once_for_each_line(monkeypatch):
    """It does so even where every warning is shown, and where filters change in between."""
    refuse_all(monkeypatch)
    z = torch.randn(4, 3)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(3):
            fc.nt_xent_loss(z, z + 1)
            with warnings.catch_warnings():
                warnings.simplefilter("always")
        fc.nt_xent_loss(z, z + 1)
    assert len({w.lineno for w in told}) == len(told) == 2


def test_an_error_is_raised_each_time():
    """A warning that a filter turns into an error has not been shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for _ in range(2):
            with pytest.raises(UserWarning, match="again"):
                _warnings.warn("again")


def test_frames_of_another_package_are_skipped(monkeypatch):
    """What a drop-in says is about the line that called the package that it stands in for."""
    space = {"__name__": "its_package.losses", "warn": _warnings.warn}
    exec("def call():\n    warn('it falls back', beside='its_package')\n", space)
    with pytest.warns(UserWarning, match="it falls back") as told:
        line = inspect.currentframe().f_lineno + 1
        space["call"]()
    assert (told[0].filename, told[0].lineno) == (__file__, line)
