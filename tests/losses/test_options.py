"""Each option of the losses means what its formula says, as that is written elsewhere.

The ranking loss and distillation are tested too.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import is_interpreted
from support.option_calls import IN_BATCH, WITH_BIAS, call, pair

import fused_contrastive as fc
from fused_contrastive import losses, reference


@pytest.mark.parametrize("name", IN_BATCH)
def test_keys(name, any_backend, device):
    """Distinct keys change nothing, and equal keys leave no negatives.

    Loss and gradients are then 0. Keys may have any integer dtype and any values.
    """
    first, second = pair(device=device)
    plain = call(name, first, second, any_backend, reduction="none")
    for keys in (torch.arange(9).flip(0) - 4, (torch.arange(9) * 2**40)):
        found = call(name, first, second, any_backend, reduction="none", keys=keys.to(device))
        torch.testing.assert_close(found, plain)
    small = torch.arange(9, dtype=torch.uint8, device=device)
    torch.testing.assert_close(
        call(name, first, second, any_backend, reduction="none", keys=small), plain
    )
    loss = call(name, first, second, any_backend, keys=torch.full((9,), 3, device=device))
    loss.backward()
    assert loss == 0 and (first.grad == 0).all() and (second.grad == 0).all()


@pytest.mark.parametrize("name", IN_BATCH)
def test_weights(name, backend, device):
    """Each reduction weighs the losses.

    With losses l and weights w, "none" gives w l, "sum" gives Σ w l, and "mean" gives Σ w l / Σ w.
    Gradients go to the weights too, where they ask for it.
    """
    first, second = pair(device=device)
    weights = torch.linspace(0, 2, 9, dtype=torch.float64, device=device).requires_grad_()
    plain = call(name, first, second, backend, reduction="none").detach()
    rows = weights.repeat(2) if name == "nt_xent_loss" else weights
    for reduction, expected in (
        ("none", rows * plain),
        ("sum", (rows * plain).sum()),
        ("mean", (rows * plain).sum() / rows.sum()),
    ):
        found = call(name, first, second, backend, reduction=reduction, weights=weights)
        torch.testing.assert_close(found, expected)
        (gradient,) = torch.autograd.grad(found.sum(), weights, retain_graph=True)
        torch.testing.assert_close(
            gradient, torch.autograd.grad(expected.sum(), weights, retain_graph=True)[0]
        )
    constant = call(name, first, second, backend, weights=weights.detach().float())
    torch.testing.assert_close(constant, call(name, first, second, backend, weights=weights))


@pytest.mark.parametrize(
    "options", ({}, {"label_smoothing": 0.2, "margin": 0.1}), ids=("plain", "smooth")
)
@pytest.mark.parametrize("name", WITH_BIAS)
def test_padding(name, options, any_backend, device):
    """Biases of -inf and weights of 0 leave padded pairs out.

    The value and gradients are those of the batch without them, and the gradient at the padding is
    0.
    """
    first, second = pair(device=device)
    bias = torch.zeros(9, dtype=torch.float64, device=device)
    bias[6:] = -math.inf
    loss = call(
        name, first, second, any_backend, bias=bias, weights=bias.isfinite().double(), **options
    )
    loss.backward()
    short = [x.detach()[:6].requires_grad_() for x in (first, second)]
    expected = call(name, *short, any_backend, **options)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for x, y in zip((first, second), short, strict=True):
        torch.testing.assert_close(x.grad[:6], y.grad)
        assert (x.grad[6:] == 0).all()
    unweighted = call(name, first, second, any_backend, bias=bias, reduction="none", **options)
    padded = torch.arange(len(unweighted), device=device) % 9 >= 6
    assert ((unweighted == math.inf) == padded).all() and unweighted[~padded].isfinite().all()


@pytest.mark.parametrize("name", WITH_BIAS)
def test_bias(name, backend, device):
    """A constant bias changes nothing.

    A bias of -log q repeats a column 1 / q times, as sampling correction must.
    """
    first, second = pair(device=device)
    plain = call(name, first, second, backend, reduction="none")
    bias = torch.full((9,), 2.5, dtype=torch.float64, device=device)
    torch.testing.assert_close(
        call(name, first, second, backend, reduction="none", bias=bias), plain
    )
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(9, generator=generator, dtype=torch.float64).to(device)
    torch.testing.assert_close(
        call(name, first, second, backend, bias=drawn.float()),
        call(name, first, second, "eager", bias=drawn.float().double()),
    )


def test_bias_counts_a_column(backend, device):
    """A bias of log 3 at one column of the queue counts as if it stood there three times."""
    query, key = pair(device=device)
    negatives = pair(4, device=device, seed=1)[0].detach()
    bias = torch.zeros(13, dtype=torch.float64, device=device)
    bias[10] = math.log(3)
    repeated = torch.cat([negatives, negatives[1:2], negatives[1:2]])
    torch.testing.assert_close(
        fc.info_nce_loss(query, key, negatives, bias=bias, backend=backend),
        fc.info_nce_loss(query, key, repeated, backend=backend),
    )


def test_biases_of_either_set(any_backend, device):
    """In clip_loss a text's bias counts where texts are the candidates.

    An image's bias counts where images are.
    """
    image, text = pair(device=device)
    of_image, of_text = (
        torch.randn(9, dtype=torch.float64, device=device, requires_grad=True) for _ in range(2)
    )
    found = fc.clip_loss(
        image, text, 3.0, bias=(of_image, of_text), reduction="none", backend=any_backend
    )
    s, target = 3 * image @ text.T, torch.arange(9, device=device)
    directions = (
        F.cross_entropy(m, target, reduction="none") for m in (s + of_text, s.T + of_image)
    )
    expected = sum(directions) / 2
    torch.testing.assert_close(found, expected)
    wanted = torch.autograd.grad(expected.sum(), (of_image, of_text), retain_graph=True)
    for x, y in zip(torch.autograd.grad(found.sum(), (of_image, of_text)), wanted, strict=True):
        torch.testing.assert_close(x, y)
    found = fc.clip_loss(image, text, 3.0, bias=(None, of_text), backend=any_backend)
    torch.testing.assert_close(
        found, (F.cross_entropy(s + of_text, target) + F.cross_entropy(s.T, target)) / 2
    )


def test_label_smoothing_is_that_of_cross_entropy(any_backend, device):
    query, key = pair(device=device)
    target = torch.arange(9, device=device)
    for epsilon in (0.1, 1):
        logits = F.normalize(query, dim=1) @ F.normalize(key, dim=1).T / 0.1
        expected = F.cross_entropy(logits, target, label_smoothing=epsilon)
        found = fc.info_nce_loss(query, key, label_smoothing=epsilon, backend=any_backend)
        torch.testing.assert_close(found, expected)
        for x, y in zip(
            *(torch.autograd.grad(loss, (query, key)) for loss in (found, expected)), strict=True
        ):
            torch.testing.assert_close(x, y)


def test_label_smoothing_beside_a_large_class(backend, device):
    """Label smoothing is accurate in float32 where all rows but two are of one class.

    The sum over the others is not what rounding leaves of the class's own.
    """
    z1, z2 = pair(3000, 8, device, torch.float32)
    keys = torch.zeros(3000, dtype=torch.long, device=device)
    keys[:2] = torch.tensor([1, 2], device=device)
    if is_interpreted(backend):
        pytest.skip("thousands of rows in the interpreter")
    exact = [x.detach().double() for x in (z1, z2)]
    options = {"keys": keys, "label_smoothing": 1.0, "reduction": "none"}
    found = fc.nt_xent_loss(z1, z2, backend=backend, **options)
    torch.testing.assert_close(
        found.double(), fc.nt_xent_loss(*exact, **options), rtol=1e-5, atol=1e-6
    )


def test_margin(any_backend, device):
    """The margin is subtracted from the positive's cosine, before the temperature."""
    query, key = pair(device=device)
    s = F.normalize(query, dim=1) @ F.normalize(key, dim=1).T
    target = torch.arange(9, device=device)
    expected = F.cross_entropy((s - 0.3 * torch.eye(9, device=device)) / 0.1, target)
    torch.testing.assert_close(
        fc.info_nce_loss(query, key, margin=0.3, backend=any_backend), expected
    )


