"""These rows of the test matrix (cases.py) are losses with several positives.

The decoupled losses are here, too.
"""

from __future__ import annotations

import pytest
import torch
from oracles import labels as label_oracle

above_the_kernels = pytest.mark.interpreter(backend=(), any_backend=())
"""The interpreter skips these tests, because others that it runs use the same kernels."""


def draw(device, views=0, n=11, d=5, dtype=torch.float64, seed=0):
    """Draw leaf features ``[n, d]``, or ``[n, views, d]``."""
    generator = torch.Generator().manual_seed(seed)
    shape = (n, views, d) if views else (n, d)
    return (
        (0.7 * torch.randn(shape, generator=generator, dtype=torch.float64))
        .to(device, dtype)
        .requires_grad_()
    )


def labels(n) -> torch.Tensor:
    """Return classes of four, three, two and one samples in turn.

    Their names fall and become negative.
    """
    index = torch.arange(n)
    within = index % 10
    return (
        3 - 4 * (index // 10) - (within >= 4).long() - (within >= 7).long() - (within >= 9).long()
    )


def positive_weights(n) -> torch.Tensor:
    """Return a matrix of eighths up to a half.

    It is not symmetric, and more than half of it is 0.
    """
    i, j = torch.arange(n)[:, None], torch.arange(n)[None, :]
    return ((3 * i + 5 * j + i * j) % 11 - 6).clamp_min(0) / 8


def features(views: int = 0):
    """Draw `views` of each sample around the standard normal centre of its class.

    They are `spread` standard deviations from the centre. With 0 views there is no such dimension.
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


def with_queue(views: int = 0):
    """Draw features, and seven rows of a queue for each two samples."""

    def inputs(n, d, spread, t, generator):
        drawn = features(views)(n, d, spread, t, generator)
        shape = (7 * n // 2, d)
        return drawn | {"queue": torch.randn(shape, generator=generator, dtype=torch.float64)}

    return inputs


def _of_queue(n):
    """Return labels of the samples and of the queue, whose classes have other sizes."""
    of_queue = labels(n)[(5 * torch.arange(7 * n // 2) % max(n, 1)) * (n > 0)] - 1
    return {"labels": labels(n), "queue_labels": of_queue}


def _by_label(n):
    return {"labels": labels(n)}


def _by_weight(n):
    return {"positive_weights": positive_weights(n)}


def losses(two_views) -> list[dict]:
    """Return arguments of cases.Case. `two_views` draws z1, z2 and the temperature."""

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


def with_a_queue(weighted) -> tuple[list[dict], list[dict]]:
    """Return arguments of `Case` for SupCon beside a queue, and with samples to be ignored.

    The first are for the whole matrix, and the second for tests of options. `weighted` adds
    weights to inputs.
    """

    def case(name, inputs, constants, **options):
        return {
            "name": f"sup_con-{name}",
            "function": "sup_con_loss",
            "inputs": inputs,
            "oracle": label_oracle.sup_con,
            "options": options,
            "constants": constants,
        }

    standard = [case("queue", with_queue(), _of_queue, ignore_index=2)]
    more = [
        case("queue-in", with_queue(2), _of_queue, positives="in"),
        case("queue-pairs", with_queue(), _of_queue, positives="pairs"),
        case("ignored", weighted(features(2)), _by_label, ignore_index=2),
        case("ignored-pairs", features(), _by_label, ignore_index=2, positives="pairs"),
    ]
    return standard, more


def siglip_losses(inputs, oracle, weighted) -> tuple[list[dict], list[dict]]:
    """Return arguments of `Case` for SigLIP with labels as ``(standard, more)``."""

    def case(name, inputs, **options):
        found = {"name": name, "function": "siglip_loss", "inputs": inputs, "oracle": oracle}
        return found | {"options": options, "constants": _by_label}

    average = case("siglip-labels-average", weighted(inputs), average_positives=True)
    return [case("siglip-labels", inputs)], [average]


def two_set_losses(two_views, weighted) -> tuple[list[dict], list[dict]]:
    """Return arguments of `Case` for pairs with labels as ``(standard, more)``.

    `weighted` adds weights to inputs.
    """
    nce = two_views("query", "positive_key")
    clip = two_views("image_features", "text_features", "logit_scale", unit=True)

    def case(name, inputs, oracle, **options):
        function = f"{name.partition('-')[0]}_loss"
        return {
            "name": name,
            "function": function,
            "inputs": inputs,
            "oracle": oracle,
            "options": options,
            "constants": _by_label,
        }

    standard = [
        case("info_nce-labels", nce, label_oracle.info_nce),
        case("clip-labels", weighted(clip), label_oracle.clip, ignore_index=2),
    ]
    more = [
        case("clip-labels-all", clip, label_oracle.clip),
        case(
            "info_nce-labels-symmetric",
            weighted(nce),
            label_oracle.info_nce,
            symmetric=True,
            ignore_index=2,
        ),
    ]
    return standard, more
