"""The tests against the installed packages: `make test-peers`. Their defaults are the packages' own."""

from __future__ import annotations

import os
import warnings

os.environ["KERAS_BACKEND"] = "torch"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

TORCHVISION = (
    "nms qnms roi_align _roi_align_backward ps_roi_align _ps_roi_align_backward roi_pool _roi_pool_backward ps_roi_pool "
    "_ps_roi_pool_backward deform_conv2d _deform_conv2d_backward"
)

try:
    import torchvision  # noqa: F401
except RuntimeError:  # built for CUDA beside a torch without: its operators do not load, and its import needs only their names
    LIBRARY = torch.library.Library("torchvision", "DEF")
    for name in TORCHVISION.split():
        LIBRARY.define(name + "(Tensor x) -> Tensor")

from fused_contrastive.integrations import common


@pytest.fixture(autouse=True)
def told_again():
    """Every test is told what falls back."""
    common._warn.cache_clear()


@pytest.fixture
def streams():
    """Nothing in this test may fall back."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", common.FallbackWarning)
        yield


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
