"""Sums of softplus, their gradients and SigLIP agree with the float64 oracle.

Other tests of the sigmoid family cover its corners and PyTorch's own tools.
"""

import functools
import math

import numpy as np
import pytest
import torch
from conftest import is_interpreted, skip_unless_served
from oracles import similarity as oracle
from support import sigmoid_cases as cases
from support.cases import positive_weights, relative_error
from support.sigmoid_cases import USES, Use
from support.yardstick import assert_within_yardstick

import fused_contrastive as fc
from fused_contrastive.autograd import sigmoid
from fused_contrastive.backends.panels import _panel as panels
from fused_contrastive.ops import sigmoid as sigmoid_ops
from fused_contrastive.problem import NO_SELF

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
FEW = (
    "not_self-two-plus-offset0-positive0-row_bias",
    "same_key-one-minus-row_bias-normalize",
    "not_pair-two-plus-offset1-row_bias",
)
OPS = ("sigmoid_forward", "sigmoid_backward")


@functools.lru_cache(maxsize=256)
def truth(use, m, n, d, dtype, seed):
    """Return ``(upstream gradient, rows, gradients by name)`` of the oracle.

    They are computed once for all backends.
    """
    g = positive_weights((*use.lead, m), seed)
    rows, _, _, grads = use.truth(use.draw(m, n, d, dtype, seed=seed), g)
    return g, rows, grads


@functools.lru_cache(maxsize=1024)
def errors(use, backend, m, n, d, dtype, device, seed) -> dict:
    """Return the relative errors of the rows and of every gradient."""
    g, rows, grads = truth(use, m, n, d, dtype, seed)
    named = use.draw(m, n, d, dtype, device, seed=seed)
    out = use.apply(named, backend)
    out.rows.backward(g.to(out.rows))
    found = {"rows": (out.rows, rows)} | {k: (named[k].grad, v) for k, v in grads.items()}
    # No error is 0, because ratios of errors are taken.
    return {k: max(relative_error(x, y), 1e-18) for k, (x, y) in found.items()}


@pytest.mark.interpreter(use=FEW, dtype=(torch.float32, torch.bfloat16))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("use", USES, ids=str)
def test_errors(use, dtype, backend, device, monkeypatch):
    """Errors of the rows and of every gradient are at most those of the dense form.

    The dense form computes half precision in float32.
    """
    skip_unless_served(backend, device, dtype)
    monkeypatch.setattr(panels, "PANEL", 1000)
    m, n, d = (17, 21, 12) if is_interpreted(backend) else (37, 41, 20)
    ours, eager = (
        [errors(use, name, m, n, d, dtype, device, seed) for seed in range(5)]
        for name in (backend, "eager")
    )
    assert_within_yardstick(ours, eager, dtype)


@pytest.mark.interpreter(use=FEW)
@pytest.mark.parametrize("use", USES, ids=str)
def test_gradcheck(use, backend, device, monkeypatch):
    skip_unless_served(backend, device, torch.float64)
    monkeypatch.setattr(panels, "PANEL", 20)
    named = use.draw(6, 7, 2, device=device)
    names = [name for name, x in named.items() if x.requires_grad]

    def function(*values):
        return use.apply(named | dict(zip(names, values, strict=True)), backend).rows

    leaves = tuple(named[name] for name in names)
    assert torch.autograd.gradcheck(
        function, leaves, fast_mode=is_interpreted(backend), eps=1e-6, atol=1e-6, rtol=1e-5
    )


@pytest.mark.interpreter(use=FEW)
@pytest.mark.parametrize("use", USES, ids=str)
def test_extrema_and_positives(use, backend, device):
    named = use.draw(11, 13, 5, device=device)
    out = use.apply(named, backend, extrema=True)
    rows, pos, top, _ = use.truth(named, np.ones((*use.lead, 11)))
    np.testing.assert_allclose(oracle.array(out.rows), rows, rtol=1e-12)
    np.testing.assert_allclose(oracle.array(out.row_max), top, rtol=1e-12)
    assert (out.pos is None) == (use.positive < 0) and not out.row_max.requires_grad
    if out.pos is not None:
        np.testing.assert_allclose(oracle.array(out.pos), pos, rtol=1e-12)
        assert not out.pos.requires_grad


