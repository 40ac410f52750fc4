"""The rows of the test matrix: every loss once, with its inputs and its oracle."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from oracles import labels as label_oracle
from oracles import similarity as oracle

import fused_contrastive
from fused_contrastive import reference
from support import label_cases
from support.option_cases import keys, option_cases, rows, vectors
from support.sigmoid_cases import siglip
from support.yardstick import positive_weights, relative_error

HALF = (torch.bfloat16, torch.float16)


def views(n, d, spread, generator):
    """Draw two views of n standard normal points, `spread` standard deviations apart."""
    z = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return z, z + spread * torch.randn(n, d, generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    """A case is one loss with fixed options.

    `inputs` draws its differentiable float64 arguments. `oracle` gives ``(loss, gradients by
    name)``.
    """

    name: str
    function: str
    inputs: Callable
    oracle: Callable
    options: dict = field(default_factory=dict)
    target: Callable | None = None
    constants: Callable | None = None

    def draw(
        self, n, d, dtype=torch.float64, device="cpu", seed=0, spread=1.0, temperature=0.5
    ) -> dict:
        """Return leaf tensors by argument name.

        Tensors without dimensions (temperature, logit_scale, logit_bias) stay at least float32.
        """
        generator = torch.Generator().manual_seed(seed)
        inputs = self.inputs(n, d, spread, temperature, generator)
        scalar = torch.promote_types(dtype, torch.float32)
        return {
            name: x.to(device, scalar if x.dim() == 0 else dtype).requires_grad_()
            for name, x in inputs.items()
        }

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """The parameters of the function."""
        return dict(inspect.signature(getattr(fused_contrastive, self.function)).parameters)

    @property
    def has_metrics(self) -> bool:
        """Whether the function takes `metrics`, which `positive_weights` do not allow."""
        given = {} if self.constants is None else self.constants(2)
        return "metrics" in self.parameters and "positive_weights" not in given

    @property
    def constant_parts(self) -> bool:
        """Tell whether parts of the loss that depend on its inputs count as constants.

        Then the gradient is not that of the loss.
        """
        return bool(self.options.get("hardness")) or self.function == "dclw_loss"

    def rows(self, first: torch.Tensor) -> int:
        """Return the n that `draw` was given."""
        return first.shape[1] if self.function == "cpc_loss" else len(first)

    def extra(self, n, device="cpu") -> dict:
        """Return the arguments that are not differentiable."""
        constants = {} if self.constants is None else self.constants(n)
        constants |= {} if self.target is None else {"target": self.target(n)}
        return self.options | {name: x.to(device) for name, x in constants.items()}

    def example(self) -> dict:
        """A call in float32: the arguments that have no default, and those not differentiated."""
        drawn, parameters = self.draw(4, 3, torch.float32), self.parameters
        required = (name for name in drawn if parameters[name].default is inspect.Parameter.empty)
        found = {name: drawn[name].detach() for name in required} | self.extra(4)
        return {
            name: x.float() if getattr(x, "dtype", None) == torch.float64 else x
            for name, x in found.items()
        }

    def loss(self, inputs: dict, backend: str | None, reduction="none", **more):
        """Return the fused loss, or that of the eager code itself if `backend` is "reference"."""
        first = next(iter(inputs.values()))
        options = self.extra(self.rows(first), first.device) | {"reduction": reduction} | more
        options |= {
            name: x.to(first.dtype)
            for name, x in options.items()
            if name.startswith("teacher") and x.dim()
        }
        if backend == "reference":
            out = getattr(reference, self.function)(**inputs, **options)
        else:
            out = getattr(fused_contrastive, self.function)(**inputs, **options, backend=backend)
        return out[0] if self.function == "cpc_loss" else out

    def truth(self, inputs: dict, g) -> tuple[np.ndarray, dict]:
        """Return the oracle's loss vector and gradients for the upstream gradient `g`."""
        arrays = {name: oracle.array(x) for name, x in inputs.items()}
        extra = self.extra(self.rows(next(iter(inputs.values()))))
        return self.oracle(**arrays, **extra, g=oracle.array(g))


