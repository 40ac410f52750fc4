"""This module describes where a result was measured.

The description has the hardware, versions, commit and source hashes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import torch

import fused_contrastive

from .source_tree import ROOT

NATIVE_SOURCES = "csrc/cpu"


def describe(device: torch.device) -> dict:
    """Returns everything a reader needs to judge or repeat a result."""
    described = {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "os": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version("triton"),
        "numpy": version("numpy"),
        "fused_contrastive": fused_contrastive.__version__,
        "commit": commit(),
        "backends": {
            name: without_paths(status) for name, status in fused_contrastive.backends().items()
        },
        "sources": {**native_hashes(), **kernel_hashes()},
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        described["gpu"] = {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
            "driver": driver_version(),
            "cuda": torch.version.cuda,
            "ptxas": ptxas(properties.major * 10 + properties.minor),
        }
    return described


def cpu_model() -> str:
    try:
        names = re.findall(
            r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE
        )
    except OSError:
        names = []
    return names[0].strip() if names else platform.processor() or platform.machine()


def without_paths(text: str) -> str:
    """Returns `text` with absolute paths cut to their last part.

    Results are committed, and the folders of machines should not be.
    """
    return re.sub(r"(?<![\w./])/(?:[\w.+-]+/)+", "", text)


def command_line(module: str) -> str:
    """Returns the command that started this process, without the option for where it writes."""
    return re.sub(r" --out[ =]\S+", "", " ".join([f"python -m {module}", *sys.argv[1:]]))


def slug(model: str) -> str:
    """Returns a device name as part of a file name."""
    plain = re.sub(r"\((r|tm)\)|nvidia|corporation|@.*", "", model.lower())
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def version(package: str) -> str | None:
    try:
        return __import__(package).__version__
    except ImportError:
        return None


def commit() -> str | None:
    """Returns the checkout's commit, or None outside git.

    "+changes" follows where tracked files differ.
    """
    try:
        head = _output("git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD")
        return head + (
            "+changes" if _output("git", "-C", str(ROOT), "status", "--porcelain", "-uno") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return None


def driver_version() -> str | None:
    try:
        return _output(
            "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"
        ).splitlines()[0]
    except (OSError, IndexError, subprocess.CalledProcessError):
        return None


def _output(*command: str) -> str:
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=30
    ).stdout.strip()


def digest(folders: tuple[str, ...], more: str = "") -> str:
    """Hashes the sources in these folders of the checkout, at any depth, and `more`."""
    found = hashlib.sha256(more.encode())
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".cu", ".cuh", ".cpp", ".h"):
                found.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return found.hexdigest()[:16]


def native_hashes() -> dict[str, str]:
    """Returns the hash of every CPU kernel source."""
    files = sorted(
        path for path in (ROOT / NATIVE_SOURCES).rglob("*") if path.suffix in (".cpp", ".h")
    )
    return {
        str(path.relative_to(ROOT)): hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for path in files
    }


def kernel_hashes() -> dict[str, str]:
    """Returns the source hash of every Triton and CUDA kernel.

    This needs neither a GPU nor Triton, as the files are loaded on their own.
    """
    hashes = {}
    for place in ("triton_kernels/hashes.py", "csrc/cuda/build.py"):
        if not (ROOT / place).exists():
            continue
        spec = importlib.util.spec_from_file_location("bench_kernel_hashes", ROOT / place)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        hashes |= module.kernel_hashes()
    return hashes


def ptxas(capability: int) -> dict | None:
    """Returns path and version of the assembler that Triton uses for this GPU.

    Triton itself honours ``TRITON_PTXAS_PATH``.
    """
    try:
        from triton.backends.nvidia.compiler import get_ptxas

        tool = get_ptxas(capability)
        path, release = (tool.path, tool.version) if hasattr(tool, "path") else tool
        return {"path": str(path), "version": str(release)}
    except (ImportError, OSError, RuntimeError, TypeError) as error:
        return {"path": None, "version": None, "reason": str(error)}


def ptxas_warning(capability: int, release: str | None) -> str | None:
    """Returns a warning where this ptxas may compile register operands of wgmma wrongly.

    Else it returns None. `triton_kernels/support.py` has the versions.
    """
    from fused_contrastive.triton_kernels import support as guard

    numbers = tuple(int(part) for part in re.findall(r"\d+", release or "")[:2])
    if capability // 10 != 9 or (numbers and numbers >= guard.SAFE_PTXAS):
        return None
    return (
        f"ptxas {release or 'of unknown version'} may read register operands of wgmma too late "
        "(Triton issue 9433): the kernels that would use them are replaced; "
        "TRITON_PTXAS_PATH names another ptxas"
    )
