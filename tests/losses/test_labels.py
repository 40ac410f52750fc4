"""Losses with several positives and decoupled losses agree with their formulas.

The tests cover forms, views, unmatched rows, weights, metrics and arguments.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from conftest import is_interpreted, skip_unless_served
from oracles import labels as label_oracle
from oracles import similarity as oracle
from support import cases
from support.label_cases import above_the_kernels, draw
from support.yardstick import assert_within_yardstick

import fused_contrastive as fc
from fused_contrastive import reference

LABELS = torch.tensor([4, -1, 4, 7, -1, 4, 0, 3, 4, 7, 7])
"""The classes have 4, 2, 3, 1 and 1 samples."""
FORMS = ("out", "in", "pairs")


def call(backend, features, labels, temperature=0.3, **options):
    return fc.sup_con_loss(features, labels, temperature, backend=backend, **options)


@pytest.mark.interpreter(kind=("labels-3",))
@pytest.mark.parametrize("mode", ("all", "one"))
@pytest.mark.parametrize("kind", ("labels-0", "labels-1", "labels-3", "none-1", "none-2", "none-4"))
@pytest.mark.parametrize("positives", FORMS)
def test_against_the_oracle(positives, kind, mode, any_backend, device):
    """Values and gradients are the oracle's for any number of views, with and without labels.

    Features are normalised or not, and some rows have no positives.
    """
    kind, views = kind.split("-")
    labels = LABELS.to(device) if kind == "labels" else None
    for normalize in (True,) if is_interpreted(any_backend) else (True, False):
        features = draw(device, int(views))
        temperature = torch.tensor(0.3, dtype=torch.float64, device=device, requires_grad=True)
        options = {"positives": positives, "contrast_mode": mode, "normalize": normalize}
        loss = call(any_backend, features, labels, temperature, reduction="none", **options)
        assert loss.shape == (features.shape[:-1] if mode == "all" else features.shape[:1])
        g = cases.positive_weights(loss.shape, 0)
        loss.backward(g.to(device))
        expected, grads = label_oracle.sup_con(
            features, temperature, oracle.array(g), labels, **options
        )
        np.testing.assert_allclose(oracle.array(loss), expected, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(
            oracle.array(features.grad), grads["features"], rtol=1e-8, atol=1e-12
        )
        np.testing.assert_allclose(
            oracle.array(temperature.grad), grads["temperature"], rtol=1e-8, atol=1e-12
        )


def double_loop(z, label, temperature, positives):
    """Compute equations 2 and 3 of the paper, and the terms of single pairs, as written.

    There is no vector, and no logarithm of sums that is not in the equations.
    """
    z, total, terms = z / np.linalg.norm(z, axis=1, keepdims=True), [], 0
    for i in range(len(z)):
        e = [math.exp(z[i] @ z[a] / temperature) for a in range(len(z))]
        P = [p for p in range(len(z)) if p != i and label[p] == label[i]]
        A = [a for a in range(len(z)) if a != i]
        other = sum(e[a] for a in A if label[a] != label[i])
        terms += len(P)
        if positives == "out":
            total.append(-sum(math.log(e[p] / sum(e[a] for a in A)) for p in P) / max(len(P), 1))
        elif positives == "in":
            total.append(-math.log(sum(e[p] for p in P) / sum(e[a] for a in A)) if P else math.inf)
        else:
            total.append(-sum(math.log(e[p] / (e[p] + other)) for p in P))
    return np.array(total), terms


@above_the_kernels
@pytest.mark.parametrize("positives", FORMS)
def test_double_loop(positives, any_backend, device):
    """The losses are those of the formulas as loops.

    The mean of pairs is over pairs, and that of rows over rows. The loops' differences are the
    oracle's gradients.
    """
    features = draw(device)
    loss = call(any_backend, features, LABELS.to(device), positives=positives, reduction="none")
    expected, terms = double_loop(oracle.array(features), LABELS.tolist(), 0.3, positives)
    np.testing.assert_allclose(oracle.array(loss), expected, rtol=1e-10)
    mean = call(any_backend, features, LABELS.to(device), positives=positives)
    count = terms if positives == "pairs" else len(LABELS)
    assert math.isclose(mean.item(), expected.sum() / count, rel_tol=1e-10) or math.isinf(
        expected.sum()
    )
    if any_backend == "eager" and positives != "in":
        z, h, index = oracle.array(features), 1e-6, (3, 2)
        _, grads = label_oracle.sup_con(z, 0.3, np.ones(len(z)), LABELS, positives)
        steps = [
            double_loop(
                z + s * h * (np.arange(z.size).reshape(z.shape) == 17),
                LABELS.tolist(),
                0.3,
                positives,
            )[0]
            for s in (1, -1)
        ]
        assert np.ravel_multi_index(index, z.shape) == 17
        assert math.isclose(
            grads["features"][index], (steps[0] - steps[1]).sum() / (2 * h), rel_tol=1e-6
        )


@above_the_kernels
def test_two_views_without_labels_are_nt_xent(backend, device):
    """Two views without labels have the loss of NT-Xent in every form.

    So do two views with a label of its own for every sample. So does the decoupled loss with the
    positive put back.
    """
    features = draw(device, 2)
    z1, z2 = features.unbind(1)
    expected = fc.nt_xent_loss(z1, z2, 0.3, reduction="none", backend=backend)
    for positives, labels in (
        (p, x) for p in FORMS for x in (None, torch.arange(len(features), device=device))
    ):
        if positives != "pairs" or labels is None:
            loss = call(backend, features, labels, positives=positives, reduction="none")
            torch.testing.assert_close(loss, expected.view(2, -1).T)
    one = call(backend, features, None, contrast_mode="one", reduction="none")
    torch.testing.assert_close(one, expected[: len(features)])
    decoupled = fc.dcl_loss(z1, z2, 0.3, reduction="none", backend=backend)
    torch.testing.assert_close(torch.nn.functional.softplus(decoupled), expected)


@above_the_kernels
@pytest.mark.parametrize("dtype", (torch.int64, torch.int32, torch.uint8, torch.int16), ids=str)
def test_any_labels(dtype, backend, device):
    """Only which labels are equal matters, and not their values, order or integer type."""
    features, labels = draw(device), (LABELS + 1).to(device, dtype)
    expected = call(backend, features, LABELS.to(device), reduction="none")
    torch.testing.assert_close(call(backend, features, labels, reduction="none"), expected)
    order = torch.randperm(len(LABELS), generator=torch.Generator().manual_seed(1)).to(device)
    torch.testing.assert_close(
        call(backend, features[order], labels[order], reduction="none"), expected[order]
    )


@above_the_kernels
def test_one_class_and_none_shared(backend, device):
    """Losses are eager's where all rows are of one class, and where each has its own.

    With one class the loss is the mean of N - 1 log-probabilities, and there are no negatives. With
    all rows alone there are no positives.
    """
    features, n = draw(device), len(LABELS)
    same, alone = torch.zeros(n, dtype=torch.int64, device=device), torch.arange(n, device=device)
    for positives in ("out", "in"):
        for labels, form in itertools.product((same, alone), (positives,)):
            found = call(backend, features, labels, positives=form, reduction="none")
            torch.testing.assert_close(
                found, call("eager", features, labels, positives=form, reduction="none")
            )
    assert (call(backend, features, same, positives="in", reduction="none") == 0).all()
    assert (call(backend, features, alone, reduction="none") == 0).all()
    assert call(backend, features, alone, positives="in", reduction="none").isposinf().all()


@above_the_kernels
@pytest.mark.parametrize("positives", FORMS)
def test_rows_without_positives(positives, any_backend, device):
    """Rows without positives get no gradient of their own.

    They count in the mean, or not, as asked. A mean over no rows is NaN with gradient 0.
    """
    labels = LABELS.to(device)
    matched = torch.tensor([LABELS.eq(x).sum() > 1 for x in LABELS], device=device)
    features = draw(device)
    loss = call(any_backend, features, labels, positives=positives, reduction="none")
    unmatched = loss[~matched]
    assert len(unmatched) == 2 and (unmatched == (math.inf if positives == "in" else 0)).all()
    assert all((x == 0).all() for x in torch.autograd.grad(unmatched.sum(), features))
    skipped = call(
        any_backend, features, labels, positives=positives, skip_unmatched=True, reduction="none"
    )
    torch.testing.assert_close(skipped, loss.masked_fill(~matched, 0.0))
    mean = call(any_backend, features, labels, positives=positives, skip_unmatched=True)
    terms = 4 * 3 + 2 + 3 * 2 if positives == "pairs" else 9
    torch.testing.assert_close(mean, skipped.sum() / terms)
    alone = torch.arange(len(labels), device=device)
    nothing = call(any_backend, features, alone, positives=positives, skip_unmatched=True)
    assert nothing.isnan() and (torch.autograd.grad(nothing, features)[0] == 0).all()


@above_the_kernels
@pytest.mark.parametrize("views", (0, 2))
@pytest.mark.parametrize("positives", FORMS)
def test_weights_of_samples(positives, views, any_backend, device):
    """Each loss is multiplied by the weight of its sample.

    The mean is divided by the sum of the weights. Where the mean is over pairs, each pair's weight
    counts in the sum. A weight of 0 removes a row, even one whose loss is inf.
    """
    labels, features = LABELS.to(device), draw(device, views)
    weights = torch.tensor([1.0, 0.5, 2, 0, 1, 1, 0, 0, 3, 1, 0.25], device=device)
    options = {"positives": positives, "skip_unmatched": positives == "in" and views == 0}
    plain = call(any_backend, features, labels, reduction="none", **options)
    loss = call(any_backend, features, labels, weights=weights, reduction="none", **options)
    wide = weights.double()[:, None].expand(-1, max(views, 1)).reshape(loss.shape)
    torch.testing.assert_close(loss, wide * plain)
    mean = call(any_backend, features, labels, weights=weights, **options)
    size = (labels[:, None] == labels).sum(1)
    count = (
        (max(views, 1) * size - 1).double()[:, None].expand(-1, max(views, 1)).reshape(loss.shape)
    )
    terms = (
        count
        if positives == "pairs"
        else (count > 0).double()
        if options["skip_unmatched"]
        else 1.0
    )
    torch.testing.assert_close(mean, loss.sum() / (wide * terms).sum())
    if positives == "in" and views == 0:
        weights = torch.where(size > 1, 1.0, 0.0)
        loss = call(any_backend, features, labels, weights=weights, positives="in", reduction="sum")
        assert loss.isfinite(), "a weight of 0 leaves a row out"
    flat = torch.rand(len(labels), dtype=torch.float64, device=device, requires_grad=True)
    call(
        any_backend, features, labels, weights=flat, skip_unmatched=True, positives=positives
    ).backward()
    assert flat.grad.isfinite().all() and flat.grad.any()


@above_the_kernels
@pytest.mark.parametrize("mode", ("all", "one"))
@pytest.mark.parametrize("views", (0, 1, 3))
def test_positive_weights(views, mode, any_backend, device):
    """Any non-negative matrix of any dtype may weigh the positives, gradients included.

    A heavy diagonal drowns nothing. The matrix of which labels are equal gives the loss of these
    labels.
    """
    generator = torch.Generator().manual_seed(2)
    n = len(LABELS)
    matrix = torch.rand(n, n, generator=generator, dtype=torch.float64) * (
        torch.rand(n, n, generator=generator) < 0.4
    )
    matrix[3] = 0
    matrix[5, 5] = 1e9 if views < 2 else 3.0
    features = draw(device, views)
    temperature = torch.tensor(0.3, dtype=torch.float64, device=device, requires_grad=True)
    leaf = matrix.to(device).requires_grad_()
    loss = call(
        any_backend,
        features,
        None,
        temperature,
        positive_weights=leaf,
        contrast_mode=mode,
        reduction="none",
    )
    g = cases.positive_weights(loss.shape, 0)
    loss.backward(g.to(device))
    expected, grads = label_oracle.sup_con(
        features, temperature, oracle.array(g), positive_weights=matrix, contrast_mode=mode
    )
    np.testing.assert_allclose(oracle.array(loss), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        oracle.array(features.grad), grads["features"], rtol=1e-8, atol=1e-12
    )
    np.testing.assert_allclose(oracle.array(temperature.grad), grads["temperature"], rtol=1e-8)
    dense = matrix.to(device).requires_grad_()
    options = {"positive_weights": dense, "contrast_mode": mode, "reduction": "none"}
    reference.sup_con_loss(features, None, temperature, **options).backward(g.to(device))
    torch.testing.assert_close(leaf.grad, dense.grad, rtol=1e-6, atol=1e-9)
    assert torch.equal(leaf.detach().cpu(), matrix), "the matrix is left alone"
    equal = (LABELS[:, None] == LABELS).to(device)
    expected = call(any_backend, features, LABELS.to(device), contrast_mode=mode, reduction="none")
    for dtype in (torch.bool, torch.int32, torch.bfloat16, torch.float32):
        options = {"positive_weights": equal.to(dtype), "contrast_mode": mode, "reduction": "none"}
        torch.testing.assert_close(call(any_backend, features, None, **options), expected)


@pytest.mark.parametrize(
    "form",
    ("out-labels-0", "in-labels-2", "pairs-labels-0", "out-none-2", "out-none-3", "in-none-4"),
)
@above_the_kernels
def test_metrics(form, any_backend, device):
    """Metrics are those of the oracle's similarities, weighted where there are weights.

    They are detached. They are NaN where nothing has a positive.
    """
    positives, kind, views = form.split("-")
    labels = LABELS.to(device) if kind == "labels" else None
    for mode, normalize in itertools.product(("all", "one"), (True, False)):
        features = draw(device, int(views), seed=3)
        # This sum puts the views of a sample near one another.
        if views != "0":
            features = (features + draw(device, seed=4).unsqueeze(1)).detach().requires_grad_()
        options = {"positives": positives, "contrast_mode": mode, "normalize": normalize}
        loss, metrics = call(
            any_backend, features, labels, metrics=True, skip_unmatched=True, **options
        )
        torch.testing.assert_close(
            loss, call(any_backend, features, labels, skip_unmatched=True, **options)
        )
        assert loss.requires_grad and not any(m.requires_grad for m in metrics.values())
        accuracy, similarity = label_oracle.metrics(features, labels, 0.3, mode, normalize)
        assert 0 < accuracy < 1, "the case must have hits and misses"
        assert math.isclose(metrics["accuracy"].item(), accuracy, rel_tol=1e-6)
        assert math.isclose(metrics["positive_similarity"].item(), similarity, rel_tol=1e-6)
        half = torch.where(torch.arange(len(features)) < 6, 1.0, 0.0).to(device)
        weighted, expected = (
            call(
                name, features, labels, metrics=True, weights=half, skip_unmatched=True, **options
            )[1]
            for name in (any_backend, "eager")
        )
        torch.testing.assert_close(weighted, expected)
    alone = torch.arange(len(LABELS), device=device)
    metrics = call(any_backend, draw(device), alone, metrics=True)[1]
    lse = metrics.pop("logsumexp")
    assert lse.isfinite().all() and all(m.isnan() for m in metrics.values())


@above_the_kernels
def test_ties_are_hits(backend, device):
    """Every row is a hit where embeddings of several classes are equal.

    The largest similarity is a positive's as well, however the sums were ordered.
    """
    same = torch.randn(1, 37, device=device).repeat(40, 1)
    labels = torch.arange(40, device=device) % 7
    for positives in ("out", "in"):
        assert call(backend, same, labels, metrics=True, positives=positives)[1]["accuracy"] == 1
    assert fc.dcl_loss(same, same.clone(), metrics=True, backend=backend)[1]["accuracy"] == 1


@above_the_kernels
@pytest.mark.parametrize("size", (2, 4, 16))
@pytest.mark.parametrize("spread", (0.3, 0.03, 0.003))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_collapsed_classes(dtype, spread, size, backend, device):
    """Errors are at most eager's where samples lie next to their class centre.

    They do so late in training. What is left of the gradient is a difference of nearly equal means.
    """
    skip_unless_served(backend, device, dtype)
    n, errors = 96, {backend: [], "reference": []}
    labels = (torch.arange(n) % (n // size)).to(device)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        center = torch.randn(n, 32, generator=generator)[labels.cpu()]
        drawn = (center + spread * torch.randn(n, 32, generator=generator)).to(dtype)
        g = cases.positive_weights((n,), seed)
        temperature = torch.tensor(0.1)
        loss, grads = label_oracle.sup_con(drawn, temperature, oracle.array(g), labels)
        for name, found in errors.items():
            features = drawn.to(device).requires_grad_()
            learned = temperature.to(device).requires_grad_()
            out = fc.sup_con_loss(
                features,
                labels,
                learned,
                reduction="none",
                backend="eager" if name == "reference" else name,
            )
            out.backward(g.to(out))
            pairs = {
                "loss": (out, loss),
                "features": (features.grad, grads["features"]),
                "temperature": (learned.grad, grads["temperature"]),
            }
            found.append({key: cases.relative_error(*pair) for key, pair in pairs.items()})
    assert_within_yardstick(errors[backend], errors["reference"], dtype)
