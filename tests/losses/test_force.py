"""The force family agrees with its oracle.

Values and gradients are compared in float64. In lower precision the errors are compared with
eager's. gradcheck tests the gradients too.
"""

import numpy as np
import pytest
import torch
from conftest import is_interpreted, skip_unless_served
from oracles import force as force_oracle
from oracles.force import array
from support.force_cases import (
    draw,
    error,
    exact_distances,  # noqa: F401
    oracle_force,
    oracle_loss,
    some_of,
    upstream_of,
)
from support.yardstick import assert_within_yardstick

import fused_contrastive as fc
from fused_contrastive.backends.panels import _force_field
from fused_contrastive.reference import force as force_reference

MASKS, NORMALIZERS, FLOORS = (
    ("sum", "softmax"),
    (None, "dist_affinity_rms", "force_rms"),
    (0.0, 1e-6, 0.01),
)
SCALES = ("mean", "detached", "given")
# A size is the number of groups, positives, negatives and features.
SIZES = ((1, 5, 7, 3), (3, 9, 4, 2), (2, 1, 6, 3), (2, 6, 1, 3), (1, 1, 1, 1), (2, 20, 17, 35))
LARGE = ((300, 3, 2, 2), (5, 64, 64, 33), (1, 600, 533, 3))
DATA = ("normal", "clustered", "duplicated", "far")


@some_of(3, affinity_floor=FLOORS, normalizer=NORMALIZERS, mask_self=MASKS)
@pytest.mark.parametrize("affinity_floor", FLOORS)
@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("mask_self", MASKS)
def test_force(mask_self, normalizer, affinity_floor, any_backend, device, exact_distances):
    options = {"mask_self": mask_self, "normalizer": normalizer, "affinity_floor": affinity_floor}
    for size in SIZES:
        positive, negative = draw(size, device=device)
        out = fc.contrastive_force(positive, negative, 0.3, backend=any_backend, **options)
        assert error(out, oracle_force(positive, negative, 0.3, **options)) < 1e-10, size


@some_of(
    3,
    scale=SCALES,
    affinity_floor=(0.0, 1e-3),
    normalizer=NORMALIZERS,
    mask_self=MASKS,
)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("affinity_floor", (0.0, 1e-3))
@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("mask_self", MASKS)
def test_force_loss(
    mask_self, normalizer, affinity_floor, scale, any_backend, device, exact_distances
):
    """The loss and its gradients are the oracle's in both versions of the source.

    One version is without the normaliser, and the other has it and the scale. Upstream gradients
    are random.
    """
    options = {"mask_self": mask_self, "normalizer": normalizer, "affinity_floor": affinity_floor}
    temperatures = (0.05, 0.2, 0.6)
    for size in SIZES:
        positive, negative = draw(size, device=device)
        given = None
        if scale == "given":
            given = torch.linspace(
                0.7, 2, size[0], dtype=torch.float64, device=device
            ).requires_grad_()
        upstream = upstream_of(negative.shape)
        loss = fc.contrastive_force_loss(
            positive,
            negative,
            temperatures,
            scale=given,
            detach_scale=scale == "detached",
            backend=any_backend,
            **options,
        )
        inputs = [positive, negative] + ([] if given is None else [given])
        gradients = torch.autograd.grad(loss, inputs, upstream.to(device), allow_unused=True)
        expected = oracle_loss(
            positive,
            negative,
            temperatures,
            upstream,
            given,
            detach_scale=scale == "detached",
            **options,
        )
        assert error(loss, expected["loss"]) < 1e-10, size
        for name, gradient in zip(("positive", "negative", "scale"), gradients, strict=False):
            gradient = torch.zeros_like(positive) if gradient is None else gradient
            assert error(gradient, expected[name]) < 1e-10, (name, size)


