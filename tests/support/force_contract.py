"""These are calls of the force op's contract on the CUDA backend, and their cases."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from fused_contrastive.backends import cuda
from fused_contrastive.backends.cuda import force as cuda_force
from fused_contrastive.backends.panels import force as force_panels
from fused_contrastive.dtypes import accumulation_dtype
from fused_contrastive.problem import ForceProblem
from support.cuda_calls import Call, backend, move, operators  # noqa: F401

NAMES = ("force", "log_norm", "scale", "lse_rows", "lse_cols", "shift", "sums")


TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 1e-5, torch.float16: 1e-5}


DTYPES = tuple(TOLERANCE)


WAYS = ("groups", "rows", "parts")


@dataclass(frozen=True)
class Force:
    """This is a call of force_forward: its sizes and options.

    The inputs are drawn from them on the CPU.
    """

    G: int = 2
    P: int = 70
    D: int = 19
    K: int = 3
    rows: int = 30
    negatives: int = 45
    scale: float | None = None
    weight: bool = False
    options: dict = field(default_factory=dict)
    dtype: torch.dtype = torch.float64
    seed: int = 0

    def problem(self, inputs):
        """Return the call on tensors as `inputs` draws them."""
        return ForceProblem(*inputs, rows=self.rows, negatives=self.negatives, **self.options)

    @property
    def inputs(self):
        generator = torch.Generator().manual_seed(self.seed)
        accumulate = accumulation_dtype(self.dtype)
        x = torch.randn(self.G, self.P, self.D, generator=generator, dtype=torch.float64).to(
            self.dtype
        )
        inverse = 1 / torch.linspace(0.1, 0.5, self.K, dtype=torch.float64)
        size = 1.0 if self.scale is None else self.scale
        scale = (
            None if self.scale is None else torch.linspace(size, 2 * size, self.G).to(accumulate)
        )
        weight = torch.randn(self.G, self.P, generator=generator, dtype=torch.float64).to(
            accumulate
        )
        return x, inverse.to(accumulate), scale, weight if self.weight else None

    def run(self, inputs=None):
        inputs = self.inputs if inputs is None else inputs
        return move(cuda.force_forward(self.problem(move(inputs, Call.device))), "cpu")

    def expected(self, inputs=None):
        inputs = self.inputs if inputs is None else inputs
        wide = [x if x is None else x.double() for x in inputs]
        return force_panels.force_forward(self.problem(wide))


DRIFT = {
    "all_rows": False,
    "mask": True,
    "self_logit": -6.9,
    "floor": -6.9,
    "clip": 1e-8,
    "separate": True,
}


CASES = {
    "one_temperature": Force(K=1, scale=1.0, negatives=30),
    "mean_distance": Force(G=3),
    "rms": Force(options={"rms": True}, negatives=30),
    "rms_masked_floor": Force(options={"rms": True, "mask": True, "floor": -5.0}, scale=2.0),
    "separate": Force(options={"separate": True, "mask": True}, P=60),
    "drift": Force(options=DRIFT, rows=40, scale=3.0, P=60),
    "drift_weighted": Force(options=DRIFT, rows=40, scale=3.0, weight=True, P=60),
    "field": Force(K=1, options={"all_rows": False, "denominator": -4.0}, scale=1.0, negatives=30),
    "columns_mean": Force(options={"all_rows": False, "mask": True}),
    "weighted": Force(
        options={"all_rows": False, "self_logit": 0.5},
        scale=1.0,
        weight=True,
        rows=70,
        negatives=70,
    ),
    "more_rows_than_a_tile": Force(rows=68, negatives=69, scale=2.0, D=70),
}


def close(name, got, want, tolerance):
    assert got.shape == want.shape, name
    got, finite = got.double(), want.isfinite()
    assert torch.equal(got[~finite], want[~finite]), f"{name}: {got[~finite]} {want[~finite]}"
    size = want[finite].abs().max() if finite.any() else 0.0
    error = (got[finite] - want[finite]).abs().max() if finite.any() else 0.0
    least = 1.0 if name in ("log_norm", "lse_rows", "lse_cols", "shift") else 1e-30
    assert error <= tolerance * max(size, least), f"{name}: {error:.2e} of {size:.2e}"


def check(call, tolerance=None, inputs=None):
    inputs = call.inputs if inputs is None else inputs
    tolerance = TOLERANCE[call.dtype] if tolerance is None else tolerance
    got = call.run(inputs)
    for name, a, b in zip(NAMES, got, call.expected(inputs), strict=True):
        assert (a is None) == (b is None), name
        if a is None:
            continue
        assert a.dtype == accumulation_dtype(call.dtype)
        close(name, a, b, tolerance)
    return got


def choose(monkeypatch, way, *, blocks=None):
    """Choose how everything is computed: by groups, or in passes over the pairs.

    The passes have the columns whole or in parts.
    """
    monkeypatch.setattr(cuda_force, "MANY_GROUPS", 1 if way == "groups" else 1 << 40)
    monkeypatch.setattr(cuda_force, "SMALL_WORK", 0)
    monkeypatch.setattr(cuda_force, "BLOCKS", 512 if way == "parts" else 1)


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    choose(monkeypatch, request.param)
    return request.param
