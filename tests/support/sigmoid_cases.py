"""These are uses of `sigmoid_sum` with their float64 oracle.

The oracle has explicit formulas in NumPy. Nothing of it comes from the package.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from oracles import similarity as oracle

from fused_contrastive.autograd import sigmoid
from fused_contrastive.problem import NO_SELF


@dataclass(frozen=True)
class Use:
    """A use has candidates, a sign, a positive, one or two sets, a bias of the rows, and groups."""

    kind: str = "all"
    one_set: bool = False
    offset: int | None = None
    positive: int = -1
    sign: int = 1
    row_bias: bool = True
    normalize: bool = False
    lead: tuple = ()

    def __str__(self):
        flags = [name for name in ("row_bias", "normalize") if getattr(self, name)]
        named = [
            f"{name}{getattr(self, name)}"
            for name in ("offset", "positive")
            if getattr(self, name) not in (None, -1)
        ]
        sign = "plus" if self.sign > 0 else "minus"
        groups = ["groups"] if self.lead else []
        return "-".join(
            [self.kind, "one" if self.one_set else "two", sign, *named, *flags, *groups]
        )

    def draw(
        self, m, n, d, dtype=torch.float64, device="cpu", seed=0, scale=0.7, center=-1.0
    ) -> dict:
        """Return leaf tensors by argument name, and the keys, which are integers."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        accumulate = torch.promote_types(dtype, torch.float32)
        named = {"a": normal(*self.lead, m, d).to(device, dtype)}
        if not self.one_set:
            named["b"] = normal(*self.lead, n, d).to(device, dtype)
        named["scale"] = torch.tensor(scale, dtype=accumulate, device=device)
        if self.row_bias:
            named["row_bias"] = (center + normal(*self.lead, m)).to(device, accumulate)
        for x in named.values():
            x.requires_grad_()
        if self.kind in ("other_key", "same_key"):
            named["key_a"] = torch.randint(0, 5, (*self.lead, m), generator=generator).to(device)
            if not self.one_set:
                named["key_b"] = torch.randint(0, 4, (n,), generator=generator).to(device)
        return named

    def stride(self, m) -> int:
        return max(1, m // 2)

    def apply(self, named: dict, backend: str, **more):
        """Return the result of `sigmoid_sum`. The backend "eager" is the dense form."""
        operands = {"b": None} | named
        offset = self.offset if self.offset is not None else 0 if self.one_set else NO_SELF
        if self.kind == "not_pair" and self.offset is None:
            offset = 0
        return sigmoid.sigmoid_sum(
            **operands,
            sign=self.sign,
            kind=self.kind,
            offset=offset,
            stride=self.stride(named["a"].shape[-2]),
            positive=self.positive,
            normalize=self.normalize,
            backend=backend,
            **more,
        )

    def truth(self, named: dict, g):
        """Return the oracle's ``(rows, pos, row_max, gradients by name)``, group by group."""
        arrays = {name: oracle.array(x) for name, x in named.items() if not name.startswith("key")}
        a, b, g = arrays["a"], arrays.get("b"), oracle.array(g)
        m = a.shape[-2]
        n = m if b is None else b.shape[-2]
        offset = 0 if self.offset is None and self.one_set else self.offset
        rows, pos, top = (np.zeros((*self.lead, m)) for _ in range(3))
        total = {name: np.zeros_like(x) for name, x in arrays.items()}
        for k in np.ndindex(*self.lead):
            keys = {}
            if "key_a" in named:
                key_a = named["key_a"].cpu().numpy()[k]
                keys = {
                    "key_a": key_a,
                    "key_b": key_a if b is None else named["key_b"].cpu().numpy(),
                }
            keep = oracle.candidate_matrix(self.kind, m, n, offset, self.stride(m), **keys)
            pairs = oracle.Pairs(
                a[k], None if b is None else b[k], arrays["scale"], None, self.normalize
            )
            x = pairs.s + (arrays["row_bias"][k][:, None] if self.row_bias else 0.0)
            ds = np.zeros_like(x)
            for i in range(m):
                y = self.sign * x[i]
                rows[k][i] = softplus(y[keep[i]]).sum()
                top[k][i] = y[keep[i]].max(initial=-np.inf)
                ds[i] = np.where(keep[i], g[k][i] * self.sign * logistic(y), 0.0)
                if self.positive >= 0:
                    p = (i + self.positive) % n
                    pos[k][i] = x[i, p]
                    rows[k][i] += softplus(-y[p])
                    ds[i, p] -= g[k][i] * self.sign * logistic(-y[p])
            grads = pairs.gradients(ds)
            total["a"][k] = grads["a"]
            if b is not None:
                total["b"][k] = grads["b"]
            total["scale"] += grads["scale"]
            if self.row_bias:
                total["row_bias"][k] = ds.sum(1)
        return rows, pos, top, total


def softplus(x):
    """Return ``log(1 + e^x)`` without overflow or cancellation."""
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def logistic(x):
    """Return ``1 / (1 + e^-x)``, accurate relative to itself on both sides."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, e) / (1 + e)


TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def run(use: Use, named: dict, backend: str) -> dict:
    """Return rows, maxima and gradients by name, on the CPU.

    The upstream gradients go from 0.5 to 2.
    """
    leaves = {k: x.detach().requires_grad_(x.is_floating_point()) for k, x in named.items()}
    out = use.apply(leaves, backend, extrema=True)
    weights = torch.linspace(
        0.5, 2.0, out.rows.numel(), dtype=out.rows.dtype, device=out.rows.device
    )
    out.rows.backward(weights.view_as(out.rows))
    found = {"rows": out.rows.detach(), "row_max": out.row_max.clamp_min(-1e3)}
    found |= {k: x.grad for k, x in leaves.items() if x.grad is not None}
    return {k: x.cpu() for k, x in found.items()}


def check(
    use: Use, backend: str, m, n, d, dtype=torch.float64, device="cpu", tolerance=None, **drawn
) -> dict:
    """Compare `run` with the dense form in float64."""
    if use.positive >= 0 and not use.one_set:
        n = max(n, m)
    named = use.draw(m, n, d, dtype, **drawn)
    wide = {k: x.double() if x.is_floating_point() else x for k, x in named.items()}
    found, expected = (
        run(use, {k: x.to(device) for k, x in named.items()}, backend),
        run(use, wide, "eager"),
    )
    for name, x in expected.items():
        # Gradients of order 1 may cancel to 0, so the error is relative to at least 1.
        error = (found[name].double() - x).norm() / x.norm().clamp_min(1.0)
        assert error <= (tolerance or TOLERANCE[dtype]), (name, m, n, d, dtype, error)
    return found


def siglip(
    image_features,
    text_features,
    logit_scale,
    logit_bias,
    g,
    keys=None,
    weights=None,
    labels=None,
    average_positives=False,
):
    """Return ``(loss [N], gradients by argument name)`` of the SigLIP loss.

    A double loop goes over images and texts. Each pair is a logistic regression.
    """
    image, text = oracle.array(image_features), oracle.array(text_features)
    scale, bias = float(oracle.array(logit_scale)), float(oracle.array(logit_bias))
    loss = np.zeros(len(image))
    grads = {"image_features": np.zeros_like(image), "text_features": np.zeros_like(text)}
    grads |= {"logit_scale": 0.0, "logit_bias": 0.0}
    key = range(len(image)) if keys is None else keys.tolist()
    of_rows = np.ones(len(image)) if weights is None else oracle.array(weights)
    for i, u in enumerate(image):
        for j, v in enumerate(text):
            if i != j and key[i] == key[j]:
                continue
            label = 1 if i == j or (labels is not None and labels[i] == labels[j]) else -1
            part = 1.0
            if average_positives and label == 1:
                part = 1 / int((labels == labels[i]).sum())
            dot = u @ v
            loss[i] += part * softplus(-label * (scale * dot + bias))
            d = -g[i] * of_rows[i] * part * label * logistic(-label * (scale * dot + bias))
            grads["image_features"][i] += d * scale * v
            grads["text_features"][j] += d * scale * u
            grads["logit_scale"] += d * dot
            grads["logit_bias"] += d
    if weights is not None:
        grads["weights"] = g * loss
    return of_rows * loss, grads


USES = (
    Use("not_self", offset=0, positive=0),
    Use("not_self", offset=0, positive=0, row_bias=False, normalize=True, lead=(2,)),
    Use("same_key", one_set=True, sign=-1, normalize=True),
    Use("same_key", sign=-1, offset=1, lead=(2,)),
    Use("other_key", sign=1),
    Use("other_key", one_set=True, sign=-1, lead=(2, 1)),
    Use("all", sign=-1, positive=2, normalize=True),
    Use("all", one_set=True, row_bias=False),
    Use("not_self", one_set=True, positive=1),
    Use("not_self", one_set=True, offset=2, sign=-1),
    Use("not_pair", one_set=True, positive=3, normalize=True),
    Use("not_pair", offset=1),
)
