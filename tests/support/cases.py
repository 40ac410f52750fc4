"""Every loss and every use of the primitive once, with its inputs and its oracle.

The rows of the test matrix.
"""

from __future__ import annotations

import functools
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

HALF = (torch.bfloat16, torch.float16)


def views(n, d, spread, generator):
    """Two views of n standard normal points, `spread` standard deviations apart."""
    z = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return z, z + spread * torch.randn(n, d, generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    """One loss with fixed options.

    `inputs` draws its differentiable float64 arguments, `oracle` gives ``(loss, gradients by
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
        """Leaf tensors by argument name.

        0-d ones (temperature, logit_scale, logit_bias) stay at least float32.
        """
        generator = torch.Generator().manual_seed(seed)
        inputs = self.inputs(n, d, spread, temperature, generator)
        scalar = torch.promote_types(dtype, torch.float32)
        return {
            name: x.to(device, scalar if x.dim() == 0 else dtype).requires_grad_()
            for name, x in inputs.items()
        }

    @property
    def constant_parts(self) -> bool:
        """Whether parts of the loss that depend on its inputs count as constants.

        The gradient is not that of the loss.
        """
        return bool(self.options.get("hardness")) or self.function == "dclw_loss"

    def rows(self, first: torch.Tensor) -> int:
        """What `draw` was given as n."""
        return first.shape[1] if self.function == "cpc_loss" else len(first)

    def extra(self, n, device="cpu") -> dict:
        """The arguments that are not differentiable."""
        constants = {} if self.constants is None else self.constants(n)
        constants |= {} if self.target is None else {"target": self.target(n)}
        return self.options | {name: x.to(device) for name, x in constants.items()}

    def loss(self, inputs: dict, backend: str | None, reduction="none", **more):
        """The fused loss; `backend` "reference" is the eager code itself."""
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
        """The oracle's loss vector and gradients for the upstream gradient `g`."""
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
    """The same embeddings scaled so that raw dot products are of order one."""

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
_STANDARD, _MORE = ([Case(**row) for row in rows] for rows in option_cases(_two_views))
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
    Case("cpc-options", "cpc_loss", vectors(_cpc_inputs, rows), _cpc_oracle, constants=keys(rows)),
)
ONE_POSITIVE = tuple(case for case in LOSSES if case.function != "sup_con_loss")
WITHOUT_METRICS = ("cpc_loss", "distill_clip_loss", "sup_con_loss")
ONE_OF_EACH = tuple({case.function: case.name for case in reversed(LOSSES)}.values())
"""The plainest case of every function: what is traced hardly differs with the options."""

BY_NAME = {case.name: case for case in (*LOSSES, *OPTIONS)}


@dataclass(frozen=True)
class Use:
    """One use of `similarity_logsumexp`: candidate kind, one or two sets, offsets, bias, both
    directions, groups.
    """

    kind: str
    one_set: bool
    columns: bool = False
    self_offset: int | None = None
    bias: bool = False
    normalize: bool = False
    lead: tuple = ()

    def __str__(self):
        flags = [name for name in ("columns", "bias", "normalize") if getattr(self, name)]
        offset = [] if self.self_offset is None else [f"offset{self.self_offset}"]
        return "-".join(
            [
                self.kind,
                "one" if self.one_set else "two",
                *offset,
                *flags,
                *(["groups"] if self.lead else []),
            ]
        )

    def draw(self, m, n, d, dtype=torch.float64, device="cpu", seed=0) -> dict:
        """Leaf tensors by argument name, and the keys (integers)."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            x = torch.randn(*shape, generator=generator, dtype=torch.float64)
            return x.to(device, dtype).requires_grad_()

        accumulate = torch.promote_types(dtype, torch.float32)
        named = {"a": normal(*self.lead, m, d)}
        if not self.one_set:
            named["b"] = normal(*self.lead, n, d)
        columns = m if self.one_set else n
        named["scale"] = torch.tensor(0.7, dtype=accumulate, device=device, requires_grad=True)
        if self.bias:
            named["bias"] = normal(columns).detach().to(accumulate).requires_grad_()
        if self.kind in ("other_key", "same_key"):
            named["key_a"] = torch.randint(0, 5, (*self.lead, m), generator=generator).to(device)
            if not self.one_set:
                named["key_b"] = torch.randint(0, 4, (n,), generator=generator).to(device)
        return named

    def options(self, m) -> dict:
        stride = {"pair_stride": max(1, m // 2)} if self.kind == "not_pair" else {}
        return stride | {
            "candidates": self.kind,
            "self_offset": self.self_offset,
            "normalize": self.normalize,
            "return_columns": self.columns,
        }

    def apply(self, named: dict, backend: str):
        """``(rows,)`` or ``(rows, cols)``."""
        function = (
            reference.similarity_logsumexp
            if backend == "reference"
            else fused_contrastive.similarity_logsumexp
        )
        more = {} if backend == "reference" else {"backend": backend}
        out = function(**named, **self.options(named["a"].shape[-2]), **more)
        return out if self.columns else (out,)

    def truth(self, named: dict, g_rows, g_cols=None):
        """The oracle's ``(rows, cols, gradients by name)``, group by group."""
        a = oracle.array(named["a"])
        b = None if self.one_set else oracle.array(named["b"])
        m, n = a.shape[-2], a.shape[-2] if b is None else b.shape[-2]
        bias = oracle.array(named["bias"]) if self.bias else None
        offset = 0 if self.self_offset is None and self.one_set else self.self_offset
        rows, cols = np.zeros((*self.lead, m)), np.zeros((*self.lead, n))
        total = {
            name: np.zeros_like(oracle.array(x))
            for name, x in named.items()
            if not name.startswith("key")
        }
        for g in np.ndindex(*self.lead):
            keys = {}
            if "key_a" in named:
                key_a = named["key_a"].cpu().numpy()[g]
                keys = {
                    "key_a": key_a,
                    "key_b": key_a if self.one_set else named["key_b"].cpu().numpy(),
                }
            keep = oracle.candidate_matrix(
                self.kind, m, n, offset, self.options(m).get("pair_stride"), **keys
            )
            pairs = oracle.Pairs(
                a[g],
                None if b is None else b[g],
                oracle.array(named["scale"]),
                bias,
                self.normalize,
            )
            rows[g], cols[g], grads = oracle.logsumexp(
                pairs,
                keep,
                oracle.array(g_rows)[g],
                None if g_cols is None else oracle.array(g_cols)[g],
            )
            total["a"][g] = grads["a"]
            if b is not None:
                total["b"][g] = grads["b"]
            total["scale"] += grads["scale"]
            if self.bias:
                total["bias"] += grads["bias"]
        return rows, cols, total


