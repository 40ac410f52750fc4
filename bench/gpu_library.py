"""The CUDA library for ``make gpu``: the one that is there if it was made of these sources, else built for this GPU alone."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from .compile_gate_cuda import build
from .environment import ROOT

LIBRARY = ROOT / "fused_contrastive" / "_C_cuda.abi3.so"
PROBE = """
import torch
from importlib import import_module
print(getattr(import_module("fused_contrastive._C_cuda"), "SOURCES", "unknown"))
"""


def made_of() -> str:
    """Hash of the sources of the library that the package would load, by a process of its own; "" where none loads."""
    done = subprocess.run([sys.executable, "-c", PROBE], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def architectures(capability: tuple[int, int]) -> tuple[str, ...]:
    """What to compile for a GPU: its own code where there is some, else all of it and PTX."""
    own = tuple(name for name in build.ARCHITECTURES if name.rstrip("a") == f"{capability[0]}{capability[1]}")
    return own or build.ARCHITECTURES


def ready(capability: tuple[int, int], library: Path = LIBRARY) -> str:
    """Make sure that the library of these sources is there; what was done, or why there is none."""
    present, wanted = made_of(), build.library_hash()
    if present == wanted:
        return f"prebuilt, sources {wanted}"
    stale = f"the one here is of other sources ({present})" if present else "none here"
    if build.nvcc() is None:
        return f"unavailable: {stale}, and there is no nvcc"
    names, began = architectures(capability), time.monotonic()
    print(f"building the CUDA library for sm_{', sm_'.join(names)} ({stale})", flush=True)
    try:
        build.build(library, ROOT / "build" / "cuda", names=names)
    except (OSError, subprocess.CalledProcessError) as error:
        library.unlink(missing_ok=True)
        return f"unavailable: did not build ({type(error).__name__})"
    if made_of() != wanted:
        return "unavailable: built, but does not load"
    return f"built for sm_{', sm_'.join(names)} in {time.monotonic() - began:.0f} s, sources {wanted}"