@pytest.mark.parametrize(
    "mask_self, normalizer, affinity_floor",
    [("sum", "dist_affinity_rms", 0.0), ("softmax", "force_rms", 1e-6)],
)
@pytest.mark.parametrize("size", LARGE, ids=str)
def test_many_groups_and_large_ones(size, mask_self, normalizer, affinity_floor, backend, device):
    """The loss is the oracle's with many groups and with large ones.

    They take dozens of tiles, several panels, and more groups than threads or multiprocessors.
    """
    if is_interpreted(backend):
        pytest.skip(
            "minutes in the interpreter and the host shim, whose own tests cross their tiles"
        )
    options = {"mask_self": mask_self, "normalizer": normalizer, "affinity_floor": affinity_floor}
    positive, negative = draw(size, device=device)
    upstream = upstream_of(negative.shape)
    loss = fc.contrastive_force_loss(positive, negative, (0.05, 0.2), backend=backend, **options)
    gradients = torch.autograd.grad(loss, (positive, negative), upstream.to(device))
    expected = oracle_loss(positive, negative, (0.05, 0.2), upstream, **options)
    for value, name in zip((loss, *gradients), ("loss", "positive", "negative"), strict=True):
        assert error(value, expected[name]) < 1e-10, name


@pytest.mark.parametrize("data", ("clustered", "duplicated", "far"))
def test_float64_of_difficult_data(data, backend, device):
    """The loss of difficult data is the oracle's in float64, at the temperatures of the source.

    Clusters are a hundredth of their distance wide, every other point is a copy, or points are a
    thousand from the origin.
    """
    for size in ((2, 6, 5, 3), (1, 13, 12, 4)):
        positive, negative = draw(size, data, device=device)
        upstream = upstream_of(negative.shape)
        for options in ({}, {"mask_self": "softmax"}):
            settings = {"temperatures": (0.01, 0.02, 0.05, 0.1, 0.2), **options}
            loss = fc.contrastive_force_loss(positive, negative, backend=backend, **settings)
            gradients = torch.autograd.grad(loss, (positive, negative), upstream.to(device))
            expected = oracle_loss(positive, negative, upstream=upstream, **settings)
            for value, name in zip(
                (loss, *gradients), ("loss", "positive", "negative"), strict=True
            ):
                assert error(value, expected[name]) < 1e-10, (name, size, options)


@pytest.mark.parametrize("weighted", (False, True))
@pytest.mark.parametrize("with_negative", (False, True))
def test_drift_loss(with_negative, weighted, any_backend, device, exact_distances):
    for G, N, M, D in SIZES:
        positive, gen = draw((G, N, M, D), device=device)
        negative = draw((G, 3, 1, D), device=device, seed=5)[0] if with_negative else None
        sets = [x for x in (gen, negative, positive) if x is not None]
        weights = [torch.ones(x.shape[:2], dtype=torch.float64) for x in sets]
        if weighted:
            # Some of these weights are negative.
            weights = [(upstream_of(w.shape, i) + 0.5) for i, w in enumerate(weights)]
        given = {"weight_gen": weights[0], "weight_positive": weights[-1]} if weighted else {}
        if weighted and with_negative:
            given["weight_negative"] = weights[1]
        loss, info = fc.drift_loss(
            gen,
            positive,
            negative,
            backend=any_backend,
            **{name: w.to(device) for name, w in given.items()},
        )
        upstream = upstream_of(loss.shape)
        (gradient,) = torch.autograd.grad(loss, gen, upstream.to(device))
        temperatures = (0.02, 0.05, 0.2)
        expected = force_oracle.drift(
            array(gen),
            array(positive),
            None if negative is None else array(negative),
            [array(w) for w in weights],
            temperatures,
            array(upstream),
        )
        assert error(loss, expected["loss"]) < 1e-10
        assert error(gradient, expected["gen"]) < 1e-10
        assert error(info["scale"], expected["scale"]) < 1e-12
        assert (
            error(torch.stack([info[f"loss_{t}"] for t in temperatures]), expected["squares"])
            < 1e-10
        )


@pytest.mark.parametrize("temperature", (0.05, 0.5))
def test_drift_field(temperature, any_backend, device, exact_distances):
    for size in SIZES:
        positive, gen = draw(size, device=device)
        out = fc.drift_field(gen, positive, temperature, backend=any_backend)
        expected = [
            force_oracle.drift_field(x, y, temperature)
            for x, y in zip(array(gen), array(positive), strict=True)
        ]
        assert error(out, np.stack(expected)) < 1e-10, size
        assert not out.requires_grad