@pytest.mark.parametrize("needed", ("a", "b", "scale", "row_bias"))
def test_only_one_gradient(needed, backend, device):
    use = Use("not_self", offset=1, positive=2)
    named = use.draw(6, 8, 4, device=device)
    g = torch.arange(1, 7, device=device, dtype=torch.float64)
    full = dict(
        zip(
            named,
            torch.autograd.grad((use.apply(named, backend).rows * g).sum(), named.values()),
            strict=True,
        )
    )
    some = {name: x.detach().requires_grad_(name == needed) for name, x in named.items()}
    (use.apply(some, backend).rows * g).sum().backward()
    for name, x in some.items():
        if name == needed:
            torch.testing.assert_close(x.grad, full[name])
        else:
            assert x.grad is None


@pytest.mark.parametrize("sign", (1, -1))
def test_large_logits(sign, backend, device):
    """Softplus and sigmoid are right at their limits.

    Logits are 1e4 and beyond in size, biases are infinite of either sign, and some rows have no
    candidates.
    """
    x = torch.tensor([0.0, 50.0, -50.0, 1e4, -1e4, 90.0, -90.0], dtype=torch.float32, device=device)
    row_bias = torch.tensor(
        [0.0, 3.0, math.inf, -math.inf, 5.0], dtype=torch.float32, device=device, requires_grad=True
    )
    a = torch.ones(5, 1, device=device, requires_grad=True)
    b = x.unsqueeze(1).clone().requires_grad_()
    keys = {
        "key_a": torch.tensor([1, 1, 1, 1, 0], device=device),
        "key_b": torch.ones(7, dtype=torch.long, device=device),
    }
    results = []
    for name, dtype in ((backend, torch.float32), ("eager", torch.float64)):
        leaves = [t.detach().to(dtype).requires_grad_() for t in (a, b, row_bias)]
        scale = torch.ones((), dtype=dtype, device=device)
        out = sigmoid.sigmoid_sum(
            leaves[0],
            leaves[1],
            scale,
            leaves[2],
            sign=sign,
            kind="same_key",
            offset=NO_SELF,
            **keys,
            backend=name,
        )
        weights = torch.tensor([1.0, 2.0, 0.5, 0.5, 3.0], dtype=dtype, device=device)
        gradients = torch.autograd.grad((out.rows * weights).nan_to_num(posinf=0.0).sum(), leaves)
        results.append((out.rows, *gradients))
    ours, truth = results
    assert ours[0][4] == 0 and all(g[4].abs().max() == 0 for g in (ours[1], ours[3]))
    assert ours[0][2:4].sort().values.tolist() == [0.0, math.inf]
    for found, wanted in zip(ours, truth, strict=True):
        torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-5, atol=1e-35)


@pytest.mark.parametrize("sign", (1, -1))
def test_terms_far_below_one(sign, backend, device):
    """softplus(-60), softplus(-80) and their derivatives are accurate relative to themselves."""
    for bias in (-60.0, -80.0):
        a = torch.ones(1, 1, device=device, requires_grad=True)
        row_bias = torch.tensor([sign * bias], device=device, requires_grad=True)
        out = sigmoid.sigmoid_sum(
            a,
            torch.zeros(3, 1, device=device),
            torch.ones((), device=device),
            row_bias,
            sign=sign,
            backend=backend,
        )
        out.rows.backward(torch.ones_like(out.rows))
        expected = 3 * math.exp(bias)
        assert math.isclose(out.rows.item(), expected, rel_tol=1e-5)
        assert math.isclose(row_bias.grad.item(), sign * expected, rel_tol=1e-5)


def test_many_tiny_terms(backend, device):
    """The error of a long sum is at most eager's, or half an ulp of float32.

    The sum has N = 20000 softplus terms near 4.5e-5.
    """
    if is_interpreted(backend):
        pytest.skip("minutes in the interpreter")
    n, generator = 20000, torch.Generator().manual_seed(0)
    a, b = (
        torch.nn.functional.normalize(torch.randn(k, 32, generator=generator), dim=1)
        for k in (40, n)
    )
    x = 10 * oracle.array(a) @ oracle.array(b).T - 10
    truth = cases.softplus(x).sum(1)
    bias = torch.tensor(-10.0, device=device)
    scale = torch.tensor(10.0, device=device)
    a, b = a.to(device), b.to(device)
    ours, eager = (
        sigmoid.sigmoid_sum(a, b, scale, bias, backend=name).rows for name in (backend, "eager")
    )
    assert relative_error(ours, truth) <= max(relative_error(eager, truth), 6e-8)


