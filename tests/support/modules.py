"""The modules of the losses that tests/support/cases.py lists, found in the public names."""

from __future__ import annotations

import inspect
import re

import fused_contrastive as fc
from support import cases


def arguments(function) -> dict[str, inspect.Parameter]:
    """The parameters of a function, or of a module's constructor."""
    return dict(inspect.signature(function).parameters)


def function_of(module: str) -> str | None:
    """The function that a docstring names: "x" of "Module form of `x`"."""
    document = inspect.getdoc(getattr(fc, module)) or ""
    found = re.match(r"Module form of `(\w+)`", document)
    return found and found[1]


PAIRS = {name: function_of(name) for name in fc.__all__ if function_of(name) in cases.PLAINEST}
"""The function of each module. The losses without a case have tests of their own."""

WITH_TEMPERATURE = tuple(n for n, f in PAIRS.items() if "temperature" in arguments(getattr(fc, f)))
