"""The integration of pytorch-metric-learning agrees with its losses, by labels and by pairs."""

import warnings

import agreement
import pytest
import torch
from agreement import DTYPES, agree, draw, run, same_error
from pytorch_metric_learning import distances, miners, reducers, regularizers
from pytorch_metric_learning import losses as peer
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu

from fused_contrastive.integrations import pytorch_metric_learning as ours

pytestmark = pytest.mark.filterwarnings("ignore:pytorch_metric_learning.NTXentLoss saturates")
NAMES = ("NTXentLoss", "SupConLoss", "NPairsLoss")
PAIRWISE = NAMES[:2]
ENDS = {torch.float32: 87.3, torch.float16: 9.7}
"""Where the library's NTXentLoss saturates."""

LABELS = {
    "one row": [3],
    "two of one label": [1, 1],
    "two labels": [1, 2],
    "three": [0, 1, 0],
    "two views": [0, 1, 2, 3, 0, 1, 2, 3],
    "unmatched rows": [5, 2, 5, 7, 2, 5, 9],
    "one label": [4, 4, 4, 4],
    "no positives": [3, 1, 2, 0],
    "few labels": [i * i % 3 for i in range(14)],
    "negative numbers": [-5, 2, -5, -7, 2],
}


def pair(name, **options):
    return getattr(ours, name)(**options), getattr(peer, name)(**options)


def calls(losses, *arguments, **keywords):
    return [lambda x, loss=loss: loss(x, *arguments, **keywords) for loss in losses]


def referring(losses, labels, ref_labels, indices=None, same=False):
    """Returns the calls of the losses with two sets of rows, or with one that is given as both."""
    if same:
        return [lambda x, loss=loss: loss(x, labels, indices, x, ref_labels) for loss in losses]
    return [lambda x, y, loss=loss: loss(x, labels, indices, y, ref_labels) for loss in losses]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("name", NAMES)
def test_equal(name, labels, dtype, streams):
    for d in (1, 5):
        agree(*calls(pair(name), torch.tensor(labels)), draw((len(labels), d)), dtype)


@pytest.mark.parametrize(
    "labels", ("two views", "unmatched rows", "one label", "few labels", "one row", "two labels")
)
@pytest.mark.parametrize("temperature", (0.5, 1, -0.3))
@pytest.mark.parametrize("name", PAIRWISE)
def test_reference_set(name, temperature, labels, streams):
    """The losses take a reference set.

    It may be a set of another size, or another set with the same labels. It may also be the set
    itself, by its own labels or by copies of them.
    """
    labels = torch.tensor(LABELS[labels])
    losses = pair(name, temperature=temperature)
    query, other = draw((len(labels), 4), (9, 4))
    for ref_labels in (labels.repeat(9)[:9], labels.max() + 1 + torch.arange(9)):
        agree(*referring(losses, labels, ref_labels), [query, other])
    for ref_labels in (labels, labels.clone(), None):
        agree(*referring(losses, labels, ref_labels), [query, *draw(query.shape, seed=1)])
    for ref_labels in (labels.clone(), labels.flip(0)):
        agree(*referring(losses, labels, ref_labels, same=True), [query])


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.float16))
@pytest.mark.parametrize("name", NAMES)
def test_pairs_and_triplets(name, dtype, streams):
    """The losses take pairs and triplets from miners, from all pairs, and from some of them.

    NTXentLoss may get some pairs several times. There may also be nothing at all.
    """
    labels = torch.tensor(LABELS["few labels"])
    (x,) = draw((len(labels), 5))
    everything = lmu.get_all_pairs_indices(labels)
    some = [i[:: k + 2] for k, i in zip((0, 0, 1, 1), everything, strict=True)]
    tuples = [
        everything,
        some,
        lmu.get_all_triplets_indices(labels),
        [i[:1] for i in everything],
        [i[:0] for i in everything],
        [*everything[:2], *(i[:0] for i in everything[2:])],
        [*(i[:0] for i in everything[:2]), *everything[2:]],
        miners.MultiSimilarityMiner()(x, labels),
        miners.TripletMarginMiner(margin=0.5)(x, labels),
    ]
    for indices in tuples:
        for more in ((labels, tuple(indices)), (None, tuple(indices)))[
            : 1 if name == "NPairsLoss" else 2
        ]:
            agree(*calls(pair(name), *more), [x], dtype)


