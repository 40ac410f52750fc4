"""The examples in the documentation of the public names run, and every loss has one."""

import doctest

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
