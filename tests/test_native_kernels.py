"""The native CPU kernels against a dense float64 oracle, written here from the contract in ops.py; gradients by autograd."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import pytest
import torch

from fused_contrastive import candidates, native

pytestmark = pytest.mark.skipif(native.refusal(torch.device("cpu"), torch.float32) is not None, reason=native.status())

ISAS = ("portable", "avx2", "avx512", "avx512_bf16")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def available_isas() -> tuple[str, ...]:
    if native.refusal(torch.device("cpu"), torch.float32) is not None:
        return ()
    best = torch.ops.fused_contrastive_cpu.isa()
    return ISAS[: ISAS.index(best) + 1]


@pytest.fixture(params=available_isas())
def isa(request):
    best = torch.ops.fused_contrastive_cpu.isa()
    torch.ops.fused_contrastive_cpu.set_isa(request.param)
    yield request.param
    torch.ops.fused_contrastive_cpu.set_isa(best)


@pytest.fixture
def poisoned():
    """Uninitialised memory, the kernels' workspaces included, is NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@dataclass(frozen=True)
class Call:
    """One call of both ops: sizes, candidates, options; N=None is one set."""

    M: int = 40
    N: int | None = None
    D: int = 24
    G: int = 1
    kind: str = "not_self"
    offset: int = 0
    stride: int = 1
    positive: int = -1
    normalize: bool = True
    columns: bool = False
    extrema: bool = False
    weighted: bool = False
    bias: str | None = None
    scale: float = 5.0
    dtype: torch.dtype = torch.float64
    input_dtype: torch.dtype | None = None
    seed: int = 0

    @functools.cached_property
    def inputs(self):
        """a, b, scale, bias, key_a, key_b."""
        generator = torch.Generator().manual_seed(self.seed)
        accumulate = torch.float64 if self.dtype == torch.float64 else torch.float32
        columns = self.M if self.N is None else self.N

        def points(n):
            x = torch.randn(self.G, n, self.D, generator=generator, dtype=torch.float64)
            return x.to(self.input_dtype or self.dtype)

        a = points(self.M)
        b = None if self.N is None else points(self.N)
        bias = None
        if self.bias is not None:
            bias = torch.randn(self.G, columns, generator=generator, dtype=accumulate)
            if self.bias == "padding":
                bias[:, columns // 2 :: 3] = -math.inf
        key_a = key_b = None
        if self.kind in candidates.KEYED:
            key_a = torch.randint(4, (self.G, self.M), generator=generator) * 2**40
            key_b = torch.randint(4, (self.G, columns), generator=generator) * 2**40 if b is not None else None
        return a, b, torch.tensor(self.scale, dtype=accumulate), bias, key_a, key_b

    @property
    def options(self):
        return self.kind, self.offset, self.stride, self.positive, self.normalize

    def forward(self, inputs=None):
        inputs = self.inputs if inputs is None else inputs
        return native.similarity_forward(*inputs, *self.options, self.columns, self.extrema, self.weighted, self.dtype)

    def upstream(self):
        generator = torch.Generator().manual_seed(self.seed + 1)
        a, b = self.inputs[:2]
        accumulate = self.inputs[2].dtype
        columns = self.columns and self.positive < 0
        g_rows = torch.randn(self.G, self.M, generator=generator, dtype=torch.float64).to(accumulate)
        g_cols = torch.randn(
            self.G, (a if b is None else b).shape[1] if columns else 0, generator=generator, dtype=torch.float64
        )
        return g_rows, (g_cols if columns else g_cols.new_empty(0)).to(accumulate)

    def backward(self, outputs, needs=(True, True, True, True), inputs=None, upstream=None):
        inputs = self.inputs if inputs is None else inputs
        rows, cols, pos, _, _, _, *prepared = outputs
        upstream = self.upstream() if upstream is None else upstream
        needs = (needs[0], needs[1] and inputs[1] is not None, needs[2], needs[3] and inputs[3] is not None)
        return native.similarity_backward(
            *upstream, *inputs, rows, cols, pos, *prepared, *self.options, self.dtype, *needs
        )


def softplus(x):
    return torch.logaddexp(x, torch.zeros_like(x))


def dense(call: Call, a, b, scale, bias, key_a, key_b):
    """The contract's quantities, dense and in float64, of tensors that may require gradients: a dict by name."""
    x, y = a.double(), (a if b is None else b).double()

    def prepare(x):
        if call.normalize:
            x = x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        rounded = x.detach().to(torch.float32).to(call.dtype).double() if call.dtype != torch.float64 else x.detach()
        return x + (rounded - x.detach()).nan_to_num()  # straight through, as the kernels do

    x, y = prepare(x), prepare(y)
    M, N = x.shape[1], y.shape[1]
    s = scale.double() * (x @ y.transpose(1, 2))
    if bias is not None:
        s = s + bias.double()[:, None, :]
    i, j = torch.arange(M)[:, None], torch.arange(N)[None, :]
    if call.kind in candidates.KEYED:
        equal = key_a[:, :, None] == (key_a if b is None else key_b)[:, None, :]
        keep = ~equal if call.kind == "other_key" else equal & (j != i + call.offset)
    else:
        keep = {
            "all": torch.ones(M, N, dtype=torch.bool),
            "not_self": j != i + call.offset,
            "not_pair": (j - i - call.offset) % call.stride != 0,
        }[call.kind].expand(call.G, M, N)
    masked = s.masked_fill(~keep, -math.inf)

    def lse(dim):
        some = (masked > -math.inf).any(dim)
        filled = torch.where(some.unsqueeze(dim), masked, torch.zeros_like(masked))
        return torch.where(some, filled.logsumexp(dim), torch.full_like(some, -math.inf, dtype=s.dtype))

    out = {"rows": lse(2), "row_max": masked.amax(2)}
    if call.columns:
        out |= {"cols": lse(1), "col_max": masked.amax(1)}
    if call.positive >= 0:
        partner = (torch.arange(M) + call.positive) % N
        out["pos"] = s[:, torch.arange(M), partner]
        loss = softplus(out["rows"] - out["pos"])
        if call.columns:
            loss = 0.5 * (loss + softplus(out["cols"][:, partner] - out["pos"]))
        out["loss"] = loss
    if call.weighted:
        weights = torch.exp(masked - out["rows"].masked_fill(out["rows"] == -math.inf, 0.0).unsqueeze(2))
        out["mean"] = weights @ y
    return out


NAMES = ("rows", "cols", "pos", "loss", "row_max", "col_max", "a_hat", "b_hat", "a_inv", "b_inv", "mean")


def oracle_gradients(call: Call):
    """Gradients of the oracle for the call's upstream gradients: a, b, scale, bias."""
    leaves = [
        x.detach().double().requires_grad_() if x is not None and x.is_floating_point() else x for x in call.inputs
    ]
    out = dense(call, *leaves)
    g_rows, g_cols = call.upstream()
    if call.positive >= 0:
        total = (out["loss"] * g_rows.double()).sum()
    else:
        finite = out["rows"] > -math.inf
        total = (out["rows"].masked_fill(~finite, 0.0) * g_rows.double()).sum()
        if call.columns:
            finite = out["cols"] > -math.inf
            total = total + (out["cols"].masked_fill(~finite, 0.0) * g_cols.double()).sum()
    wanted = [x for x in leaves[:4] if x is not None]
    gradients = iter(torch.autograd.grad(total, wanted, allow_unused=True))
    return [None if x is None else next(gradients) for x in leaves[:4]]


def assert_close(name, got, want, tolerance):
    """Equal infinities and an error of at most `tolerance` relative to the largest finite entry (at least to 1)."""
    assert got.shape == want.shape, name
    infinite = torch.isinf(want)
    assert torch.equal(torch.isinf(got), infinite) and torch.equal(got.double()[infinite], want.double()[infinite]), (
        name
    )
    error = (got.double() - want.double()).masked_fill(infinite, 0.0).abs().max()
    size = want.double().masked_fill(infinite, 0.0).abs().max().clamp_min(1.0)
    assert error <= tolerance * size, f"{name}: error {error:.2e} of {size:.2e}"


def check(call: Call, tolerance=None):
    tolerance = tolerance or TOLERANCE[call.dtype]
    outputs = call.forward()
    want = dense(call, *call.inputs)
    for name, got in zip(NAMES, outputs, strict=True):
        if name in want and (name != "row_max" or call.extrema) and (name != "col_max" or call.extrema):
            assert_close(name, got, want[name], tolerance)
    gradients = call.backward(outputs)
    for name, got, want in zip(("da", "db", "dscale", "dbias"), gradients, oracle_gradients(call), strict=True):
        if want is None:
            assert got.numel() == 0, name
        else:
            assert_close(name, got, want, tolerance)
    return outputs, gradients


SIZES = [(1, 1), (2, 3), (31, 33), (64, 64), (65, 129), (200, 70), (7, 700), (700, 5)]
CASES = {
    "all": Call(kind="all"),
    "not_self": Call(kind="not_self"),
    "not_self_offset": Call(kind="not_self", offset=3),
    "not_pair": Call(kind="not_pair", stride=20),
    "not_pair_short": Call(kind="not_pair", stride=3, offset=1),
    "other_key": Call(kind="other_key"),
    "same_key": Call(kind="same_key"),
    "no_self": Call(kind="same_key", offset=candidates.NO_SELF),
}


@pytest.mark.parametrize("M", [1, 2, 31, 64, 65, 129, 257, 600])
@pytest.mark.parametrize("case", CASES)
def test_one_set(case, M, poisoned):
    check(replace(CASES[case], M=M))


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_two_sets(case, sizes, columns, poisoned):
    check(replace(CASES[case], M=sizes[0], N=sizes[1], columns=columns))


POSITIVES = {
    "nt_xent": Call(M=130, kind="not_pair", stride=65, positive=65),
    "clip": Call(M=150, N=150, kind="not_self", positive=0, columns=True, normalize=False, scale=0.5),
    "in_batch": Call(M=90, N=200, kind="not_self", offset=3, positive=3),
    "more_rows": Call(M=200, N=70, kind="all", positive=5),
    "one_set_columns": Call(M=70, kind="not_self", positive=1, columns=True),
    "one_set_offset": Call(M=70, kind="not_self", offset=1, positive=1, columns=True),
    "cpc": Call(G=12, M=64, N=64, D=40, kind="not_self", positive=0, normalize=False, scale=0.3),
    "keyed": Call(M=100, N=100, kind="other_key", positive=0, columns=True),
}


@pytest.mark.parametrize("scale", [5.0, -5.0, 150.0])
@pytest.mark.parametrize("case", POSITIVES)
def test_positive(case, scale, poisoned):
    call = POSITIVES[case]
    check(replace(call, scale=scale * (call.scale / 5)))


@pytest.mark.parametrize("bias", ["values", "padding"])
@pytest.mark.parametrize("case", [*POSITIVES, *CASES])
def test_bias(case, bias, poisoned):
    call = (POSITIVES | CASES)[case]
    bias = "values" if call.positive >= 0 else bias
    check(replace(call, bias=bias))
    check(replace(call, bias=bias, scale=200.0 * call.scale / 5), 1e-10)


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("M", [1, 33, 150])
@pytest.mark.parametrize("D", [1, 2, 15, 16, 17, 31, 33, 64, 70])
def test_widths_and_groups(M, D, columns, poisoned):
    for dtype, tolerance in TOLERANCE.items():
        if D < 15 and dtype.itemsize == 2:
            continue  # rounding moves the few coordinates off the unit circle: no common tolerance
        check(Call(G=3, M=M, N=45, D=D, kind="not_self", columns=columns, dtype=dtype), 2 * tolerance)
        check(Call(G=3, M=M, D=D, kind="not_self", columns=columns, dtype=dtype), 2 * tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", ["nt_xent", "clip", "in_batch", "cpc"])
def test_every_isa(isa, case, dtype, poisoned):
    check(replace(POSITIVES[case], dtype=dtype))
    check(replace(POSITIVES[case], dtype=dtype, D=33, scale=POSITIVES[case].scale * 40), 4 * TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [4.0, 300.0])
@pytest.mark.parametrize("sizes", [(1, 300), (40, 30), (130, 1000)], ids=str)
@pytest.mark.parametrize("bias", [None, "padding"])
def test_weighted(sizes, scale, dtype, bias, poisoned):
    call = Call(M=sizes[0], N=sizes[1], kind="all", weighted=True, scale=scale, dtype=dtype, bias=bias)
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
    assert (outputs[0] == -math.inf).all() and (outputs[-1] == 0).all()
    da = call.backward(outputs, (True, False, True, False), inputs)[0]
    assert (da == 0).all()


@pytest.mark.parametrize("case", ["nt_xent", "clip", "in_batch"])
def test_extrema(case, poisoned):
    for dtype in TOLERANCE:
        check(replace(POSITIVES[case], extrema=True, dtype=dtype))


def test_equal_pairs_have_equal_logits():
    """Where every embedding is the same, the positive is exactly the largest candidate."""
    for dtype in TOLERANCE:
        call = Call(M=150, N=150, D=70, kind="not_self", positive=0, columns=True, extrema=True, dtype=dtype)
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


@pytest.mark.parametrize("call", [
    Call(M=1500, kind="not_pair", stride=750, positive=750, dtype=torch.float32, D=40),
    Call(M=1100, N=1300, kind="all", columns=True, bias="values", dtype=torch.float32, D=40),
    Call(M=1100, N=1100, kind="not_self", positive=0, columns=True, dtype=torch.bfloat16, D=64, scale=100.0),
    Call(M=30, N=5000, kind="all", columns=True, dtype=torch.float32, D=64),
    Call(M=5000, N=30, kind="all", columns=True, dtype=torch.float32, D=64),
    Call(M=60, N=6000, kind="all", weighted=True, dtype=torch.float32, D=64),
    Call(G=12, M=70, N=70, kind="not_self", positive=0, dtype=torch.float32, D=64),
], ids=str)  # fmt: skip
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
    """Views 0.3 sigma apart, N = 1024, D = 64, T = 0.02, float32: the gradient keeps its relative accuracy."""
    call = Call(M=1024, D=64, kind="not_pair", stride=512, positive=512, scale=50.0, dtype=torch.float32)
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
        call.forward(inputs), inputs=inputs, upstream=(torch.full((1, 1024), 1 / 1024), torch.empty(0))
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
        assert not torch.isfinite(outputs[index][~torch.isfinite(want[name])]).any(), name
        assert torch.isfinite(outputs[index][torch.isfinite(want[name])]).all(), name
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
    for x, y in zip(outputs + gradients, other + call.backward(other, inputs=(wide, spaced, *rest)), strict=True):
        assert torch.equal(x, y)
    expanded = a[:, :1].expand(2, 50, 24)
    assert torch.equal(call.forward((expanded, b, *rest))[0], call.forward((expanded.contiguous(), b, *rest))[0])
    for dtype, given in (
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float64, torch.float32),
    ):
        for normalize in (True, False):
            check(replace(call, dtype=dtype, input_dtype=given, normalize=normalize, scale=0.3), 3e-2)


def test_zero_rows():
    """Below the norm floor the gradient is G / 1e-12, as F.normalize has it."""
    call = Call(M=20, kind="not_self", dtype=torch.float64)
    a = call.inputs[0].clone()
    a[0, 3] = 0.0
    exact = a.clone().requires_grad_()
    want = torch.autograd.grad((dense(call, exact, *call.inputs[1:])["rows"] * call.upstream()[0]).sum(), exact)[0]
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
        torch.ops.fused_contrastive_cpu.set_isa("sse9")


def test_refusals():
    assert "CPU" in native.refusal(torch.device("cuda"), torch.float32)
    assert "float32" in native.refusal(torch.device("cpu"), torch.int32)
    assert native.status() == "available: " + torch.ops.fused_contrastive_cpu.isa()