@pytest.mark.parametrize("name", PAIRWISE)
def test_pairs_with_a_reference_set(name, streams):
    labels, ref_labels = torch.tensor([0, 1, 2, 1]), torch.tensor([2, 1, 1, 0, 0, 3, 4])
    everything = lmu.get_all_pairs_indices(labels, ref_labels)
    for indices in (everything, tuple(i[::2] for i in everything)):
        agree(*referring(pair(name), labels, ref_labels, indices), draw((4, 3), (7, 3)))


@pytest.mark.parametrize(
    "make",
    (
        reducers.MeanReducer,
        reducers.SumReducer,
        reducers.AvgNonZeroReducer,
        lambda: reducers.ThresholdReducer(low=0.1, high=3.0),
        reducers.PerAnchorReducer,
        lambda: reducers.ClassWeightedReducer(torch.linspace(0.1, 2, 10)),
        lambda: reducers.MultipleReducers({"loss": reducers.SumReducer()}),
    ),
)
@pytest.mark.parametrize("name", NAMES)
def test_reducers(name, make, streams):
    for labels in ("two views", "unmatched rows", "few labels"):
        labels = torch.tensor(LABELS[labels])
        agree(*calls(pair(name, reducer=make()), labels), draw((len(labels), 4)))


@pytest.mark.parametrize("labels", ("unmatched rows", "one label", "no positives"))
@pytest.mark.parametrize("name", NAMES)
def test_terms(name, labels, streams):
    """Before they are reduced, the losses are the same, with the same indices in the same order."""
    labels = torch.tensor(LABELS[labels])
    (x,) = draw((len(labels), 4))
    terms = [loss(x, labels)["loss"] for loss in pair(name, reducer=reducers.DoNothingReducer())]
    assert terms[0]["reduction_type"] == terms[1]["reduction_type"]
    torch.testing.assert_close(terms[0]["losses"], terms[1]["losses"])
    for mine, package in zip(
        *(torch.utils._pytree.tree_leaves(t["indices"]) for t in terms), strict=True
    ):
        assert (mine is None and package is None) or torch.equal(mine, package)


@pytest.mark.parametrize("name", NAMES)
def test_regularizer_and_statistics(name, streams):
    labels = torch.tensor(LABELS["unmatched rows"])
    options = {
        "embedding_regularizer": regularizers.LpRegularizer(),
        "embedding_reg_weight": 0.3,
        "collect_stats": True,
    }
    mine, package = pair(name, **options)
    for loss in (mine, package):
        loss.distance = type(loss.distance)(collect_stats=True)
    agree(*calls((mine, package), labels), draw((len(labels), 4)))
    for x, y in (
        (mine, package),
        (mine.distance, package.distance),
        (mine.reducer, package.reducer),
    ):
        for attribute in (*getattr(y, "_record_these", ()), *getattr(y, "_record_these_stats", ())):
            assert getattr(x, attribute) == pytest.approx(getattr(y, attribute)), attribute


@pytest.mark.parametrize(
    "distance",
    (
        distances.CosineSimilarity(),
        distances.DotProductSimilarity(),
        distances.DotProductSimilarity(normalize_embeddings=False),
        distances.CosineSimilarity(p=1),
    ),
)
@pytest.mark.parametrize("name", NAMES)
def test_distances(name, distance, streams):
    labels = torch.tensor(LABELS["unmatched rows"])
    agree(*calls(pair(name, distance=distance), labels), draw((len(labels), 4)))


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.float16))
def test_saturated_probabilities(dtype, streams):
    """The library adds the smallest normal number to a probability.

    Therefore its NTXentLoss stops at 87.3 (9.7 in float16), and so does its gradient.
    """
    labels = torch.tensor(LABELS["few labels"])
    losses = pair("NTXentLoss", temperature=0.01)
    if dtype == torch.float64:
        agree(*calls(losses, labels), draw((len(labels), 3)), dtype)
    else:
        with pytest.warns(ours.SaturationWarning, match=f"terms end at {ENDS[dtype]}"):
            agree(*calls(losses, labels), draw((len(labels), 3)), dtype)
    if dtype == torch.float32:
        x = draw((len(labels), 3))[0].float()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ours.SaturationWarning)
            terms = losses[0].compute_loss(x, labels, None, x, labels)["loss"]["losses"]
        assert float(max(terms)) == pytest.approx(87.3365)


