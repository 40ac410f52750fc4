"""Which backend serves a call. A backend is a module of functions with identical signatures (ops.py); every refusal
carries its reason, and `backends()` shows them."""

from __future__ import annotations

import contextlib
import importlib
import warnings

import torch

from .._torch_internals import constant_result
from ._fastest import FASTEST

_MODULES = {
    "panels": "fused_contrastive.backends.panels",
    "cpu": "fused_contrastive.backends.cpu",
    "triton": "fused_contrastive.triton_kernels",
    "cuda": "fused_contrastive.backends.cuda",
}
NAMES = ("eager", *_MODULES)
_PREFERENCE = {"cpu": ("cpu",), "cuda": ("triton", "cuda")}
"""Each device's defaults, the first that serves; `panels` everywhere else, and, with a warning, where none of them does."""
_forced: str | None = None
_loaded: dict[str, object] = {}


def module(name: str):
    """The backend's module, imported on first use."""
    if name not in _loaded:
        _loaded[name] = importlib.import_module(_MODULES[name])
    return _loaded[name]


def refusal(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why backend `name` cannot serve tensors of this device and matrix dtype, or None when it can."""
    if name == "eager":
        return None
    try:
        return module(name).refusal(device, dtype)
    except ImportError as error:
        return str(error)


def select(
    name: str | None,
    device: torch.device,
    dtype: torch.dtype,
    D: int | None = None,
    op: str = "two_sets",
) -> str:
    """The backend that serves this call: `name` if given, else the one of `use_backend`, else the device's default, which on a GPU is
    the one measured to be faster for this D and op ("one_set", "two_sets").

    Raises ValueError for an unknown name and RuntimeError, with the reason, where the named backend cannot serve.
    """
    if D is not None and torch.compiler.is_dynamo_compiling():  # a symbolic D is no constant
        from torch.fx.experimental.symbolic_shapes import has_static_value

        D = int(D) if has_static_value(D) else None
    return _resolve(name or _forced, device, dtype, D, op)


def _preference(
    device: torch.device, dtype: torch.dtype, D: int | None, op: str
) -> tuple[str, ...]:
    """The device's defaults, first the one that is fastest at the least measured D that is not below this one (else at the largest)."""
    order = _PREFERENCE.get(device.type, ("panels",))
    if not FASTEST or type(D) is not int or device.type != "cuda" or torch.version.hip is not None:
        return order
    place = (
        "{}.{}".format(*torch.cuda.get_device_capability(device)),
        op,
        str(dtype).removeprefix("torch."),
    )
    measured = FASTEST.get(place)
    if not measured:
        return order
    best = measured[min((d for d in measured if d >= D), default=max(measured))]
    return (best, *(name for name in order if name != best))


@constant_result
def _resolve(
    name: str | None, device: torch.device, dtype: torch.dtype, D: int | None, op: str
) -> str:
    if name is None:
        reasons = []
        for preferred in _preference(device, dtype, D, op):
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
    if name not in NAMES:
        raise ValueError(f"backend must be one of {', '.join(NAMES)} or None, got {name!r}")


def is_eager(name: str | None) -> bool:
    """Whether the call asks for the dense reference."""
    return (name or _forced) == "eager"


def backends() -> dict[str, str]:
    """Every backend and what it can do here: ``"available ..."`` or ``"unavailable: "`` and the reason.

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
    """Use backend `name` for every call inside the ``with`` block that names none; None restores the default choice.

    Process-wide (not per thread). Raises ValueError for an unknown name.
    """
    global _forced
    if name is not None:
        check_name(name)
    previous, _forced = _forced, name
    try:
        yield
    finally:
        _forced = previous
