"""The losses with several positives and the decoupled losses as rows of the
test matrix (cases.py).
"""

from __future__ import annotations

import pytest
import torch
from oracles import labels as label_oracle

above_the_kernels = pytest.mark.interpreter(backend=(), any_backend=())
"""The kernels are those of the tests that the interpreter runs."""


def draw(device, views=0, n=11, d=5, dtype=torch.float64, seed=0):
    """Leaf features ``[n, d]``, or ``[n, views, d]``."""
    generator = torch.Generator().manual_seed(seed)
    shape = (n, views, d) if views else (n, d)
    return (
        (0.7 * torch.randn(shape, generator=generator, dtype=torch.float64))
        .to(device, dtype)
        .requires_grad_()
    )


def labels(n) -> torch.Tensor:
    """Classes of four, three, two and one samples in turn, with negative and falling names."""
    index = torch.arange(n)
    within = index % 10
    return (
        3 - 4 * (index // 10) - (within >= 4).long() - (within >= 7).long() - (within >= 9).long()
    )


def positive_weights(n) -> torch.Tensor:
    """Eighths up to a half, not symmetric, more than half of them 0."""
    i, j = torch.arange(n)[:, None], torch.arange(n)[None, :]
    return ((3 * i + 5 * j + i * j) % 11 - 6).clamp_min(0) / 8


def features(views: int = 0):
    """A standard normal centre for every class, `spread` standard deviations around it; `views` of
    each sample (0: no such dimension).
    """

    def inputs(n, d, spread, t, generator):
        center = torch.randn(n, d, generator=generator, dtype=torch.float64)
        x = center[(labels(n) - labels(n).min()) if n else labels(n)]
        shape = (n, views, d) if views else (n, d)
        x = (x.unsqueeze(1) if views else x) + spread * torch.randn(
            shape, generator=generator, dtype=torch.float64
        )
        return {"features": x, "temperature": torch.tensor(t, dtype=torch.float64)}

    return inputs


def _by_label(n):
    return {"labels": labels(n)}


def _by_weight(n):
    return {"positive_weights": positive_weights(n)}


def losses(two_views) -> list[dict]:
    """Arguments of cases.Case; `two_views` draws z1, z2 and the temperature."""

    def sup_con(name, views, constants, **options):
        return {
            "name": name,
            "function": "sup_con_loss",
            "inputs": features(views),
            "oracle": label_oracle.sup_con,
            "options": options,
            "constants": constants,
        }

    def dcl(name, function, **options):
        return {
            "name": name,
            "function": function,
            "inputs": two_views,
            "oracle": label_oracle.dcl,
            "options": options,
        }

    return [
        sup_con("sup_con", 0, _by_label),
        sup_con("sup_con-in", 2, _by_label, positives="in"),
        sup_con("sup_con-pairs", 2, _by_label, positives="pairs", contrast_mode="one"),
        sup_con("sup_con-weights", 2, _by_weight),
        dcl("dcl", "dcl_loss"),
        dcl("dclw", "dclw_loss", sigma=0.4),
    ]
