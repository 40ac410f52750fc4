"""The CUDA kernels agree with the dense float64 oracle of the contract in ops.py.

They run on a GPU with ``--device cuda``. Otherwise the host shim (cuda_host) executes them on the
CPU.

The shim replaces the instructions, descriptors, tensor maps and fences of warpgroup products and
tensor copies on sm_90a. See cuda_host/warpgroup_host.h and tensor_copy_host.h. Only a GPU checks
what it replaces.
"""

from __future__ import annotations

from dataclasses import replace

import cuda_host
import pytest
import torch
from support import native_calls as contract
from support.cuda_calls import Call, backend, operators  # noqa: F401
from support.cuda_cases import (
    CASES,
    ORDERED,
    POSITIVES,
    SYMMETRIC,
    TOLERANCE,
    precision,  # noqa: F401
)

from fused_contrastive.backends.cuda import _tiles
from fused_contrastive.backends.tiled import plan as tiling

check = contract.check


@pytest.mark.parametrize("M", [1, 65, 200])
@pytest.mark.parametrize("case", SYMMETRIC)
def test_one_set(case, M):
    check(replace(CASES[case], M=M))


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("sizes", [(1, 1), (65, 129), (7, 200), (150, 5)], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_two_sets(case, sizes, columns):
    check(replace(CASES[case], M=sizes[0], N=sizes[1], columns=columns))


@pytest.mark.parametrize("offset", [1, -1, 63, 64, -64, 127, -127])
@pytest.mark.parametrize("kind", ["not_self", "not_pair"])
def test_diagonals_through_corners_of_tiles(kind, offset):
    """A diagonal through the corner of a tile masks one pair of that tile, or none.

    Tiles are 64 wide in float64 and 128 wide in float16.
    """
    for dtype in (torch.float64, torch.float16):
        stride = 200 if kind == "not_pair" else 1
        check(
            Call(
                M=200,
                N=200,
                D=8,
                kind=kind,
                offset=offset % stride if stride > 1 else offset,
                stride=stride,
                dtype=dtype,
            )
        )


@pytest.mark.parametrize("scale", [5.0, -5.0, 150.0])
@pytest.mark.parametrize("case", POSITIVES)
def test_positive(case, scale):
    call = POSITIVES[case]
    check(replace(call, scale=scale * (call.scale / 5)))


@pytest.mark.parametrize("bias", ["values", "padding"])
@pytest.mark.parametrize(
    "case", [name for name, call in (POSITIVES | CASES).items() if call.positive < 0 or call.N]
)
def test_bias(case, bias):
    call = (POSITIVES | CASES)[case]
    bias = "values" if call.positive >= 0 else bias
    call = replace(call, bias=bias, N=call.N or 75)
    check(call)
    check(replace(call, scale=200.0 * call.scale / 5), 1e-10)


@pytest.mark.parametrize("case", ["nt_xent", "clip", "in_batch", "keyed"])
def test_precisions(case, precision):
    """Every precision is right in both regimes: with direct sums and with running maxima."""
    name, dtype = precision
    call = replace(POSITIVES[case], dtype=dtype)
    check(call, TOLERANCE[name])
    check(replace(call, D=33, scale=call.scale * 40), 6 * TOLERANCE[name])


@pytest.mark.parametrize("D", [1, 2, 7, 8, 15, 16, 33, 64, 65, 130, 200, 328])
def test_widths_and_groups(D, precision):
    name, dtype = precision
    if D < 15 and name in ("bf16", "fp16", "tf32"):
        # Rounding moves rows this short off the unit circle, so no common tolerance holds.
        dtype = torch.float64
    tolerance = TOLERANCE[name] if dtype != torch.float64 else 1e-12
    check(Call(G=2, M=45, N=70, D=D, kind="not_self", columns=True, dtype=dtype), 2 * tolerance)
    check(Call(G=3, M=45, D=D, kind="not_self", dtype=dtype), 2 * tolerance)


@pytest.mark.parametrize("D", [24, 36])
def test_rows_at_any_address(D, precision):
    """Rows at any address give the same results.

    Tensor copies need addresses at multiples of 16 bytes. Other matrices go another way.
    """
    name, dtype = precision
    call = Call(M=70, D=D, kind="not_self", normalize=False, scale=0.5, dtype=dtype)
    a = call.inputs[0]
    shifted = torch.cat([a.new_zeros(1), a.flatten()])[1:].view_as(a)
    results = []
    for inputs in (call.inputs, (shifted, *call.inputs[1:])):
        outputs = call.forward(inputs)
        results.append((outputs[0][0], call.backward(outputs, inputs=inputs)[0]))
    for x, y in zip(*results, strict=True):
        contract.assert_close("result", x.double(), y.double(), 2 * TOLERANCE[name])


@pytest.mark.parametrize("scale", [4.0, 300.0])
@pytest.mark.parametrize("D", [33, 64, 100, 150])
def test_weighted(D, scale, precision):
    """Weighted means are right in both ways of computing them.

    `fused_rows` serves up to D = 128 (in float64, D = 64), and panels serve a larger D.
    """
    name, dtype = precision
    call = Call(
        G=2,
        M=70,
        N=200,
        D=D,
        kind="not_self",
        weighted=True,
        scale=scale,
        dtype=dtype,
        bias="padding",
    )
    tolerance = TOLERANCE[name] * (8 if scale > 100 else 1)
    outputs, _ = check(call, tolerance)
    saved = call.backward(outputs, (True, False, True, False))
    without = call.backward((*outputs[:-1], outputs[-1].new_empty(0)), (True, False, True, False))
    for label, x, y in zip(("da", "dscale"), saved[::2], without[::2], strict=True):
        contract.assert_close(label, x, y, 4 * tolerance)


@pytest.mark.parametrize("kind", ["not_pair", "other_key", "same_key"])
def test_weighted_kinds(kind):
    call = Call(M=90, N=75, kind=kind, stride=25, weighted=True, extrema=True)
    check(call)
    check(replace(call, D=100))


@pytest.mark.parametrize("tiles", [2, 5, 6], ids=lambda n: f"{n}-tiles")
@pytest.mark.parametrize("scale", [5.0, 150.0])
def test_strips_of_tiles(tiles, scale, precision, device, monkeypatch):
    """Super-tiles of several tiles are right.

    Some have more columns than have statistics in shared memory at a time.
    """
    name, dtype = precision
    unit = _tiles.super_unit(torch.empty(0, dtype=dtype, device=device))
    monkeypatch.setattr(tiling, "super_tile", lambda M, N, symmetric, unit: tiles * unit)
    tolerance = TOLERANCE[name] * (8 if scale > 100 else 1)
    call = Call(M=5 * unit + 10, D=16, kind="not_pair", stride=unit, scale=scale, dtype=dtype)
    forward(call, tolerance)
    forward(replace(call, N=3 * unit + 5, kind="not_self", columns=True), tolerance)
    if name == "fp64":
        wide = Call(M=70, N=700, D=8, kind="all", columns=True, scale=scale)
        monkeypatch.setattr(tiling, "super_tile", lambda M, N, symmetric, unit: 11 * unit)
        forward(wide, tolerance)
        forward(Call(M=700, D=8, scale=scale), tolerance)


def forward(call, tolerance):
    want = contract.dense(call, *call.inputs)
    for name, got in zip(contract.NAMES, call.forward(), strict=True):
        if name in want and got.numel():
            contract.assert_close(
                name, got[0] if name in ("rows", "cols") else got, want[name], tolerance
            )


@pytest.mark.parametrize("case", ["nt_xent", "clip", "in_batch", "cpc"])
def test_panels_of_a_small_workspace(case, monkeypatch):
    call = replace(POSITIVES[case], G=2)
    whole = call.backward(call.forward())
    for workspace in (8 * 3000, 8 * 9000):
        monkeypatch.setattr(tiling, "WORKSPACE", workspace)
        for x, y in zip(whole, call.backward(call.forward()), strict=True):
            if x.numel():
                contract.assert_close("gradient", y, x, 1e-12)


@pytest.mark.parametrize("case", ["nt_xent", "clip", "in_batch"])
def test_extrema(case, precision):
    check(replace(POSITIVES[case], extrema=True, dtype=precision[1]), TOLERANCE[precision[0]])


def test_mixed_dtypes():
    """Matrices may have another dtype than the inputs, as autocast asks for.

    The gradients have the dtype of the inputs.
    """
    for given, dtype in (
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float16),
        (torch.float16, torch.float32),
    ):
        call = replace(POSITIVES["in_batch"], dtype=dtype, input_dtype=given)
        outputs, gradients = check(call, 2e-2)
        assert outputs[6].dtype == dtype and gradients[0].dtype == given


