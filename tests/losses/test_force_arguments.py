"""Errors of the force losses name the argument, and modules pass their arguments on."""

import pytest
import torch
from support.force_cases import draw

import fused_contrastive as fc

ERRORS = {
    "positive": (lambda p, n: fc.contrastive_force([1], n, 0.5), TypeError),
    "negative": (lambda p, n: fc.contrastive_force(p, n[..., :2], 0.5), ValueError),
    "negative ": (lambda p, n: fc.contrastive_force(p, n.double(), 0.5), TypeError),
    "temperature": (lambda p, n: fc.contrastive_force(p, n, 0.0), ValueError),
    "mask_self": (lambda p, n: fc.contrastive_force(p, n, 0.5, mask_self="none"), ValueError),
    "normalizer": (lambda p, n: fc.contrastive_force(p, n, 0.5, normalizer="rms"), ValueError),
    "affinity_floor": (
        lambda p, n: fc.contrastive_force(p, n, 0.5, affinity_floor=-1.0),
        ValueError,
    ),
    "temperatures": (lambda p, n: fc.contrastive_force_loss(p, n, ()), ValueError),
    "temperatures ": (lambda p, n: fc.contrastive_force_loss(p, n, 0.5), TypeError),
    "temperatures  ": (
        lambda p, n: fc.contrastive_force_loss(p, n, (0.1, float("nan"))),
        ValueError,
    ),
    "scale": (lambda p, n: fc.contrastive_force_loss(p, n, scale=torch.ones(7)), ValueError),
    "scale ": (lambda p, n: fc.contrastive_force_loss(p, n, scale=-1.0), ValueError),
    "detach_scale": (lambda p, n: fc.contrastive_force_loss(p, n, detach_scale="yes"), ValueError),
    "reduction": (lambda p, n: fc.contrastive_force_loss(p, n, reduction="max"), ValueError),
    "backend": (lambda p, n: fc.contrastive_force_loss(p, n, backend="fast"), ValueError),
    "gen": (lambda p, n: fc.drift_loss(n[0], p), ValueError),
    "positive ": (lambda p, n: fc.drift_loss(n, p[:1]), ValueError),
    "weight_gen": (lambda p, n: fc.drift_loss(n, p, weight_gen=torch.ones(2, 9)), ValueError),
    "weight_negative": (
        lambda p, n: fc.drift_loss(n, p, weight_negative=torch.ones(2, 4)),
        ValueError,
    ),
    "temperatures   ": (
        lambda p, n: fc.drift_loss(n, p, temperatures=(torch.tensor(0.1),)),
        TypeError,
    ),
    "positive  ": (lambda p, n: fc.drift_field(n, p.long()), TypeError),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_argument(name):
    call, kind = ERRORS[name]
    with pytest.raises(kind, match=name.strip()):
        call(torch.randn(2, 5, 3), torch.randn(2, 4, 3))


def test_modules(device):
    positive, negative = draw((2, 6, 5, 3), device=device)
    module = fc.ContrastiveForceLoss((0.1, 0.3), normalizer="force_rms", reduction="sum")
    expected = fc.contrastive_force_loss(
        positive, negative, (0.1, 0.3), normalizer="force_rms", reduction="sum"
    )
    torch.testing.assert_close(module(positive, negative), expected)
    assert "force_rms" in repr(module) and not list(module.parameters())
    weight = torch.rand(2, 6, dtype=torch.float64, device=device)
    loss, info = fc.DriftLoss((0.1,))(negative, positive, weight_positive=weight)
    torch.testing.assert_close(
        loss, fc.drift_loss(negative, positive, weight_positive=weight, temperatures=(0.1,))[0]
    )
    assert set(info) == {"scale", "loss_0.1"}
    with pytest.raises(ValueError, match="normalizer"):
        fc.ContrastiveForceLoss(normalizer="rms")
    for module in (fc.ContrastiveForceLoss, fc.DriftLoss):
        with pytest.raises(ValueError, match="temperatures"):
            module(temperatures=())
