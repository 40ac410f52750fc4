"""The integration of open_clip agrees with its losses in one process."""

import itertools

import agreement
import pytest
import torch
from agreement import DTYPES, SIZES, agree, draw, same_error
from open_clip import loss as peer

from fused_contrastive.integrations import open_clip as ours

SCALE = torch.tensor(2.5, dtype=torch.float64)
BIAS = torch.tensor(-1.5, dtype=torch.float64)


def pair(name, **options):
    return getattr(ours, name)(**options), getattr(peer, name)(**options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("biased", (False, True))
@pytest.mark.parametrize("name", ("ClipLoss", "SigLipLoss"))
def test_equal(name, biased, dtype, streams):
    for n, d in SIZES:
        scalars = [SCALE, BIAS] if biased else [SCALE]
        for output_dict in (False, True):
            losses = pair(name)

            def call(loss, output_dict=output_dict):
                def value(image, text, scale, bias=None):
                    out = loss(image, text, scale, bias, output_dict=output_dict)
                    return out["contrastive_loss"] if output_dict else out

                return value

            agree(*map(call, losses), [*draw((n, d), (n, d)), *scalars], dtype)


@pytest.mark.parametrize(
    "options", ({"local_loss": True}, {"gather_with_grad": True}, {"cache_labels": True})
)
def test_options_of_several_processes_in_one(options, streams):
    agree(*pair("ClipLoss", **options), [*draw((5, 3), (5, 3)), SCALE])


@pytest.mark.parametrize("dist_impl", (None, "bidir", "shift", "reduce", "gather"))
def test_siglip_dist_impl_in_one_process(dist_impl, streams):
    agree(*pair("SigLipLoss", dist_impl=dist_impl), [*draw((5, 3), (5, 3)), SCALE, BIAS])


@pytest.mark.parametrize("autocast", (torch.bfloat16, torch.float16))
@pytest.mark.parametrize("name", ("ClipLoss", "SigLipLoss"))
def test_equal_in_autocast(name, autocast, streams):
    for dtype in (torch.float32, autocast, torch.float64):
        agree(*pair(name), [*draw((13, 16), (13, 16)), SCALE, BIAS], dtype, autocast)


@pytest.mark.parametrize("name", ("ClipLoss", "SigLipLoss"))
def test_numbers_and_one_element(name, streams):
    def call(loss):
        return lambda a, b, s: loss(a, b, s.reshape(1), s.reshape(1) * 0.5)

    agree(*map(call, pair(name)), [*draw((5, 3), (5, 3)), SCALE])
    agree(
        *(lambda a, b, loss=loss: loss(a, b, 3.0, -1.0) for loss in pair(name)),
        draw((5, 3), (5, 3)),
    )


def test_negative_only(streams):
    for n, d in SIZES:
        agree(
            *(
                lambda *x, loss=loss: loss._loss(*x, negative_only=True)
                for loss in pair("SigLipLoss")
            ),
            [*draw((n, d), (n, d)), SCALE, BIAS],
        )


def test_coca(streams):
    mine, package = pair("CoCaLoss", caption_loss_weight=2.0, clip_loss_weight=0.5)
    assert isinstance(mine, ours.ClipLoss)
    logits, targets = torch.randn(5, 7, 11, dtype=torch.float64), torch.randint(11, (5, 7))
    for position in (0, 1):

        def call(loss, position=position):
            return lambda a, b, s: loss(a, b, logits, targets, s)[position]

        agree(call(mine), call(package), [*draw((5, 3), (5, 3)), SCALE])


def distilling(losses, scale=4.0, output_dict=False):
    """Returns the calls of the losses with the teacher's features, and both terms in one tensor."""

    def call(loss):
        def value(image, text, student_scale, *teacher):
            terms = loss(image, text, student_scale, *teacher, scale, output_dict=output_dict)
            return torch.stack([*terms.values()] if output_dict else terms)

        return value

    def constant(f):
        return lambda a, b, s, x, y: f(a, b, s, x.detach(), y.detach())

    return [constant(call(loss)) for loss in losses]


@pytest.mark.parametrize("dtype", DTYPES)
def test_distillation(dtype, streams):
    for (n, d), output_dict in itertools.product(SIZES, (False, True)):
        inputs = [*draw((n, d), (n, d)), SCALE, *draw((n, 4), (n, 4), seed=1)]
        agree(*distilling(pair("DistillClipLoss"), output_dict=output_dict), inputs, dtype)


@pytest.mark.parametrize("autocast", (torch.bfloat16, torch.float16))
def test_distillation_in_autocast(autocast, streams):
    for dtype in (torch.float32, autocast, torch.float64):
        inputs = [*draw((13, 16), (13, 16)), SCALE, *draw((13, 8), (13, 8), seed=1)]
        agree(*distilling(pair("DistillClipLoss")), inputs, dtype, autocast)


def test_distillation_falls_back():
    def call(loss):
        return lambda a, b, x, y: torch.stack(loss(a, b, SCALE, x, y, SCALE))

    inputs = [*draw((5, 3), (5, 3)), *draw((5, 2), (5, 2))]
    losses = pair("DistillClipLoss")
    agreement.falls_back(*map(call, losses), inputs, "a teacher that needs a gradient")
    a, b, x = draw((5, 3), (4, 3), (5, 2))
    same_error(*losses, a, a, SCALE, x, x[:4], SCALE)
    same_error(*losses, a, b, SCALE, x, x, SCALE)
    same_error(*losses, a, a, SCALE, b, b, SCALE)


def test_logits_are_still_there():
    mine, package = pair("ClipLoss")
    images, texts = draw((5, 3), (5, 3))
    for x, y in zip(
        mine.get_logits(images, texts, SCALE), package.get_logits(images, texts, SCALE), strict=True
    ):
        assert torch.equal(x, y)


@pytest.mark.parametrize("name", ("ClipLoss", "CoCaLoss", "DistillClipLoss", "SigLipLoss"))
def test_signature(name):
    agreement.same_signature(getattr(ours, name), getattr(peer, name))


@pytest.mark.parametrize("name", ("ClipLoss", "SigLipLoss"))
def test_errors(name):
    a, b, c = draw((5, 3), (4, 3), (5, 2))
    losses = pair(name)
    for images, texts in ((a, b), (a, c), (a, a.float()), (a[0], a)):
        same_error(*losses, images, texts, SCALE, BIAS)
    same_error(*losses, a, a, None, None)
    same_error(*losses, a, a, torch.ones(2, 2, dtype=torch.float64), None)
    if name == "SigLipLoss":
        same_error(*(type(x) for x in losses), dist_impl="star")
        same_error(*losses, a, a, SCALE)


@pytest.mark.parametrize("name", ("ClipLoss", "SigLipLoss"))
def test_a_float64_scale_of_one_element_in_autocast(name):
    """A float64 scale of one element raises the package's error under autocast.

    Autocast leaves such a scale as it is.
    """
    x, y = (z.float() for z in draw((5, 3), (5, 3)))
    with torch.autocast("cpu", torch.bfloat16):
        same_error(*pair(name), x, y, SCALE.reshape(1), BIAS)


@pytest.mark.parametrize("name", ("ClipLoss", "SigLipLoss"))
def test_a_bias_per_text_falls_back(name):
    bias = torch.linspace(-1, 1, 5, dtype=torch.float64)
    agreement.falls_back(
        *(lambda a, b, loss=loss: loss(a, b, SCALE, bias) for loss in pair(name)),
        draw((5, 3), (5, 3)),
        "logit_bias",
    )
