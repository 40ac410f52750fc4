"""The distillation loss has its value where that is known."""

import pytest
import torch
import torch.nn.functional as F
from conftest import is_interpreted, skip_unless_served
from support.option_calls import pair

import fused_contrastive as fc


def test_distillation_of_itself(backend, device):
    """Teacher and student alike give the entropy of the softmax, and no gradient."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        skip_unless_served(backend, device, dtype)
        a, b = pair(17, 6, device, dtype)
        loss = fc.distill_clip_loss(a, b, 2.0, a.detach(), b.detach(), 2.0, backend=backend)
        loss.backward()
        s = (2 * a @ b.T).detach().double()
        entropy = sum(-(t.softmax(1) * t.log_softmax(1)).sum(1).mean() for t in (s, s.T)) / 2
        rounding = torch.finfo(dtype).eps
        torch.testing.assert_close(
            loss.double(), entropy, rtol=20 * rounding, atol=4 * rounding * s.abs().max().item()
        )
        assert a.grad.abs().max() < 4 * rounding and b.grad.abs().max() < 4 * rounding


@pytest.mark.parametrize("reduction", ("mean", "none"))
def test_distillation_when_both_have_converged(reduction, backend, device):
    """A loss of 1e-7 in float32 is accurate relative to itself.

    All but the pair itself are tiny in both softmaxes. Eager's gradient is off by a tenth.
    """
    generator = torch.Generator().manual_seed(0)
    n = 40 if is_interpreted(backend) else 300
    first, second = (torch.randn(n, 64, generator=generator, dtype=torch.float64) for _ in range(2))
    a, x = F.normalize(first, dim=1).float(), F.normalize(second, dim=1).float()
    b, y = (F.normalize(z + 0.1 * torch.randn(n, 64, generator=generator), dim=1) for z in (a, x))
    found = []
    for dtype, name in ((torch.float32, backend), (torch.float64, "eager")):
        image, text, *teacher = (z.detach().to(device, dtype) for z in (a, b, x, y))
        image.requires_grad_()
        loss = fc.distill_clip_loss(
            image, text, 60.0, *teacher, 60.0, reduction=reduction, backend=name
        )
        loss.sum().backward()
        found.append((loss.detach().double(), image.grad.double()))
    for ours, exact in zip(*found, strict=True):
        assert (ours - exact).norm() < 1e-4 * exact.norm()


def test_distillation_by_a_teacher_without_features(any_backend, device):
    """The softmax of a teacher without features is uniform."""
    image, text = pair(device=device)
    nothing = image.detach()[:, :0]
    loss = fc.distill_clip_loss(image, text, 2.0, nothing, nothing, 3.0, backend=any_backend)
    s = 2 * image @ text.T
    torch.testing.assert_close(loss, -(s.log_softmax(1).mean() + s.log_softmax(0).mean()) / 2)


def test_distillation_teaches_nothing_to_the_teacher(any_backend, device):
    image, text = pair(device=device)
    teacher = [x.requires_grad_() for x in pair(9, 3, device, seed=1)]
    scale = torch.tensor(2.0, dtype=torch.float64, device=device, requires_grad=True)
    loss = fc.distill_clip_loss(image, text, 2.0, *teacher, scale, backend=any_backend)
    gradients = torch.autograd.grad(loss, (image, *teacher, scale), allow_unused=True)
    assert gradients[0].abs().max() > 0 and all(g is None for g in gradients[1:])
