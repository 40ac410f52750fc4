"""Positives of equal labels in another set, which may have another number of rows."""

import copy

import pytest
import torch
from conftest import skip_unless_served
from support.yardstick import assert_within_yardstick, relative_error

import fused_contrastive as fc

M, N, D = 7, 12, 5
OF_ROWS = torch.tensor([3, -1, 0, 9, 3, 1, 0])
"""Label 9 has no column."""
OF_COLUMNS = torch.tensor([0, 3, 3, 1, -1, 0, 5, 3, 1, 1, -1, 0])
"""Label 5 has no row."""


def draw(device="cpu", dtype=torch.float64):
    """Draw two sets of other sizes, and weights of both."""
    generator = torch.Generator().manual_seed(0)
    sets = (torch.randn(n, D, generator=generator, dtype=torch.float64) for n in (M, N))
    weights = (0.5 + torch.rand(n, generator=generator, dtype=torch.float64) for n in (M, N))
    return [x.to(device, dtype).requires_grad_() for x in (*sets, *weights)]


def textbook(a, b, scale, labels, ignored=None, weights=None):
    """The weighted mean of the losses of a's rows, one row and one positive after another."""
    total = count = 0
    for i, own in enumerate(labels[0].tolist()):
        s = [scale * a[i] @ x for x, key in zip(b, labels[1], strict=True) if int(key) != ignored]
        keys = [key for key in labels[1].tolist() if key != ignored]
        log_prob = torch.stack(s).log_softmax(0)
        positives = [p for p, key in zip(log_prob, keys, strict=True) if key == own]
        if own != ignored and positives:
            w = 1.0 if weights is None else weights[i]
            total, count = total - w * sum(positives) / len(positives), count + w
    return total / count


@pytest.mark.parametrize("ignored", (None, -1))
@pytest.mark.parametrize("weighted", (False, True))
def test_textbook(ignored, weighted, any_backend, device):
    """Losses and gradients are those of loops, for sets with different numbers of rows."""
    skip_unless_served(any_backend, device, torch.float64)
    a, b, w_a, w_b = draw(device)
    labels = OF_ROWS.to(device), OF_COLUMNS.to(device)
    scale = torch.tensor(1.5, dtype=torch.float64, device=device, requires_grad=True)
    weights = (w_a, w_b) if weighted else (None, None)
    options = {"labels": labels, "ignore_index": ignored, "backend": any_backend}
    there = textbook(a, b, scale, labels, ignored, weights[0])
    back = textbook(b, a, scale, labels[::-1], ignored, weights[1])
    nce = options | {"normalize": False}
    for loss, expected in (
        (fc.info_nce_loss(a, b, None, 1 / scale, weights=weights[0], **nce), there),
        (
            fc.info_nce_loss(a, b, None, 1 / scale, symmetric=True, weights=weights, **nce),
            (there + back) / 2,
        ),
        (fc.clip_loss(a, b, scale, 0.7, weights=weights, **options), (there + back) / 2),
    ):
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
        leaves = [x for x in (a, b, scale, *weights) if x is not None]
        found, wanted = (
            torch.autograd.grad(x, leaves, retain_graph=True, allow_unused=True)
            for x in (loss, expected)
        )
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("average", (False, True))
def test_siglip(average, any_backend, device):
    """Every pair of SigLIP is a logistic regression, and the mean is over the images."""
    skip_unless_served(any_backend, device, torch.float64)
    a, b, weights, _ = draw(device)
    labels = OF_ROWS.to(device), OF_COLUMNS.to(device)
    scale, bias = (torch.tensor(x, dtype=torch.float64, device=device) for x in (2.0, -1.0))
    scale.requires_grad_(), bias.requires_grad_()
    total = 0
    for i, own in enumerate(OF_ROWS.tolist()):
        same = OF_COLUMNS == own
        for j, positive in enumerate(same.tolist()):
            term = torch.nn.functional.softplus((1 - 2 * positive) * (scale * a[i] @ b[j] + bias))
            part = int(same.sum()) if average and positive else 1
            total = total + weights[i] * term / part
    options = {"labels": labels, "average_positives": average, "weights": weights}
    loss = fc.siglip_loss(a, b, scale, bias, backend=any_backend, **options)
    expected = total / weights.sum()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    leaves = a, b, scale, bias, weights
    torch.testing.assert_close(
        torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves)
    )
    module = fc.SigLipLoss(2.0, -1.0, average_positives=average)
    torch.testing.assert_close(module(a, b, labels=labels, weights=weights), loss)


def test_alone_they_are_the_loss_with_one_positive(backend, device):
    """Where every pair has a label of its own, the losses are those without labels."""
    a, b, _, _ = draw(device)
    b = b[:M]
    labels = torch.arange(M, device=device).flip(0)
    for reduction in ("none", "mean", "sum"):
        options = {"reduction": reduction, "backend": backend}
        torch.testing.assert_close(
            fc.clip_loss(a, b, 2.0, labels=labels, **options), fc.clip_loss(a, b, 2.0, **options)
        )
        torch.testing.assert_close(
            fc.info_nce_loss(a, b, labels=labels, **options), fc.info_nce_loss(a, b, **options)
        )
        torch.testing.assert_close(
            fc.siglip_loss(a, b, 2.0, -1.0, labels=labels, **options),
            fc.siglip_loss(a, b, 2.0, -1.0, **options),
        )


