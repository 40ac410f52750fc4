"""The CPU backend: thin wrappers over the C++ library `_C_cpu` (csrc/cpu).

The library picks this machine's best instruction set. It is tied to the torch that it was built
for. Where it cannot be used, `refusal` and `status` say why. Importing this module never fails.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

import torch

FLAT = (
    "similarity_forward",
    "similarity_backward",
    "sigmoid_forward",
    "sigmoid_backward",
    "force_forward",
)
"""Functions that take the arguments of their op as they are."""

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_LIBRARY = "fused_contrastive._C_cpu"
_MARK = b"fused_contrastive for torch "


def _built_for(path: Path) -> str:
    """The torch version in the library's mark.

    The mark is read from the file, because a library for another version may not even load.
    """
    content = path.read_bytes()
    start = content.find(_MARK) + len(_MARK)
    return (
        content[start : content.index(b";", start)].decode()
        if start >= len(_MARK)
        else "an unknown version"
    )


def _load() -> str | None:
    """Load the library, or return the reason why that is not possible."""
    spec = importlib.util.find_spec(_LIBRARY)
    if spec is None or spec.origin is None:
        return (
            "the extension was not built (install with --no-build-isolation "
            "where torch and a C++ compiler are present)"
        )
    built, here = _built_for(Path(spec.origin)), torch.__version__.partition("+")[0]
    if built != here:
        return (
            f"built for torch {built}, this is torch {here}: "
            "install again with --no-build-isolation"
        )
    try:
        importlib.import_module(_LIBRARY)
    except ImportError as error:
        return f"the extension does not load: {error}"
    return None


_reason = _load()
if _reason is None and not hasattr(torch.ops.fused_contrastive_cpu, "sigmoid_backward"):
    _reason = "the extension is older than this package: install again with --no-build-isolation"
if _reason is None:
    _ops = torch.ops.fused_contrastive_cpu
    _forward, _backward, _force = _ops.forward.default, _ops.backward.default, _ops.force.default
    _sigmoid_forward, _sigmoid_backward = (
        _ops.sigmoid_forward.default,
        _ops.sigmoid_backward.default,
    )
    distance_sums, distance_gradient = _ops.distance_sums.default, _ops.distance_gradient.default


def refusal(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this backend cannot serve this device and matrix dtype, or None when it can."""
    if _reason is not None:
        return _reason
    if device.type != "cpu":
        return "the native CPU kernels serve tensors on the CPU"
    if dtype not in DTYPES:
        served = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
        return f"the native CPU kernels serve {served}"
    return None


def status() -> str:
    """``"available: <ISA>"`` or ``"unavailable: <reason>"``."""
    return (
        f"unavailable: {_reason}"
        if _reason is not None
        else f"available: {torch.ops.fused_contrastive_cpu.isa()}"
    )


def similarity_forward(*arguments):
    """The op of this name (ops/similarity.py). It takes the op's arguments, less the backend."""
    return tuple(_forward(*arguments))


def similarity_backward(*arguments):
    """The op of this name (ops/similarity.py). It takes the op's arguments, less the backend."""
    return tuple(_backward(*arguments))


def force_forward(*arguments):
    """The op of this name (ops/force.py). It takes the op's arguments, less the backend."""
    return tuple(_force(*arguments))


def sigmoid_forward(*arguments):
    """The op of this name (ops/sigmoid.py). It takes the op's arguments, less the backend."""
    return tuple(_sigmoid_forward(*arguments))


def sigmoid_backward(*arguments):
    """The op of this name (ops/sigmoid.py). It takes the op's arguments, less the backend."""
    return tuple(_sigmoid_backward(*arguments))