def seeds_for(backend):
    """Return more seeds where sets are small and single errors vary widely."""
    return range(11 if is_interpreted(backend) else 5)


LOW = (torch.float32, torch.bfloat16, torch.float16)
EVERYDAY = ("duplicated",)
"""The hardest of the data, whose coinciding points have the largest affinities."""


@pytest.mark.interpreter(dtype=(torch.float32,))
@pytest.mark.everyday(keep=lambda p: p["backend"] != "triton" or p["data"] in EVERYDAY)
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_errors_of_the_force(dtype, data, backend, device):
    """Errors of the force are at most eager's, at temperatures where eager is finite.

    Temperatures are scaled to a mean distance of 1. Eager computes half-precision inputs in
    float32, as we do.
    """
    skip_unless_served(backend, device, dtype)
    for normalizer in NORMALIZERS:
        options = {"mask_self": "softmax", "normalizer": normalizer}
        size = (2, 9, 8, 5) if is_interpreted(backend) else (2, 40, 35, 24)
        ours, eager = [], []
        for seed in seeds_for(backend):
            positive, negative = draw(size, data, dtype, device, seed)
            temperature = 0.2 * float(
                torch.cdist(positive.detach().double(), negative.detach().double()).mean()
            )
            expected = oracle_force(positive, negative, temperature, **options)
            for errors, name in ((ours, backend), (eager, "eager")):
                out = fc.contrastive_force(positive, negative, temperature, backend=name, **options)
                errors.append({"force": error(out, expected)})
        assert_within_yardstick(ours, eager, dtype)


@pytest.mark.interpreter(data=("normal", "duplicated"))
@pytest.mark.everyday(
    keep=lambda p: (
        p["backend"] == "cpu"
        or (p["dtype"] == torch.float32 and (p["data"] in EVERYDAY or p["backend"] != "triton"))
    )
)
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_errors_of_the_loss(dtype, data, backend, device):
    """Errors of the loss are at most eager's, with the published and with the default options.

    This holds also where eager's float32 underflows to NaN and float64 is the truth.
    """
    skip_unless_served(backend, device, dtype)
    size = (2, 9, 8, 5) if is_interpreted(backend) else (1, 40, 40, 64)
    for options in ({}, {"mask_self": "softmax"}, {"normalizer": None, "temperatures": (0.2, 0.5)}):
        ours, eager = [], []
        for seed in seeds_for(backend):
            positive, negative = draw(size, data, dtype, device, seed)
            upstream = upstream_of(negative.shape, seed)
            settings = {"temperatures": (0.01, 0.02, 0.05, 0.1, 0.2)} | options
            expected = oracle_loss(positive, negative, upstream=upstream, **settings)
            for errors, name in ((ours, backend), (eager, "eager")):
                x = [p.detach().float().requires_grad_() for p in (positive, negative)]
                loss = fc.contrastive_force_loss(*x, backend=name, **settings)
                gradients = torch.autograd.grad(loss, x, upstream.to(loss))
                values = {"loss": loss, "positive": gradients[0], "negative": gradients[1]}
                errors.append({key: error(value, expected[key]) for key, value in values.items()})
        assert_within_yardstick(ours, eager, torch.float32)


@pytest.mark.everyday(keep=lambda p: p["backend"] != "triton" or p["data"] in EVERYDAY)
@pytest.mark.parametrize("data", DATA)
def test_errors_of_the_drift(data, backend, device):
    size = (2, 9, 8, 5) if is_interpreted(backend) else (4, 64, 32, 64)
    ours, eager = [], []
    for seed in seeds_for(backend):
        positive, gen = draw(size, data, torch.float32, device, seed)
        weights = [np.ones(x.shape[:2]) for x in (gen, positive)]
        expected = force_oracle.drift(
            array(gen), array(positive), None, weights, (0.02, 0.05, 0.2), np.ones(size[0])
        )
        for errors, name in ((ours, backend), (eager, "eager")):
            loss, _ = fc.drift_loss(gen, positive, backend=name)
            (gradient,) = torch.autograd.grad(loss.sum(), gen)
            errors.append(
                {"loss": error(loss, expected["loss"]), "gen": error(gradient, expected["gen"])}
            )
    assert_within_yardstick(ours, eager, torch.float32)


