"""How csrc/cuda is compiled: used by setup.py and by the compile gate."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ARCHITECTURES = ("80", "86", "90a", "100", "120")
"""Compiled to machine code; PTX of the first covers what comes later."""

NVCC_FLAGS = ("-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden", "-Xfatbin=-compress-all")


def nvcc() -> str | None:
    """CUDA_HOME's nvcc, or the one on the path."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return shutil.which("nvcc", path=str(Path(home, "bin"))) if home else shutil.which("nvcc")


def cuda_home() -> Path:
    return Path(nvcc()).resolve().parents[1]


def sources() -> list[Path]:
    return sorted(HERE.glob("*.cu"))


def architectures(source: Path) -> tuple[str, ...]:
    """What this source is compiled for: the warpgroup products exist on sm_90a alone."""
    return ("90a",) if source.stem.endswith("_sm90") else ARCHITECTURES


def targets(source: Path) -> list[str]:
    names = architectures(source)
    flags = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in names]
    return flags if names == ("90a",) else [*flags, f"-gencode=arch=compute_{names[0]},code=compute_{names[0]}"]


def build(library: Path, folder: Path, jobs: int | None = None) -> None:
    """Compile everything into `library`, objects in `folder`, those newer than every source kept."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    library.parent.mkdir(parents=True, exist_ok=True)
    newest = max(path.stat().st_mtime for path in HERE.iterdir())
    root = Path(torch.__file__).parent
    include = [root / "include", root / "include/torch/csrc/api/include", sysconfig.get_paths()["include"], cuda_home() / "include"]
    stable = [
        "-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-DUSE_CUDA", "-DPy_LIMITED_API=0x030a0000",
        "-DTORCH_TARGET_VERSION=0x020b000000000000", *(f"-I{path}" for path in include),
    ]  # fmt: skip
    compiler = os.environ.get("CXX") or shutil.which("g++") or "c++"

    def compile_one(source: Path) -> str:
        target = folder / (source.stem + ".o")
        if not target.exists() or target.stat().st_mtime < newest:
            part = target.with_suffix(".part.o")
            if source.suffix == ".cu":
                command = [nvcc(), *NVCC_FLAGS, *targets(source), "-c", str(source), "-o", str(part)]
            else:
                command = [compiler, *stable, "-c", str(source), "-o", str(part)]
            subprocess.run(command, check=True)
            part.rename(target)
        return str(target)

    with ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, [HERE / "library.cpp", *sources()]))
    libraries = [f"-L{root / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10", f"-L{cuda_home() / 'lib64'}", "-lcudart_static"]
    link = ["-shared", "-s", "-Wl,--no-as-needed", "-Wl,--exclude-libs,ALL", *libraries, "-ldl", "-lrt", "-lpthread"]
    subprocess.run([compiler, *objects, "-o", str(library), *link], check=True)
