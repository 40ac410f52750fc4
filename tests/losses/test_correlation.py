"""The correlation losses agree with the oracle and with the documents that they come from.

The tests compare values, gradients, precision and dtypes.
"""

import numpy as np
import pytest
import torch
from support.correlation_cases import NAMES, error, truth, views

import fused_contrastive as fc
from fused_contrastive import reference

SHAPES = (
    (70, 40),
    (40, 70),
    (33, 170),
    (170, 33),
    (33, 66),
    (33, 65),
    (66, 33),
    (2, 9),
    (9, 2),
    (3, 3),
)
"""The shapes lie on both sides of F = 2 K.

Where F is smaller, the loss takes the correlation matrix itself. Elsewhere it takes the products of
the rows.
"""
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def errors(name, module, dtype, device, n, d, lamb=5e-3, scale_loss=0.3, g=0.75, **draw):
    """Return the relative errors of the loss and both gradients, fused or of the reference."""
    z1, z2 = views(n, d, dtype, device, **draw)
    loss = getattr(module, name)(z1, z2, lamb, scale_loss)
    loss.backward(torch.full_like(loss, g))
    true = truth(name, z1, z2, lamb, scale_loss, g)
    return [error(x, t) for x, t in zip((loss, z1.grad, z2.grad), true, strict=True)]


@pytest.mark.parametrize("lamb", (5e-3, 1.0, 0.0))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_float64(name, shape, lamb, device):
    assert max(errors(name, fc, torch.float64, device, *shape, lamb=lamb)) < 1e-12
    assert max(errors(name, reference, torch.float64, device, *shape, lamb=lamb)) < 1e-11


@pytest.mark.parametrize(
    "draw",
    ({}, {"spread": 0.1}, {"spread": 1e-3}, {"spread": 0.01, "white": True}),
    ids=lambda d: "-".join(map(str, d.values())),
)
@pytest.mark.parametrize("shape", ((70, 40), (33, 170), (170, 33)), ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_accuracy(name, dtype, shape, draw, device):
    """The median error over five seeds is at most eager's in the same dtype, or 4 ulp.

    Some correlations are far from the identity, and some are next to it.
    """
    n, d = shape
    if draw.get("white") and n < d:
        pytest.skip("more features than rows cannot be orthogonal")
    ours, eager = (
        np.array(
            [errors(name, module, dtype, device, n, d, seed=seed, **draw) for seed in range(5)]
        )
        for module in (fc, reference)
    )
    bound = np.maximum(
        np.median(eager, 0), (8 if dtype == torch.float64 else 4) * torch.finfo(dtype).eps
    )
    within = (np.median(ours, 0) <= bound) | (np.median(ours / eager, 0) <= 1.5)
    assert within.all(), (np.median(ours, 0), np.median(eager, 0))


@pytest.mark.parametrize("name", NAMES)
def test_converged(name, device):
    """Gradients of converged views keep 4 digits in float32, where eager's keep 2.

    The views are thousandths apart or equal, and the correlations are next to the identity.
    """
    shape = (400, 24) if name == "barlow_twins_loss" else (24, 24)
    draw = {"spread": 0.0 if name == "correlation_loss" else 3e-3, "lamb": 0.0}
    ours, eager = (
        np.median(
            [errors(name, module, torch.float32, device, *shape, seed=s, **draw) for s in range(5)],
            0,
        )
        for module in (fc, reference)
    )
    assert ours.max() < 1e-4 and (eager[1:] > 50 * ours[1:]).all(), (ours, eager)


def test_equal_views(device):
    """The difference c_ii - 1 is exactly -eps / (v + eps).

    The loss is therefore known to float32's last digits, although 1 - 1e-5 is not.
    """
    (z,) = views(300, 16, torch.float32, device)[:1]
    loss = fc.barlow_twins_loss(z, z.clone(), 0.0)
    variance = z.detach().double().var(0, correction=0)
    torch.testing.assert_close(
        loss.double(), ((1e-5 / (variance + 1e-5)) ** 2).sum(), rtol=1e-6, atol=0
    )


def test_a_feature_that_is_nearly_constant(device):
    """A nearly constant feature beside an ordinary one in the other view has an accurate gradient.

    Its correlation is small, and the gradient is not the difference of larger numbers.
    """
    worst = []
    for module in (fc, reference):
        z1, z2 = views(64, 20, torch.float32, device)
        with torch.no_grad():
            z1[:, 3] *= 1e-7
            z2[:, 3] *= 1e-3
        loss = module.barlow_twins_loss(z1, z2)
        loss.backward()
        true = truth("barlow_twins_loss", z1, z2, 5e-3, 1.0)
        worst.append(max(error(x, t) for x, t in zip((loss, z1.grad, z2.grad), true, strict=True)))
    assert worst[0] < max(2e-6, 1.5 * worst[1]), worst


@pytest.mark.parametrize("name", NAMES)
def test_far_from_the_origin(name, device):
    """Features at 1e4 with a spread of 1 lose nothing beyond what float32 holds of them."""
    z1, z2 = (z.detach() + 1e4 for z in views(60, 50, device=device))
    z1, z2 = (z.float().requires_grad_() for z in (z1, z2))
    loss = getattr(fc, name)(z1, z2)
    loss.backward()
    samples = name == "correlation_loss"
    true = truth(name, z1, z2, 5e-3, 0.025 if samples else 1.0)
    assert max(error(x, t) for x, t in zip((loss, z1.grad, z2.grad), true, strict=True)) < 2e-6


@pytest.mark.parametrize("shape", ((6, 4), (3, 8), (8, 3), (2, 5), (5, 2)), ids=str)
@pytest.mark.parametrize("backend", (None, "eager"))
@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name, backend, shape, device):
    """gradcheck accepts every element of both views, lamb and scale_loss."""
    z1, z2 = views(*shape, device=device)
    lamb, scale_loss = (
        torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.3, 0.7)
    )
    function = getattr(fc, name)
    assert torch.autograd.gradcheck(
        lambda *x: function(*x, backend=backend), (z1, z2, lamb, scale_loss), rtol=1e-4
    )