@pytest.mark.parametrize("case", ["nt_xent", "clip", "keyed"])
@pytest.mark.parametrize("scale", [1e-3, -1e3, 1e4])
def test_extreme_scales(case, scale):
    for dtype in (torch.float64, torch.float32):
        tolerance = contract.TOLERANCE[dtype] * max(1.0, abs(scale) / 20)
        check(replace(POSITIVES[case], scale=scale, normalize=True, dtype=dtype), tolerance)


@pytest.mark.parametrize("scale", [20.0, 1e4])
@pytest.mark.parametrize("columns", [False, True])
def test_weights_sum_to_one(columns, scale, precision):
    """The weights of a row sum to 1, however large the logits are.

    Nothing is lost by rounding a log-sum-exp, and levels of weights are exact.
    """
    name, dtype = precision
    call = Call(
        G=40, M=1, N=90, kind="all", columns=columns, bias="values", scale=scale, dtype=dtype
    )
    outputs = call.forward()
    g_rows, g_cols = (torch.ones_like(x) for x in call.upstream())
    sums = call.backward(outputs, upstream=(g_rows, g_cols))[3].sum(1)
    expected = 1.0 + g_cols.shape[-1] if columns else 1.0
    assert (sums / expected - 1).abs().max() < {"bf16": 4e-3, "fp16": 1e-3, "fp64": 1e-14}.get(
        name, 2e-6
    )


