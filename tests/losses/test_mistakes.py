"""Mistakes that users make are answered with what they meant."""

import re
import warnings

import pytest
import torch

import fused_contrastive as fc

Z = torch.randn(8, 4)
BANK = fc.MemoryBank(16, 4)

MISTAKES = {
    "labels of one row": (lambda: fc.sup_con_loss(Z, torch.zeros(1).long()), r"shape \(8,\), got"),
    "a bank is called": (lambda: BANK(Z), r"bank\.negatives.*bank\.enqueue"),
    "a bank as negatives": (lambda: fc.info_nce_loss(Z, Z, BANK), r"pass bank\.negatives"),
    "a bank as hard negatives": (
        lambda: fc.multiple_negatives_ranking_loss(Z, Z, BANK),
        r"pass bank\.negatives",
    ),
    "a bank in a module": (lambda: fc.InfoNCELoss()(Z, Z, BANK), r"pass bank\.negatives"),
    "temperature is third": (lambda: fc.info_nce_loss(Z, Z, 0.1), "temperature is the fourth"),
    "negatives of each query": (
        lambda: fc.info_nce_loss(Z, Z, torch.randn(8, 3, 4)),
        "negative_mode='paired'",
    ),
    "no scale": (lambda: fc.ClipLoss()(Z, Z), r"ClipLoss\(1 / 0\.07, learnable=True\)"),
    "no bias": (lambda: fc.SigLipLoss(10.0)(Z, Z), "logit_bias must be passed to forward"),
    "two scales": (lambda: fc.ClipLoss(14.0)(Z, Z, 14.0), "for the module has its own"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name):
    call, message = MISTAKES[name]
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_modules_with_a_fixed_scale():
    assert fc.ClipLoss(14.0)(Z, Z) == fc.clip_loss(Z, Z, 14.0)
    assert fc.SigLipLoss(10.0, -10.0)(Z, Z) == fc.siglip_loss(Z, Z, 10.0, -10.0)
    assert not [*fc.ClipLoss(14.0).parameters(), *fc.SigLipLoss(10.0, -10.0).parameters()]


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    UNUSUAL = {
        "sparse": Z.to_sparse(),
        "compressed": Z.to_sparse_csr(),
        "nested": torch.nested.nested_tensor([Z, Z]),
        "jagged": torch.nested.nested_tensor([Z, Z], layout=torch.jagged),
        "quantised": torch.quantize_per_tensor(Z, 0.1, 0, torch.qint8),
        "complex": Z.to(torch.complex64),
        "mkldnn": Z.to_mkldnn(),
    }

CALLS = {
    "z1": lambda x: fc.nt_xent_loss(x, Z),
    "z2": lambda x: fc.nt_xent_loss(Z, x),
    "query": lambda x: fc.info_nce_loss(x, Z),
    "negative_keys": lambda x: fc.info_nce_loss(Z, Z, x),
    "image_features": lambda x: fc.clip_loss(x, Z, 1.0),
    "text_features": lambda x: fc.siglip_loss(Z, x, 1.0, 0.0),
    "logit_scale": lambda x: fc.clip_loss(Z, Z, x),
    "features": lambda x: fc.sup_con_loss(x, torch.arange(8)),
    "labels": lambda x: fc.sup_con_loss(Z, x),
    "positive_weights": lambda x: fc.sup_con_loss(Z, positive_weights=x),
    "anchors": lambda x: fc.n_pairs_loss(x, Z),
    "predictions": lambda x: fc.cpc_loss(x, Z[None]),
    "positive": lambda x: fc.contrastive_force(x, Z, 0.1),
    "negative": lambda x: fc.contrastive_force_loss(Z, x),
    "gen": lambda x: fc.drift_loss(x, Z[None]),
    "a": lambda x: fc.similarity_logsumexp(x),
    "b": lambda x: fc.similarity_logsumexp(Z, x),
    "weights": lambda x: fc.nt_xent_loss(Z, Z, weights=x),
    "keys": lambda x: BANK.enqueue(x),
    "x1": lambda x: fc.similarity_heatmap(x, Z),
    "temperature": lambda x: fc.nt_xent_loss(Z, Z, x),
}


@pytest.mark.parametrize("kind", UNUSUAL)
@pytest.mark.parametrize("name", CALLS)
def test_tensors_of_an_unusual_kind(name, kind):
    """The error names the argument, and does not come from within torch."""
    with pytest.raises((ValueError, TypeError), match=rf"\b{name} must "):
        CALLS[name](UNUSUAL[kind])


LOSSES = (
    lambda t, **o: fc.nt_xent_loss(Z, Z, t, **o),
    lambda t, **o: fc.info_nce_loss(Z, Z, None, t, **o),
    lambda t, **o: fc.sup_con_loss(Z, torch.arange(8) // 2, t, **o),
    lambda t, **o: fc.dcl_loss(Z, Z, t, **o),
    lambda t, **o: fc.dclw_loss(Z, Z, t, **o),
    lambda t, **o: fc.multiple_negatives_ranking_loss(Z, Z, None, t, **o),
    lambda t, **o: fc.contrastive_force(Z, Z, t, **o),
    lambda t, **o: fc.NTXentLoss(t, **o)(Z, Z),
)


@pytest.mark.parametrize("k", range(len(LOSSES)))
def test_a_negative_temperature_warns_once(k):
    """It comes once for each line and points at it. A tensor is never read."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(2):
            found = LOSSES[k](-0.5)
        expected = LOSSES[k](torch.tensor(-0.5)) if k < 7 else found
    torch.testing.assert_close(found, expected)
    assert [x.filename for x in told] == [__file__]
    assert re.search(r"temperature is negative \(-0\.5\)", str(told[0].message))