def test_hardness(any_backend, device):
    """Negatives are weighted by exp(hardness * cosine), and the weights are constants."""
    query, key = pair(device=device)
    temperature = torch.tensor(0.4, dtype=torch.float64, device=device, requires_grad=True)
    found = fc.info_nce_loss(query, key, None, temperature, hardness=3.0, backend=any_backend)
    s = F.normalize(query, dim=1) @ F.normalize(key, dim=1).T
    weight = (3.0 * s.detach()).exp().fill_diagonal_(1.0)
    e = (s / temperature).exp()
    expected = (((weight * e).sum(1)).log() - s.diagonal() / temperature).mean()
    torch.testing.assert_close(found, expected)
    leaves = (query, key, temperature)
    for x, y in zip(
        *(torch.autograd.grad(loss, leaves) for loss in (found, expected)), strict=True
    ):
        torch.testing.assert_close(x, y)


def test_exported_hardness():
    """The traced program has the gradients of the loss, and the gradients of these gradients."""
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), Hard())
    x, results = torch.randn(8, 5), []
    for m in (torch.export.export(model, (x,)).module(), model):
        parameters = [p for _, p in sorted(m.named_parameters())]
        first = torch.autograd.grad(m(x), parameters, create_graph=True)
        results.append(
            [*first, *torch.autograd.grad(sum(g.square().sum() for g in first), parameters)]
        )
    torch.testing.assert_close(*results)


