"""An integration names its package where that is not installed, and one integration needs none.

tests/peers holds the tests against the installed packages.
"""

from __future__ import annotations

import importlib
import inspect
import sys

import pytest
import torch

from fused_contrastive import integrations
from fused_contrastive.integrations.supcontrast import SupConLoss

PACKAGES = {
    "info_nce": ("info_nce", "info-nce-pytorch"),
    "keras": ("keras", "keras"),
    "lightly": ("lightly", "lightly"),
    "open_clip": ("open_clip", "open_clip_torch"),
    "pytorch_metric_learning": ("pytorch_metric_learning", "pytorch-metric-learning"),
    "sentence_transformers": ("sentence_transformers", "sentence-transformers"),
    "simclr": ("simclr", "simclr"),
}


def test_packages_are_imported_only_when_used():
    assert {*PACKAGES, "supcontrast"} == {*integrations.__all__}
    assert not any(
        name in vars(integrations)
        for name in PACKAGES
        if f"{integrations.__name__}.{name}" not in sys.modules
    )


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_package_is_named(name, monkeypatch):
    module, distribution = PACKAGES[name]
    for loaded in (module, *(name for name in sys.modules if name.startswith(f"{module}."))):
        monkeypatch.setitem(sys.modules, loaded, None)
    monkeypatch.delitem(sys.modules, f"{integrations.__name__}.{name}", raising=False)
    with pytest.raises(ImportError, match=f"pip install {distribution}$"):
        importlib.import_module(f"{integrations.__name__}.{name}")


def dense(features, weights, temperature, base_temperature, anchors):
    """Compute eq. 2 of Khosla et al. (2020), row by row.

    The weights ``[N, N]`` say how much two samples count as each other's positives. They hold for
    all views of these samples.
    """
    N, V = features.shape[:2]
    rows = [(view, sample) for view in range(V) for sample in range(N)]
    terms = []
    for view, sample in rows[: N * anchors]:
        others = [row for row in rows if row != (view, sample)]
        s = (
            torch.stack(
                [features[sample, view].flatten() @ features[j, v].flatten() for v, j in others]
            )
            / temperature
        )
        w = torch.stack([weights[sample, j] for _, j in others])
        total = w.sum()
        loss = (w * (s.logsumexp(0) - s)).sum() / (total if total >= 1e-6 else 1)
        terms.append(temperature / base_temperature * loss)
    return torch.stack(terms).mean()


def compare(loss, features, weights, options, **arguments):
    temperature, base = options.get("temperature", 0.07), options.get("base_temperature", 0.07)
    anchors = 1 if options.get("contrast_mode") == "one" else features.shape[1]
    results = []
    for function in (
        lambda x: loss(x, **arguments),
        lambda x: dense(x, weights, temperature, base, anchors),
    ):
        x = features.clone().requires_grad_()
        value = function(x)
        results.append((value, *torch.autograd.grad(value, x)))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)


def features(*shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.nn.functional.normalize(x.flatten(2), dim=-1).view(shape)


OPTIONS = (
    {},
    {"temperature": 0.5},
    {"contrast_mode": "one", "temperature": 0.2, "base_temperature": 0.1},
)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", ((1, 2, 3), (5, 1, 3), (4, 2, 3), (6, 3, 2, 2)))
def test_supcontrast(shape, options):
    x, loss = features(*shape), SupConLoss(**options)
    compare(loss, x, torch.eye(shape[0], dtype=torch.float64), options)
    labels = torch.arange(shape[0]) % 3
    same = (labels[:, None] == labels).double()
    compare(loss, x, same, options, labels=labels)
    compare(loss, x, same, options, labels=labels[:, None].double())
    compare(loss, x, same, options, mask=same.bool())
    weights = torch.rand(
        shape[0], shape[0], generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    weights[0] = 0
    compare(loss, x, weights, options, mask=weights)
    weights[1:3] *= 1e-9
    compare(loss, x, weights, options, mask=weights)


def test_supcontrast_dtypes_and_defaults():
    x, loss = features(4, 2, 8), SupConLoss()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        value = loss(x.to(dtype))
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), loss(x.to(dtype).double()), rtol=1e-4, atol=1e-5)
    parameters = inspect.signature(SupConLoss).parameters
    assert {n: p.default for n, p in parameters.items()} == {
        "temperature": 0.07,
        "contrast_mode": "all",
        "base_temperature": 0.07,
    }
    assert [*inspect.signature(loss.forward).parameters] == ["features", "labels", "mask"]
    assert not loss.state_dict()


def test_supcontrast_errors():
    x, labels, loss = features(4, 2, 3), torch.arange(4), SupConLoss()
    for message, call in {
        "at least 3 dimensions": lambda: loss(x[0]),
        "labels and mask must not both": lambda: loss(x, labels, torch.eye(4)),
        "labels must be 4": lambda: loss(x, labels[:3]),
        "contrast_mode must be": lambda: SupConLoss(contrast_mode="some")(x),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
