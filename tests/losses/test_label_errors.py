"""Wrong arguments of the losses with labels raise errors that name them."""

import pytest
import torch

import fused_contrastive as fc

Z = torch.randn(4, 3)


WRONG = (
    ({"features": Z[0]}, ValueError, r"features must have shape \[N, D\] or \[N, V, D\]"),
    ({"features": Z[None, None]}, ValueError, "features must have shape"),
    ({"features": Z[:, None][:, :0]}, ValueError, "features must have shape"),
    ({"features": Z.long()}, TypeError, "features must be a floating-point"),
    ({"labels": None}, ValueError, r"labels must be given with features \[N, D\]"),
    ({"labels": torch.arange(3)}, ValueError, r"labels must have shape \(4,\), got"),
    ({"labels": Z[:, 0]}, TypeError, "labels must be an integer tensor"),
    ({"labels": [0, 1, 2, 3]}, TypeError, "labels must be an integer tensor"),
    ({"labels": torch.arange(4, device="meta")}, ValueError, "labels must be on"),
    ({"temperature": 0.0}, ValueError, "temperature must not be smaller"),
    ({"temperature": "1"}, TypeError, "temperature must be a number"),
    ({"positives": "all"}, ValueError, "positives must be one of 'out', 'in', 'pairs'"),
    ({"contrast_mode": "two"}, ValueError, "contrast_mode must be one of 'all', 'one'"),
    ({"normalize": "l2"}, ValueError, "normalize must be one of"),
    ({"skip_unmatched": None}, ValueError, "skip_unmatched must be one of"),
    ({"reduction": "average"}, ValueError, "reduction must be one of"),
    ({"weights": torch.ones(3)}, ValueError, r"weights must have shape \(4,\)"),
    ({"weights": torch.ones(4, dtype=torch.int64)}, TypeError, "weights must be a floating-point"),
    ({"weights": torch.ones(4, device="meta")}, ValueError, "weights must be on"),
    (
        {"positive_weights": torch.ones(4, 4)},
        ValueError,
        "labels must be None where positive_weights",
    ),
    (
        {"labels": None, "positive_weights": torch.ones(4)},
        ValueError,
        r"positive_weights must have shape \(4, 4\)",
    ),
    (
        {"labels": None, "positive_weights": Z.tolist()},
        TypeError,
        "positive_weights must be a real tensor",
    ),
    (
        {"labels": None, "positive_weights": torch.ones(4, 4, device="meta")},
        ValueError,
        "positive_weights must be on",
    ),
    (
        {"labels": None, "positive_weights": torch.ones(4, 4), "positives": "in"},
        ValueError,
        "need positives='out'",
    ),
    (
        {"labels": None, "positive_weights": torch.ones(4, 4), "metrics": True},
        ValueError,
        "metrics=True needs labels",
    ),
    ({"ignore_index": 1.5}, TypeError, "ignore_index must be an integer or None"),
    (
        {"features": Z[:, None], "labels": None, "ignore_index": 0},
        ValueError,
        "ignore_index must be None without labels",
    ),
    ({"queue": Z.tolist(), "queue_labels": torch.arange(4)}, TypeError, "queue must be a tensor"),
    (
        {"queue": Z.double(), "queue_labels": torch.arange(4)},
        TypeError,
        "queue must have the dtype",
    ),
    ({"queue": Z[None], "queue_labels": torch.arange(4)}, ValueError, "queue must have 2 dim"),
    (
        {"queue": Z[:, :2], "queue_labels": torch.arange(4)},
        ValueError,
        r"queue must have shape \[K",
    ),
    ({"queue": fc.MemoryBank(8, 3)}, TypeError, "pass queue=bank.negatives and queue_labels="),
    ({"queue": Z}, ValueError, "labels and queue_labels must be given with a queue"),
    ({"queue_labels": torch.arange(4)}, ValueError, "queue_labels must be None without a queue"),
    (
        {"queue": Z, "queue_labels": torch.arange(3)},
        ValueError,
        r"queue_labels must have shape \(4,\), got",
    ),
    ({"queue": Z, "queue_labels": Z[:, 0]}, TypeError, "queue_labels must be an integer tensor"),
    (
        {"features": Z[:, None], "labels": None, "queue": Z, "queue_labels": torch.arange(4)},
        ValueError,
        "labels and queue_labels must be given with a queue",
    ),
    ({"backend": "gpu"}, ValueError, "backend must be one of"),
)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    WRONG,
    ids=lambda v: str(list(v)) if isinstance(v, dict) else "",
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        fc.sup_con_loss(**{"features": Z, "labels": torch.arange(4)} | arguments)


@pytest.mark.parametrize("loss", (fc.dclw_loss, fc.DCLWLoss), ids=lambda f: f.__name__)
def test_wrong_sigma(loss):
    sets = () if isinstance(loss, type) else (Z, Z)
    for sigma, error in ((0.0, ValueError), ("1", TypeError)):
        with pytest.raises(error, match="sigma must"):
            loss(*sets, sigma=sigma)
