"""gradcheck accepts every loss and every use of the primitive in float64.

Small inputs are checked in full, or along one random direction in the interpreter. Larger inputs
are ragged across tile borders.
"""

import pytest
import torch
from conftest import is_interpreted, skip_unless_served
from support import uses
from support.functions import LOSSES, loss_of, outputs_of, small_inputs

from fused_contrastive.backends.panels import _panel as panels


def check(function, inputs, fast):
    assert torch.autograd.gradcheck(
        function, inputs, fast_mode=fast, eps=1e-6, atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("case", LOSSES, ids=lambda c: c.name)
def test_loss(case, any_backend, device):
    """gradcheck accepts every element of every argument, temperature and logit_scale included."""
    skip_unless_served(any_backend, device, torch.float64)
    n, d = (3, 2) if is_interpreted(any_backend) else (5, 3)
    inputs = case.draw(n, d, device=device)
    check(
        loss_of(case, any_backend, inputs), tuple(inputs.values()), fast=is_interpreted(any_backend)
    )


@pytest.mark.interpreter(case=("nt_xent", "info_nce-symmetric"))
@pytest.mark.parametrize("case", LOSSES, ids=lambda c: c.name)
def test_loss_across_tiles(case, backend, device, monkeypatch):
    skip_unless_served(backend, device, torch.float64)
    monkeypatch.setattr(panels, "PANEL", 1000)
    n, d = (35, 5) if is_interpreted(backend) else (131, 5)
    inputs = case.draw(n, d, device=device)
    check(loss_of(case, backend, inputs), tuple(inputs.values()), fast=True)


@pytest.mark.parametrize("use", uses.USES, ids=str)
def test_primitive(use, any_backend, device):
    """gradcheck accepts the gradients of a, b, scale and bias.

    They come from the rows and, where returned, the columns. Each upstream gradient is undefined in
    turn.
    """
    skip_unless_served(any_backend, device, torch.float64)
    named = small_inputs(use, device)
    names, function = outputs_of(use, any_backend, named)
    out = function(*(named[name] for name in names))
    assert all(o.isfinite().all() for o in out), "the small case must have candidates everywhere"
    check(function, tuple(named[name] for name in names), fast=is_interpreted(any_backend))


@pytest.mark.interpreter(
    use=(
        "all-one-columns-bias-normalize",
        "not_pair-two-offset1-bias",
        "same_key-two-offset1-columns-bias",
    )
)
@pytest.mark.parametrize("use", uses.USES, ids=str)
def test_primitive_across_tiles(use, backend, device, monkeypatch):
    skip_unless_served(backend, device, torch.float64)
    monkeypatch.setattr(panels, "PANEL", 1000)
    m, n = (35, 19) if is_interpreted(backend) else (131, 70)
    named = use.draw(m, n, 3, device=device)
    if use.kind == "same_key":
        # key_b has no 4, and a row without candidates is -inf.
        named["key_a"] %= 4
    names, function = outputs_of(use, backend, named)
    check(function, tuple(named[name] for name in names), fast=True)


@pytest.mark.parametrize(
    "needed", (("a",), ("b",), ("scale",), ("bias",), ("a", "scale"), ("b", "bias")), ids="-".join
)
@pytest.mark.parametrize("columns", (False, True))
def test_only_some_gradients(needed, columns, backend, device):
    """Whatever subset of a, b, scale and bias needs gradients gets the same ones."""
    use = uses.Use("not_self", False, columns=columns, self_offset=1, bias=True, normalize=True)
    named = use.draw(9, 7, 4, device=device)
    _, function = outputs_of(use, backend, named)
    everything = list(named.values())
    loss = sum(
        (o * torch.arange(1, o.numel() + 1, device=device)).sum() for o in function(*everything)
    )
    full = dict(zip(named, torch.autograd.grad(loss, everything), strict=True))
    some = {name: x.detach().requires_grad_(name in needed) for name, x in named.items()}
    loss = sum(
        (o * torch.arange(1, o.numel() + 1, device=device)).sum() for o in use.apply(some, backend)
    )
    loss.backward()
    for name, x in some.items():
        if name in needed:
            torch.testing.assert_close(x.grad, full[name])
        else:
            assert x.grad is None


def test_one_direction_unused(backend, device):
    """Gradients are right with only one of the two outputs of return_columns in the graph."""
    use = uses.Use("all", False, columns=True)
    for index in (0, 1):
        named = use.draw(6, 5, 3, device=device)
        use.apply(named, backend)[index].sum().backward()
        expected = use.draw(6, 5, 3, device=device)
        use.apply(expected, "reference")[index].sum().backward()
        for name in ("a", "b", "scale"):
            torch.testing.assert_close(named[name].grad, expected[name].grad)


def test_negative_and_learned_scale(backend, device):
    """A scale may have either sign, and may be a 0-d tensor of float64 or float32.

    It may live on the inputs' device or on the CPU.
    """
    for value in (-1.3, 2.0):
        for dtype in (torch.float64, torch.float32):
            for where in {device, torch.device("cpu")}:
                use = uses.Use("not_self", True, normalize=True)
                named = use.draw(6, 6, 3, device=device)
                named["scale"] = torch.tensor(value, dtype=dtype, device=where, requires_grad=True)
                use.apply(named, backend)[0].sum().backward()
                expected = use.draw(6, 6, 3, device=device)
                expected["scale"] = torch.tensor(
                    value, dtype=torch.float64, device=device, requires_grad=True
                )
                use.apply(expected, "reference")[0].sum().backward()
                assert (
                    named["scale"].grad.dtype == dtype
                    and named["scale"].grad.device.type == where.type
                )
                torch.testing.assert_close(
                    named["scale"].grad.to(device, torch.float64),
                    expected["scale"].grad,
                    rtol=1e-6,
                    atol=1e-7,
                )
                torch.testing.assert_close(
                    named["a"].grad, expected["a"].grad, rtol=1e-6, atol=1e-7
                )
