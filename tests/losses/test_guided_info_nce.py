"""The loss with a guide is that of its dense form, and its mask is nowhere stored."""

import itertools

import pytest
import torch
from conftest import is_interpreted

import fused_contrastive as fc
from fused_contrastive import reference
from fused_contrastive.ops import guided as ops

Z = torch.randn(4, 3)
FLAGS = list(itertools.product((True, False), repeat=2))
MARGINS = (("absolute", 0.0), ("absolute", 0.2), ("absolute", -0.1), ("relative", 0.1))


def draw(n, k=5, d=4, e=3, dtype=torch.float64, device="cpu"):
    """Draws leaves (query, positives, negatives, temperature) and the guide's features."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    query, guide = random(n, d), random(n, e)
    leaves = [query, query + 0.8 * random(n, d), random(k, d) if k else None]
    leaves.append(torch.tensor(0.3, dtype=torch.promote_types(dtype, torch.float32), device=device))
    features = {"guide_query": guide, "guide_positive_key": guide + 0.6 * random(n, e)}
    if k:
        features["guide_negative_keys"] = random(k, e)
    return [None if x is None else x.requires_grad_() for x in leaves], features


def derivatives(function, leaves, **options):
    """The loss and the gradients of what it depends on, for an upstream that is not constant."""
    loss = function(*leaves, **options)
    upstream = torch.linspace(0.5, 1.5, max(loss.numel(), 1), dtype=loss.dtype).to(loss.device)
    inputs = [x for x in leaves if x is not None]
    found = torch.autograd.grad(loss, inputs, upstream[: loss.numel()].view(loss.shape))
    return [loss.detach(), *found]


@pytest.mark.parametrize("reduction", ("none", "mean", "sum"))
@pytest.mark.parametrize(("queries", "positives"), FLAGS)
@pytest.mark.parametrize(("strategy", "margin"), MARGINS)
def test_equals_the_dense_form(strategy, margin, queries, positives, reduction, device):
    options = {
        "margin": margin,
        "margin_strategy": strategy,
        "contrast_queries": queries,
        "contrast_positives": positives,
        "reduction": reduction,
    }
    for n, k, guided, normalize in itertools.product((1, 2, 37), (0, 5), (True, False), FLAGS[0]):
        leaves, features = draw(n, k, device=device)
        more = options | {"normalize": normalize} | (features if guided else {})
        found, expected = (
            derivatives(f, leaves, **more)
            for f in (fc.guided_info_nce_loss, reference.guided_info_nce_loss)
        )
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("reduction", ("none", "mean", "sum"))
def test_several_panels(reduction, device, monkeypatch):
    leaves, features = draw(37, device=device)
    whole = derivatives(fc.guided_info_nce_loss, leaves, **features, reduction=reduction)
    monkeypatch.setattr(ops, "ROWS", 2)
    parts = derivatives(fc.guided_info_nce_loss, leaves, **features, reduction=reduction)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("reduction", ("none", "mean", "sum"))
@pytest.mark.parametrize("learned", (False, True))
def test_weights(learned, reduction, device):
    leaves, features = draw(9, device=device)
    weights = torch.rand(9, dtype=torch.float64, device=device).requires_grad_(learned)
    with torch.no_grad():
        weights[2] = 0.0
    found = []
    for function in (fc.guided_info_nce_loss, reference.guided_info_nce_loss):
        loss = function(*leaves, **features, weights=weights, reduction=reduction).sum()
        inputs = [*leaves, weights] if learned else leaves
        found.append([loss.detach(), *torch.autograd.grad(loss, inputs)])
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("reduction", ("none", "mean", "sum"))
def test_a_query_that_does_not_count_is_not_read(reduction, device):
    leaves, features = draw(6, device=device)
    weights = torch.tensor([1.0, 2.0, 0.0, 1.0, 1.0, 1.0], device=device)
    options = {"weights": weights, "reduction": reduction, "contrast_queries": False}
    expected = derivatives(fc.guided_info_nce_loss, leaves, **features, **options)
    with torch.no_grad():
        leaves[0][2] = torch.nan
    found = derivatives(fc.guided_info_nce_loss, leaves, **features, **options)
    found[1][2] = expected[1][2]
    torch.testing.assert_close(found, expected)


def test_weights_that_are_all_0(device):
    leaves, features = draw(5, device=device)
    loss = fc.guided_info_nce_loss(*leaves, **features, weights=torch.zeros(5, device=device))
    assert loss.isnan()
    assert all((g == 0).all() for g in torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16))
def test_precision(dtype, device):
    """The errors are at most those of the dense form in the same dtype.

    The guide's features are the same, and so is the mask.
    """
    ours, dense = [], []
    for reduction in ("none", "mean"):
        leaves, features = draw(60, d=16, dtype=dtype, device=device)
        exact = [x.detach().double().requires_grad_() for x in leaves]
        options = {"margin": 0.05, "reduction": reduction}
        wide = {name: x.double() for name, x in features.items()}
        truth = derivatives(reference.guided_info_nce_loss, exact, **wide, **options)
        found = derivatives(fc.guided_info_nce_loss, leaves, **features, **options)
        eager = derivatives(reference.guided_info_nce_loss, leaves, **features, **options)
        for x, y, z in zip(found, eager, truth, strict=True):
            ours.append(((x.double() - z).norm() / z.norm()).item())
            dense.append(((y.double() - z).norm() / z.norm()).item())
    assert all(x <= max(y, 8 * torch.finfo(dtype).eps) for x, y in zip(ours, dense, strict=True))


def test_duplicates_are_treated_alike(device):
    """Equal texts are no false negatives with a margin of 0, and are with a small positive one."""
    leaves, _ = draw(300, 0, device=device)
    guide = torch.randn(300, 64, device=device)
    guide[150:] = guide[:150]
    options = {"contrast_queries": False, "contrast_positives": False}
    options |= {"guide_query": guide, "guide_positive_key": guide, "reduction": "none"}
    keys = torch.arange(300, device=device) % 150
    query, key, _, temperature = leaves
    for margin, wanted in ((0.0, None), (1e-3, keys)):
        found = fc.guided_info_nce_loss(*leaves, **options, margin=margin)
        torch.testing.assert_close(
            found, fc.info_nce_loss(query, key, None, temperature, keys=wanted, reduction="none")
        )


def test_without_a_guide_a_model_guides_itself(device):
    """The mask of Qwen3-Embedding: what is more similar than the positive by 0.1 is left out."""
    leaves, _ = draw(30, device=device)
    found = fc.guided_info_nce_loss(*leaves, margin=-0.1, reduction="none")
    q, p, n = (torch.nn.functional.normalize(x, dim=1) for x in leaves[:3])
    s = torch.cat([q @ p.T, q @ q.T, p @ p.T, q @ n.T], 1)
    other = ~torch.eye(30, dtype=torch.bool, device=device).repeat(1, 3)
    other = torch.cat([other, other.new_ones(30, len(n))], 1)
    own = s.diagonal().unsqueeze(1)
    e = (s / leaves[3]).exp() * (other & (s <= own + 0.1))
    torch.testing.assert_close(found, (1 + e.sum(1) / (own[:, 0] / leaves[3]).exp()).log())


def test_everything_is_a_false_negative(device):
    leaves, features = draw(7, device=device)
    loss, *gradients = derivatives(fc.guided_info_nce_loss, leaves, **features, margin=3.0)
    assert loss == 0 and all((g == 0).all() for g in gradients)


def test_gradcheck(device):
    leaves, features = draw(6, device=device)
    for reduction in ("none", "mean"):
        assert torch.autograd.gradcheck(
            lambda *x, r=reduction: fc.guided_info_nce_loss(*x, **features, reduction=r), leaves
        )


def test_derivatives_that_do_not_exist(device):
    leaves, features = draw(6, device=device)
    for reduction in ("none", "mean"):
        loss = fc.guided_info_nce_loss(*leaves, **features, reduction=reduction).sum()
        first = torch.autograd.grad(loss, leaves[0], create_graph=True)[0]
        with pytest.raises(NotImplementedError, match="second derivatives"):
            torch.autograd.grad(first.sum(), leaves[1])
    with pytest.raises(NotImplementedError, match="vmap"):
        torch.func.vmap(fc.guided_info_nce_loss)(*(x.detach()[None] for x in leaves[:3]))


@pytest.mark.parametrize("reduction", ("none", "mean"))
@pytest.mark.parametrize("dynamic", (False, True))
def test_compiles_in_one_graph(reduction, dynamic, device):
    compiled = torch.compile(
        fc.guided_info_nce_loss, fullgraph=True, dynamic=dynamic, backend="aot_eager"
    )
    for n in (5, 9):
        leaves, features = draw(n, device=device)
        found, expected = (
            derivatives(f, leaves, **features, reduction=reduction)
            for f in (compiled, fc.guided_info_nce_loss)
        )
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("pos", (False, True))
def test_ops(pos, device):
    (query, positive, negative, scale), features = draw(6, device=device)
    docs = torch.cat([positive, negative]).detach()
    guide = torch.cat([features["guide_positive_key"], features["guide_negative_keys"]])
    problem = query.detach(), docs, scale.detach(), features["guide_query"], guide
    settings = 6, 0, True, True, False, 0.1, False, torch.float64
    g = torch.rand(6, dtype=torch.float64, device=device)
    torch.library.opcheck(ops.guided_forward, (*problem, *settings))
    torch.library.opcheck(ops.guided_backward, (*problem, *settings, g, g if pos else None))


def test_autocast(device):
    leaves, features = draw(12, dtype=torch.float32, device=device)
    with torch.autocast(device.type if hasattr(device, "type") else device, torch.bfloat16):
        found = derivatives(fc.guided_info_nce_loss, leaves, **features)
    expected = derivatives(reference.guided_info_nce_loss, leaves, **features)
    assert [x.dtype for x in found] == [torch.float32] * len(found)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("reduction", ("none", "mean"))
def test_no_matrix_of_pairs_is_kept(reduction, device):
    n = 1500
    leaves, features = draw(n, dtype=torch.float32, device=device)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        fc.guided_info_nce_loss(*leaves, **features, reduction=reduction)
    assert saved and max(x.untyped_storage().nbytes() for x in saved) < 64 * n


def test_works_with_any_backend(any_backend, device):
    if is_interpreted(any_backend):
        return
    leaves, features = draw(6, device=device)
    loss = fc.guided_info_nce_loss(*leaves, **features, backend=any_backend)
    torch.testing.assert_close(loss, fc.guided_info_nce_loss(*leaves, **features))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    (
        ({"margin": "far"}, TypeError, "margin must be a number"),
        ({"margin": float("nan")}, ValueError, "margin must be finite"),
        ({"margin": torch.tensor(0.1)}, TypeError, "margin must be a number, got a tensor"),
        ({"margin_strategy": "far"}, ValueError, "margin_strategy must be one of"),
        ({"contrast_queries": None}, ValueError, "contrast_queries must be one of"),
        ({"contrast_positives": "no"}, ValueError, "contrast_positives must be one of"),
        ({"normalize": 2}, ValueError, "normalize must be one of"),
        ({"negative_keys": torch.randn(4, 2)}, ValueError, r"negative_keys must have shape \[K, 3"),
        ({"negative_keys": torch.randn(4, 2, 3)}, ValueError, "negative_keys must have 2"),
        ({"guide_query": Z}, ValueError, "guide_positive_key must be given"),
        ({"guide_positive_key": Z}, ValueError, "guide_query must be given"),
        (
            {"guide_query": Z, "guide_positive_key": Z[:3]},
            ValueError,
            r"guide_positive_key must have shape \[4, 3\]",
        ),
        ({"guide_query": Z[0], "guide_positive_key": Z}, ValueError, "guide_query must have 2"),
        (
            {"guide_query": Z, "guide_positive_key": Z, "guide_negative_keys": Z},
            ValueError,
            "guide_negative_keys must be None",
        ),
        (
            {"guide_query": Z, "guide_positive_key": Z, "negative_keys": Z},
            ValueError,
            "guide_negative_keys must be given",
        ),
        (
            {"guide_query": Z, "guide_positive_key": Z.to("meta")},
            ValueError,
            "guide_positive_key must be on cpu",
        ),
        ({"guide_query": Z.long(), "guide_positive_key": Z}, TypeError, "guide_query must be a fl"),
        ({"weights": torch.ones(3)}, ValueError, r"weights must have shape \[4\]"),
        ({"reduction": "max"}, ValueError, "reduction must be one of"),
        ({"temperature": 0.0}, ValueError, "temperature must not be smaller"),
        ({"backend": "none"}, ValueError, "backend"),
    ),
)
def test_errors(options, error, message):
    with pytest.raises(error, match=message):
        fc.guided_info_nce_loss(Z, Z, **options)


def test_module():
    loss = fc.GuidedInfoNCELoss(0.2, margin=0.1, margin_strategy="relative", learnable=True)
    leaves, features = draw(6, dtype=torch.float32)
    found = loss(*leaves[:3], **features)
    expected = fc.guided_info_nce_loss(
        *leaves[:3], 0.2, **features, margin=0.1, margin_strategy="relative"
    )
    torch.testing.assert_close(found, expected)
    found.backward()
    assert loss.log_temperature.grad.isfinite()
    with pytest.raises(ValueError, match="margin_strategy must be one of"):
        fc.GuidedInfoNCELoss(margin_strategy="far")