def test_raw_dot_products(streams, monkeypatch):
    """They saturate the loss. Our exact form has the value and the gradients of float64."""
    labels = torch.arange(64) % 8
    x = 10 * draw((64, 32))[0].float()
    distance = distances.DotProductSimilarity(normalize_embeddings=False)
    mine, package = pair("NTXentLoss", distance=distance)
    with pytest.warns(ours.SaturationWarning, match="exact=True") as caught:
        for _ in range(2):
            saturated = run(lambda x: mine(x, labels), [x])
    assert [w.filename for w in caught] == [__file__]
    torch.testing.assert_close(saturated, run(lambda x: package(x, labels), [x]))
    assert float(saturated[0]) < 88

    def dense(x):
        s, same = x @ x.T / 0.07, labels[:, None] == labels
        negative = s.masked_fill(same, -torch.inf).logsumexp(1, keepdim=True)
        terms = torch.logaddexp(s, negative) - s
        return terms[same & ~torch.eye(len(x), dtype=torch.bool)].mean()

    with warnings.catch_warnings():
        warnings.simplefilter("error", ours.SaturationWarning)
        exact = ours.NTXentLoss(distance=distance, exact=True)
        for listed in (1, 16):
            monkeypatch.setattr(ours, "LISTED", listed)
            got = run(calls([exact], labels)[0], [x])
            want = run(dense, [x.double()])
            assert float(want[0]) > 10_000
            for a, b in zip(got, want, strict=True):
                torch.testing.assert_close(
                    a.double(), b, rtol=1e-5, atol=1e-5 * float(b.abs().max())
                )


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32))
@pytest.mark.parametrize("temperature", (1e-3, 0.02))
@pytest.mark.parametrize("name", PAIRWISE)
def test_terms_that_vanish_are_left_out(name, temperature, dtype, streams):
    """SupConLoss' reducer averages the terms above 0.

    Terms that the library's arithmetic rounds to 0 are left out.
    """
    labels, ref_labels = torch.arange(12) % 6, torch.arange(9) % 7
    x, y = draw((12, 3), (9, 3))
    x = torch.cat([x[:6], x[:6] + torch.linspace(0, 3, 6).unsqueeze(1) * x[6:]]).to(dtype)
    y = torch.cat([y[:6] * 0.1 + x[:6], y[6:]]).to(dtype)
    everything = tuple(i[::3] for i in lmu.get_all_pairs_indices(labels))
    losses = pair(
        name, temperature=temperature, reducer=reducers.AvgNonZeroReducer(collect_stats=True)
    )
    for call, inputs in (
        (calls(losses, labels), [x]),
        (calls(losses, labels, everything), [x]),
        (referring(losses, labels, ref_labels), [x, y]),
        (
            referring(losses, labels, ref_labels, lmu.get_all_pairs_indices(labels, ref_labels)),
            [x, y],
        ),
        (referring(losses, labels, None), [x, x.flip(0)]),
    ):
        values = [run(f, inputs) for f in call]
        assert losses[0].reducer.num_past_filter == losses[1].reducer.num_past_filter
        torch.testing.assert_close(values[0], values[1], rtol=1e-3, atol=1e-3)


def test_a_row_that_is_not_a_number(streams):
    """A row that is not a number leaves the reducer of SupConLoss with nothing.

    It is in the largest logit of every row, whether it is listed or not.
    """
    labels = torch.tensor(LABELS["two views"])
    (x,) = draw((8, 3))
    x[1] = float("nan")
    indices = tuple(torch.tensor(i) for i in ([0, 2], [4, 6], [0, 2], [3, 7]))
    agree(*calls(pair("SupConLoss"), labels, indices), [x])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", (2, 5))