def _two_views(first, second, temperature="temperature", unit=False):
    def inputs(n, d, spread, t, generator):
        z1, z2 = views(n, d, spread, generator)
        if unit:
            z1, z2 = z1 / z1.norm(dim=1, keepdim=True), z2 / z2.norm(dim=1, keepdim=True)
        named = {first: z1, second: z2}
        if temperature == "temperature":
            named["temperature"] = torch.tensor(t, dtype=torch.float64)
        elif temperature:
            named[temperature] = torch.tensor(1 / t, dtype=torch.float64)
        return named

    return inputs


def _raw(inputs):
    """Scale the same embeddings so that raw dot products are of order one."""

    def scaled(n, d, *rest):
        return {
            name: x / max(d, 1) ** 0.5 if x.dim() else x for name, x in inputs(n, d, *rest).items()
        }

    return scaled


def _with_negatives(paired):
    two = _two_views("query", "positive_key")

    def inputs(n, d, spread, t, generator):
        named = two(n, d, spread, t, generator)
        k = 24 if paired else n // 2 + 1
        shape = (n, k, d) if paired else (k, d)
        return named | {
            "negative_keys": torch.randn(shape, generator=generator, dtype=torch.float64)
        }

    return inputs


def _nce_oracle(*, query, positive_key, temperature, g, negative_keys=None, **options):
    return oracle.info_nce(query, positive_key, negative_keys, temperature, g, **options)


def _n_pairs_oracle(*, anchors, positives, g, target=None, normalize=True):
    return oracle.n_pairs(anchors, positives, target, g, normalize)


def _cpc_inputs(n, d, spread, _, generator):
    steps = [views(n, d, spread, generator) for _ in range(3)]
    return {
        "predictions": torch.stack([p for p, _ in steps]) / max(d, 1) ** 0.5,
        "latents": torch.stack([z for _, z in steps]) / max(d, 1) ** 0.5,
    }


def _cpc_oracle(**arguments):
    loss, _, gradients = oracle.cpc(**arguments)
    return loss, gradients


def _siglip_inputs(*arguments):
    bias = torch.tensor(-2.0, dtype=torch.float64)
    return _two_views("image_features", "text_features", "logit_scale", unit=True)(*arguments) | {
        "logit_bias": bias
    }


