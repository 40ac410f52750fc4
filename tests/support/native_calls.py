"""These are calls of the native CPU kernels, and their dense float64 oracle.

The oracle follows the contract in ops.py. Its gradients come from autograd.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import pytest
import torch

from fused_contrastive import problem as candidates
from fused_contrastive.backends import cpu as native

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@dataclass(frozen=True)
class Call:
    """This is one call of both ops: sizes, candidates and options. N=None means one set."""

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
    sorted_keys: bool = False
    seed: int = 0

    @functools.cached_property
    def inputs(self):
        """Draw a, b, scale, bias, key_a and key_b."""
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
            key_b = (
                torch.randint(4, (self.G, columns), generator=generator) * 2**40
                if b is not None
                else None
            )
            if self.sorted_keys:
                key_a, key_b = (
                    None if key is None else key.sort(1).values for key in (key_a, key_b)
                )
        return a, b, torch.tensor(self.scale, dtype=accumulate), bias, key_a, key_b

    @property
    def options(self):
        return self.kind, self.offset, self.stride, self.positive, self.normalize

    def forward(self, inputs=None):
        inputs = self.inputs if inputs is None else inputs
        return native.similarity_forward(
            *inputs, *self.options, self.columns, self.extrema, self.weighted, self.dtype
        )

    def upstream(self):
        generator = torch.Generator().manual_seed(self.seed + 1)
        a, b = self.inputs[:2]
        accumulate = self.inputs[2].dtype
        columns = self.columns and self.positive < 0
        g_rows = torch.randn(self.G, self.M, generator=generator, dtype=torch.float64).to(
            accumulate
        )
        g_cols = torch.randn(
            self.G,
            (a if b is None else b).shape[1] if columns else 0,
            generator=generator,
            dtype=torch.float64,
        )
        return g_rows, (g_cols if columns else g_cols.new_empty(0)).to(accumulate)

    def backward(self, outputs, needs=(True, True, True, True), inputs=None, upstream=None):
        inputs = self.inputs if inputs is None else inputs
        rows, cols, pos, _, _, _, *prepared = outputs
        upstream = self.upstream() if upstream is None else upstream
        needs = (
            needs[0],
            needs[1] and inputs[1] is not None,
            needs[2],
            needs[3] and inputs[3] is not None,
        )
        return native.similarity_backward(
            *upstream, *inputs, rows, cols, pos, *prepared, *self.options, self.dtype, *needs
        )


def softplus(x):
    return torch.logaddexp(x, torch.zeros_like(x))


def dense(call: Call, a, b, scale, bias, key_a, key_b):
    """Return the contract's quantities by name, dense and in float64.

    The tensors may require gradients.
    """
    x, y = a.double(), (a if b is None else b).double()

    def prepare(x):
        if call.normalize:
            x = x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        rounded = (
            x.detach().to(torch.float32).to(call.dtype).double()
            if call.dtype != torch.float64
            else x.detach()
        )
        # The gradient passes straight through the rounding, as it does in the kernels.
        return x + (rounded - x.detach()).nan_to_num()

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
        return torch.where(
            some, filled.logsumexp(dim), torch.full_like(some, -math.inf, dtype=s.dtype)
        )

    out = {"rows": lse(2), "row_max": masked.amax(2)}
    if call.columns:
        out |= {"cols": lse(1), "col_max": masked.amax(1)}
    if call.positive >= 0:
        partner = (torch.arange(M) + call.positive) % N
        out["pos"] = s[:, torch.arange(M), partner]
        loss = softplus(out["rows"] - out["pos"])
        if call.columns:
            loss = 0.5 * (loss + softplus(out["cols"][:, partner] - out["pos"]))
        # The loss is NaN where the positive is infinite.
        out["loss"] = loss + 0 * out["pos"]
    if call.weighted:
        weights = torch.exp(
            masked - out["rows"].masked_fill(out["rows"] == -math.inf, 0.0).unsqueeze(2)
        )
        out["mean"] = weights @ y
    return out


NAMES = (
    "rows",
    "cols",
    "pos",
    "loss",
    "row_max",
    "col_max",
    "a_hat",
    "b_hat",
    "a_inv",
    "b_inv",
    "mean",
)


def oracle_gradients(call: Call):
    """Return the oracle's gradients of a, b, scale and bias for the call's upstream gradients."""
    leaves = [
        x.detach().double().requires_grad_() if x is not None and x.is_floating_point() else x
        for x in call.inputs
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
    """Assert equal infinities and an error of at most `tolerance`.

    The error is relative to the largest finite entry, but at least to 1.
    """
    assert got.shape == want.shape, name
    infinite = torch.isinf(want)
    assert torch.equal(torch.isinf(got), infinite) and torch.equal(
        got.double()[infinite], want.double()[infinite]
    ), name
    error = (got.double() - want.double()).masked_fill(infinite, 0.0).abs().max()
    size = want.double().masked_fill(infinite, 0.0).abs().max().clamp_min(1.0)
    assert error <= tolerance * size, f"{name}: error {error:.2e} of {size:.2e}"


def assert_rounded(name, lse):
    """Assert that the second part of a log-sum-exp is a rounding error of the first.

    It is no more than what rounding to the first part can lose.
    """
    rounded, lost = lse.double()
    assert (
        lost.abs() <= rounded.abs().nan_to_num(posinf=0.0) * torch.finfo(lse.dtype).eps / 2
    ).all(), name


def check(call: Call, tolerance=None):
    tolerance = tolerance or TOLERANCE[call.dtype]
    outputs = call.forward()
    want = dense(call, *call.inputs)
    for name, got in zip(NAMES, outputs, strict=True):
        if name in ("rows", "cols") and got.numel():
            assert_rounded(name, got)
            got = got[0]
        if (
            name in want
            and (name != "row_max" or call.extrema)
            and (name != "col_max" or call.extrema)
        ):
            assert_close(name, got, want[name], tolerance)
    gradients = call.backward(outputs)
    for name, got, want in zip(
        ("da", "db", "dscale", "dbias"), gradients, oracle_gradients(call), strict=True
    ):
        if want is None:
            assert got.numel() == 0, name
        else:
            assert_close(name, got, want, tolerance)
    return outputs, gradients


ISAS = ("portable", "avx2", "avx512", "avx512_bf16")


def available_isas() -> tuple[str, ...]:
    if native.refusal(torch.device("cpu"), torch.float32) is not None:
        return ()
    best = native.isa()
    return ISAS[: ISAS.index(best) + 1]


@pytest.fixture(params=available_isas())
def isa(request):
    best = native.isa()
    native.set_isa(request.param)
    yield request.param
    native.set_isa(best)


@pytest.fixture
def poisoned():
    """Fill uninitialised memory, the kernels' workspaces included, with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
