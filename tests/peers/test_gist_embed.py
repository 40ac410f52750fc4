"""sentence-transformers' losses with a guide agree with the installed package on embeddings."""

import itertools
from types import SimpleNamespace

import agreement
import pytest
import torch
from agreement import DTYPES, SIZES, agree, draw, same_error
from guided import CACHED, NAME, Columns, pair
from sentence_transformers.sentence_transformer import losses as peer
from torch import nn

from fused_contrastive.integrations import sentence_transformers as ours

MARGINS = (("absolute", 0.0), ("absolute", 0.2), ("absolute", -0.3), ("relative", 0.1))
CONTRASTS = list(itertools.product((True, False), (True, False)))
SOME = {"margin": 0.1, "margin_strategy": "relative", "temperature": 0.2}


def columns(n, d, negatives, e=None):
    """Draws the guide's columns of width e and then the model's of width d."""
    width = d if e is None else e
    guide = draw(*[(n, width)] * (2 + negatives), spread=0.7, seed=1)
    return [*guide, *draw(*[(n, d)] * (2 + negatives))]


@pytest.mark.parametrize(("anchors", "positives"), CONTRASTS)
@pytest.mark.parametrize(("strategy", "margin"), MARGINS)
@pytest.mark.parametrize("name", (NAME, CACHED))
def test_equal(name, strategy, margin, anchors, positives, streams):
    options = {
        "margin_strategy": strategy,
        "margin": margin,
        "contrast_anchors": anchors,
        "contrast_positives": positives,
    }
    for (n, d), negatives in itertools.product(SIZES, (0, 1, 2)):
        if negatives == 2 and name == NAME:
            continue
        for temperature in (0.05, 1.0):
            losses = pair(name, temperature=temperature, **options)
            agree(*losses, columns(n, d, negatives))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", (NAME, CACHED))
def test_dtypes(name, dtype, streams):
    """The guide is the same in all dtypes, so that the mask does not depend on its rounding."""
    for (n, d), negatives in itertools.product(SIZES, (0, 1)):
        drawn = columns(n, d, negatives, 6)
        calls = (
            lambda *x, loss=loss, guide=drawn[: 2 + negatives]: loss(*x, guide=guide)
            for loss in pair(name, **SOME)
        )
        agree(*calls, drawn[2 + negatives :], dtype)


@pytest.mark.parametrize("autocast", (torch.bfloat16, torch.float16))
@pytest.mark.parametrize("name", (NAME, CACHED))
def test_equal_in_autocast(name, autocast, streams):
    drawn = columns(13, 16, 1)
    for dtype in (torch.float32, autocast, torch.float64):
        calls = (lambda *x, loss=loss: loss(*x, guide=drawn[:3]) for loss in pair(name, **SOME))
        agree(*calls, drawn[3:], dtype, autocast)


def test_duplicates(streams):
    """Texts that the guide sees as equal are no false negatives, as in the library."""
    guide, own = draw((7, 5), seed=1), draw((7, 5), (7, 5))
    guide = [guide[0][[0, 1, 2, 0, 4, 4, 6]]] * 2
    for name in (NAME, CACHED):
        agree(*pair(name, temperature=0.3), [*guide, *own])


def test_rows_of_zeros(streams):
    drawn = columns(6, 4, 1)
    for x in drawn:
        x[2] = 0.0
    for name in (NAME, CACHED):
        agree(*pair(name, **SOME), drawn)


def test_a_temperature_with_a_gradient(streams):
    """It is the package's, whose own is NaN wherever a similarity is masked."""
    plain = {"margin": -3.0, "contrast_anchors": False, "contrast_positives": False}
    drawn = [torch.tensor(0.4, dtype=torch.float64), *columns(6, 4, 0)]

    def call(value):
        def result(temperature, *x):
            value.loss.temperature = temperature
            return value(*x)

        return result

    agree(*map(call, pair(**plain)), drawn)
    mine, package = (agreement.run(call(value), drawn)[1] for value in pair(margin=0.1))
    assert package.isnan() and mine.isfinite()


def test_gradients_of_mini_batches(streams):
    """`calculate_loss` leaves the gradients of all mini-batches in their `grad`."""
    found = []
    for value in pair(CACHED, **SOME):
        drawn = columns(8, 4, 2)
        guides, reps = ([list(x.split(3)) for x in part] for part in (drawn[:4], drawn[4:]))
        reps = [[x.clone().requires_grad_() for x in column] for column in reps]
        loss = value.loss.calculate_loss(reps, guides, with_backward=True)
        assert not loss.requires_grad
        found.append([loss, *(x.grad for column in reps for x in column)])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("name", (NAME, CACHED))
def test_falls_back(name):
    for attribute, value, reason in (
        ("similarity_fct", nn.CosineSimilarity(dim=-1, eps=1e-3), None),
        ("similarity_fct", lambda x, y: (x * y).sum(-1), "similarity_fct="),
        ("cross_entropy_loss", nn.CrossEntropyLoss(label_smoothing=0.1), "cross_entropy_loss="),
    ):
        losses = pair(name, temperature=0.5)
        for value_of in losses:
            if isinstance(value, nn.Module):
                setattr(value_of.loss, attribute, value)
            else:
                del value_of.loss.similarity_fct
                value_of.loss.similarity_fct = value
        if reason is None:
            agree(*losses, columns(5, 3, 1))
        else:
            agreement.falls_back(*losses, columns(5, 3, 1), reason)


def test_other_columns_fall_back():
    guide, own = draw((5, 3), (5, 3), (2, 3), seed=1), draw((5, 3), (5, 3), (2, 3))
    agreement.falls_back(*pair(), [*guide, *own], "columns of different lengths")


def test_errors():
    for name in (NAME, CACHED):
        mine, theirs = (getattr(module, name) for module in (ours, peer))
        models = Columns("own"), Columns("guide")
        same_error(mine, theirs, *models, margin_strategy="far")
        same_error(mine, theirs, SimpleNamespace(), models[1])
    for count in (1, 4):
        features = [{"own": torch.ones(2, 3), "guide": torch.ones(2, 3)}] * count
        same_error(*(value.loss for value in pair()), features, None)
    reps = [[torch.ones(2, 3)]]
    losses = (value.loss.calculate_loss for value in pair(CACHED))
    same_error(*losses, reps, [*reps, *reps])


@pytest.mark.parametrize("name", (NAME, CACHED))
def test_attributes(name):
    agreement.same_signature(getattr(ours, name), getattr(peer, name))
    mine, package = (value.loss for value in pair(name, **SOME))
    known = ("guide",)
    assert {k: v for k, v in mine.get_config_dict().items() if k not in known} == {
        k: v for k, v in package.get_config_dict().items() if k not in known
    }
    assert getattr(mine, "citation", None) == getattr(package, "citation", None)