def test_very_many_positive_pairs(classes, dtype, streams, monkeypatch):
    """When there are more positive pairs than are listed, another pass runs over all pairs.

    This happens where the reducer takes the mean of the terms.
    """
    monkeypatch.setattr(ours, "LISTED", 1)
    labels = torch.arange(31) % classes
    for options in (
        {},
        {"temperature": 0.5},
        {"temperature": 0.01},
        {"reducer": reducers.SumReducer()},
    ):
        agree(*calls(pair("NTXentLoss", **options), labels), draw((31, 6)), dtype)


def test_very_many_positive_pairs_of_two_sets(streams, monkeypatch):
    monkeypatch.setattr(ours, "LISTED", 1)
    labels, ref_labels = torch.arange(20) % 3, torch.arange(23) % 2
    losses = pair("NTXentLoss")
    agree(*referring(losses, labels, ref_labels), draw((20, 6), (23, 6)))


def test_very_many_positive_pairs_are_not_listed(streams, monkeypatch):
    monkeypatch.setattr(ours.Labelled, "pairs", None)
    agree(*calls(pair("NTXentLoss"), torch.arange(70) % 2), draw((70, 6)))


@pytest.mark.parametrize("autocast", (torch.bfloat16, torch.float16))
@pytest.mark.parametrize("name", NAMES)
def test_equal_in_autocast(name, autocast, streams):
    for labels in ("two views", "few labels"):
        labels = torch.tensor(LABELS[labels])
        options = {} if name == "NPairsLoss" else {"temperature": 0.5}
        losses = pair(name, **options)
        for dtype in (torch.float32, autocast, torch.float64):
            agree(*calls(losses, labels), draw((len(labels), 8)), dtype, autocast)


@pytest.mark.parametrize("kind", (torch.int32, torch.uint8, torch.int16))
@pytest.mark.parametrize("name", NAMES)
def test_kinds_of_labels(name, kind, streams):
    labels = torch.tensor(LABELS["few labels"]).to(kind)
    agree(*calls(pair(name), labels), draw((len(labels), 4)))


@pytest.mark.parametrize("name", NAMES)
def test_signature(name):
    beside = ("exact",) if name == "NTXentLoss" else ()
    agreement.same_signature(getattr(ours, name), getattr(peer, name), beside)


@pytest.mark.parametrize("name", NAMES)
def test_errors(name):
    labels = torch.tensor([0, 1, 0, 1])
    x, y = draw((4, 3), (5, 3))
    losses = pair(name)
    same_error(*losses, x)
    same_error(*losses, x, labels[:3])
    same_error(*losses, x, labels.view(2, 2))
    same_error(*losses, x[None], labels)
    same_error(*losses, x, labels, ref_emb=y, ref_labels=labels)
    same_error(*losses, x[:, 0], labels)
    if name != "NPairsLoss":
        same_error(*losses, x, labels, ref_emb=y[:, :2], ref_labels=torch.arange(5))
        same_error(*losses, x, labels, ref_emb=y.float(), ref_labels=torch.arange(5))
        same_error(*losses, x, labels, (labels, labels))
        far = torch.tensor([0, 9])
        same_error(*losses, x, labels, (far, far, far, far))
        same_error(*losses, x, labels, (labels.byte(),) * 4)
        same_error(*losses, x, labels, (labels, labels[:3], labels, labels))
    if name == "SupConLoss":
        both = torch.tensor([0, 1]), torch.tensor([1, 2])
        same_error(*losses, x, labels, (*both, *both))


@pytest.mark.parametrize("name", NAMES)
def test_other_distances_fall_back(name):
    labels = torch.tensor(LABELS["unmatched rows"])
    for distance, reason in (
        (distances.LpDistance(), "distance=LpDistance"),
        (distances.SNRDistance(), "distance=SNRDistance"),
        (distances.CosineSimilarity(power=2), "power=2"),
    ):
        agreement.falls_back(
            *calls(pair(name, distance=distance), labels), draw((len(labels), 4)), reason
        )


@pytest.mark.parametrize("name", PAIRWISE)
def test_odd_labels_and_temperatures_fall_back(name):
    labels = torch.tensor(LABELS["unmatched rows"])
    (x,) = draw((len(labels), 4))
    agreement.falls_back(*calls(pair(name), labels.double()), [x], "labels of torch.float64")
    agreement.falls_back(
        *calls(pair(name, temperature=float("inf")), labels), [x], "temperature=inf"
    )
