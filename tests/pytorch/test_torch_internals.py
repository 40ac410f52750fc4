"""The installed torch has the private names that the package uses.

Only one file of the package names them.
"""

import re
from pathlib import Path

import pytest
import torch

import fused_contrastive
from fused_contrastive import _torch_internals

ROOT = Path(fused_contrastive.__file__).resolve().parent
PRIVATE = re.compile(r"\btorch(?:\.\w+)*\._(?!_)\w+|\bforward_ad\._\w+|\b_schema\b|\b_dynamo_\w+")


@pytest.mark.parametrize("name", _torch_internals.__all__)
def test_exists(name):
    assert getattr(_torch_internals, name) is not None


def test_results():
    op = torch.ops.fused_contrastive.distance_sums.default
    assert _torch_internals.argument_names(op) == ["x", "weight", "rows", "clip", "backend"]
    assert not _torch_internals.are_transforms_active() and not _torch_internals.in_forward_mode()
    assert _torch_internals.any_requires_grad(torch.ones(1), torch.ones(1, requires_grad=True))
    seen = []

    def look(x):
        seen.append(_torch_internals.active_transforms())
        seen.append(_torch_internals.is_wrapped_by_transform(x))
        return x

    torch.func.vmap(look)(torch.ones(2))
    assert seen == [{_torch_internals.TransformType.Vmap}, True]


def test_one_file_knows_them():
    """No other file of the package names a private part of torch."""
    for path in sorted(ROOT.rglob("*.py")):
        if path.name != "_torch_internals.py":
            found = PRIVATE.findall(path.read_text(encoding="utf-8"))
            assert not found, f"{path.relative_to(ROOT)} uses {found}"
