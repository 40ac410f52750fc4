"""SupCon with samples to be ignored, and with a labelled queue beside the batch."""

import pytest
import torch
from conftest import skip_unless_served
from support.label_cases import above_the_kernels, draw

import fused_contrastive as fc

LABELS = torch.tensor([4, -1, 4, 7, -1, 4, 0, 3, 4, 7, 7])
OF_QUEUE = torch.tensor([7, 5, -1, 4, 4, 0, -1])
FORMS = ("out", "in", "pairs")


def queue(device, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(len(OF_QUEUE), 5, generator=generator, dtype=torch.float64).to(device, dtype)


@above_the_kernels
@pytest.mark.parametrize("positives", FORMS)
@pytest.mark.parametrize("views", (0, 2))
def test_ignored_samples_are_not_there(views, positives, any_backend, device):
    """The loss, metrics and gradients are those without the samples, whatever they hold."""
    skip_unless_served(any_backend, device, torch.float64)
    labels, of_queue = LABELS.to(device), OF_QUEUE.to(device)
    keep, keep_queue = labels != -1, of_queue != -1
    found = []
    for ignored in (False, True):
        x, y = draw(device, views).detach(), queue(device)
        if ignored:
            x[~keep], y[~keep_queue] = float("nan"), float("inf")
        else:
            x, y = x[keep], y[keep_queue]
        x.requires_grad_()
        y.requires_grad_()
        temperature = torch.tensor(0.3, dtype=torch.float64, device=device, requires_grad=True)
        options = {"queue_labels": of_queue if ignored else of_queue[keep_queue]}
        options |= {"positives": positives, "metrics": True, "backend": any_backend}
        options |= {"skip_unmatched": positives == "in", "ignore_index": -1 if ignored else None}
        own = labels if ignored else labels[keep]
        loss, metrics = fc.sup_con_loss(x, own, temperature, queue=y, **options)
        gradients = torch.autograd.grad(loss, (x, y, temperature))
        if ignored:
            assert (gradients[0][~keep] == 0).all() and (gradients[1][~keep_queue] == 0).all()
            gradients = gradients[0][keep], gradients[1][keep_queue], gradients[2]
        found.append((loss, metrics, gradients))
    torch.testing.assert_close(*found)


@above_the_kernels
@pytest.mark.parametrize("positives", FORMS)
def test_a_queue_is_a_part_of_a_larger_batch(positives, any_backend, device):
    """The rows of a batch have the losses that they have in one batch with the queue's rows."""
    skip_unless_served(any_backend, device, torch.float64)
    features, labels, of_queue = draw(device), LABELS.to(device), OF_QUEUE.to(device)
    options = {"positives": positives, "reduction": "none", "backend": any_backend}
    both = torch.cat([features, queue(device)]), torch.cat([labels, of_queue])
    expected = fc.sup_con_loss(*both, **options)[: len(labels)]
    more = {"queue": queue(device), "queue_labels": of_queue}
    torch.testing.assert_close(fc.sup_con_loss(features, labels, **more, **options), expected)
    more = {"queue": queue(device)[:0], "queue_labels": of_queue[:0]}
    loss = fc.sup_con_loss(features, labels, **more, **options)
    torch.testing.assert_close(loss, fc.sup_con_loss(features, labels, **options))


@above_the_kernels
def test_nothing_but_ignored_samples(any_backend, device):
    """A mean over no samples is NaN, with a gradient of 0."""
    skip_unless_served(any_backend, device, torch.float64)
    features, labels = draw(device), torch.full((len(LABELS),), 3, device=device)
    for positives in FORMS:
        options = {"positives": positives, "ignore_index": 3, "backend": any_backend}
        loss = fc.sup_con_loss(features, labels, **options)
        assert loss.isnan() and not torch.autograd.grad(loss, features)[0].any()
        assert fc.sup_con_loss(features, labels, reduction="sum", **options) == 0


@above_the_kernels
def test_memory_bank(backend, device):
    """A bank's random rows have the label -1. They are ignored until they are written over."""
    skip_unless_served(backend, device, torch.float32)
    bank = fc.MemoryBank(16, 5, labels=True, device=device)
    features, labels = draw(device, dtype=torch.float32), LABELS.to(device).clamp_min(0)
    criterion = fc.SupConLoss(0.2, ignore_index=-1, backend=backend)
    there = {"queue": bank.negatives, "queue_labels": bank.labels}
    torch.testing.assert_close(criterion(features, labels, **there), criterion(features, labels))
    bank.enqueue(queue(device, torch.float32), OF_QUEUE.to(device))
    saved = fc.MemoryBank(16, 5, labels=True, device=device)
    saved.load_state_dict(bank.state_dict())
    found = criterion(features, labels, queue=saved.negatives, queue_labels=saved.labels)
    own = {"queue": queue(device, torch.float32), "queue_labels": OF_QUEUE.to(device)}
    torch.testing.assert_close(found, criterion(features, labels, **own))
    assert not torch.allclose(found, criterion(features, labels))


@above_the_kernels
def test_narrow_labels(any_backend, device):
    """An `ignore_index` that a label's dtype cannot hold ignores nothing."""
    skip_unless_served(any_backend, device, torch.float64)
    features, labels = draw(device), (LABELS.to(device) % 256).to(torch.uint8)
    assert 255 in labels
    for ignored in (-1, 256 + 4):
        options = {"ignore_index": ignored, "backend": any_backend}
        pairs = (
            (fc.sup_con_loss, (features, labels)),
            (lambda x, y, **o: fc.clip_loss(x, x.flip(0), 2.0, labels=y, **o), (features, labels)),
        )
        for loss, arguments in pairs:
            expected = loss(*arguments, backend=any_backend)
            torch.testing.assert_close(loss(*arguments, **options), expected)
