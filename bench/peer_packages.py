"""`prepare()` does what the packages of the integrations need before they are imported."""

from __future__ import annotations

import os

import torch

OPERATORS = (
    "nms qnms roi_align _roi_align_backward ps_roi_align _ps_roi_align_backward roi_pool "
    "_roi_pool_backward ps_roi_pool _ps_roi_pool_backward deform_conv2d _deform_conv2d_backward"
)
_libraries = []


def prepare() -> None:
    """Chooses torch for Keras, forbids downloads, and prepares for torchvision.

    Beside a CPU build of torch, torchvision from the package index was built for another torch. Its
    import then needs the names of its operators.
    """
    os.environ["KERAS_BACKEND"] = "torch"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        import torchvision  # noqa: F401
    except ImportError:
        return
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in OPERATORS.split():
            library.define(name + "(Tensor x) -> Tensor")
        _libraries.append(library)