def test_sup_con(backend, device):
    """Against another set, the loss is that of SupCon for rows whose set leaves out the row."""
    a, _, _, _ = draw(device)
    labels = OF_ROWS.to(device)
    expected = fc.sup_con_loss(a, labels, 0.3, reduction="none", backend=backend)
    for i in range(M):
        others = [j for j in range(M) if j != i]
        pair = labels[i : i + 1], labels[others]
        options = {"labels": pair, "reduction": "none", "backend": backend}
        loss = fc.info_nce_loss(a[i : i + 1], a[others], None, 0.3, **options)
        torch.testing.assert_close(loss[0], expected[i])


def test_ignored_rows_are_not_read(any_backend, device):
    """What rows and columns hold whose label is ignored reaches no loss, metric or gradient."""
    skip_unless_served(any_backend, device, torch.float32)
    a, b, _, _ = (x.detach() for x in draw(device, torch.float32))
    rows, columns = OF_ROWS.to(device), OF_COLUMNS.to(device)
    keep_a, keep_b = rows != -1, columns != -1
    found = []
    for ignored in (False, True):
        x, y, of_x, of_y = a[keep_a], b[keep_b], rows[keep_a], columns[keep_b]
        if ignored:
            x, y, of_x, of_y = a.clone(), b.clone(), rows, columns
            x[~keep_a], y[~keep_b] = float("nan"), float("inf")
        x.requires_grad_()
        y.requires_grad_()
        options = {"labels": (of_x, of_y), "metrics": True, "backend": any_backend}
        options["ignore_index"] = -1 if ignored else None
        scale = torch.tensor(2.0, device=device, requires_grad=True)
        loss, metrics = fc.clip_loss(x, y, scale, **options)
        gradients = torch.autograd.grad(loss, (x, y, scale))
        if ignored:
            assert all(
                (g[~k] == 0).all() for g, k in zip(gradients, (keep_a, keep_b), strict=False)
            )
            gradients = gradients[0][keep_a], gradients[1][keep_b], gradients[2]
        found.append((loss, metrics, gradients))
    torch.testing.assert_close(*found)


def test_nothing_counts(any_backend, device):
    """A mean over no rows is NaN with a gradient of 0, and a sum is 0."""
    skip_unless_served(any_backend, device, torch.float64)
    a, b, _, _ = draw(device)
    labels = torch.arange(M, device=device), torch.arange(N, device=device) + M
    for options in ({"labels": labels}, {"labels": (0 * labels[0], labels[1]), "ignore_index": 0}):
        loss = fc.clip_loss(a, b, 2.0, backend=any_backend, **options)
        assert loss.isnan() and not any(g.any() for g in torch.autograd.grad(loss, (a, b)))
        assert fc.clip_loss(a, b, 2.0, reduction="sum", backend=any_backend, **options) == 0
    empty = fc.clip_loss(a[:0], b, 2.0, labels=(labels[0][:0], labels[1]), backend=any_backend)
    assert empty.isnan()


@pytest.mark.parametrize("spread", (0.03, 0.003))
def test_collapsed_classes(spread, backend, device):
    """Errors are at most eager's in float32 where the rows of a class lie next to one another."""
    skip_unless_served(backend, device, torch.float32)
    errors = {backend: [], "eager": []}
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(64, device=device) % 8
        center = torch.randn(8, 16, generator=generator, dtype=torch.float64).to(device)[labels]
        noise = torch.randn(2, 64, 16, generator=generator, dtype=torch.float64).to(device)
        drawn = [(center + spread * x).float() for x in noise]

        def run(name, dtype, drawn=drawn, labels=labels):
            leaves = [x.to(dtype).requires_grad_() for x in drawn]
            options = {"labels": labels, "symmetric": True, "backend": name}
            loss = fc.info_nce_loss(*leaves, None, 0.1, **options)
            return [x.double() for x in torch.autograd.grad(loss, leaves)]

        truth = run("eager", torch.float64)
        for name, found in errors.items():
            gradients = run(name, torch.float32)
            pairs = zip(("query", "positive_key"), gradients, truth, strict=True)
            found.append({key: relative_error(x, y) for key, x, y in pairs})
    assert_within_yardstick(errors[backend], errors["eager"], torch.float32)


@pytest.mark.no_poison
def test_compile(device):
    """Sets with different numbers of rows compile as one graph."""
    a, b, _, _ = draw(device, torch.float32)
    labels = OF_ROWS.to(device), OF_COLUMNS.to(device)

    def loss(a, b, x, y):
        return fc.clip_loss(a, b, 2.0, labels=(x, y), ignore_index=-1)

    found = torch.compile(loss, fullgraph=True, backend="aot_eager")(a, b, *labels)
    torch.testing.assert_close(found, loss(a, b, *labels))
    torch.testing.assert_close(
        torch.autograd.grad(found, (a, b)), torch.autograd.grad(loss(a, b, *labels), (a, b))
    )


