"""The examples in the documentation of the public names run, and every loss has one."""

import doctest
import inspect
import re

import pytest

import fused_contrastive as fc

LOSSES = [name for name in fc.__all__ if name.lower().endswith("loss")]


def examples(name: str) -> doctest.DocTest:
    return doctest.DocTestParser().get_doctest(getattr(fc, name).__doc__, {}, name, None, None)


@pytest.mark.parametrize("name", fc.__all__)
def test_examples_run(name):
    told = []
    outcome = doctest.DocTestRunner().run(examples(name), out=told.append)
    assert outcome.failed == 0, "".join(told)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_has_an_example(name):
    results = [example for example in examples(name).examples if example.want]
    assert results, f"{name} shows no result"


def told(doc: str) -> set[str]:
    """The arguments that a docstring describes."""
    found = re.findall(r"^ {4}((?:\w+, )*\w+): ", doc, re.MULTILINE)
    return {name for names in found for name in names.split(", ")}


@pytest.mark.parametrize("name", fc.__all__)
def test_help_describes_every_argument(name):
    """help() of a name has its arguments, what it returns and raises, and an example."""
    value = getattr(fc, name)
    doc = inspect.getdoc(value)
    calls = [value.__init__, value.forward] if name in LOSSES and inspect.isclass(value) else []
    calls = calls or [value.__init__ if inspect.isclass(value) else value]
    names = {x for call in calls for x in inspect.signature(call).parameters} - {"self"}
    names -= {"weights"} if name == "DriftLoss" else set()
    assert names - told(doc) == set()
    assert (">>> " in doc and "Args" in doc) or not names
    if name not in ("MemoryBank", "backends", "set_backend", "use_backend"):
        assert "Returns:" in doc and "Raises:" in doc


def test_help_of_a_module_is_that_of_its_function():
    assert "two views ``[B, ...]``" in inspect.getdoc(fc.NTXentLoss.forward)
    assert told(inspect.getdoc(fc.NTXentLoss)) >= {"learnable", "temperature", "tau_plus", "z1"}
