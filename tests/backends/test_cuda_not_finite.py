"""The CUDA similarity kernels are right on numbers that are not finite.

Some of these numbers are finite themselves, but their norms are not.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from support import native_calls as contract
from support.cuda_calls import Call, backend, operators  # noqa: F401
from support.cuda_cases import (
    POSITIVES,
    precision,  # noqa: F401
)

from fused_contrastive.backends.cuda import _tiles


@pytest.mark.parametrize("D", [8, 24, 64])
@pytest.mark.parametrize("precision", ["tf32x3", "fma"], indirect=True)
def test_no_bias_of_float32_logits(D, precision):
    """Float32 logits have no bias, because truncated sums are put right on average.

    Each row has one candidate, whose logit is the row's log-sum-exp. The bias is measured in units
    of 2^-24 of that logit.
    """
    call = Call(M=4096, N=1, D=D, kind="all", normalize=False, scale=1.0, dtype=torch.float32)
    noise, b = call.inputs[:2]
    a = b + noise
    rows = call.forward((a, *call.inputs[1:]))[0].double().sum(0)[0]
    want = (
        (a.double() @ b.double().mT)[0, :, 0] * torch.tensor(1 / math.log(2)).double() * math.log(2)
    )
    assert abs((rows - want) @ want / (want @ want)) < 0.25 * 2**-24


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("case", ["nt_xent", "clip", "in_batch"])
def test_not_finite_in_not_finite_out(case, normalize, value, monkeypatch):
    """With plain multiply-adds, results are not finite exactly where eager's are not.

    Three tf32 products are left out. They make NaN of every product with an infinity.
    """
    monkeypatch.setattr(_tiles, "float32_products", lambda _: _tiles.FMA)
    call = replace(POSITIVES[case], normalize=normalize, dtype=torch.float32)
    a = call.inputs[0].clone()
    a[0, 7, 3] = value
    inputs = (a, *call.inputs[1:])
    want = contract.dense(call, *inputs)
    outputs = call.forward(inputs)
    for name, index in (("rows", 0), ("loss", 3)):
        got = outputs[index][0] if name == "rows" else outputs[index]
        assert not torch.isfinite(got[~torch.isfinite(want[name])]).any(), name
        assert torch.isfinite(got[torch.isfinite(want[name])]).all(), name
    assert not torch.isfinite(call.backward(outputs, inputs=inputs)[0][0, 7]).all()


@pytest.mark.parametrize("value", [math.inf, -math.inf])
@pytest.mark.parametrize("case", ["in_batch", "clip"])
def test_infinite_logits(case, value, monkeypatch):
    """A row whose positive or log-sum-exp is infinite has a loss and a gradient of NaN.

    Cross entropy gives NaN there, too. A logit of -inf makes no log-sum-exp infinite.
    """
    monkeypatch.setattr(_tiles, "float32_products", lambda _: _tiles.FMA)
    for dtype in (torch.float32, torch.float64):
        call = replace(POSITIVES[case], dtype=dtype, bias="values")
        bias = call.inputs[3].clone()
        # This column is the positive of row 17 - positive, and a candidate of the other rows.
        bias[0, 17] = value
        inputs = (*call.inputs[:3], bias, None, None)
        want = contract.dense(call, *inputs)["loss"]
        bad = torch.full_like(want, value > 0, dtype=torch.bool)
        bad[0, 17 - call.positive] = True
        outputs = call.forward(inputs)
        loss, da = outputs[3], call.backward(outputs, inputs=inputs)[0]
        assert torch.equal(loss.isnan(), bad)
        assert torch.allclose(loss[~bad].double(), want[~bad], rtol=1e-5)
        assert da[bad].isnan().all()
        # The loss clip has a softmax of the column, too.
        if case == "in_batch":
            assert da[~bad].isfinite().all()


@pytest.mark.parametrize("place", [0, 3, 8, 31, 40])
def test_the_norm_of_one_row_overflows(place, monkeypatch):
    """A row whose squared norm overflows has the right log-sum-exp.

    Its square is infinite, but its logits are not. The logits then have no bound, so the sums are
    shifted, whichever thread had the row.
    """
    monkeypatch.setattr(_tiles, "float32_products", lambda _: _tiles.FMA)
    call = Call(
        M=64, N=48, D=8, kind="all", columns=True, normalize=False, scale=2.0, dtype=torch.float32
    )
    a = torch.ones(1, 64, 8)
    a[0, place] = 1e20
    b = torch.full((1, 48, 8), 1e-19)
    for first, second in ((a, b), (b, a)):
        inputs = (first, second, *call.inputs[2:])
        want = contract.dense(call, *inputs)
        outputs = call.forward(inputs)
        contract.assert_close("rows", outputs[0][0], want["rows"], 1e-5)
        contract.assert_close("cols", outputs[1][0], want["cols"], 1e-5)


def test_zero_rows():
    call = Call(M=70, N=80, kind="not_self", columns=True, positive=-1)
    a = call.inputs[0].clone()
    a[0, 3] = 0
    inputs = (a, *call.inputs[1:])
    outputs = call.forward(inputs)
    da = call.backward(outputs, inputs=inputs)[0]
    # The gradient of the zero row is not projected: it is G / 1e-12.
    assert outputs[0].isfinite().all() and da.isfinite().all() and da[0, 3].norm() > 1e6
