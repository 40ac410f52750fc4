"""``make gpu`` finds or builds the CUDA library.

The library that is there serves if it was made of these sources and holds code for this GPU. Else
one is built for this GPU and for all that the other held code for. What it was built for is written
behind the library's end, where loaders do not look.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from ..environment import ROOT
from ..gates.cuda import build
from .run import child

LIBRARY = ROOT / "fused_contrastive" / "_C_cuda.abi3.so"
PROBE = """
import torch
from importlib import import_module
print(getattr(import_module("fused_contrastive._C_cuda"), "SOURCES", "unknown"))
"""


def made_of() -> str:
    """Returns the hash of the sources of the library that the package would load.

    The hash is "" where none loads. A process of its own loads the library.
    """
    done = subprocess.run(
        [sys.executable, "-c", PROBE], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else ""


def architectures(capability: tuple[int, int]) -> tuple[str, ...]:
    """Returns what to compile for a GPU.

    This is the GPU's own code where there is some, else all code and PTX.
    """
    own = tuple(
        name
        for name in build.ARCHITECTURES
        if name.rstrip("a") == f"{capability[0]}{capability[1]}"
    )
    return own or build.ARCHITECTURES


def record(library: Path, names: tuple[str, ...]) -> None:
    """Writes behind the end of a library what it was built for."""
    with library.open("ab") as file:
        file.write(f"\narchitectures {' '.join(names)}\n".encode())


def recorded(library: Path) -> tuple[str, ...]:
    """Returns what a library was built for.

    Without a record (setup.py writes none) that is everything.
    """
    if not library.exists():
        return ()
    with library.open("rb") as file:
        file.seek(max(0, library.stat().st_size - 200))
        found = re.search(rb"\narchitectures ([\w ]+)\n\Z", file.read())
    return tuple(found[1].decode().split()) if found else build.ARCHITECTURES


def ready(capability: tuple[int, int], seconds: float, library: Path = LIBRARY) -> str:
    """Makes sure, in at most about `seconds`, that the library of these sources is there.

    Returns what was done, or why there is no library. A build that was not finished goes on in the
    next run.
    """
    began, present, wanted = time.monotonic(), made_of(), build.library_hash()
    own, held = architectures(capability), recorded(library)
    if present == wanted and set(own) <= set(held):
        return f"prebuilt, sources {wanted}"
    if not present:
        reason = "none here"
    elif present != wanted:
        reason = f"the one here is of other sources ({present})"
    else:
        reason = f"the one here is for sm_{', sm_'.join(held)}"
    if build.nvcc() is None:
        return f"unavailable: {reason}, and there is no nvcc"
    names = tuple(name for name in build.ARCHITECTURES if name in {*own, *held})
    print(f"building the CUDA library for sm_{', sm_'.join(names)} ({reason})", flush=True)
    draft = library.with_name(f"building-{library.name}")
    status = child(["-m", "bench.gpu.library", str(draft), *names], seconds, {}, lambda: None)
    if status != 0:
        # This library is not of these sources, or not for this GPU.
        library.unlink(missing_ok=True)
        draft.unlink(missing_ok=True)
        return (
            f"unavailable: did not build ({'out of time' if status is None else f'exit {status}'})"
        )
    os.replace(draft, library)
    if made_of() != wanted:
        return "unavailable: built, but does not load"
    return (
        f"built for sm_{', sm_'.join(names)} in {time.monotonic() - began:.0f} s, sources {wanted}"
    )


def main(target: str, *names: str) -> int:
    """Builds for the architectures `names` into `target`."""
    build.build(Path(target), ROOT / "build" / "cuda", names=names)
    record(Path(target), names)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
