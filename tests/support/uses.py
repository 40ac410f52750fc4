"""Every use of the primitive is here once, with its inputs, its oracle and its errors."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from oracles import similarity as oracle

import fused_contrastive
from fused_contrastive import reference
from support.yardstick import positive_weights, relative_error


@dataclass(frozen=True)
class Use:
    """This is one use of `similarity_logsumexp`.

    It has a kind of candidates, one or two sets, an offset, a bias, one or both directions, and
    groups.
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
        """Return leaf tensors by argument name, and the keys, which are integers."""
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
        """Return ``(rows,)`` or ``(rows, cols)``."""
        function = (
            reference.similarity_logsumexp
            if backend == "reference"
            else fused_contrastive.similarity_logsumexp
        )
        more = {} if backend == "reference" else {"backend": backend}
        out = function(**named, **self.options(named["a"].shape[-2]), **more)
        return out if self.columns else (out,)

    def truth(self, named: dict, g_rows, g_cols=None):
        """Return the oracle's ``(rows, cols, gradients by name)``, group by group."""
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
        ("not_self", False, False, False, False, (), 1),
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


@functools.lru_cache(maxsize=2048)
def use_truth(use, m, n, d, dtype, seed):
    """Return ``(upstream gradients, rows, cols, gradients)`` of the oracle.

    They belong to one drawn use of the primitive.
    """
    named = use.draw(m, n, d, dtype, seed=seed)
    upstream = [positive_weights(o.shape, seed) for o in use.apply(named, "reference")]
    return upstream, *use.truth(named, *upstream)


@functools.lru_cache(maxsize=4096)
def use_errors(use, backend, m, n, d, dtype, device, seed) -> dict[str, float]:
    """Return the relative errors of rows, columns and every gradient.

    The value -inf must be where the oracle has it.
    """
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
