"""The CUDA kernels become a library for CPU tensors here.

The host compiler compiles csrc/cuda with the shim of this folder.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sysconfig
import tempfile
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SOURCES = ROOT / "csrc/cuda"
FLAGS = [
    "-std=c++17",
    "-O2",
    "-g0",
    "-fPIC",
    "-w",
    "-DFUSED_CONTRASTIVE_HOST",
    "-DPy_LIMITED_API=0x030a0000",
    "-DTORCH_TARGET_VERSION=0x020b000000000000",
    "-fvisibility=hidden",
    "-fno-math-errno",
]


def compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "g++")) or shutil.which("c++")


def sources() -> list[Path]:
    return [HERE / "shim.cpp", *sorted(SOURCES.glob("*.cpp")), *sorted(SOURCES.glob("*.cu"))]


def fingerprint() -> str:
    digest = hashlib.sha256(f"{torch.__version__} {FLAGS}".encode())
    for path in sorted([*HERE.glob("*.[ch]*"), *SOURCES.iterdir()]):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def build() -> Path:
    """Return the library, compiled unless these sources have been compiled before.

    Of several processes, the first one compiles it.
    """
    # Windows has no such module.
    import fcntl

    library = ROOT / "build/cuda_host" / f"_C_cuda_host-{fingerprint()}.so"
    library.parent.mkdir(parents=True, exist_ok=True)
    with open(library.parent / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            compile_library(library)
    return library


def compile_library(library: Path) -> None:
    for stale in library.parent.glob("*.so"):
        stale.unlink()
    root = Path(torch.__file__).parent
    include = [HERE, SOURCES, root / "include", root / "include/torch/csrc/api/include"]
    include.append(Path(sysconfig.get_paths()["include"]))
    common = [compiler(), *FLAGS, *(f"-I{path}" for path in include)]
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:

        def compile_one(source: Path) -> str:
            target = Path(folder, source.stem + ".o")
            run([*common, "-x", "c++", "-c", str(source), "-o", str(target)])
            return str(target)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile_one, sources()))
        part = Path(folder, library.name)
        libraries = [f"-L{root / 'lib'}", "-ltorch_cpu", "-ltorch", "-lc10"]
        run([compiler(), "-shared", *objects, "-o", str(part), *libraries])
        part.rename(library)


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-4000:]}")


@functools.cache
def load() -> types.SimpleNamespace:
    """Load the library.

    ``operators`` is the namespace of torch operators. Two functions come from shim.cpp.
    ``options(order, copies_at_once, products_at_once)`` sets how threads take turns.
    ``capability(major)`` sets that of the device.
    """
    path = build()
    torch.ops.load_library(str(path))
    library = ctypes.CDLL(str(path))
    return types.SimpleNamespace(
        operators=torch.ops.fused_contrastive_cuda_host,
        options=library.shim_options,
        capability=library.shim_capability,
    )
