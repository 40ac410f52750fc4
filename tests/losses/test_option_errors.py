"""Wrong options raise an error that names the argument."""

import math

import pytest
import torch
from support import cases
from support.option_calls import call

import fused_contrastive as fc
from fused_contrastive import losses
from fused_contrastive.losses._arguments import Options

Z = torch.randn(4, 3)
WRONG = (
    ({"keys": [0, 1, 2, 3]}, TypeError, "keys must be an integer tensor"),
    ({"keys": torch.zeros(4)}, TypeError, "keys must be an integer tensor"),
    ({"keys": torch.arange(3)}, ValueError, r"keys must have shape \(4,\), got"),
    ({"keys": torch.zeros(4, 4, dtype=torch.long)}, ValueError, "keys must"),
    ({"keys": torch.empty(4, dtype=torch.long, device="meta")}, ValueError, "keys must be on"),
    ({"weights": torch.ones(3)}, ValueError, r"weights must have shape \[4\]"),
    ({"weights": torch.ones(4, dtype=torch.long)}, TypeError, "weights must be a floating-point"),
    ({"weights": 2.0}, TypeError, "weights must be a tensor"),
    ({"weights": torch.ones(4, device="meta")}, ValueError, "weights must be on"),
)
WRONG_BIAS = (
    ({"bias": torch.ones(3)}, ValueError, r"bias must have shape \[4\]"),
    ({"bias": torch.ones(())}, ValueError, r"bias must have shape \[4\]"),
    ({"bias": torch.ones(4, dtype=torch.long)}, TypeError, "bias must be a floating-point"),
    ({"bias": torch.ones(4, device="meta")}, ValueError, "bias must be on"),
    ({"label_smoothing": -0.1}, ValueError, r"label_smoothing must be in \[0, 1\]"),
    ({"label_smoothing": 1.1}, ValueError, "label_smoothing must be in"),
    ({"label_smoothing": torch.tensor(0.1)}, TypeError, "label_smoothing must be a number"),
    ({"margin": math.nan}, ValueError, "margin must be finite"),
    ({"margin": "0.1"}, TypeError, "margin must be a number"),
)
WRONG_HARDNESS = (
    ({"hardness": -1.0}, ValueError, r"hardness must be in \[0, inf\]"),
    ({"hardness": math.inf}, ValueError, "hardness must be finite"),
    ({"hardness": torch.tensor(1.0)}, TypeError, "hardness must be a number"),
)
WRONG_TAU = (
    ({"tau_plus": 1.0}, ValueError, r"tau_plus must be in \[0, 1\)"),
    ({"tau_plus": -0.1}, ValueError, "tau_plus must be in"),
    ({"tau_plus": 0.1, "hardness": 1.0}, ValueError, "hardness must be 0 where tau_plus is not"),
)
OF_LOSS = {
    "nt_xent_loss": WRONG + WRONG_BIAS + WRONG_HARDNESS + WRONG_TAU,
    "info_nce_loss": WRONG + WRONG_BIAS + WRONG_HARDNESS + WRONG_TAU,
    "clip_loss": WRONG + WRONG_BIAS + WRONG_HARDNESS,
    "n_pairs_loss": WRONG + WRONG_BIAS,
    "multiple_negatives_ranking_loss": WRONG + WRONG_HARDNESS,
}


@pytest.mark.parametrize("name", OF_LOSS)
def test_errors(name):
    for options, error, message in OF_LOSS[name]:
        with pytest.raises(error, match=message):
            call(name, Z, Z, **options)


OPTIONS_OF_LOSS = [
    (name, option)
    for name in cases.PLAINEST
    for option in Options._fields
    if option in cases.PLAINEST[name].parameters
]


@pytest.mark.parametrize("backend", ("eager", "panels"))
@pytest.mark.parametrize(("name", "option"), OPTIONS_OF_LOSS)
def test_every_option_changes_the_loss(name, option, backend):
    """A loss that takes an option hands it on, in both of its forms."""
    case = cases.PLAINEST[name]
    inputs = case.draw(5, 3)
    losses_with = [case.loss(inputs, backend, **{option: value}) for value in (0.0, 0.1)]
    assert not torch.allclose(*losses_with)


