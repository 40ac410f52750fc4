"""Tests of a backend on this machine: its outputs and gradients against float64 panels.

A case is one call of a family with its sizes and options, on random inputs. `check` runs it on one
backend, device and dtype, and compares with the panels in float64 on the CPU. `CASES` are those
that the doctor runs. Any other case can be checked in the same way, as the one that a user is
about to run.
"""

from __future__ import annotations

import math
import statistics
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..autograd import force as autograd_force
from ..autograd.sigmoid import sigmoid_sum
from ..autograd.similarity import similarity
from ..dtypes import accumulation_dtype
from ..ops import force as force_ops
from ..problem import KEYED, ForceProblem
from ..reference import force as dense_force

SEEDS = range(5)
CPU = torch.device("cpu")
MARGIN = 2
"""The tests hold the kernels to eager's error or 4 ulp. A self-test allows so many times as much.

Eager rounds differently from one machine to the next, and a wrong kernel is off by far more.
"""

MOST_ULPS = 256
"""No error may be larger than this, even where eager's is, as that of the distances is."""


class SimilarityCase(NamedTuple):
    """A call of `autograd.similarity`."""

    name: str
    M: int = 150
    N: int | None = None  # None: one set
    D: int = 72
    G: int = 2
    kind: str = "all"
    offset: int = 0
    stride: int = 1
    positive: int = -1
    normalize: bool = True
    columns: bool = False
    extrema: bool = False
    bias: bool = False
    fixed: bool = False  # whether b gets no gradient
    scale: float = 5.0
    family: str = "similarity"

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        """The inputs in float64: ``[G, M, D]``, ``[G, N, D]``, ``[]``, and for bias ``[G, N]``."""
        inputs = _rows(self, generator)
        if self.bias and self.N is not None:
            inputs["bias"] = _normal(generator, self.G, self.N)
        return inputs

    def outputs(self, inputs: dict[str, Tensor], backend: str) -> dict[str, Tensor]:
        """What the call returns, by name."""
        options = _shared_options(self) | {"columns": self.columns}
        named: dict[str, Any] = {"b": None} | inputs | options
        found = similarity(**named, backend=backend)
        return {name: x for name, x in found._asdict().items() if x is not None}


class SigmoidCase(NamedTuple):
    """A call of `autograd.sigmoid`."""

    name: str
    M: int = 150
    N: int | None = None
    D: int = 72
    G: int = 2
    kind: str = "all"
    offset: int = 0
    stride: int = 1
    positive: int = -1
    normalize: bool = True
    extrema: bool = False
    sign: int = 1
    fixed: bool = False
    scale: float = 5.0
    family: str = "sigmoid"

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        """The inputs in float64: ``[G, M, D]``, ``[G, N, D]``, ``[]`` and ``[G, M]``."""
        return _rows(self, generator) | {"row_bias": _normal(generator, self.G, self.M)}

    def outputs(self, inputs: dict[str, Tensor], backend: str) -> dict[str, Tensor]:
        """What the call returns, by name."""
        options = _shared_options(self) | {"sign": self.sign}
        named: dict[str, Any] = {"b": None} | inputs | options
        found = sigmoid_sum(**named, backend=backend)
        return {name: x for name, x in found._asdict().items() if x is not None}


