"""A learned scale has a bound on request, with the gradient that clamping has."""

import math

import pytest
import torch
from support.modules import PAIRS, WITH_TEMPERATURE

import fused_contrastive as fc

NAMES = (*WITH_TEMPERATURE, "ClipLoss", "SigLipLoss")


def learning(name, scale, max_scale=None, **options):
    """The module, with a scale or a temperature that it learns."""
    given = {"temperature": 1 / scale}
    if name in ("ClipLoss", "SigLipLoss"):
        given = {"logit_scale": scale} | ({"logit_bias": -1.0} if name == "SigLipLoss" else {})
    return getattr(fc, name)(**given, **options, learnable=True, max_scale=max_scale)


def inputs(name, device, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    first, second = (
        torch.randn(6, 4, generator=generator, dtype=dtype).to(device) for _ in range(2)
    )
    labels = torch.tensor([0, 1, 0, 2, 1, 0], device=device)
    return (first, labels) if name == "SupConLoss" else (first, second)


def logarithm(module, name):
    """The parameter that is the logarithm of the scale, and the sign of its scale in it."""
    if name in ("ClipLoss", "SigLipLoss"):
        return module.log_logit_scale, 1
    return module.log_temperature, -1


def loss_and_gradient(module, name, views):
    loss = module(*views)
    parameter, _ = logarithm(module, name)
    (gradient,) = torch.autograd.grad(loss, parameter)
    return loss, gradient


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_clamps_as_torch_does(name, dtype, backend, device):
    """Within the bound nothing changes. Beyond it the scale is the bound, and has no gradient."""
    views = inputs(name, device, dtype)
    module = learning(name, 5.0, 20.0, backend=backend).to(device)
    free = learning(name, 5.0, backend=backend).to(device)
    found = loss_and_gradient(module, name, views)
    for x, y in zip(found, loss_and_gradient(free, name, views), strict=True):
        assert torch.equal(x, y)
    assert found[1] != 0
    at_bound = learning(name, 20.0, backend=backend).to(device)(*views)
    parameter, sign = logarithm(module, name)
    for beyond in (20.1, 1e3, math.inf):
        parameter.data.fill_(sign * math.log(beyond))
        loss, gradient = loss_and_gradient(module, name, views)
        assert torch.equal(loss, at_bound) and gradient == 0
    assert list(module.state_dict()) == list(free.state_dict())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", (100.0, 14.3, 1 / 0.07, 7.0, 1 / 0.03))
def test_a_scale_at_the_bound_learns(name, scale, device):
    """A module that starts at its bound has a gradient, in whatever dtype it is moved to."""
    views = inputs(name, device)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        module = learning(name, scale, scale).to(device, dtype)
        _, gradient = loss_and_gradient(module, name, views)
        assert gradient != 0, dtype


def test_temperature_shows_the_bound():
    module = fc.NTXentLoss(0.05, learnable=True, max_scale=100)
    module.log_temperature.data.fill_(math.log(0.001))
    assert math.isclose(module.temperature.item(), 0.01, rel_tol=1e-6)
    assert "max_scale=100" in repr(module)
    assert "max_scale" not in repr(fc.NTXentLoss(0.05, learnable=True))


@pytest.mark.parametrize("name", NAMES)
def test_wrong_bounds(name):
    cases = (
        (0.0, ValueError, "max_scale must be positive"),
        (-1.0, ValueError, "max_scale must be positive"),
        (math.nan, ValueError, "max_scale must be finite"),
        (math.inf, ValueError, "max_scale must be finite"),
        ("100", TypeError, "max_scale must be a number"),
        (torch.tensor(100.0), TypeError, "max_scale must be a number"),
        (4.9, ValueError, "(logit_scale|temperature) must be at (most|least) .*max_scale"),
    )
    for bound, error, message in cases:
        with pytest.raises(error, match=message):
            learning(name, 5.0, bound)
    with pytest.raises(ValueError, match="max_scale must be None where nothing is learned"):
        getattr(fc, name)(max_scale=100.0)
    assert name in PAIRS


def test_compiles_whole(device):
    views = inputs("ClipLoss", device)
    module = learning("ClipLoss", 5.0, 20.0).to(device)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for log_scale in (1.0, 4.0):
        module.log_logit_scale.data.fill_(log_scale)
        expected = loss_and_gradient(module, "ClipLoss", views)
        found = compiled(*views)
        torch.testing.assert_close(found, expected[0])
        (gradient,) = torch.autograd.grad(found, module.log_logit_scale)
        torch.testing.assert_close(gradient, expected[1])