@pytest.mark.parametrize("scale", [20.0, 1e4])
def test_derivatives_by_the_logits_sum_to_zero(scale, precision):
    """With a positive, the derivatives by the logits sum to 0, however large the logits are.

    The pull of the positive is the sum of the weights.
    """
    name, dtype = precision
    call = Call(G=40, M=1, N=90, positive=0, bias="values", scale=scale, dtype=dtype)
    sums = call.backward(
        call.forward(), upstream=(torch.ones(40, 1, dtype=call.inputs[2].dtype), torch.zeros(0))
    )[3].sum(1)
    assert sums.abs().max() < {"bf16": 4e-3, "fp16": 1e-3, "fp64": 1e-14}.get(name, 2e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16", "tf32x3"], indirect=True)
def test_converged_training(precision):
    """The gradient keeps its relative accuracy for views 0.3 sigma apart at T = 0.02.

    It is compared with the oracle on the same rounded rows.
    """
    name, dtype = precision
    call = Call(
        M=200,
        D=64,
        kind="not_pair",
        stride=100,
        positive=100,
        scale=50.0,
        dtype=dtype,
        input_dtype=torch.float32,
    )
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(100, 64, generator=generator)
    x = torch.cat([z, z + 0.3 * torch.randn(100, 64, generator=generator)])[None]
    exact = x.double().requires_grad_()
    want = torch.autograd.grad(
        contract.dense(call, exact, None, torch.tensor(50.0), None, None, None)["loss"].mean(),
        exact,
    )[0]
    inputs = (x, *call.inputs[1:])
    got = call.backward(
        call.forward(inputs),
        inputs=inputs,
        upstream=(torch.full((1, 200), 1 / 200), torch.zeros(0)),
    )[0]
    assert (got.double() - want).norm() < {"bf16": 1e-2, "fp16": 1e-3, "tf32x3": 2e-5}[
        name
    ] * want.norm()


@pytest.mark.everyday(
    keep=lambda p: p["case"] in ("nt_xent", "weighted") or p["precision"] == ORDERED[p["case"]]
)
@pytest.mark.parametrize("case", ["nt_xent", "clip", "keyed", "weighted"])
def test_the_order_of_threads_does_not_matter(case, precision, device, monkeypatch):
    """Every order of threads between barriers gives the same bits, so there is no race.

    Copies and warpgroup products are done at once, or when they are waited for. On a GPU, every run
    gives the same bits.
    """
    options = cuda_host.load().options if device.type == "cpu" else lambda *options: None
    dtype = precision[1]
    unit = _tiles.super_unit(torch.empty(0, dtype=dtype, device=device))
    monkeypatch.setattr(tiling, "super_tile", lambda M, N, symmetric, unit: 2 * unit)
    if case == "weighted":
        call = Call(M=70, N=200, D=64, kind="all", weighted=True, dtype=dtype)
    else:
        call = replace(POSITIVES[case], dtype=dtype, M=2 * unit + 6, D=136, stride=unit + 3)
        call = call if call.N is None else replace(call, N=call.M)
    results = []
    for order, copies_at_once, products_at_once in (
        (1, 0, 1),
        (3, 1, 0),
        (2, 1, 0),
        (4, 1, 0),
        (3, 0, 1),
        (0, 0, 0),
    ):
        options(order, copies_at_once, products_at_once)
        outputs = call.forward()
        results.append((*outputs, *call.backward(outputs)))
    for other in results[1:]:
        for x, y in zip(results[0], other, strict=True):
            assert torch.equal(x, y)