def seed_loss(z1, z2, lamb=5e-3, scale_loss=0.025):
    """Compute the loss by the document's code, for one process."""
    N = len(z1)
    bn = torch.nn.BatchNorm1d(N, affine=False).to(z1.device)
    z1 = bn(z1.T).T
    z2 = bn(z2.T).T
    corr = (z1 @ z2.T) / N
    diag = torch.eye(N, device=corr.device)
    cdif = (corr - diag).pow(2)
    cdif[~diag.bool()] *= lamb
    return scale_loss * cdif.sum()


def barlow_loss(z1, z2, lamb=5e-3, scale_loss=1.0):
    """Compute Algorithm 1 of the paper, with batch_norm's biased variance and eps."""
    N, D = z1.shape
    z1_norm = (z1 - z1.mean(0)) / (z1.var(0, correction=0) + 1e-5).sqrt()
    z2_norm = (z2 - z2.mean(0)) / (z2.var(0, correction=0) + 1e-5).sqrt()
    c = torch.mm(z1_norm.T, z2_norm) / N
    c_diff = (c - torch.eye(D, device=c.device)).pow(2)
    off = ~torch.eye(D, dtype=torch.bool, device=c.device)
    return scale_loss * (c_diff[~off].sum() + lamb * c_diff[off].sum())


@pytest.mark.parametrize("arguments", ((), (0.1, 2.0)))
@pytest.mark.parametrize("shape", ((12, 7), (7, 12), (5, 40)), ids=str)
@pytest.mark.parametrize(
    ("name", "published"), tuple(zip(NAMES, (seed_loss, barlow_loss), strict=True))
)
def test_as_published(name, published, shape, arguments, device):
    # The document's identity has the default dtype.
    torch.set_default_dtype(torch.float64)
    try:
        z1, z2 = views(*shape, device=device)
        expected = published(z1, z2, *arguments)
        for backend in (None, "eager", "panels"):
            found = getattr(fc, name)(z1, z2, *arguments, backend=backend)
            torch.testing.assert_close(found, expected)
            for x, y in zip(
                *(torch.autograd.grad(v, (z1, z2), retain_graph=True) for v in (found, expected)),
                strict=True,
            ):
                torch.testing.assert_close(x, y)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_dtypes(name, dtype, device):
    """Losses are float64 for float64 inputs, and float32 for all others.

    For half-precision inputs the factors of products are rounded. Gradients have the inputs' dtype.
    """
    z1, z2 = views(9, 7, dtype, device)
    loss = getattr(fc, name)(z1, z2)
    loss.backward()
    assert (
        loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        and loss.shape == ()
    )
    assert z1.grad.dtype == z2.grad.dtype == dtype
    wide = [z.detach().to(loss.dtype).requires_grad_() for z in (z1, z2)]
    expected = getattr(fc, name)(*wide)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=4 * torch.finfo(dtype).eps, atol=0)
    assert error(z1.grad, wide[0].grad.double().cpu().numpy()) <= 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("shape", ((12, 30), (30, 12)), ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_autocast(name, shape, device):
    """Autocast computes the products in its dtype, wherever the backward pass runs.

    The rest, and float64, are computed as without it. Views of different dtypes are allowed there.
    """
    results = []
    for mixed, inside in ((False, False), (True, False), (True, True)):
        z1, z2 = views(*shape, torch.float32, device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=mixed):
            loss = getattr(fc, name)(z1, z2)
            assert loss.dtype == torch.float32
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        results.append((loss.detach(), z1.grad, z2.grad))
    exact, found, again = results
    assert all(torch.equal(x, y) for x, y in zip(found, again, strict=True))
    assert not torch.equal(found[1], exact[1])
    for x, y in zip(found, exact, strict=True):
        assert error(x, y.double().cpu().numpy()) < 4 * torch.finfo(torch.bfloat16).eps
    z1, z2 = views(*shape, torch.float64, device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        getattr(fc, name)(z1.float(), z2.bfloat16()).backward()
        assert z1.grad.isfinite().all() and z2.grad.isfinite().all()
        assert torch.equal(getattr(fc, name)(z1, z2), getattr(fc, name)(z1, z2))


@pytest.mark.parametrize("shape", ((32, 20000), (8, 20000), (64, 3000)), ids=str)
def test_views_that_are_not_correlated(shape, device):
    """With many features the diagonal is no small number, and nothing of it may be subtracted."""
    found, eager = (
        np.median(
            [
                errors(
                    "correlation_loss", module, torch.float32, device, *shape, seed=i, spread=1e3
                )
                for i in range(5)
            ],
            0,
        )
        for module in (fc, reference)
    )
    assert (found <= np.maximum(2 * eager, 4 * torch.finfo(torch.float32).eps)).all(), (
        found,
        eager,
    )
