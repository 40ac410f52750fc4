"""This module imports the package from a checkout where it is not installed.

Installed, ``triton_kernels/`` is ``fused_contrastive.triton_kernels`` (setup.py). From a bare
checkout the folder beside the package joins the package's search path, which gives the same name.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def complete_package() -> None:
    """Makes ``fused_contrastive.triton_kernels`` importable where nothing is installed."""
    import fused_contrastive

    if importlib.util.find_spec("fused_contrastive.triton_kernels") is None:
        fused_contrastive.__path__.append(str(ROOT))
