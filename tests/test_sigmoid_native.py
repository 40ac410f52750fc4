"""The native CPU kernels of the sigmoid family against the dense form in float64 (which test_sigmoid.py holds against the oracle)."""

from dataclasses import replace

import pytest
import torch
from sigmoid_cases import USES, Use
from test_native_kernels import isa, poisoned  # noqa: F401

from fused_contrastive import native

pytestmark = pytest.mark.skipif(native.refusal(torch.device("cpu"), torch.float32) is not None, reason=native.status())

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
SIZES = ((1, 1), (2, 3), (33, 31), (64, 64), (129, 65), (70, 200), (7, 700), (700, 5))


def run(use, named, backend, **more):
    leaves = {k: x.detach().requires_grad_(x.is_floating_point()) for k, x in named.items()}
    out = use.apply(leaves, backend, extrema=True, **more)
    weights = torch.linspace(0.5, 2.0, out.rows.numel(), dtype=out.rows.dtype).view_as(out.rows)
    out.rows.backward(weights)
    found = {"rows": out.rows.detach(), "top": out.row_max.clamp_min(-1e3)}
    return found | {k: x.grad for k, x in leaves.items() if x.grad is not None}


def check(use, m, n, d, dtype=torch.float64):
    if use.positive >= 0 and not use.one_set:
        n = max(n, m)
    named = use.draw(m, n, d, dtype)
    wide = {k: x.double() if x.is_floating_point() else x for k, x in named.items()}
    found, expected = run(use, named, "cpu"), run(use, wide, "eager")
    for name, x in expected.items():
        error = (found[name].double() - x).norm() / x.norm().clamp_min(1.0)  # gradients of order 1 may cancel to 0
        assert error <= TOLERANCE[dtype], (name, m, n, d, dtype, error)


@pytest.mark.parametrize("use", USES, ids=str)
def test_sizes(use, poisoned):  # noqa: F811
    """One element, whole and ragged blocks, many rows by few columns and the other way round."""
    for m, n in SIZES:
        check(use, m, n, 9)


@pytest.mark.parametrize("d", (1, 2, 15, 16, 17, 33, 70))
def test_widths_and_groups(d, poisoned):  # noqa: F811
    for dtype in TOLERANCE:
        for use in USES[:4]:
            check(replace(use, lead=(3,)), 33, 45, d, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("use", (USES[0], USES[2], USES[5]), ids=str)
def test_isas(use, dtype, isa):  # noqa: F811
    check(use, 83, 131, 40, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("use", (USES[0], USES[2], Use("all", normalize=True)), ids=str)
def test_any_thread_count(use, dtype):
    """1, 2, 3 and 8 threads: the same bits."""
    before, results = torch.get_num_threads(), []
    for m, n in ((300, 333), (9, 700)):
        named = use.draw(m, n, 33, dtype)
        results = []
        try:
            for count in (1, 2, 3, 8):
                torch.set_num_threads(count)
                results.append(run(use, named, "cpu"))
        finally:
            torch.set_num_threads(before)
        for other in results[1:]:
            assert all(torch.equal(x, other[name]) for name, x in results[0].items())


@pytest.mark.parametrize("sign", (1, -1))
def test_terms(sign, isa):  # noqa: F811
    """softplus and sigmoid, one term a row, from -120 to 1e6: to 3 ulp and the logit's own rounding, zero below the smallest number."""
    x = torch.cat([torch.linspace(-85, 85, 4001), torch.tensor([-1e6, -120.0, 0.0, 1e-8, -1e-8, 120.0, 1e6])])
    for dtype, eps in ((torch.float32, 2**-24), (torch.float64, 2**-53)):
        a = torch.ones(len(x), 1, dtype=dtype)
        row_bias = x.to(dtype, copy=True).requires_grad_()
        use = Use("all", sign=sign)
        out = use.apply(
            {"a": a, "b": torch.zeros(1, 1, dtype=dtype), "scale": torch.ones((), dtype=dtype), "row_bias": row_bias},
            "cpu",
        )
        out.rows.sum().backward()
        y = sign * x.double()
        for found, expected in (
            (out.rows, torch.nn.functional.softplus(y, threshold=700)),
            (row_bias.grad, sign * torch.sigmoid(y)),
        ):
            allowed = (8 + y.abs()) * eps * expected.abs()
            assert ((found.double() - expected).abs() <= allowed.clamp_min(1e-38)).all()
