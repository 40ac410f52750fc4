"""Which backend serves a call. Every refusal carries its reason, and `backends()` shows them.

`set_backend` chooses for the process, and `use_backend` for what runs inside its block. Both choose
for calls that name no backend themselves.
"""

from __future__ import annotations

import contextlib
import contextvars
import importlib
from collections.abc import Iterator
from typing import Any

import torch

from .._torch_internals import constant_result
from ._warnings import warn

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

DEFAULT = "the default of the device"
"""What `use_backend(None)` stands for: the device's default, whatever `set_backend` has chosen."""

_of_context: contextvars.ContextVar[str] = contextvars.ContextVar("fused_contrastive_backend")
_of_process: str | None = None
# The choice of a `use_backend` block inside compiled code, while it is traced.
_of_trace: str | None = None


class _Here:
    """The choice of the context that reads it: ``_here.choice`` is `_here` where there is none.

    A property made of a function in C is read as fast as the variable itself. torch.compile looks
    at it again at every call, as at any attribute, and compiles anew when it has changed. It could
    not trace ``_of_context.get()``. The function gets the object, which is its default.
    """

    choice = property(_of_context.get)


_here = _Here()
_loaded: dict[str, Any] = {}


def module(name: str):
    """The backend's module, imported on first use."""
    if name not in _loaded:
        if name not in _MODULES:
            raise ValueError(
                f"the backend of an op must be one of {', '.join(_MODULES)}, got {name!r}"
            )
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

    It is `name` if one is given, else that of the enclosing `use_backend`, else that of
    `set_backend`, else the first of the device's defaults that can serve. Inside torch.compile the
    choice is made while tracing, and is a constant of the graph. Another choice makes another
    graph.

    Args:
        name: what the caller asks for; None: nothing in particular.
        device: where the tensors are.
        dtype: the matrix dtype, that of the products' operands. In the force family it is the dtype
            of the points.

    Raises:
        ValueError: the name is unknown.
        RuntimeError: the named backend cannot serve, with its reason.
    """
    return _resolve(name or _chosen(), device, dtype)


def _chosen() -> str | None:
    """The choice of the enclosing `use_backend`, else that of `set_backend`."""
    choice = _of_trace or _here.choice
    return _of_process if choice is _here else choice


@constant_result
def _resolve(name: str | None, device: torch.device, dtype: torch.dtype) -> str:
    if name is None or name == DEFAULT:
        reasons = []
        for preferred in _PREFERENCE.get(device.type, ("panels",)):
            reason = refusal(preferred, device, dtype)
            if reason is None:
                return preferred
            reasons.append(f"{preferred!r}: {reason}")
        warn(f"the slower backend 'panels' serves {dtype} on {device}: {'; '.join(reasons)}")
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
    return (name or _chosen()) == "eager"


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


def set_backend(name: str | None) -> None:
    """Use backend `name` from now on, for every call in this process that names none.

    It holds in all threads, and None restores the device's default. Inside a `use_backend` block
    the choice of the block comes first.

    >>> import fused_contrastive
    >>> fused_contrastive.set_backend("panels")
    >>> fused_contrastive.set_backend(None)

    Args:
        name: ``"eager"``, ``"panels"``, ``"cpu"``, ``"triton"``, ``"cuda"`` or None.

    Raises:
        ValueError: the name is unknown. A backend that cannot serve a call raises RuntimeError
            there.
    """
    global _of_process
    if name is not None:
        check_name(name)
    _of_process = name


@contextlib.contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Use backend `name` for every call inside the ``with`` block that names none.

    Blocks nest. The choice belongs to the context that the block runs in (`contextvars`). Another
    thread or another asyncio task does not see it, nor does a thread that is started inside the
    block. A task that is created inside the block keeps the choice for its whole life. For threads,
    as those of torch.nn.DataParallel, choose with `set_backend`. A backward pass uses the backend
    of its forward pass, wherever it runs.

    >>> import torch
    >>> from fused_contrastive import nt_xent_loss, use_backend
    >>> with use_backend("panels"):
    ...     loss = nt_xent_loss(torch.randn(4, 8), torch.randn(4, 8))

    Args:
        name: as in `set_backend`. None is the device's default, also where `set_backend` has
            chosen another.

    Raises:
        ValueError: the name is unknown. A backend that cannot serve a call raises RuntimeError
            there.
    """
    global _of_trace
    if name is not None:
        check_name(name)
    if torch.compiler.is_compiling():
        # A tracing compiler cannot set the variable of the context.
        before, _of_trace = _of_trace, name or DEFAULT
        try:
            yield
        finally:
            _of_trace = before
        return
    token = _of_context.set(name or DEFAULT)
    try:
        yield
    finally:
        _of_context.reset(token)
