"""torch.export takes a model that contains a loss.

The program serves any batch size, can be saved and loaded, and can be trained.
"""

import io

import pytest
import torch
from torch.export import Dim

import fused_contrastive as fc

pytestmark = pytest.mark.no_poison
LOSSES = {
    "nt_xent": lambda: fc.NTXentLoss(0.2),
    "nt_xent, learned": lambda: fc.NTXentLoss(0.2, learnable=True),
    "info_nce, symmetric, with metrics": lambda: fc.InfoNCELoss(symmetric=True, metrics=True),
    "clip, learned": lambda: fc.ClipLoss(10.0, learnable=True),
    "siglip, learned": lambda: fc.SigLipLoss(10.0, -10.0, learnable=True),
    "dcl": lambda: fc.DCLLoss(),
    "dclw": lambda: fc.DCLWLoss(),
    "ranking": lambda: fc.MultipleNegativesRankingLoss(),
    "n_pairs": lambda: fc.NPairsLoss(),
    "cpc": lambda: fc.CPCLoss(),
    "sup_con": lambda: fc.SupConLoss(),
    "distill": lambda: fc.DistillClipLoss(),
    "correlation": lambda: fc.CorrelationLoss(),
    "barlow_twins": lambda: fc.BarlowTwinsLoss(),
}
WITHOUT_OPS = ("correlation", "barlow_twins")


class Model(torch.nn.Module):
    """An encoder and its loss form this model."""

    def __init__(self, loss):
        super().__init__()
        self.encoder, self.loss = torch.nn.Linear(5, 4), loss

    def forward(self, x, y):
        x, y = self.encoder(x), self.encoder(y)
        if isinstance(self.loss, fc.SupConLoss):
            return self.loss(torch.stack([x, y], 1))
        if isinstance(self.loss, fc.DistillClipLoss):
            return self.loss(x, y, 2.0, y.detach(), x.detach(), 3.0)
        return self.loss(x, y)


def views(name, n, device, dtype=torch.float32):
    shape = (2, n, 5) if name == "cpc" else (n, 5)
    return tuple(torch.randn(shape, device=device, dtype=dtype) for _ in range(2))


@pytest.mark.parametrize("name", LOSSES)
def test_export(name, device):
    model = Model(LOSSES[name]()).to(device)
    batch = {1 if name == "cpc" else 0: Dim("batch", min=2, max=10**6)}
    program = torch.export.export(model, views(name, 8, device), dynamic_shapes=(batch, batch))
    family = "sigmoid" if name.startswith("siglip") else "similarity"
    assert name in WITHOUT_OPS or f"fused_contrastive.{family}_forward.default" in str(
        program.graph
    )
    saved = io.BytesIO()
    torch.export.save(program, saved)
    saved.seek(0)
    for exported in (program.module(), torch.export.load(saved).module()):
        for n in (3, 21):
            x, y = views(name, n, device)
            torch.testing.assert_close(exported(x, y), model(x, y))


@pytest.mark.parametrize(
    "name", ("nt_xent, learned", "info_nce, symmetric, with metrics", "siglip, learned")
)
def test_an_exported_model_can_be_trained(name, device):
    """An exported model has the gradients of the model itself.

    The gradients of a gradient penalty are the same, too.
    """
    model = Model(LOSSES[name]()).to(device)
    exported = torch.export.export(model, views(name, 8, device)).module()
    assert dict(exported.named_parameters()).keys() == dict(model.named_parameters()).keys()
    x, y = views(name, 8, device)
    results = []
    for module in (model, exported):
        loss = module(x, y)
        loss = loss[0] if isinstance(loss, tuple) else loss
        parameters = list(dict(sorted(module.named_parameters())).values())
        first = torch.autograd.grad(loss, parameters, create_graph=True)
        results.append(
            [*first, *torch.autograd.grad(sum(g.square().sum() for g in first), parameters)]
        )
    assert all(g.abs().max() > 0 for g in results[0])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("positives", ("out", "in", "pairs"))
def test_labels(positives, device):
    """An exported program finds the classes itself.

    It serves any batch size and gives the same gradients.
    """

    def loss(x, y):
        labels = torch.arange(2 * x.shape[0], device=x.device) % 3
        return fc.sup_con_loss(torch.cat([x, y]), labels, positives=positives)

    model, batch = Model(loss).to(device, torch.float64), {0: Dim("batch", min=2, max=10**6)}
    example = views(positives, 8, device, torch.float64)
    exported = torch.export.export(model, example, dynamic_shapes=(batch, batch)).module()
    for n in (3, 21):
        x, y = views(positives, n, device, torch.float64)
        found, expected = (
            torch.autograd.grad(m(x, y), [p for _, p in sorted(m.named_parameters())])
            for m in (exported, model)
        )
        torch.testing.assert_close(found, expected)


FORCES = {
    "contrastive_force": lambda x, y, **more: (
        fc.contrastive_force(x, y, 0.5, **more).square().sum()
    ),
    "contrastive_force_loss": lambda x, y, **more: fc.contrastive_force_loss(
        x, y, reduction="mean", **more
    ),
    "drift_loss": lambda x, y, **more: fc.drift_loss(x[None], y[None], **more)[0].sum(),
}


@pytest.mark.parametrize("name", FORCES)
def test_the_force_family_has_no_gradient_in_exported_programs_and_says_so(name, device):
    """An export of a force loss raises where a gradient would be lost.

    Under no_grad the loss exports. With backend "eager" the exported program can be trained.
    """
    x, y = views(name, 8, device)
    model = Model(FORCES[name]).to(device)
    with pytest.raises(Exception, match="would not have the gradient of this fused loss"):
        torch.export.export(model, (x, y))
    with torch.no_grad():
        torch.testing.assert_close(torch.export.export(model, (x, y)).module()(x, y), model(x, y))
    model.loss = lambda *z: FORCES[name](*z, backend="eager")
    torch.export.export(model, (x, y)).module()(x, y).backward()


@pytest.mark.everyday(keep=lambda p: not p["strict"] or p["name"] == "distill")
@pytest.mark.parametrize("strict", (False, True), ids=("traced", "strict"))
@pytest.mark.parametrize("name", ("distill", "distill, by row", *WITHOUT_OPS))
def test_gradients_without_a_formula(name, strict, device):
    """Exported programs keep the operations of losses whose formulas are in Python.

    So they give the same gradients at any batch size.
    """
    loss = fc.DistillClipLoss(reduction="none") if name == "distill, by row" else LOSSES[name]()
    model = Model(loss).to(device, torch.float64)
    example, batch = views(name, 8, device, torch.float64), {0: Dim("batch", min=2, max=10**6)}
    exported = torch.export.export(
        model, example, dynamic_shapes=(batch, batch), strict=strict
    ).module()
    for n in (3, 21):
        x, y = views(name, n, device, torch.float64)
        results = []
        for module in (model, exported):
            parameters = list(dict(sorted(module.named_parameters())).values())
            results.append(torch.autograd.grad(module(x, y).sum(), parameters))
        torch.testing.assert_close(*results)