_ANCHORS = _two_views("anchors", "positives", temperature="")
_NCE = _two_views("query", "positive_key")
_STANDARD, _MORE = ([Case(**x) for x in listed] for listed in option_cases(_two_views))
_WEIGHTED = functools.partial(vectors, weights=rows)
_LABELS, _MORE_LABELS = (
    [Case(**x) for x in itertools.chain(*listed)]
    for listed in zip(
        label_cases.two_set_losses(_two_views, _WEIGHTED),
        label_cases.siglip_losses(_siglip_inputs, siglip, _WEIGHTED),
        label_cases.with_a_queue(_WEIGHTED),
        strict=True,
    )
)
LOSSES = (
    Case("nt_xent", "nt_xent_loss", _two_views("z1", "z2"), oracle.nt_xent),
    Case(
        "nt_xent-raw",
        "nt_xent_loss",
        _raw(_two_views("z1", "z2")),
        oracle.nt_xent,
        {"normalize": False},
    ),
    Case("info_nce", "info_nce_loss", _NCE, _nce_oracle),
    Case("info_nce-raw", "info_nce_loss", _raw(_NCE), _nce_oracle, {"normalize": False}),
    Case("info_nce-symmetric", "info_nce_loss", _NCE, _nce_oracle, {"symmetric": True}),
    Case("info_nce-queue", "info_nce_loss", _with_negatives(False), _nce_oracle),
    Case(
        "info_nce-paired",
        "info_nce_loss",
        _with_negatives(True),
        _nce_oracle,
        {"negative_mode": "paired"},
    ),
    Case(
        "info_nce-queue-raw",
        "info_nce_loss",
        _raw(_with_negatives(False)),
        _nce_oracle,
        {"normalize": False},
    ),
    Case(
        "clip",
        "clip_loss",
        _two_views("image_features", "text_features", "logit_scale", unit=True),
        oracle.clip,
    ),
    Case("siglip", "siglip_loss", _siglip_inputs, siglip),
    Case("n_pairs", "n_pairs_loss", _ANCHORS, _n_pairs_oracle),
    Case("n_pairs-raw", "n_pairs_loss", _raw(_ANCHORS), _n_pairs_oracle, {"normalize": False}),
    Case(
        "n_pairs-target",
        "n_pairs_loss",
        _ANCHORS,
        _n_pairs_oracle,
        target=lambda n: (torch.arange(n) * 2 + 1) % max(n, 1),
    ),
    Case("cpc", "cpc_loss", _cpc_inputs, _cpc_oracle),
    *(Case(**loss) for loss in label_cases.losses(_two_views("z1", "z2"))),
    *_LABELS,
    *_STANDARD,
)
OPTIONS = (
    *_MORE,
    Case(
        "siglip-options", "siglip_loss", vectors(_siglip_inputs, rows), siglip, constants=keys(rows)
    ),
    Case(
        "dcl-options",
        "dcl_loss",
        vectors(_two_views("z1", "z2"), rows),
        label_oracle.dcl,
        constants=keys(rows),
    ),
    Case(
        "dclw-options",
        "dclw_loss",
        vectors(_two_views("z1", "z2"), rows),
        label_oracle.dcl,
        {"sigma": 0.4},
        constants=keys(rows),
    ),
    *_MORE_LABELS,
    Case("cpc-options", "cpc_loss", vectors(_cpc_inputs, rows), _cpc_oracle, constants=keys(rows)),
)
PLAINEST = {case.function: case for case in reversed(LOSSES)}
ONE_OF_EACH = tuple(case.name for case in PLAINEST.values())
"""The plainest case of every function: what is traced hardly differs with the options."""

BY_NAME = {case.name: case for case in (*LOSSES, *OPTIONS)}


# The backends come one after another, so all cases of a file are kept.
@functools.lru_cache(maxsize=4096)
def loss_truth(name, n, d, dtype, seed, spread, temperature):
    """Return ``(upstream g, loss, gradients)`` of the oracle for one drawn case.

    They are computed once for all backends. The weights g are random but positive, so that the sums
    which temperature and scale receive do not cancel.
    """
    case = BY_NAME[name]
    inputs = case.draw(n, d, dtype, seed=seed, spread=spread, temperature=temperature)
    shape = case.loss(inputs, "reference").shape
    g = positive_weights(shape, seed)
    return g, *case.truth(inputs, g)


@functools.lru_cache(maxsize=16384)
def loss_errors(
    name, backend, n, d, dtype, device="cpu", seed=0, spread=1.0, temperature=0.5
) -> dict[str, float]:
    """Return the relative errors of the loss vector and of every gradient against the oracle.

    The upstream gradients are random.
    """
    case = BY_NAME[name]
    g, loss, grads = loss_truth(name, n, d, dtype, seed, spread, temperature)
    inputs = case.draw(n, d, dtype, device, seed, spread, temperature)
    out = case.loss(inputs, backend)
    out.backward(g.to(out.device, out.dtype))
    errors = {name: relative_error(x.grad, grads[name]) for name, x in inputs.items()}
    return {"loss": relative_error(out, loss)} | errors


WITH_OPTIONS = [
    case.name for case in LOSSES if case.name.split("-")[-1] in ("options", "all", "distill")
]