class ForceCase(NamedTuple):
    """A force at one temperature, the loss at several, or the sums and forces of a drift."""

    name: str
    negatives: int = 70
    positives: int = 55
    D: int = 24
    G: int = 2
    kind: str = "force"  # or "loss", "drift"
    temperatures: tuple[float, ...] = (0.5,)
    mask: bool = False
    floor: float = 0.0
    normalizer: str | None = None
    family: str = "force"

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        """The inputs in float64: points ``[G, P, D]`` and inverse temperatures ``[K]``."""
        x = _normal(generator, self.G, self.negatives + self.positives, self.D)
        # Distances are of the order of 1.
        inputs = {"x": x / math.sqrt(2 * self.D)}
        inputs["inverse"] = 1 / torch.tensor(self.temperatures, dtype=torch.float64)
        if self.kind == "drift":
            inputs["weight"] = _normal(generator, *x.shape[:2]).abs() + 0.5
        return inputs

    def outputs(self, inputs: dict[str, Tensor], backend: str) -> dict[str, Tensor]:
        """What the call returns, by name."""
        if self.kind == "drift":
            return self._drift(**inputs, backend="panels" if backend == "eager" else backend)
        if backend == "eager":
            return {self.kind: self._dense(**inputs)}
        floor = math.log(self.floor) if self.floor else -math.inf
        options = autograd_force.ForceOptions(self.negatives, self.mask, floor, self.normalizer)
        if self.kind == "force":
            force = autograd_force.force(inputs["x"], inputs["inverse"], options, backend)
            return {"force": force}
        x, inverse = inputs["x"], inputs["inverse"].detach()
        return {"loss": autograd_force.force_loss(x, None, inverse, options, True, backend)}

    def _dense(self, x: Tensor, inverse: Tensor) -> Tensor:
        options = {
            "mask_self": "softmax" if self.mask else "sum",
            "normalizer": self.normalizer,
            "affinity_floor": self.floor,
        }
        negative, positive = x[:, : self.negatives], x[:, self.negatives :]
        if self.kind == "force":
            return dense_force.contrastive_force(positive, negative, 1 / inverse, **options)
        temperatures = (1 / inverse).tolist()
        return dense_force.contrastive_force_loss(positive, negative, temperatures, **options)

    def _drift(self, x: Tensor, inverse: Tensor, weight: Tensor, backend: str) -> dict[str, Tensor]:
        """Sums of distances and forces in the form that the drift loss asks for."""
        x = x.detach()
        weight, rows, clip = weight.detach(), self.negatives // 2, 1e-6
        sums = force_ops.distance_sums(x, weight, rows, clip, backend)
        scale = sums.mean(1) / x.shape[1]
        problem = ForceProblem(x, inverse.detach(), scale, weight, rows, self.negatives)
        problem = problem._replace(all_rows=False, floor=math.log(1e-6) / 2, clip=clip)
        found = autograd_force.call_forward(problem, backend)
        return {"distances": sums, "force": found.force, "lse_rows": found.lse_rows}


Case = SimilarityCase | SigmoidCase | ForceCase

CASES: tuple[Case, ...] = (
    SimilarityCase("pairs of one set", kind="not_pair", stride=75, positive=75),
    SimilarityCase(
        "pairs of two sets",
        N=150,
        kind="not_self",
        positive=0,
        columns=True,
        normalize=False,
        scale=0.1,
    ),
    SimilarityCase("log-sum-exps of both sides", N=97, columns=True, extrema=True, bias=True),
    SimilarityCase("many columns", M=70, N=1100, D=40, G=1, columns=True),
    SimilarityCase("fixed columns", N=97, fixed=True),
    SimilarityCase("equal keys", kind="same_key"),
    SimilarityCase("other keys", N=97, kind="other_key", columns=True),
    SigmoidCase("pairs of two sets", N=150, kind="not_self", positive=0),
    SigmoidCase("other keys", kind="other_key", extrema=True),
    SigmoidCase("equal keys", N=97, kind="same_key", sign=-1, normalize=False, scale=0.1),
    ForceCase("force", normalizer="dist_affinity_rms"),
    ForceCase("masked force", normalizer="force_rms", mask=True, floor=1e-6),
    ForceCase("loss", kind="loss", temperatures=(0.1, 0.2, 0.5), normalizer="dist_affinity_rms"),
    ForceCase("drift", kind="drift", temperatures=(0.1, 0.5)),
)
"""What the doctor checks: each kernel at least once, on several tiles that are not all full."""


class Verdict(NamedTuple):
    """How one case fared on one backend, device and dtype."""

    family: str
    case: str
    backend: str
    device: str
    dtype: str
    worst: float = 0.0  # the largest error, in units of what is allowed
    failure: str | None = None  # what is wrong, in a sentence; None: nothing


