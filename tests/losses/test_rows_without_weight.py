"""Where no row counts the mean is NaN, as F.cross_entropy's, and every gradient is 0."""

import pytest
import torch

import fused_contrastive as fc

LABELS = torch.arange(8) // 2

LOSSES = {
    "nt_xent": lambda q, k, **o: fc.nt_xent_loss(q, k, **o),
    "info_nce": lambda q, k, **o: fc.info_nce_loss(q, k, **o),
    "symmetric": lambda q, k, **o: fc.info_nce_loss(q, k, symmetric=True, **o),
    "queue": lambda q, k, **o: fc.info_nce_loss(q, k, k.detach(), **o),
    "smoothed": lambda q, k, **o: fc.info_nce_loss(q, k, label_smoothing=0.1, **o),
    "clip": lambda q, k, **o: fc.clip_loss(q, k, 2.0, **o),
    "siglip": lambda q, k, **o: fc.siglip_loss(q, k, 2.0, 0.0, **o),
    "n_pairs": lambda q, k, **o: fc.n_pairs_loss(q, k, **o),
    "dcl": lambda q, k, **o: fc.dcl_loss(q, k, **o),
    "dclw": lambda q, k, **o: fc.dclw_loss(q, k, **o),
    "ranking": lambda q, k, **o: fc.multiple_negatives_ranking_loss(q, k, **o),
    "sup_con": lambda q, k, **o: fc.sup_con_loss(q + k, LABELS, **o),
    "pairs": lambda q, k, **o: fc.sup_con_loss(q + k, LABELS, positives="pairs", **o),
    "cpc": lambda q, k, **o: fc.cpc_loss(q[None], k[None], **o)[0],
    "distill": lambda q, k, **o: fc.distill_clip_loss(q, k, 2.0, q.detach(), k.detach(), 2.0, **o),
}


@pytest.mark.parametrize("name", LOSSES)
def test_weights_that_are_all_0(name, any_backend, device):
    q, k = (torch.randn(8, 4, device=device, requires_grad=True) for _ in range(2))
    loss = LOSSES[name](q, k, weights=torch.zeros(8, device=device), backend=any_backend)
    assert loss.isnan()
    for gradient in torch.autograd.grad(loss, (q, k)):
        assert (gradient == 0).all()


def test_no_row_has_a_positive(any_backend, device):
    z = torch.randn(8, 4, device=device, requires_grad=True)
    labels = torch.arange(8, device=device)
    loss = fc.sup_con_loss(z, labels, skip_unmatched=True, backend=any_backend)
    assert loss.isnan() and (torch.autograd.grad(loss, z)[0] == 0).all()


@pytest.mark.parametrize("temperature", (-0.5, torch.tensor(-0.5)), ids=("number", "tensor"))
@pytest.mark.filterwarnings("ignore:temperature is negative")
def test_hardness_that_cancels_the_scale(temperature, backend, device):
    """The logits of all negatives are 0, and their gradients are those of the dense form."""
    found = {}
    for name in (backend, "eager"):
        generator = torch.Generator().manual_seed(0)
        pair = [torch.randn(8, 4, generator=generator).to(device).requires_grad_() for _ in "ab"]
        t = torch.as_tensor(temperature).clone().requires_grad_()
        given = t if isinstance(temperature, torch.Tensor) else temperature
        loss = fc.nt_xent_loss(*pair, given, hardness=2.0, backend=name)
        inputs = [*pair, t] if given is t else pair
        found[name] = [loss.detach(), *torch.autograd.grad(loss, inputs)]
    torch.testing.assert_close(found[backend], found["eager"], rtol=1e-4, atol=1e-5)
