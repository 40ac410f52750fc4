"""This module says how csrc/cuda is compiled, for setup.py and the compile gate."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ARCHITECTURES = ("80", "86", "90a", "100", "120")
"""Kernels are compiled to machine code for these. PTX of the first one covers later devices."""

NVCC_FLAGS = ("-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden", "-Xfatbin=-compress-all")


def nvcc() -> str | None:
    """Returns the nvcc of CUDA_HOME, or the one on the path."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return shutil.which("nvcc", path=str(Path(home, "bin"))) if home else shutil.which("nvcc")


def sources() -> list[Path]:
    return sorted(HERE.glob("*.cu"))


def host_sources() -> list[Path]:
    """Returns the module's file and the files of operators, which launch the kernels."""
    return sorted(HERE.glob("*.cpp"))


def closure(source: Path) -> list[Path]:
    """Returns a source and every header of csrc/cuda that it includes, directly or not."""
    found, todo = [], [source]
    while todo:
        path = todo.pop()
        if path in found or not path.exists():
            continue
        found.append(path)
        todo += [HERE / name for name in re.findall(r'^#include "(.+)"', path.read_text(), re.M)]
    return sorted(found)


def source_hash(source: Path) -> str:
    """Hashes everything that decides what this source compiles to, except the assembler."""
    digest = hashlib.sha256(repr((NVCC_FLAGS, architectures(source))).encode())
    for path in closure(source):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def kernel_hashes() -> dict[str, str]:
    """Returns the source hash of every file of CUDA kernels, by name.

    A hash also covers what launches the kernels, because a run says nothing without it.
    """
    package = HERE.parents[1] / "fused_contrastive" / "backends"

    shared = ("cuda/similarity.py", "cuda/_tiles.py", "tiled/operands.py")

    def launching(family: str) -> bytes:
        host, modules = {
            "force": ("force_ops.cpp", ("cuda/force.py",)),
            "sigmoid": ("sigmoid_ops.cpp", ("cuda/sigmoid.py", "tiled/sigmoid.py", *shared)),
        }.get(family, ("similarity_ops.cpp", ("tiled/similarity.py", *shared)))
        paths = [package / name for name in (*modules, "tiled/plan.py")]
        return source_hash(HERE / host).encode() + b"".join(
            path.read_bytes() for path in paths if path.exists()
        )

    hashes = {
        f"cuda/{source.stem}": source_hash(source).encode()
        + launching(source.stem.partition("_")[0])
        for source in sources()
    }
    return {name: hashlib.sha256(made_of).hexdigest()[:16] for name, made_of in hashes.items()}


def architectures(source: Path, names: tuple[str, ...] = ARCHITECTURES) -> tuple[str, ...]:
    """Returns which of `names` this source is compiled for.

    The warpgroup products exist on sm_90a alone.
    """
    return ("90a",) if source.stem.endswith("_sm90") else names


def targets(source: Path, names: tuple[str, ...]) -> list[str]:
    names = architectures(source, names)
    flags = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in names]
    return (
        flags
        if names == ("90a",)
        else [*flags, f"-gencode=arch=compute_{names[0]},code=compute_{names[0]}"]
    )


def release() -> str:
    """Returns the version of nvcc."""
    printed = subprocess.run(
        [nvcc(), "--version"], capture_output=True, text=True, check=True
    ).stdout
    return re.search(r"V([\d.]+)", printed)[1]


def library_hash() -> str:
    """Hashes everything the library is made of, except the compiler.

    The library carries the hash as ``SOURCES``.
    """
    everything = [(source.name, source_hash(source)) for source in (*sources(), *host_sources())]
    return hashlib.sha256(repr(everything).encode()).hexdigest()[:16]


def build(
    library: Path,
    folder: Path,
    jobs: int | None = None,
    names: tuple[str, ...] = ARCHITECTURES,
    chosen: list[Path] | None = None,
) -> None:
    """Compiles everything for the architectures `names` into `library`.

    Tests compile the kernel sources `chosen` alone. Objects are kept in `folder`, and their names
    come from all they are made of.
    """
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    library.parent.mkdir(parents=True, exist_ok=True)
    compiler = release()
    root = Path(torch.__file__).parent
    include = [
        root / "include",
        root / "include/torch/csrc/api/include",
        sysconfig.get_paths()["include"],
    ]
    torch_flags = [
        "-DUSE_CUDA",
        "-DPy_LIMITED_API=0x030a0000",
        "-DTORCH_TARGET_VERSION=0x020b000000000000",
    ]
    torch_flags += [
        f"-DFUSED_CONTRASTIVE_SOURCES={library_hash()}",
        *(f"-I{path}" for path in include),
    ]

    def compile_one(source: Path) -> str:
        flags = targets(source, names) if source.suffix == ".cu" else torch_flags
        version = torch.__version__ if source.suffix == ".cpp" else ""
        made_of = f"{compiler} {version} {flags} {source_hash(source)}"
        target = folder / f"{source.stem}-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.o"
        if not target.exists():
            part = target.with_suffix(".part.o")
            subprocess.run(
                [nvcc(), *NVCC_FLAGS, *flags, "-c", str(source), "-o", str(part)], check=True
            )
            for stale in folder.glob(f"{source.stem}-????????????????.o"):
                stale.unlink()
            part.rename(target)
        return str(target)

    with ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
        objects = list(
            pool.map(compile_one, [*host_sources(), *(sources() if chosen is None else chosen)])
        )
    linker = [
        "-Xlinker=-s,--no-as-needed,--exclude-libs,ALL",
        f"-L{root / 'lib'}",
        "-ltorch",
        "-ltorch_cpu",
        "-lc10",
    ]
    subprocess.run(
        [nvcc(), "-shared", "-cudart=static", *objects, "-o", str(library), *linker], check=True
    )