def check(
    case: Case, backend: str, device: torch.device, dtype: torch.dtype, seeds: range = SEEDS
) -> Verdict:
    """Compare a case on one backend with the panels in float64 on the CPU. It never raises.

    Each output and each gradient is compared, by its relative error in the Euclidean norm. The
    median of its errors over the seeds may be twice that of eager in the same dtype, or 8 ulp, or
    16 ulp in float64, where the truth is rounded, too. It is never more than 256 ulp. A drift has
    panels in the same dtype in place of eager.

    Args:
        case: what is computed.
        backend: the backend under test.
        device: where it runs.
        dtype: of the rows or points.
        seeds: of the random inputs.
    """
    verdict = Verdict(case.family, case.name, backend, str(device), _short(dtype))
    ours: dict[str, list[float]] = {}
    eager: dict[str, list[float]] = {}
    try:
        for seed in seeds:
            inputs = _draw(case, dtype, seed)
            truth = _run(case, inputs, "panels", CPU, torch.float64, seed)
            for name, x in _run(case, inputs, backend, device, dtype, seed).items():
                ours.setdefault(name, []).append(_error(x, truth[name]))
            for name, x in _run(case, inputs, "eager", CPU, dtype, seed).items():
                eager.setdefault(name, []).append(_error(x, truth[name]))
    except Exception as error:
        return verdict._replace(failure=f"it raised {type(error).__name__}: {error}")
    ulps, ulp = 8 if dtype == torch.float64 else 4, torch.finfo(dtype).eps
    wrong, worst = [], 0.0
    for name, errors in ours.items():
        typical, theirs = statistics.median(errors), statistics.median(eager[name])
        allowed = min(MARGIN * max(theirs, ulps * ulp), MOST_ULPS * ulp)
        worst = max(worst, typical / allowed)
        if not typical <= allowed:
            wrong.append(f"{name} is off by {typical:.1e} where {allowed:.1e} is allowed")
    return verdict._replace(worst=worst, failure="; ".join(wrong) or None)


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _rows(case: SimilarityCase | SigmoidCase, generator: torch.Generator) -> dict[str, Tensor]:
    """Rows, columns, scale and keys."""
    inputs = {"a": _normal(generator, case.G, case.M, case.D)}
    if case.N is not None:
        inputs["b"] = _normal(generator, case.G, case.N, case.D)
    inputs["scale"] = torch.tensor(case.scale, dtype=torch.float64)
    if case.kind in KEYED:
        inputs["key_a"] = torch.randint(0, 5, (case.G, case.M), generator=generator)
        if case.N is not None:
            inputs["key_b"] = torch.randint(0, 5, (case.G, case.N), generator=generator)
    return inputs


def _shared_options(case: SimilarityCase | SigmoidCase) -> dict:
    names = ("kind", "offset", "stride", "positive", "normalize", "extrema")
    return {name: getattr(case, name) for name in names}


def _draw(case: Case, dtype: torch.dtype, seed: int) -> dict[str, Tensor]:
    """The inputs of a case on the CPU, rounded to what `dtype` can hold."""
    inputs = case.draw(torch.Generator().manual_seed(seed))
    return _cast(inputs, CPU, dtype)


def _cast(inputs: dict[str, Tensor], device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Rows and points in `dtype`, other numbers in its accumulation dtype, keys as they are."""
    moved = {}
    for name, x in inputs.items():
        target = dtype if name in ("a", "b", "x") else accumulation_dtype(dtype)
        moved[name] = x.to(device, target if x.is_floating_point() else x.dtype)
    return moved


@torch.enable_grad()
def _run(
    case: Case,
    inputs: dict[str, Tensor],
    backend: str,
    device: torch.device,
    dtype: torch.dtype,
    seed: int,
) -> dict[str, Tensor]:
    """The outputs and gradients of a case, by name, in float64 on the CPU."""
    inputs = _cast(inputs, device, dtype)
    fixed = ("b",) if getattr(case, "fixed", False) else ()
    leaves = {
        name: x.detach().requires_grad_()
        for name, x in inputs.items()
        if x.is_floating_point() and name not in fixed
    }
    outputs = case.outputs(inputs | leaves, backend)
    found = {name: x.detach().cpu().double() for name, x in outputs.items()}
    differentiable = [x for x in outputs.values() if x.requires_grad]
    if differentiable:
        upstream = [_upstream(x, seed) for x in differentiable]
        wanted = list(leaves.values())
        gradients = torch.autograd.grad(differentiable, wanted, upstream, allow_unused=True)
        for name, gradient in zip(leaves, gradients, strict=True):
            if gradient is not None:
                found[f"the gradient of {name}"] = gradient.cpu().double()
    return found


def _upstream(output: Tensor, seed: int) -> Tensor:
    """Upstream gradients between 0.5 and 1.5 that are exact in every dtype."""
    generator = torch.Generator().manual_seed(seed + 1)
    weights = torch.randint(4, 13, output.shape, generator=generator) / 8
    return weights.to(output.device, output.dtype)


def _error(x: Tensor, truth: Tensor) -> float:
    """The relative error in the Euclidean norm; infinite where it is not a number."""
    size = max(float(truth.norm()), torch.finfo(torch.float32).tiny)
    error = float((x - truth).norm()) / size
    return math.inf if math.isnan(error) else error


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
