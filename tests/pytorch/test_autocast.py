"""Under autocast, products have the autocast dtype and everything else is float32, as in eager."""

import numpy as np
import pytest
import torch
from conftest import is_interpreted
from support import cases

import fused_contrastive as fc

NAMES = [case.name for case in cases.LOSSES]


def autocast(device, dtype=torch.bfloat16, enabled=True):
    return torch.autocast(device.type, dtype=dtype, enabled=enabled)


def errors(case, backend, device, seed, n, d):
    """Returns the relative errors of the loss and the gradients under autocast, and their dtypes.

    The inputs are float32.
    """
    g, loss, grads = cases.loss_truth(case.name, n, d, torch.float32, seed, 1.0, 0.2)
    inputs = case.draw(n, d, torch.float32, device, seed, temperature=0.2)
    with autocast(device):
        out = case.loss(inputs, backend)
    out.backward(g.to(out.device, out.dtype))
    found = {name: cases.relative_error(x.grad, grads[name]) for name, x in inputs.items()}
    return found | {"loss": cases.relative_error(out, loss)}, {"loss": out.dtype} | {
        k: x.grad.dtype for k, x in inputs.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_error_and_dtypes(name, backend, device):
    """The median error is at most that of eager under autocast.

    The loss and the gradients of float32 inputs are float32.
    """
    n, d = (11, 16) if is_interpreted(backend) else (70, 40)
    case = cases.BY_NAME[name]
    ours, eager = (
        [errors(case, label, device, seed, n, d) for seed in range(5)]
        for label in (backend, "reference")
    )
    for key in ours[0][0]:
        error, theirs = (np.median([e[0][key] for e in values]) for values in (ours, eager))
        assert error <= max(theirs, 4 * torch.finfo(torch.bfloat16).eps), (
            f"{key}: {error:.2e}, eager {theirs:.2e}"
        )
    assert set(ours[0][1].values()) == {torch.float32}


def test_products_are_in_the_autocast_dtype(backend, device):
    """The loss under autocast is that of bfloat16 embeddings.

    So it is not more precise than asked, either.
    """
    z1, z2 = (torch.randn(9, 20, device=device) for _ in range(2))
    with autocast(device):
        found = fc.clip_loss(z1, z2, 0.3, reduction="none", backend=backend)
    rounded = fc.clip_loss(z1.bfloat16(), z2.bfloat16(), 0.3, reduction="none", backend=backend)
    exact = fc.clip_loss(z1, z2, 0.3, reduction="none", backend=backend)
    torch.testing.assert_close(found, rounded, rtol=1e-5, atol=1e-5)
    assert (found - exact).abs().max() > 1e-4


@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_mixed_dtypes(name, half, backend, device):
    """Inside autocast the two sets may have different dtypes.

    Outside autocast this is an error, which test_errors.py checks.
    """
    case = cases.BY_NAME[name]
    inputs = case.draw(6, 8, torch.float32, device)
    half = list(inputs)[half]
    if "z1" in inputs:
        pytest.skip("both views are put together, which promotes them")
    inputs[half] = inputs[half].detach().bfloat16().requires_grad_()
    with autocast(device):
        loss = case.loss(inputs, backend)
    loss.sum().backward()
    for x in inputs.values():
        assert x.grad.dtype == x.dtype and x.grad.isfinite().all()
    expected = {k: x.detach().float().requires_grad_() for k, x in inputs.items()}
    torch.testing.assert_close(loss, case.loss(expected, backend), rtol=5e-2, atol=5e-2)


def test_mixed_dtypes_of_views(backend, device):
    z1, z2 = (
        torch.randn(6, 8, device=device),
        torch.randn(6, 8, device=device, dtype=torch.bfloat16),
    )
    with autocast(device):
        loss = fc.nt_xent_loss(z1, z2, backend=backend)
    torch.testing.assert_close(
        loss, fc.nt_xent_loss(z1, z2.float(), backend=backend), rtol=5e-2, atol=5e-2
    )


def test_float64_stays(backend, device):
    """Autocast leaves float64 alone, as torch.matmul does."""
    z1, z2 = (torch.randn(6, 8, device=device, dtype=torch.float64) for _ in range(2))
    expected = fc.nt_xent_loss(z1, z2, backend=backend)
    with autocast(device):
        assert torch.equal(fc.nt_xent_loss(z1, z2, backend=backend), expected)


def test_backward_inside_autocast(backend, device):
    """Gradients do not depend on whether backward runs inside the context."""
    case = cases.BY_NAME["info_nce-symmetric"]
    grads = []
    for inside in (False, True):
        inputs = case.draw(7, 8, torch.float32, device)
        with autocast(device):
            loss = case.loss(inputs, backend, reduction="mean")
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        grads.append([x.grad for x in inputs.values()])
    for x, y in zip(*grads, strict=True):
        assert torch.equal(x, y)


def test_disabled_region(backend, device):
    z1, z2 = (torch.randn(6, 8, device=device) for _ in range(2))
    expected = fc.nt_xent_loss(z1, z2, backend=backend)
    with autocast(device), torch.autocast(device.type, enabled=False):
        assert torch.equal(fc.nt_xent_loss(z1, z2, backend=backend), expected)


@pytest.mark.no_poison
@pytest.mark.everyday(
    keep=lambda p: p["name"] in (cases.ONE_OF_EACH if p["inside"] else ("nt_xent", "clip"))
)
@pytest.mark.parametrize("inside", (False, True))
@pytest.mark.parametrize("name", NAMES)
def test_compiled(name, inside, device):
    """A compiled loss gives the same numbers as without the compiler.

    This holds whether autocast is inside the compiled function or around it.
    """
    torch.compiler.reset()
    case = cases.BY_NAME[name]
    inputs = case.draw(9, 8, torch.float32, device)
    names = list(inputs)

    def loss(*values):
        return case.loss(dict(zip(names, values, strict=True)), None, reduction="mean")

    def loss_in_autocast(*values):
        with autocast(device):
            return loss(*values)

    compiled = torch.compile(
        loss_in_autocast if inside else loss, fullgraph=True, backend="aot_eager"
    )
    with autocast(device, enabled=not inside):
        found = compiled(*inputs.values())
    expected = loss_in_autocast(*inputs.values())
    tolerance = {}
    # torch 2.11 traces more operations inside autocast than are really inside it.
    if torch.__version__ < "2.12" and name in ("distill", "sup_con-weights"):
        tolerance = {"rtol": 2e-2, "atol": 1e-3}
    torch.testing.assert_close(found, expected, **tolerance)
    for x, y in zip(
        *(torch.autograd.grad(value, inputs.values()) for value in (found, expected)), strict=True
    ):
        torch.testing.assert_close(x, y, **tolerance)


def test_grad_scaler(device):
    """A GradScaler works with a loss in half precision.

    The unscaled gradients are the plain ones. A step is skipped where the gradients overflow.
    """
    torch.manual_seed(0)
    encoder = torch.nn.Linear(6, 8).to(device)
    module = fc.NTXentLoss(0.2, learnable=True).to(device)
    parameters = [*encoder.parameters(), *module.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**10)
    x, y = torch.randn(9, 6, device=device), torch.randn(9, 6, device=device)

    def loss(x):
        with autocast(device, torch.float16):
            return module(encoder(x), encoder(y))

    plain = torch.autograd.grad(loss(x), parameters)
    scaler.scale(loss(x)).backward()
    scaler.unscale_(optimizer)
    for parameter, expected in zip(parameters, plain, strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=2e-2, atol=1e-4)
    before = loss(x).item()
    scaler.step(optimizer)
    scaler.update()
    assert loss(x) < before and scaler.get_scale() == 2.0**10
    optimizer.zero_grad()
    kept = [parameter.detach().clone() for parameter in parameters]
    scaler.scale(loss(x.index_fill(0, torch.tensor([0], device=device), 1e30))).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**9
    assert all(torch.equal(parameter, old) for parameter, old in zip(parameters, kept, strict=True))
