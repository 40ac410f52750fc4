"""`patch` replaces a package's losses and undoes it, and the tables of classes are complete."""

import importlib
import inspect
from types import SimpleNamespace

import pytest
import torch

from bench import peers
from fused_contrastive.integrations._classes import TABLES

PATCHED = [name for name in peers.NAMES if TABLES[name].patched]
ROOTS = {
    "open_clip": ["open_clip.loss"],
    "lightly": ["lightly.loss"],
    "pytorch_metric_learning": ["pytorch_metric_learning.losses"],
    "info_nce": ["info_nce"],
    "sentence_transformers": [
        "sentence_transformers.sentence_transformer.losses",
        "sentence_transformers.sparse_encoder.losses",
    ],
    "simclr": ["simclr.modules.nt_xent"],
}


def integration(name: str):
    return importlib.import_module(f"fused_contrastive.integrations.{name}")


@pytest.mark.parametrize("name", PATCHED)
def test_replaces_and_undoes(name):
    ours = integration(name)
    modules = [importlib.import_module(root) for root in ROOTS[name]]
    streaming = [x for x in TABLES[name].streaming() if hasattr(ours, x)]
    theirs = {(m, x): getattr(m, x) for m in modules for x in streaming if hasattr(m, x)}
    assert theirs and all(getattr(ours, x) is not kind for (_, x), kind in theirs.items())

    def meant(expected):
        return all(getattr(m, x) is expected(x, kind) for (m, x), kind in theirs.items())

    patched = ours.patch()
    assert meant(lambda x, _: getattr(ours, x)) and patched.replaced
    # A second call changes nothing, and neither does undoing twice.
    with ours.patch():
        assert meant(lambda x, _: getattr(ours, x))
    assert meant(lambda x, _: getattr(ours, x)), "a block inside a patch leaves it in place"
    for _ in range(2):
        patched.undo()
        assert meant(lambda _, kind: kind)
    with ours.patch():
        assert meant(lambda x, _: getattr(ours, x))
    assert meant(lambda _, kind: kind)


def test_a_trainer_of_open_clip_gets_ours():
    open_clip, ours = importlib.import_module("open_clip"), integration("open_clip")
    arguments = {"local_loss": True, "gather_with_grad": True, "rank": 0, "world_size": 1}
    arguments |= {"distill": False, "model": "ViT-B-32", "siglip": False, "horovod": False}
    arguments |= {"loss_dist_impl": None, "distill_model": None, "distill_pretrained": None}
    for changed, kind in (({}, "ClipLoss"), ({"siglip": True}, "SigLipLoss")):
        given = SimpleNamespace(**arguments | changed)
        with ours.patch():
            assert type(open_clip.create_loss(given)) is getattr(ours, kind)
        assert type(open_clip.create_loss(given)) is not getattr(ours, kind)


@pytest.mark.parametrize("name", list(ROOTS))
def test_tables_have_every_loss_of_the_package(name):
    listed = {x for line in TABLES[name].lines for x in line.names}
    public = set()
    for root in ROOTS[name]:
        module = importlib.import_module(root)
        for x in getattr(module, "__all__", None) or vars(module):
            value = getattr(module, x)
            if x[0] != "_" and inspect.isclass(value) and issubclass(value, torch.nn.Module):
                own = value.__module__.partition(".")[0] == root.partition(".")[0]
                public |= {x} if own else set()
    assert public - listed == set(), "losses of the installed package that no line has"
    for x in TABLES[name].streaming():
        assert hasattr(integration(name), x)


@pytest.mark.parametrize("name", list(ROOTS))
def test_absent_losses_say_what_to_use(name):
    module = integration(name)
    for line in TABLES[name].lines:
        for x in line.names if line.instead else ():
            with pytest.raises(AttributeError, match="Instead: "):
                getattr(module, x)
            with pytest.raises(ImportError, match="Instead: "):
                exec(f"from {module.__name__} import {x}")
    with pytest.raises(AttributeError, match="has no attribute 'Nonsense'"):
        module.Nonsense  # noqa: B018
