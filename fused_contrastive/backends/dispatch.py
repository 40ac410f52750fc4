"""Which backend serves a call. Every refusal carries its reason, and `backends()` shows them."""

from __future__ import annotations

import contextlib
import importlib
import warnings

import torch

from .._torch_internals import constant_result

_MODULES = {
    "panels": "fused_contrastive.backends.panels",
    "cpu": "fused_contrastive.backends.cpu",
    "triton": "fused_contrastive.triton_kernels",
    "cuda": "fused_contrastive.backends.cuda",
}
NAMES = ("eager", *_MODULES)

_PREFERENCE = {"cpu": ("cpu",), "cuda": ("triton", "cuda")}
"""The defaults of each device: the first that serves is taken.

`panels` serves every other device. It also serves, with a warning, where none of a device's
defaults does.
"""

_forced: str | None = None
_loaded: dict[str, object] = {}


def module(name: str):
    """The backend's module, imported on first use."""
    if name not in _loaded:
        _loaded[name] = importlib.import_module(_MODULES[name])
    return _loaded[name]


def refusal(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why backend `name` cannot serve this device and matrix dtype, or None when it can."""
    if name == "eager":
        return None
    try:
        return (_loaded.get(name) or module(name)).refusal(device, dtype)
    except ImportError as error:
        return str(error)


def select(name: str | None, device: torch.device, dtype: torch.dtype) -> str:
    """The name of the backend that serves a call.

    It is `name` if one is given, else that of the enclosing `use_backend`, else the first of the
    device's defaults that can serve. Inside torch.compile the choice is made while tracing, and is
    a constant of the graph.

    Args:
        name: what the caller asks for; None: nothing in particular.
        device: where the tensors are.
        dtype: the matrix dtype, that of the products' operands. In the force family it is the dtype
            of the points.

    Raises:
        ValueError: the name is unknown.
        RuntimeError: the named backend cannot serve, with its reason.
    """
    return _resolve(name or _forced, device, dtype)


@constant_result
def _resolve(name: str | None, device: torch.device, dtype: torch.dtype) -> str:
    if name is None:
        reasons = []
        for preferred in _PREFERENCE.get(device.type, ("panels",)):
            reason = refusal(preferred, device, dtype)
            if reason is None:
                return preferred
            reasons.append(f"{preferred!r}: {reason}")
        warnings.warn(
            f"the slower backend 'panels' serves {dtype} on {device}: {'; '.join(reasons)}",
            stacklevel=2,
        )
        return "panels"
    check_name(name)
    reason = refusal(name, device, dtype)
    if reason is not None:
        raise RuntimeError(f"backend={name!r} cannot serve {dtype} on {device}: {reason}")
    return name


def check_name(name: str) -> None:
    """Raise ValueError for a name that no backend has."""
    if name not in NAMES:
        raise ValueError(f"backend must be one of {', '.join(NAMES)} or None, got {name!r}")


def is_eager(name: str | None) -> bool:
    """Whether the call asks for the dense reference."""
    return (name or _forced) == "eager"


def backends() -> dict[str, str]:
    """Every backend and what it can do here: ``"available ..."``, or ``"unavailable: "`` and why.

    >>> import fused_contrastive
    >>> fused_contrastive.backends()["panels"]
    'available: any device'
    """
    report = {
        "eager": "available: any device (dense reference, by name only)",
        "panels": "available: any device",
    }
    for name in _MODULES:
        if name == "panels":
            continue
        try:
            report[name] = module(name).status()
        except ImportError as error:
            report[name] = f"unavailable: {error}"
    return report


@contextlib.contextmanager
def use_backend(name: str | None):
    """Use backend `name` for every call inside the ``with`` block that names none.

    None restores the default choice. The choice holds for the whole process, not per thread. An
    unknown name raises ValueError.
    """
    global _forced
    if name is not None:
        check_name(name)
    previous, _forced = _forced, name
    try:
        yield
    finally:
        _forced = previous