class Hard(torch.nn.Module):
    def forward(self, z):
        return fc.nt_xent_loss(z, z.flip(1), hardness=2.0)


@pytest.mark.parametrize("tau_plus", (0.01, 0.3, 0.6))
def test_tau_plus_is_the_debiased_loss(tau_plus, any_backend, device):
    """tau_plus gives the debiased loss as its authors write it.

    They use exponentials, a clamp, and the logarithm of a quotient. Rows lie on either side of the
    clamp.
    """
    z1, z2 = pair(12, device=device)
    temperature = 0.5
    z = torch.cat([F.normalize(z1, dim=1), F.normalize(z2, dim=1)])
    mask = ~torch.eye(12, dtype=torch.bool, device=device).repeat(2, 2)
    negative = (z @ z.T / temperature).exp().masked_select(mask).view(24, -1)
    positive = ((z[:12] * z[12:]).sum(1) / temperature).exp().repeat(2)
    N = 22
    estimate = (negative.sum(1) - tau_plus * N * positive) / (1 - tau_plus)
    bound = N * math.exp(-1 / temperature)
    assert tau_plus == 0.01 or ((estimate > bound).any() and (estimate < bound).any())
    expected = -(positive / (positive + estimate.clamp(min=bound))).log()
    found = fc.nt_xent_loss(
        z1, z2, temperature, tau_plus=tau_plus, reduction="none", backend=any_backend
    )
    torch.testing.assert_close(found, expected)
    for x, y in zip(
        *(torch.autograd.grad(loss.sum(), (z1, z2)) for loss in (found, expected)), strict=True
    ):
        torch.testing.assert_close(x, y)


def test_tau_plus_at_large_logits(backend, device):
    """With tau_plus the loss is finite where the exponentials overflow.

    It is the plain loss as tau_plus vanishes.
    """
    z1, z2 = pair(12, device=device, dtype=torch.float32)
    for tau_plus in (1e-30, 0.1):
        loss = fc.nt_xent_loss(z1, z2, 1e-3, tau_plus=tau_plus, backend=backend)
        loss.backward()
        assert loss.isfinite() and z1.grad.isfinite().all() and z2.grad.isfinite().all()
    plain = fc.nt_xent_loss(z1, z2, 0.5, backend=backend)
    torch.testing.assert_close(fc.nt_xent_loss(z1, z2, 0.5, tau_plus=1e-12, backend=backend), plain)