def test_zero_and_equal_rows_and_strides(backend, device):
    use = Use("not_self", offset=0, positive=0, normalize=True)
    named = use.draw(9, 9, 4, device=device)
    with torch.no_grad():
        named["a"][2] = 0
        named["b"][5] = 0
        named["a"][3] *= 1e-13
        named["b"][6] = named["a"][6]
    wide = {
        k: torch.stack([x.detach(), x.detach()], -1)[..., 0].requires_grad_() if x.dim() else x
        for k, x in named.items()
    }
    assert not wide["a"].is_contiguous()
    g = torch.randn(9, 2, dtype=torch.float64, device=device)[:, 0]
    rows, _, _, grads = use.truth(named, g)
    out = use.apply(wide, backend)
    out.rows.backward(g)
    np.testing.assert_allclose(oracle.array(out.rows), rows, rtol=1e-10)
    for k, x in grads.items():
        np.testing.assert_allclose(oracle.array(wide[k].grad), x, rtol=1e-8, atol=1e-10, err_msg=k)


def test_empty(backend, device):
    for m, n, d in ((0, 4, 3), (4, 0, 3), (3, 4, 0)):
        named = Use().draw(m, n, d, device=device)
        out = Use().apply(named, backend)
        assert out.rows.shape == (m,)
        out.rows.sum().backward()
        assert all(x.grad.shape == x.shape for x in named.values())
        rows, _, _, _ = Use().truth(named, np.ones(m))
        np.testing.assert_allclose(oracle.array(out.rows), rows)


@pytest.mark.no_poison
@pytest.mark.interpreter(use=FEW[:1])
@pytest.mark.parametrize("use", [use for use in USES if not use.lead][::2], ids=str)
def test_opcheck(use, backend, device, monkeypatch):
    """The ops have the right schemas, fakes and aliasing, as the autograd function calls them.

    The op of second derivatives is the same for all backends.
    """
    calls = {}
    for op in OPS:
        original = getattr(sigmoid_ops, op)
        monkeypatch.setattr(
            sigmoid_ops,
            op,
            lambda *arguments, original=original, op=op: (
                calls.setdefault(op, arguments) and original(*arguments)
            ),
        )
    named = use.draw(6, 7, 4, torch.float32, device)
    use.apply(named, backend, extrema=True).rows.sum().backward()
    tangents = [None if x is None else torch.randn_like(x) for x in calls["sigmoid_backward"][1:5]]
    calls["sigmoid_second"] = (*tangents, *calls["sigmoid_backward"])
    for op in calls:
        function = getattr(torch.ops.fused_contrastive, op)
        arguments = [x.detach() if isinstance(x, torch.Tensor) else x for x in calls[op]]
        if not is_interpreted("triton") or backend != "triton":
            torch.library.opcheck(function.default, tuple(arguments))
        with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
            fake = function(*arguments)
        for x, y in zip(function(*arguments), fake, strict=True):
            assert (x.shape, x.dtype, x.stride()) == (y.shape, y.dtype, y.stride())


def test_func_grad(backend, device):
    named = Use().draw(4, 5, 3, device=device)
    expected = torch.autograd.grad(Use().apply(named, backend).rows.sum(), named.values())
    values = tuple(x.detach() for x in named.values())
    found = torch.func.grad(
        lambda *v: Use().apply(dict(zip(named, v, strict=True)), backend).rows.sum(),
        tuple(range(len(values))),
    )(*values)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y)


def test_siglip(backend, device):
    """SigLIP with a learnable scale and bias has the loss and gradients of the oracle.

    The mean is over images, and the metrics are those of finding an image's text.
    """
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(12, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    named = {"image_features": image, "text_features": text + image}
    named |= {
        "logit_scale": torch.tensor(2.0, dtype=torch.float64),
        "logit_bias": torch.tensor(-3.0, dtype=torch.float64),
    }
    named = {k: x.to(device).requires_grad_() for k, x in named.items()}
    g = torch.linspace(0.5, 2.0, 12, dtype=torch.float64, device=device)
    rows, grads = cases.siglip(**named, g=oracle.array(g))
    loss = fc.siglip_loss(**named, reduction="none", backend=backend)
    loss.backward(g)
    np.testing.assert_allclose(oracle.array(loss), rows, rtol=1e-12)
    for k, x in grads.items():
        np.testing.assert_allclose(oracle.array(named[k].grad), x, rtol=1e-10, err_msg=k)
    mean, metrics = fc.siglip_loss(**named, metrics=True, backend=backend)
    expected = fc.siglip_loss(**named, metrics=True, backend="eager")
    assert math.isclose(mean.item(), rows.sum() / 12, rel_tol=1e-12)
    torch.testing.assert_close((mean, metrics), expected)
    assert 0 < metrics["accuracy"] < 1
    numbers = fc.siglip_loss(
        named["image_features"], named["text_features"], 2, -3.0, reduction="sum", backend=backend
    )
    assert math.isclose(numbers.item(), rows.sum(), rel_tol=1e-12)
