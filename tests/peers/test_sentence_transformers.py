"""The integration of sentence-transformers agrees with its losses on embeddings.

The tests run in one process.
"""

import itertools
import warnings

import agreement
import pytest
import torch
from agreement import DTYPES, SIZES, agree, draw, same_error
from sentence_transformers import util
from sentence_transformers.sentence_transformer import losses as peer
from sentence_transformers.sparse_encoder import losses as sparse

from fused_contrastive.integrations import sentence_transformers as ours

NAME = "MultipleNegativesRankingLoss"
CACHED = ("CachedMultipleNegativesRankingLoss", "CachedMultipleNegativesSymmetricRankingLoss")
EXTRA = ("query_to_query", "doc_to_query", "doc_to_doc")
DIRECTIONS = [
    ("query_to_doc", *more) for k in range(4) for more in itertools.combinations(EXTRA, k)
]
HARD = {"hardness_mode": "all_negatives", "hardness_strength": 4.0, "scale": 3.0}
HARDNESS = (None, "in_batch_negatives", "hard_negatives", "all_negatives")


def pair(name=NAME, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        theirs = peer if hasattr(peer, name) else sparse
        losses = [getattr(module, name)(None, **options) for module in (ours, theirs)]
    return [
        lambda *x, loss=loss: loss.compute_loss_from_embeddings(list(x), None) for loss in losses
    ]


def columns(n, d, negatives):
    return draw(*[(n, d)] * (2 + negatives))


@pytest.mark.parametrize("hardness_mode", HARDNESS)
@pytest.mark.parametrize("directions", DIRECTIONS, ids="-".join)
def test_equal(directions, hardness_mode, streams):
    options = {
        "directions": directions,
        "hardness_mode": hardness_mode,
        "hardness_strength": 3.0 if hardness_mode else 0.0,
    }
    options["scale"] = 5.0
    for (n, d), negatives in itertools.product(SIZES, (0, 1, 2)):
        agree(*pair(**options), columns(n, d, negatives))
        if set(directions) <= {"query_to_doc", "doc_to_query"}:
            agree(*pair(**options, partition_mode="per_direction"), columns(n, d, negatives))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("similarity_fct", (util.cos_sim, util.pytorch_cos_sim, util.dot_score))
def test_similarity_functions(similarity_fct, dtype, streams):
    for options in (
        {"directions": DIRECTIONS[-1]},
        {"hardness_mode": "all_negatives", "hardness_strength": 4.0},
        {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"},
    ):
        scale = {"scale": 1.5} if similarity_fct is util.dot_score else {}
        for n, d in SIZES:
            agree(*pair(similarity_fct=similarity_fct, **scale, **options), columns(n, d, 1), dtype)


@pytest.mark.parametrize("autocast", (torch.bfloat16, torch.float16))
def test_equal_in_autocast(autocast, streams):
    for options in (
        {},
        {"directions": DIRECTIONS[-1]},
        {"hardness_mode": "all_negatives", "hardness_strength": 4.0},
    ):
        for dtype in (torch.float32, autocast, torch.float64):
            agree(*pair(**options), columns(13, 16, 1), dtype, autocast)


def test_repeated_directions_count_once(streams):
    agree(*pair(directions=("doc_to_query", "query_to_doc", "query_to_doc")), columns(5, 3, 0))


def test_symmetric(streams):
    for negatives in (0, 2):
        agree(*pair("MultipleNegativesSymmetricRankingLoss", scale=3.0), columns(5, 3, negatives))
    with pytest.warns(DeprecationWarning, match="per_direction"):
        loss = ours.MultipleNegativesSymmetricRankingLoss(None)
    assert isinstance(
        loss, (peer.MultipleNegativesSymmetricRankingLoss, ours.MultipleNegativesRankingLoss)
    )


def test_a_scale_with_a_gradient(streams):
    """The scale is an attribute, which users replace by a parameter, so it gets a gradient."""

    def call(module):
        loss = getattr(module, NAME)(None, hardness_mode="all_negatives", hardness_strength=2.0)

        def value(scale, *x):
            loss.scale = scale
            return loss.compute_loss_from_embeddings(list(x), None)

        return value

    agree(call(ours), call(peer), [torch.tensor(4.0, dtype=torch.float64), *columns(5, 3, 1)])


@pytest.mark.parametrize("dtype", DTYPES)
def test_sparse(dtype, streams):
    """The package multiplies dense embeddings over the vocabulary; many of their numbers are 0."""
    for options in ({}, {"directions": DIRECTIONS[-1]}, {"similarity_fct": util.cos_sim}):
        losses = pair("SparseMultipleNegativesRankingLoss", **options)
        for n, d in SIZES:
            agree(*losses, [0.5 * x.clamp_min(0) + 0.1 for x in columns(n, d, 1)], dtype)


def cached(name, **options):
    """Returns both losses, for a model that has no static embedding."""
    model = [torch.nn.Identity()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return [
            getattr(module, name)(model, mini_batch_size=3, **options) for module in (ours, peer)
        ]


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32))
@pytest.mark.parametrize("negatives", (0, 2))
@pytest.mark.parametrize(
    "options", ({}, {"directions": DIRECTIONS[-1], "scale": 5.0}, HARD), ids=str
)
def test_cached(options, negatives, dtype, streams):
    """The loss of embeddings that came in mini-batches, and the gradients that are cached."""

    def call(loss):
        return lambda *x: loss.calculate_loss([x.split(3) for x in x])

    def gradients(loss):
        reps = [
            [x.to(dtype).requires_grad_() for x in column.split(3)]
            for column in columns(8, 4, negatives)
        ]
        value = loss.calculate_loss(reps, with_backward=True)
        assert not value.requires_grad
        return value, [[x.grad for x in column] for column in reps]

    losses = cached(CACHED[0], **options)
    for n, d in SIZES:
        agree(*map(call, losses), columns(n, d, negatives), dtype)
    torch.testing.assert_close(*map(gradients, losses))
    if negatives == 0 and not options:
        for n, d in SIZES:
            agree(*map(call, cached(CACHED[1])), columns(n, d, 0), dtype)


def test_cached_falls_back():
    losses = cached(CACHED[0], similarity_fct=util.euclidean_sim)
    calls = [lambda *x, loss=loss: loss.calculate_loss([[y] for y in x]) for loss in losses]
    agreement.falls_back(*calls, columns(5, 3, 1), "similarity_fct=euclidean_sim")


def test_cached_attributes():
    mine, package = cached(CACHED[0], directions=DIRECTIONS[-1])
    assert mine.get_config_dict() == package.get_config_dict()
    assert mine.uses_gradient_cache == package.uses_gradient_cache
    mine.scale = 3.0
    assert mine.loss.scale == mine.scale == 3.0


@pytest.mark.parametrize("name", (NAME, "MultipleNegativesSymmetricRankingLoss", *CACHED))
def test_signature(name):
    agreement.same_signature(getattr(ours, name), getattr(peer, name))


def test_signature_of_sparse():
    name = "SparseMultipleNegativesRankingLoss"
    agreement.same_signature(getattr(ours, name), getattr(sparse, name))


def test_configuration_is_the_packages():
    mine, package = (
        getattr(module, NAME)(None, directions=DIRECTIONS[-1]) for module in (ours, peer)
    )
    assert mine.get_config_dict() == package.get_config_dict()
    assert mine.citation == package.citation
    assert mine.temperature == package.temperature


@pytest.mark.parametrize(
    "options",
    (
        {"scale": 0.0},
        {"directions": ()},
        {"directions": ("query_to_doc", "sideways")},
        {"directions": ("doc_to_query",)},
        {"partition_mode": "apart"},
        {"partition_mode": "per_direction", "directions": ("query_to_doc", "doc_to_doc")},
        {"hardness_mode": "very"},
        {"hardness_strength": -1.0},
    ),
    ids=str,
)
def test_errors_of_options(options):
    same_error(getattr(ours, NAME), getattr(peer, NAME), None, **options)


def test_errors_of_inputs():
    a, b, c = draw((5, 3), (4, 3), (5, 2))
    for inputs in ((a,), (a, c), (a, b), (a, a.float()), (a, b, a)):
        same_error(*pair(directions=DIRECTIONS[-1]), *inputs)


def test_other_similarities_fall_back():
    agreement.falls_back(
        *pair(similarity_fct=util.euclidean_sim), columns(5, 3, 1), "similarity_fct=euclidean_sim"
    )


def test_other_columns_fall_back():
    agreement.falls_back(*pair(), draw((5, 3), (5, 3), (2, 3)), "columns of different lengths")
