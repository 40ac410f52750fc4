"""The native CPU kernels agree with the dense float64 oracle of native_calls.py."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from support.native_calls import (
    TOLERANCE,
    Call,
    assert_close,
    check,
    dense,
    isa,  # noqa: F401
    oracle_gradients,
    poisoned,  # noqa: F401
)

from fused_contrastive import problem as candidates
from fused_contrastive import similarity_logsumexp
from fused_contrastive.backends import cpu as native

pytestmark = pytest.mark.skipif(
    native.refusal(torch.device("cpu"), torch.float32) is not None, reason=native.status()
)


SIZES = [(1, 1), (2, 3), (31, 33), (64, 64), (65, 129), (200, 70), (7, 700), (700, 5)]
CASES = {
    "all": Call(kind="all"),
    "not_self": Call(kind="not_self"),
    "not_pair": Call(kind="not_pair", stride=20),
    "other_key": Call(kind="other_key"),
    "same_key": Call(kind="same_key"),
    "no_self": Call(kind="same_key", offset=candidates.NO_SELF),
}
SHIFTED = {
    "not_self_offset": Call(kind="not_self", offset=3),
    "not_pair_offset": Call(kind="not_pair", stride=3, offset=1),
    "same_key_offset": Call(kind="same_key", offset=-2),
}


@pytest.mark.parametrize("M", [1, 2, 31, 64, 65, 129, 257, 600])
@pytest.mark.parametrize("case", CASES)
def test_one_set(case, M, poisoned):
    check(replace(CASES[case], M=M))


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("case", [*CASES, *SHIFTED])
def test_two_sets(case, sizes, columns, poisoned):
    check(replace((CASES | SHIFTED)[case], M=sizes[0], N=sizes[1], columns=columns))


@pytest.mark.parametrize("scale", [5.0, 300.0])
@pytest.mark.parametrize("sizes", [(600, None), (400, 300), (60, 700), (700, 60)], ids=str)
def test_tiles_without_equal_keys(sizes, scale, poisoned):
    """With sorted keys, tiles without candidates are left out and the results are right.

    Most tiles have no candidate then. A tile that is left out may be the one that would have been
    the first to write some sums.
    """
    call = Call(G=2, M=sizes[0], N=sizes[1], kind="same_key", scale=scale, sorted_keys=True)
    check(call, 1e-10)
    check(replace(call, extrema=True), 1e-10)
    if sizes[1] is not None:
        for more in (
            {"columns": True},
            {"bias": "padding"},
            {"columns": True, "bias": "values", "extrema": True},
        ):
            check(replace(call, **more), 1e-10)
        check(replace(call, weighted=True), 1e-10)
        outputs, (da, db, *_) = check(call, 1e-10)
        for needs, index, expected in (
            ((True, False, False, False), 0, da),
            ((False, True, False, False), 1, db),
        ):
            assert_close("one side", call.backward(outputs, needs)[index], expected, 1e-12)


POSITIVES = {
    "nt_xent": Call(M=130, kind="not_pair", stride=65, positive=65),
    "clip": Call(
        M=150, N=150, kind="not_self", positive=0, columns=True, normalize=False, scale=0.5
    ),
    "in_batch": Call(M=90, N=200, kind="not_self", offset=3, positive=3),
    "more_rows": Call(M=200, N=70, kind="all", positive=5),
    "one_set": Call(M=70, kind="not_self", positive=1),
    "cpc": Call(G=12, M=64, N=64, D=40, kind="not_self", positive=0, normalize=False, scale=0.3),
    "keyed": Call(M=100, N=100, kind="other_key", positive=0, columns=True),
}


@pytest.mark.parametrize("scale", [5.0, -5.0, 150.0])
@pytest.mark.parametrize("case", POSITIVES)
def test_positive(case, scale, poisoned):
    call = POSITIVES[case]
    check(replace(call, scale=scale * (call.scale / 5)))


@pytest.mark.parametrize("bias", ["values", "padding"])
@pytest.mark.parametrize("case", [*POSITIVES, *CASES, *SHIFTED])
def test_bias(case, bias, poisoned):
    call = (POSITIVES | CASES | SHIFTED)[case]
    call = replace(call, N=call.N or call.M)
    bias = "values" if call.positive >= 0 else bias
    check(replace(call, bias=bias))
    check(replace(call, bias=bias, scale=200.0 * call.scale / 5), 1e-10)


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("M", [1, 33, 150])
@pytest.mark.parametrize("D", [1, 2, 15, 16, 17, 31, 33, 64, 70])
def test_widths_and_groups(M, D, columns, poisoned):
    for dtype, tolerance in TOLERANCE.items():
        # Rounding moves rows this short off the unit circle, so no common tolerance holds.
        if D < 15 and dtype.itemsize == 2:
            continue
        check(
            Call(G=3, M=M, N=45, D=D, kind="not_self", columns=columns, dtype=dtype), 2 * tolerance
        )
        if not columns:
            check(Call(G=3, M=M, D=D, kind="not_self", dtype=dtype), 2 * tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", ["nt_xent", "clip", "in_batch", "cpc"])
def test_every_isa(isa, case, dtype, poisoned):
    check(replace(POSITIVES[case], dtype=dtype))
    check(
        replace(POSITIVES[case], dtype=dtype, D=33, scale=POSITIVES[case].scale * 40),
        4 * TOLERANCE[dtype],
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [4.0, 300.0])
@pytest.mark.parametrize("sizes", [(1, 300), (40, 30), (130, 1000)], ids=str)
@pytest.mark.parametrize("bias", [None, "padding"])
def test_weighted(sizes, scale, dtype, bias, poisoned):
    call = Call(
        M=sizes[0], N=sizes[1], kind="all", weighted=True, scale=scale, dtype=dtype, bias=bias
    )
    outputs, _ = check(call, TOLERANCE[dtype] * (4 if scale > 100 else 1))
    saved = call.backward(outputs, (True, False, True, False))
    without = call.backward((*outputs[:-1], outputs[-1].new_empty(0)), (True, False, True, False))
    for name, x, y in zip(("da", "dscale"), saved[::2], without[::2], strict=True):
        assert_close(name, x, y, 4 * TOLERANCE[dtype])


def test_weighted_without_candidates():
    call = Call(M=5, N=5, kind="other_key", weighted=True)
    inputs = list(call.inputs)
    inputs[4], inputs[5] = torch.zeros(1, 5, dtype=torch.long), torch.zeros(1, 5, dtype=torch.long)
    outputs = call.forward(inputs)
    assert (outputs[0][0] == -math.inf).all() and (outputs[-1] == 0).all()
    da = call.backward(outputs, (True, False, True, False), inputs)[0]
    assert (da == 0).all()


@pytest.mark.parametrize("case", ["nt_xent", "clip", "in_batch"])
def test_extrema(case, poisoned):
    for dtype in TOLERANCE:
        check(replace(POSITIVES[case], extrema=True, dtype=dtype))


def test_equal_pairs_have_equal_logits():
    """Where every embedding is the same, the positive is exactly the largest candidate."""
    for dtype in TOLERANCE:
        call = Call(
            M=150, N=150, D=70, kind="not_self", positive=0, columns=True, extrema=True, dtype=dtype
        )
        x = torch.randn(1, 1, 70).expand(1, 150, 70).to(dtype)
        outputs = call.forward((x, x.clone(), *call.inputs[2:]))
        assert torch.equal(outputs[2], outputs[4]) and torch.equal(outputs[2], outputs[5])


@pytest.mark.parametrize("needs", ["a", "b", "scale", "b scale", "bias", "a scale bias"])
@pytest.mark.parametrize("case", ["nt_xent", "clip", "in_batch"])
def test_only_what_is_needed(case, needs, poisoned):
    call = replace(POSITIVES[case], bias=None if case == "nt_xent" else "values")
    outputs = call.forward()
    needs = tuple(name in needs.split() for name in ("a", "b", "scale", "bias"))
    some = call.backward(outputs, needs)
    for got, want, need in zip(some, oracle_gradients(call), needs, strict=True):
        if need and want is not None:
            assert_close("gradient", got, want, 1e-12)
        else:
            assert got.numel() == 0


@pytest.mark.parametrize(
    "call",
    [
        Call(M=1500, kind="not_pair", stride=750, positive=750, dtype=torch.float32, D=40),
        Call(M=1100, N=1300, kind="all", columns=True, bias="values", dtype=torch.float32, D=40),
        Call(
            M=1100,
            N=1100,
            kind="not_self",
            positive=0,
            columns=True,
            dtype=torch.bfloat16,
            D=64,
            scale=100.0,
        ),
        Call(M=30, N=5000, kind="all", columns=True, dtype=torch.float32, D=64),
        Call(M=5000, N=30, kind="all", columns=True, dtype=torch.float32, D=64),
        Call(M=60, N=6000, kind="all", weighted=True, dtype=torch.float32, D=64),
        Call(G=12, M=70, N=70, kind="not_self", positive=0, dtype=torch.float32, D=64),
    ],
    ids=str,
)
def test_threads_do_not_change_bits(call):
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            for _ in range(2):
                outputs = call.forward()
                results.append((*outputs, *call.backward(outputs)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for x, y in zip(results[0], other, strict=True):
            assert torch.equal(x, y)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("scale", [1e-3, 1e3, -1e3, 1e4])
@pytest.mark.parametrize("case", ["nt_xent", "clip"])
def test_extreme_scales(case, scale, dtype, poisoned):
    call = replace(POSITIVES[case], scale=scale, normalize=True, dtype=dtype)
    check(call, TOLERANCE[dtype] * max(1.0, abs(scale) / 20))


def test_converged_training():
    """The gradient keeps its relative accuracy when training has converged.

    The views are 0.3 sigma apart, with N = 1024, D = 64 and T = 0.02 in float32.
    """
    call = Call(
        M=1024, D=64, kind="not_pair", stride=512, positive=512, scale=50.0, dtype=torch.float32
    )
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(512, 64, generator=generator)
    x = torch.cat([z, z + 0.3 * torch.randn(512, 64, generator=generator)])[None]
    exact = x.double().requires_grad_()
    reference = replace(call, dtype=torch.float64)
    want = torch.autograd.grad(
        dense(reference, exact, None, torch.tensor(50.0), None, None, None)["loss"].mean(), exact
    )[0]
    inputs = (x, *call.inputs[1:])
    got = call.backward(
        call.forward(inputs),
        inputs=inputs,
        upstream=(torch.full((1, 1024), 1 / 1024), torch.empty(0)),
    )[0]
    assert (got.double() - want).norm() < 2e-5 * want.norm()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("case", ["nt_xent", "clip", "in_batch", "cpc"])
def test_not_finite_in_not_finite_out(case, normalize, value):
    call = replace(POSITIVES[case], normalize=normalize, dtype=torch.float32, G=1)
    a = call.inputs[0].clone()
    a[0, 7, 3] = value
    inputs = (a, *call.inputs[1:])
    want = dense(call, *inputs)
    outputs = call.forward(inputs)
    for name, index in (("rows", 0), ("loss", 3)):
        got = outputs[index][0] if name == "rows" else outputs[index]
        assert not torch.isfinite(got[~torch.isfinite(want[name])]).any(), name
        assert torch.isfinite(got[torch.isfinite(want[name])]).all(), name
    da = call.backward(outputs, inputs=inputs)[0]
    assert not torch.isfinite(da[0, 7]).all()


def test_strides_and_input_types(poisoned):
    call = Call(G=2, M=50, N=60, D=24, kind="all", columns=True, dtype=torch.float32)
    a, b, *rest = call.inputs
    outputs = call.forward()
    gradients = call.backward(outputs)
    wide = torch.randn(2, 60, 50).as_strided((2, 50, 24), (3000, 1, 50)).copy_(a)
    spaced = torch.randn(2, 60, 48)[:, :, ::2].copy_(b)
    other = call.forward((wide, spaced, *rest))
    for x, y in zip(
        outputs + gradients, other + call.backward(other, inputs=(wide, spaced, *rest)), strict=True
    ):
        assert torch.equal(x, y)
    expanded = a[:, :1].expand(2, 50, 24)
    assert torch.equal(
        call.forward((expanded, b, *rest))[0], call.forward((expanded.contiguous(), b, *rest))[0]
    )
    for dtype, given in (
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float64, torch.float32),
    ):
        for normalize in (True, False):
            check(
                replace(call, dtype=dtype, input_dtype=given, normalize=normalize, scale=0.3), 3e-2
            )


def test_zero_rows():
    """Below the norm floor the gradient is G / 1e-12, as it is for F.normalize."""
    call = Call(M=20, kind="not_self", dtype=torch.float64)
    a = call.inputs[0].clone()
    a[0, 3] = 0.0
    exact = a.clone().requires_grad_()
    want = torch.autograd.grad(
        (dense(call, exact, *call.inputs[1:])["rows"] * call.upstream()[0]).sum(), exact
    )[0]
    inputs = (a, *call.inputs[1:])
    got = call.backward(call.forward(inputs), inputs=inputs)[0]
    for rows in (3, slice(0, 3), slice(4, None)):
        assert (got[0, rows] - want[0, rows]).norm() < 1e-12 * want[0, rows].norm()


def test_upstream_far_from_one():
    call = replace(POSITIVES["clip"], dtype=torch.float32)
    outputs = call.forward()
    g_rows, g_cols = call.upstream()
    one = call.backward(outputs)
    for factor in (2.0**-100, 2.0**100):
        scaled = call.backward(outputs, upstream=(g_rows * factor, g_cols))
        for x, y in zip(one, scaled, strict=True):
            assert torch.equal(x * factor, y)


def test_wrong_isa_is_named():
    with pytest.raises(ValueError, match="portable, avx2"):
        native.set_isa("sse9")


def test_refusals():
    assert "CPU" in native.refusal(torch.device("cuda"), torch.float32)
    assert "float32" in native.refusal(torch.device("cpu"), torch.int32)
    assert native.status() == "available: " + native.isa()


@pytest.mark.parametrize("upstream", (5e-314, 1e-308))
def test_subnormal_upstream_gradients(upstream):
    """Subnormal upstream gradients give the right gradients.

    A loss that has all but vanished sends such gradients. The kernels bring the largest of them
    near 1, but only as far as the factor is finite.
    """
    gradients = []
    for backend in ("cpu", "eager"):
        torch.manual_seed(0)
        a, b = (torch.randn(n, 4, dtype=torch.float64, requires_grad=True) for n in (3, 5))
        rows = similarity_logsumexp(a, b, backend=backend)
        gradients.append(torch.autograd.grad(rows, (a, b), torch.full_like(rows, upstream)))
    for mine, expected in zip(*gradients, strict=True):
        assert expected.any()
        torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-322)
