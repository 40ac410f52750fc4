"""The CPU kernels of the sigmoid family agree with the dense form in float64.

The dense form itself is checked against the oracle in test_sigmoid.py.
"""

from dataclasses import replace

import pytest
import torch
from support.native_calls import isa, poisoned  # noqa: F401
from support.sigmoid_cases import TOLERANCE, USES, Use, check, run

from fused_contrastive.backends import cpu as native

pytestmark = pytest.mark.skipif(
    native.refusal(torch.device("cpu"), torch.float32) is not None, reason=native.status()
)

SIZES = ((1, 1), (2, 3), (33, 31), (64, 64), (129, 65), (70, 200), (7, 700), (700, 5))


@pytest.mark.parametrize("use", USES, ids=str)
def test_sizes(use, poisoned):
    """The sums and gradients are right at every size.

    The sizes are one element, whole and ragged blocks, many rows by few columns, and few rows by
    many columns.
    """
    for m, n in SIZES:
        check(use, "cpu", m, n, 9)


@pytest.mark.parametrize("d", (1, 2, 15, 16, 17, 33, 70))
def test_widths_and_groups(d, poisoned):
    for dtype in TOLERANCE:
        for use in USES[:4]:
            check(replace(use, lead=(3,)), "cpu", 33, 45, d, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("use", (USES[0], USES[2], USES[5]), ids=str)
def test_isas(use, dtype, isa):
    check(use, "cpu", 83, 131, 40, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("use", (USES[0], USES[2], Use("all", normalize=True)), ids=str)
def test_any_thread_count(use, dtype):
    """The results have the same bits with 1, 2, 3 and 8 threads."""
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
def test_terms(sign, isa):
    """softplus and sigmoid are accurate for logits from -1e6 to 1e6.

    Each row has one term. Its relative error is at most 8 units of rounding, and the logit's own
    rounding. A term below the smallest normal number may be 0.
    """
    x = torch.cat(
        [torch.linspace(-85, 85, 4001), torch.tensor([-1e6, -120.0, 0.0, 1e-8, -1e-8, 120.0, 1e6])]
    )
    for dtype, eps in ((torch.float32, 2**-24), (torch.float64, 2**-53)):
        a = torch.ones(len(x), 1, dtype=dtype)
        row_bias = x.to(dtype, copy=True).requires_grad_()
        use = Use("all", sign=sign)
        out = use.apply(
            {
                "a": a,
                "b": torch.zeros(1, 1, dtype=dtype),
                "scale": torch.ones((), dtype=dtype),
                "row_bias": row_bias,
            },
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