def test_modules(device):
    """The modules take labels in `forward`, and `ignore_index` when they are made."""
    a, b, _, _ = draw(device)
    labels = OF_ROWS.to(device), OF_COLUMNS.to(device)
    options = {"labels": labels, "ignore_index": -1}
    module = fc.ClipLoss(2.0, ignore_index=-1)
    expected = fc.clip_loss(a, b, 2.0, **options)
    torch.testing.assert_close(copy.deepcopy(module)(a, b, labels=labels), expected)
    module = fc.InfoNCELoss(0.3, ignore_index=-1)
    expected = fc.info_nce_loss(a, b, None, 0.3, **options)
    torch.testing.assert_close(module(a, b, labels=labels), expected)


A, B = torch.randn(4, 3), torch.randn(5, 3)
PAIR = torch.arange(4), torch.arange(5)
WRONG = (
    ({"labels": None}, ValueError, "must have"),
    ({"labels": torch.arange(4)}, ValueError, "must have"),
    ({"labels": [torch.arange(4), torch.arange(5)]}, ValueError, "must have"),
    ({"labels": PAIR[:1]}, ValueError, "labels must be a tensor or a pair"),
    ({"labels": PAIR[::-1]}, ValueError, r"labels must have shape \(4,\), got \(5,\)"),
    ({"labels": (PAIR[0], PAIR[0])}, ValueError, r"labels must have shape \(5,\), got \(4,\)"),
    ({"labels": (PAIR[0], B[:, 0])}, TypeError, "labels must be an integer tensor"),
    ({"labels": (PAIR[0], PAIR[1].to("meta"))}, ValueError, "labels must be on"),
    ({"ignore_index": 1.0}, TypeError, "ignore_index must be an integer or None"),
    ({"ignore_index": True}, TypeError, "ignore_index must be an integer or None"),
    ({"keys": torch.arange(4)}, ValueError, "keys must not be given with labels"),
    ({"bias": torch.zeros(4)}, ValueError, "bias must not be given with labels"),
    ({"margin": 0.1}, ValueError, "margin must not be given with labels"),
    ({"label_smoothing": 0.1}, ValueError, "label_smoothing must not be given with labels"),
    ({"hardness": 0.1}, ValueError, "hardness must not be given with labels"),
    ({"weights": torch.ones(4)}, ValueError, r"weights must have shape \[5\]"),
    ({"weights": (None, torch.ones(4))}, ValueError, r"weights must have shape \[5\]"),
    ({"weights": (None,)}, ValueError, "weights must be a tensor or a pair"),
    ({"reduction": "none"}, ValueError, "reduction must be 'mean' or 'sum' for both directions"),
)


@pytest.mark.parametrize(("arguments", "error", "message"), WRONG, ids=lambda x: str(x)[:40])
def test_wrong_arguments(arguments, error, message):
    options = {"labels": PAIR} | arguments
    with pytest.raises(error, match=message):
        fc.clip_loss(A, B, 1.0, **options)
    with pytest.raises(error, match=message):
        fc.info_nce_loss(A, B, symmetric=True, **options)


def test_wrong_without_labels():
    with pytest.raises(ValueError, match="ignore_index must be None without labels"):
        fc.clip_loss(A, A, 1.0, ignore_index=0)
    with pytest.raises(ValueError, match="ignore_index must be None without labels"):
        fc.info_nce_loss(A, A, ignore_index=0)
    with pytest.raises(ValueError, match="average_positives must be False without labels"):
        fc.siglip_loss(A, A, 1.0, 0.0, average_positives=True)
    with pytest.raises(ValueError, match="average_positives must be one of"):
        fc.siglip_loss(A, B, 1.0, 0.0, labels=PAIR, average_positives=None)
    with pytest.raises(ValueError, match="keys must not be given with labels"):
        fc.siglip_loss(A, B, 1.0, 0.0, labels=PAIR, keys=PAIR[0])
    with pytest.raises(ValueError, match=r"labels must have shape \(5,\), got \(4,\)"):
        fc.siglip_loss(A, B, 1.0, 0.0, labels=(PAIR[0], PAIR[0]))
    with pytest.raises(ValueError, match=r"weights must have shape \[4\]"):
        fc.siglip_loss(A, B, 1.0, 0.0, labels=PAIR, weights=torch.ones(5))
    with pytest.raises(ValueError, match="negative_keys must not be given with labels"):
        fc.info_nce_loss(A, A, B, labels=PAIR[0])
    with pytest.raises(ValueError, match="tau_plus must not be given with labels"):
        fc.info_nce_loss(A, A, tau_plus=0.1, labels=PAIR[0])
    with pytest.raises(ValueError, match=r"text_features must have shape \[N, 3\]"):
        fc.clip_loss(A, B[:, :2], 1.0, labels=PAIR)
