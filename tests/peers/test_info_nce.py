"""The integration of info-nce-pytorch agrees with the installed package."""

import agreement
import info_nce as peer
import pytest
import torch
from agreement import DTYPES, SIZES, agree, draw, same_error

from fused_contrastive.integrations import info_nce as ours

MODES = (None, "unpaired", "paired")


def pair(**options):
    return (lambda *x: ours.info_nce(*x, **options)), (lambda *x: peer.info_nce(*x, **options))


def inputs(n, d, mode, k=4):
    return draw(
        (n, d), (n, d), *([] if mode is None else [(k, d)] if mode == "unpaired" else [(n, k, d)])
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ("none", "mean", "sum"))
@pytest.mark.parametrize("mode", MODES)
def test_equal(mode, reduction, dtype, streams):
    for n, d in SIZES:
        for temperature in (0.1, 1, -0.5):
            options = {
                "temperature": temperature,
                "reduction": reduction,
                "negative_mode": mode or "unpaired",
            }
            agree(*pair(**options), inputs(n, d, mode), dtype)


@pytest.mark.parametrize("autocast", (torch.bfloat16, torch.float16))
@pytest.mark.parametrize("mode", MODES)
def test_equal_in_autocast(mode, autocast, streams):
    agree(*pair(negative_mode=mode or "unpaired"), inputs(13, 16, mode), torch.float32, autocast)


@pytest.mark.parametrize("shape", ((), (1,), (1, 1)))
def test_temperature_gets_a_gradient(shape, streams):
    def call(function):
        return lambda q, p, t: function(q, p, None, t.reshape(shape))

    agree(
        call(ours.info_nce),
        call(peer.info_nce),
        [*draw((5, 3), (5, 3)), torch.tensor(0.3, dtype=torch.float64)],
    )


def test_converged_batches_are_as_accurate(streams):
    agree(*pair(temperature=0.05), draw((16, 8), (16, 8), spread=0.05), torch.float32)


@pytest.mark.parametrize("mode", ("unpaired", "paired", "another"))
def test_in_batch_ignores_the_mode(mode, streams):
    agree(*pair(negative_mode=mode), draw((4, 3), (4, 3)))


def test_module(streams):
    for options in ({}, {"temperature": 0.2, "reduction": "sum", "negative_mode": "paired"}):
        agree(
            ours.InfoNCE(**options),
            peer.InfoNCE(**options),
            draw((4, 3), (4, 3), (4, 2, 3))[: 3 if options else 2],
        )


def test_signatures():
    agreement.same_signature(ours.info_nce, peer.info_nce)
    agreement.same_signature(ours.InfoNCE, peer.InfoNCE)


@pytest.mark.parametrize(
    ("shapes", "options"),
    (
        (((4,), (4, 3)), {}),
        (((4, 3), (4,)), {}),
        (((4, 3), (5, 3)), {}),
        (((4, 3), (4, 2)), {}),
        (((4, 3), (4, 3), (5, 2)), {}),
        (((4, 3), (4, 3), (4, 5, 3)), {}),
        (((4, 3), (4, 3), (5, 3)), {"negative_mode": "paired"}),
        (((4, 3), (4, 3), (3, 5, 3)), {"negative_mode": "paired"}),
        (((4, 3), (4, 3), (4, 5, 2)), {"negative_mode": "paired"}),
        (((4, 3), (4, 3), (5, 3)), {"negative_mode": "neither"}),
        (((4, 3), (4, 3)), {"reduction": "median"}),
        (((4, 3), (4, 3)), {"temperature": "warm"}),
    ),
)
def test_errors(shapes, options):
    same_error(ours.info_nce, peer.info_nce, *draw(*shapes), **options)


def test_errors_of_dtypes():
    q, p = draw((4, 3), (4, 3))
    same_error(ours.info_nce, peer.info_nce, q, p.float())
    same_error(ours.info_nce, peer.info_nce, q.long(), p.long())


@pytest.mark.parametrize(
    "temperature", (0, float("inf"), torch.linspace(0.1, 1, 4, dtype=torch.float64).unsqueeze(1))
)
def test_odd_temperatures_fall_back(temperature):
    agreement.falls_back(*pair(temperature=temperature), draw((4, 3), (4, 3)), "temperature")


@pytest.mark.parametrize("autocast", (None, torch.bfloat16))
def test_empty(autocast):
    for reduction in ("none", "mean", "sum"):
        for shape in ((0, 3), (3, 0)):
            agree(*pair(reduction=reduction), draw(shape, shape), torch.float32, autocast)