FLAGS = (
    ("nt_xent_loss", ("normalize", "metrics")),
    ("info_nce_loss", ("normalize", "symmetric", "metrics")),
    ("clip_loss", ("metrics",)),
    ("n_pairs_loss", ("normalize", "metrics")),
    ("multiple_negatives_ranking_loss", ("normalize", "metrics")),
)


@pytest.mark.parametrize(("name", "flags"), FLAGS)
def test_flags(name, flags):
    for flag in flags:
        for wrong in ("no", None):
            with pytest.raises(ValueError, match=f"{flag} must be one of True, False"):
                call(name, Z, Z, **{flag: wrong})


@pytest.mark.parametrize(
    "module",
    ("NTXentLoss", "InfoNCELoss", "ClipLoss", "NPairsLoss", "MultipleNegativesRankingLoss"),
)
def test_errors_of_constructors(module):
    """Options are checked when the module is made."""
    option = "hardness" if module == "MultipleNegativesRankingLoss" else "margin"
    with pytest.raises(ValueError, match=f"{option} must be finite"):
        getattr(fc, module)(**{option: math.nan})


@pytest.mark.parametrize(
    ("negatives", "mode", "shape"),
    (
        (torch.randn(5, 3), "unpaired", 9),
        (torch.randn(5, 3), "in_batch", 9),
        (torch.randn(4, 5, 3), "paired", [4, 6]),
    ),
)
def test_shapes_with_negatives(negatives, mode, shape):
    """Keys and biases have one entry for each pair and each negative."""
    for name, x in (("keys", torch.arange(4)), ("bias", torch.zeros(4))):
        with pytest.raises(ValueError, match=f"{name} must"):
            fc.info_nce_loss(Z, Z, negatives, negative_mode=mode, **{name: x})
        right = torch.zeros(shape, dtype=x.dtype)
        assert fc.info_nce_loss(Z, Z, negatives, negative_mode=mode, **{name: right}).isfinite()


@pytest.mark.parametrize(
    ("options", "message"),
    (
        ({"directions": ()}, "directions must"),
        ({"directions": "query_to_doc"}, "directions must"),
        ({"directions": 1}, "directions must"),
        ({"directions": ("query_to_query",)}, "directions must"),
        ({"directions": ("query_to_doc", "doc")}, "directions must"),
        ({"partition": "each"}, "partition must be one of"),
        (
            {"partition": "per_direction", "directions": losses.ranking.DIRECTIONS},
            "partition='per_direction' needs",
        ),
        ({"hardness_mode": None}, "hardness_mode must be one of"),
        ({"negative_keys": torch.randn(4, 3)}, "negative_keys must have 3 dimensions"),
        ({"negative_keys": torch.randn(3, 2, 3)}, r"negative_keys must have shape \[4, H, 3\]"),
    ),
)
def test_errors_of_ranking(options, message):
    with pytest.raises(ValueError, match=message):
        fc.multiple_negatives_ranking_loss(Z, Z, **options)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    (
        ((Z, Z, 1.0, Z, Z[:3], 1.0), ValueError, "teacher_text_features must have the shape"),
        ((Z, Z, 1.0, Z[:3], Z[:3], 1.0), ValueError, "teacher_image_features must have 4 rows"),
        (
            (Z, Z, 1.0, Z.double(), Z.double(), 1.0),
            TypeError,
            "teacher_image_features must have the dtype",
        ),
        ((Z, Z, "1", Z, Z, 1.0), TypeError, "logit_scale must be a number"),
        ((Z, Z, 1.0, Z, Z, math.inf), ValueError, "teacher_logit_scale must be finite"),
    ),
)
def test_errors_of_distillation(arguments, error, message):
    with pytest.raises(error, match=message):
        fc.distill_clip_loss(*arguments)
