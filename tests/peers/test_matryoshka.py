"""sentence-transformers' MatryoshkaLoss over our losses is that over the package's own."""

import itertools

import pytest
import torch
from agreement import agree, draw
from guided import Columns
from sentence_transformers.sentence_transformer import losses as peer

from fused_contrastive.integrations import sentence_transformers as ours

LOSSES = (
    ("MultipleNegativesRankingLoss", {"scale": 5.0}),
    (
        "MultipleNegativesRankingLoss",
        {"directions": ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")},
    ),
    ("MultipleNegativesRankingLoss", {"hardness_mode": "all_negatives", "hardness_strength": 2.0}),
    ("GISTEmbedLoss", {"temperature": 0.2, "margin": 0.05}),
    ("GISTEmbedLoss", {"temperature": 0.2, "margin": 0.1, "margin_strategy": "relative"}),
)
CACHED = tuple((f"Cached{name}", options) for name, options in LOSSES)
WIDTHS = (
    {"matryoshka_dims": [8, 4, 2]},
    {"matryoshka_dims": [8, 5], "matryoshka_weights": [1.0, 0.3]},
    {"matryoshka_dims": [3]},
)
SIZES = ((1, 8), (7, 8), (13, 16))


def build(module, name, options, widths):
    """The package's MatryoshkaLoss over a loss of `module`, on embeddings as features."""
    model = Columns("own")
    models = (model, Columns("guide")) if "GIST" in name else (model,)
    loss = getattr(module, name)(*models, **options)
    return peer.MatryoshkaLoss(model, loss, **widths)


def guides(n, count):
    return draw(*[(n, 6)] * count, spread=0.7, seed=1)


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize(("name", "options"), LOSSES)
def test_equal(name, options, widths, streams):
    for (n, d), negatives in itertools.product(SIZES, (0, 1)):
        pair, guide = [], guides(n, 2 + negatives)
        for module in (ours, peer):
            loss = build(module, name, options, widths)

            def call(*columns, loss=loss, guide=guide):
                features = zip(columns, guide, strict=True)
                return loss([{"own": x, "guide": y} for x, y in features], None)

            pair.append(call)
        agree(*pair, draw(*[(n, d)] * (2 + negatives)))


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize(("name", "options"), CACHED)
def test_cached(name, options, widths, streams):
    """The mini-batches of the cached losses get the same gradients."""
    for (n, d), negatives in itertools.product(SIZES, (0, 1)):
        columns = draw(*[(n, d)] * (2 + negatives))
        guide = [x.split(3) for x in guides(n, len(columns))]
        found = []
        for module in (ours, peer):
            loss = build(module, name, {**options, "mini_batch_size": 3}, widths).loss
            reps = [[x.clone().requires_grad_() for x in column.split(3)] for column in columns]
            given = (reps, guide) if "GIST" in name else (reps,)
            value = loss.calculate_loss(*given, with_backward=True)
            found.append([value.detach(), *(x.grad for column in reps for x in column)])
        torch.testing.assert_close(*found, rtol=1e-9, atol=1e-11)