@some_of(2, affinity_floor=(0.0, 0.01), normalizer=NORMALIZERS, mask_self=MASKS)
@pytest.mark.parametrize("affinity_floor", (0.0, 0.01))
@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("mask_self", MASKS)
def test_gradcheck_of_the_force(
    mask_self, normalizer, affinity_floor, any_backend, device, monkeypatch
):
    # The rows then take several panels.
    monkeypatch.setattr(_force_field, "PANEL", 50)
    options = {"mask_self": mask_self, "normalizer": normalizer, "affinity_floor": affinity_floor}
    for size in ((2, 3, 4, 2), (1, 7, 5, 3), (1, 1, 3, 2)):
        positive, negative = draw(size, device=device)
        temperature = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)

        def function(*inputs):
            return fc.contrastive_force(*inputs, backend=any_backend, **options)

        assert torch.autograd.gradcheck(
            function,
            (positive, negative, temperature),
            fast_mode=is_interpreted(any_backend),
            atol=1e-6,
            rtol=1e-5,
        )


def test_gradient_of_the_force_against_eager(backend, device, exact_distances):
    """The gradient of the force is eager's for sizes that are ragged across tiles.

    There are several groups, and upstream gradients are random.
    """
    size = (2, 21, 17, 6) if is_interpreted(backend) else (2, 150, 131, 20)
    for normalizer in NORMALIZERS:
        results = []
        for name in (backend, "eager"):
            inputs = [
                *draw(size, device=device),
                torch.tensor(0.8, dtype=torch.float64, requires_grad=True),
            ]
            out = fc.contrastive_force(*inputs, normalizer=normalizer, backend=name)
            results.append(torch.autograd.grad(out, inputs, upstream_of(out.shape).to(out)))
        for ours, expected in zip(*results, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("scale", SCALES)
def test_gradcheck_of_the_loss(scale, normalizer, any_backend, device):
    """The loss's own derivative is that of the dense form with its target frozen.

    A detached scale is frozen too. The derivative of the dense form is taken by finite differences.
    """
    positive, negative = draw((2, 4, 3, 2), device=device)
    given = torch.tensor([1.3, 0.8], dtype=torch.float64, device=device, requires_grad=True)
    base = (positive, negative) if scale != "given" else (positive, negative, given)
    settings = {"temperatures": (0.3, 0.8), "normalizer": normalizer}

    def scaled(positive, negative, given=None):
        x = torch.cat([negative, positive], 1)
        if given is None and scale == "detached":
            given = torch.cdist(frozen, frozen).mean((1, 2))
        given = torch.cdist(x, x).mean((1, 2)) if given is None else given
        return negative / given[:, None, None]

    with torch.no_grad():
        frozen = torch.cat([negative, positive], 1).clone()
        at_base = scaled(*base)
        root = fc.contrastive_force_loss(
            positive,
            negative,
            scale=base[2] if len(base) > 2 else None,
            backend="eager",
            **settings,
        )
        target = at_base + _signed_root(root, positive, negative, base, settings)
        copies = [x.clone() for x in base]

    def function(*inputs):
        if all(torch.equal(x, y) for x, y in zip(inputs, copies, strict=True)):
            return fc.contrastive_force_loss(
                *inputs[:2],
                scale=inputs[2] if len(inputs) > 2 else None,
                detach_scale=scale == "detached",
                backend=any_backend,
                **settings,
            )
        return (scaled(*inputs) - target) ** 2

    fast = is_interpreted(any_backend)
    assert torch.autograd.gradcheck(function, base, fast_mode=fast, atol=1e-6, rtol=1e-5)


def _signed_root(loss, positive, negative, base, settings):
    """Return the force whose squares are the loss."""
    x = torch.cat([negative, positive], 1)
    scale = base[2] if len(base) > 2 else torch.cdist(x, x).mean((1, 2))
    scaled = [p / scale[:, None, None] for p in (positive, negative)]
    force = sum(
        force_reference.contrastive_force(*scaled, t, normalizer=settings["normalizer"])
        for t in settings["temperatures"]
    )
    torch.testing.assert_close(force**2, loss)
    return force