def test_in_batch_and_shared_negatives(any_backend, device):
    """The mode "in_batch" puts two kinds of negatives in one softmax.

    These are the other rows' positives and the shared negatives.
    """
    query, key = pair(device=device)
    negatives = pair(4, device=device, seed=1)[0]
    columns = F.normalize(torch.cat([key, negatives]), dim=1)
    expected = F.cross_entropy(
        F.normalize(query, dim=1) @ columns.T / 0.1, torch.arange(9, device=device)
    )
    found = fc.info_nce_loss(query, key, negatives, negative_mode="in_batch", backend=any_backend)
    torch.testing.assert_close(found, expected)
    none = negatives[:0]
    found = fc.info_nce_loss(query, key, none, negative_mode="in_batch", backend=any_backend)
    torch.testing.assert_close(found, fc.info_nce_loss(query, key, backend=any_backend))


def test_ranking_is_info_nce(backend, device):
    """The ranking loss of pairs alone is in-batch InfoNCE.

    Both directions with a softmax each give the symmetric InfoNCE. Hard negatives are shared.
    """
    query, key = pair(device=device)
    loss = fc.multiple_negatives_ranking_loss
    torch.testing.assert_close(
        loss(query, key, temperature=0.1, backend=backend),
        fc.info_nce_loss(query, key, backend=backend),
    )
    both = {"directions": ("query_to_doc", "doc_to_query"), "partition": "per_direction"}
    torch.testing.assert_close(
        loss(query, key, temperature=0.1, **both, backend=backend),
        fc.info_nce_loss(query, key, symmetric=True, backend=backend),
    )
    hard = torch.randn(9, 2, 5, dtype=torch.float64, device=device)
    torch.testing.assert_close(
        loss(query, key, hard, 0.1, backend=backend),
        fc.info_nce_loss(query, key, hard.flatten(0, 1), negative_mode="in_batch", backend=backend),
    )


def test_modules_pass_everything_on(device):
    """Modules pass on options from the constructor and tensors from forward."""
    first, second = pair(device=device)
    keys, weights = (
        torch.arange(9, device=device) % 4,
        torch.rand(9, dtype=torch.float64, device=device),
    )
    bias = torch.randn(9, dtype=torch.float64, device=device)
    smooth = {"label_smoothing": 0.1, "margin": 0.2}
    tensors = {"keys": keys, "weights": weights, "bias": bias}
    for module, name, options, scale in (
        (fc.NTXentLoss, "nt_xent_loss", smooth | {"hardness": 2.0}, ()),
        (fc.InfoNCELoss, "info_nce_loss", smooth | {"tau_plus": 0.1}, ()),
        (fc.ClipLoss, "clip_loss", smooth | {"hardness": 2.0}, (3.0,)),
        (fc.NPairsLoss, "n_pairs_loss", smooth, ()),
    ):
        found = module(**options)(first, second, *scale, **tensors)
        torch.testing.assert_close(
            found, getattr(reference, name)(first, second, *scale, **tensors, **options)
        )
    hard = torch.randn(9, 2, 5, dtype=torch.float64, device=device)
    options = {
        "directions": losses.ranking.DIRECTIONS,
        "hardness": 2.0,
        "hardness_mode": "hard_negatives",
    }
    found = fc.MultipleNegativesRankingLoss(0.3, **options)(
        first, second, hard, keys=keys, weights=weights
    )
    expected = reference.multiple_negatives_ranking_loss(
        first, second, hard, 0.3, keys=keys, weights=weights, **options
    )
    torch.testing.assert_close(found, expected)
    found = fc.DistillClipLoss(reduction="sum")(
        first, second, 2.0, second, first, 3.0, weights=weights
    )
    expected = reference.distill_clip_loss(
        first, second, 2.0, second, first, 3.0, weights=weights, reduction="sum"
    )
    torch.testing.assert_close(found, expected)
