"""What this backend needs and refuses: Triton's version, the interpreter, the assembler for sm_90.

This file imports without Triton.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import re

import torch

from ..backends._verified import verified
from .hashes import kernel_hashes

OLDEST = (3, 6)
SAFE_PTXAS = (13, 3)
"""A ptxas before this reuses register operands of wgmma while the product still reads them.

The product is asynchronous; this is Triton issue 9433.
"""

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@functools.cache
def triton_version() -> tuple[int, int] | None:
    """(major, minor) of the installed Triton, or None without one."""
    for name in (
        "triton",
        "pytorch-triton",
        "pytorch-triton-rocm",
        "triton-rocm",
        "triton-windows",
    ):
        try:
            found = re.match(r"(\d+)\.(\d+)", importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            continue
        if found:
            return int(found[1]), int(found[2])
    return None


def _dotted(version: tuple[int, int] | None) -> str:
    return "no version" if version is None else ".".join(map(str, version))


def missing() -> str | None:
    """Why no kernel can be defined here, or None."""
    version = triton_version()
    if version is None:
        return "Triton is not installed"
    if version < OLDEST:
        return f"needs Triton {_dotted(OLDEST)} or newer, found {_dotted(version)}"
    return None


def interpreter_requested() -> bool:
    """Whether the environment asks for Triton's interpreter."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on")


def refusal(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this backend cannot serve this device and matrix dtype, or None when it can."""
    reason = missing()
    if reason is not None:
        return reason
    if dtype not in DTYPES:
        return f"{dtype} is none of float16, bfloat16, float32, float64"
    if device.type == "cuda":
        if torch.version.cuda and torch.cuda.get_device_capability(device) < (8, 0):
            return "needs compute capability 8.0 or newer"
        return None
    if device.type != "cpu":
        return f"no kernels for {device.type} tensors"
    if not interpreter_requested():
        return (
            "CPU tensors run only in Triton's interpreter: "
            "set TRITON_INTERPRET=1 before importing (for tests; slow)"
        )
    return None


@functools.cache
def ptxas_version(capability: int) -> tuple[int, int] | None:
    """The version of the ptxas that Triton uses for this compute capability.

    It is None where it cannot be told.
    """
    try:
        from triton.backends.nvidia.compiler import get_ptxas

        major, minor = get_ptxas(capability).version.split(".")[:2]
        return int(major), int(minor)
    except (ImportError, AttributeError, TypeError, ValueError, RuntimeError, OSError):
        return None


def register_operands_are_safe(arch: str) -> bool:
    """Whether a pipelined loop may feed wgmma's left operand from registers.

    Where it may not, kernels that would are replaced.
    """
    if arch != "sm_90":
        return True
    version = ptxas_version(90)
    return version is not None and version >= SAFE_PTXAS


def status() -> str:
    """The line that `fused_contrastive.backends()` shows for this backend.

    It says what is served, what is replaced and why, and what a GPU has verified.
    """
    reason = missing()
    if reason is not None:
        return f"unavailable: {reason}"
    version = _dotted(triton_version())
    if interpreter_requested():
        devices = "Triton's interpreter (TRITON_INTERPRET=1): CPU tensors, for tests"
    elif torch.cuda.is_available():
        devices = "GPU"
    else:
        return (
            f"unavailable: no GPU here (Triton {version}; CPU tensors only with "
            f"TRITON_INTERPRET=1); {verified(kernel_hashes())}"
        )
    notes = [f"available: Triton {version} on {devices}"]
    if not register_operands_are_safe("sm_90"):
        found = ptxas_version(90)
        notes.append(
            "on sm_90 without fused_rows and 3xTF32, because ptxas "
            f"{_dotted(found) if found else 'unknown'} may overwrite wgmma's register operands "
            f"(set TRITON_PTXAS_PATH to {_dotted(SAFE_PTXAS)} or newer)"
        )
    return "; ".join([*notes, verified(kernel_hashes())])