USES = tuple(
    Use(
        kind,
        one_set,
        columns=columns,
        bias=bias,
        normalize=normalize,
        lead=lead,
        self_offset=offset,
    )
    for kind, one_set, columns, bias, normalize, lead, offset in (
        ("all", True, False, False, False, (), None),
        ("all", True, True, True, True, (), None),
        ("all", False, False, True, False, (), None),
        ("all", False, True, False, True, (2, 1), None),
        ("not_self", True, False, False, True, (), None),
        ("not_self", True, True, False, False, (2,), None),
        ("not_self", True, False, False, False, (), 2),
        ("not_self", False, False, False, False, (), None),
        ("not_self", False, True, True, False, (), 0),
        ("not_self", False, False, False, True, (2,), -3),
        ("not_pair", True, False, False, True, (), None),
        ("not_pair", True, False, True, False, (2,), None),
        ("not_pair", False, True, False, False, (), None),
        ("not_pair", False, False, True, False, (), 1),
        ("other_key", True, False, False, False, (), None),
        ("other_key", True, True, False, True, (2,), None),
        ("other_key", False, False, True, True, (), None),
        ("other_key", False, True, False, False, (2,), None),
        ("same_key", True, False, False, False, (), None),
        ("same_key", True, True, True, False, (), None),
        ("same_key", False, False, False, True, (2,), None),
        ("same_key", False, True, True, False, (), 1),
    )
)


def relative_error(x, truth) -> float:
    """``|x - truth| / |truth|`` in the Euclidean norm over the whole tensor.

    A truth that underflows counts as the smallest float32.
    """
    x, truth = oracle.array(x), oracle.array(truth)
    return float(
        np.linalg.norm(x - truth) / max(np.linalg.norm(truth), torch.finfo(torch.float32).tiny)
    )


def positive_weights(shape, seed) -> torch.Tensor:
    """Random upstream gradients in [0.5, 1.5], exact in every dtype."""
    return (
        torch.randint(4, 13, shape, generator=torch.Generator().manual_seed(seed + 1)).double() / 8
    )


@functools.lru_cache(maxsize=4096)  # all of a file's cases, as backends come one after another
def loss_truth(name, n, d, dtype, seed, spread, temperature):
    """``(upstream g, loss, gradients)`` of the oracle for one drawn case, computed once for all
    backends.

    The weights g are random but positive, so that the sums which temperature and scale receive do
    not cancel.
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
    """Relative errors of the loss vector and of every gradient against the oracle, upstream
    gradients random.
    """
    case = BY_NAME[name]
    g, loss, grads = loss_truth(name, n, d, dtype, seed, spread, temperature)
    inputs = case.draw(n, d, dtype, device, seed, spread, temperature)
    out = case.loss(inputs, backend)
    out.backward(g.to(out.device, out.dtype))
    errors = {name: relative_error(x.grad, grads[name]) for name, x in inputs.items()}
    return {"loss": relative_error(out, loss)} | errors


@functools.lru_cache(maxsize=2048)
def use_truth(use, m, n, d, dtype, seed):
    """``(upstream gradients, rows, cols, gradients)`` of the oracle for one drawn use of the
    primitive.
    """
    named = use.draw(m, n, d, dtype, seed=seed)
    upstream = [positive_weights(o.shape, seed) for o in use.apply(named, "reference")]
    return upstream, *use.truth(named, *upstream)


@functools.lru_cache(maxsize=4096)
def use_errors(use, backend, m, n, d, dtype, device, seed) -> dict[str, float]:
    """Relative errors of rows, columns and every gradient; -inf must be where the oracle has it."""
    upstream, rows, cols, grads = use_truth(use, m, n, d, dtype, seed)
    named = use.draw(m, n, d, dtype, device, seed)
    out = use.apply(named, backend)
    torch.autograd.backward(
        out, [g.to(o.device, o.dtype) for g, o in zip(upstream, out, strict=True)]
    )
    found = {f"d{name}": (named[name].grad, grads[name]) for name in grads}
    found |= dict(zip(("rows", "cols"), zip(out, (rows, cols), strict=False), strict=False))
    errors = {}
    for name, (x, truth) in found.items():
        finite = np.isfinite(truth)
        assert (np.isneginf(oracle.array(x)) == np.isneginf(truth)).all(), name
        errors[name] = relative_error(oracle.array(x)[finite], truth[finite])
    return errors
