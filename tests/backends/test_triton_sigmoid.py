"""The Triton kernels of the sigmoid family agree with the dense form in float64.

The tiles are so small that a few dozen rows cross several of them.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import skip_unless_served
from fused_contrastive.triton_kernels import support as guard
from support.sigmoid_cases import TOLERANCE, USES, Use, check

if guard.missing() is not None:
    pytest.skip(guard.missing(), allow_module_level=True)

from fused_contrastive.triton_kernels import configs, launch

from fused_contrastive.backends.tiled import plan

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
SMALL = configs.Config(16, 16, 16)
BY_NAME = {str(use): use for use in USES}


@pytest.fixture(autouse=True)
def small_tiles(device, request):
    skip_unless_served("triton", device)
    with configs.override(sigmoid_reduce=SMALL, sigmoid_weight=SMALL):
        yield


@pytest.mark.parametrize(
    "name",
    (
        "not_self-two-plus-offset0-positive0-row_bias",
        "same_key-two-minus-offset1-row_bias-groups",
        "other_key-one-minus-row_bias-groups",
        "all-two-minus-positive2-row_bias-normalize",
        "not_pair-one-plus-positive3-row_bias-normalize",
    ),
)
def test_ragged_tiles(name, device):
    """Several tiles and super-tiles in both directions are right where the last ones are cut.

    D takes more than one step.
    """
    check(BY_NAME[name], "triton", 37, 50, 21, F64, device)


@pytest.mark.parametrize("dtype", (F32, BF16, F16), ids=str)
def test_precisions(dtype, device):
    """Every precision is right with one operand resident (D = 13) and without (D = 40)."""
    for d in (13, 40):
        check(USES[0], "triton", 20, 35, d, dtype, device, 3 * TOLERANCE[dtype])


def test_many_slots(device):
    """There may be more super-tiles of columns than are merged at a time."""
    check(Use("all"), "triton", 5, 16 * 33 + 3, 4, F64, device)


@pytest.mark.parametrize("dtype", (F64, F16), ids=str)
def test_panels_of_a_small_workspace(dtype, device, monkeypatch):
    monkeypatch.setattr(plan, "WORKSPACE", 2500)
    for use in (USES[0], replace(USES[2], lead=(2,))):
        check(use, "triton", 40, 45, 5, dtype, device, 3 * TOLERANCE[dtype])


@pytest.mark.parametrize("scale", (1e-30, 1e20))
def test_half_weights_of_any_upstream_gradient(scale, device):
    """Panels in float16 hold the weights relative to the largest upstream gradient."""
    named = USES[0].draw(20, 20, 6, F16, device)
    named = {name: x.detach().requires_grad_(name == "row_bias") for name, x in named.items()}
    gradients = []
    for factor in (1.0, scale):
        rows = USES[0].apply(named, "triton").rows
        gradients.append(torch.autograd.grad((rows * factor).sum(), named["row_bias"])[0])
    torch.testing.assert_close(gradients[1] / scale, gradients[0], rtol=1e-3, atol=1e-4)


def test_launches(device):
    """Forward starts two kernels. Backward starts two, and one for the gradient of each set.

    Backward also takes two products.
    """
    named = USES[0].draw(20, 20, 6, F32, device)
    with launch.recording() as launches:
        out = USES[0].apply(named, "triton")
        assert [started.kernel.__name__ for started in launches] == [
            "sigmoid_reduce",
            "sigmoid_finish",
        ]
        launches.clear()
        out.rows.sum().backward()
    names = [started.kernel.__name__ for started in launches]
    assert names == ["sigmoid_terms", "sigmoid_weight", "finish_backward", "finish_backward"]
    assert max(len(started.arguments) for started in launches) <= 15
