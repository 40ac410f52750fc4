"""The machine, as far as it matters here: versions, devices, compilers.

Each function returns facts, or says in a sentence what cannot be found out. None of them raises.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import torch

VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "FUSED_CONTRASTIVE_BUILD",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "TRITON_INTERPRET",
    "TRITON_PTXAS_PATH",
)
"""The environment variables that change what is built, what serves, or how fast it is."""

PACKAGES = ("triton", "numpy", "matplotlib")


def found_out(function: Callable) -> Callable:
    """Have a function return a sentence with the reason where it would raise."""

    @functools.wraps(function)
    def call(*arguments):
        try:
            return function(*arguments)
        except Exception as error:
            what = (function.__doc__ or "It").partition(".")[0]
            return f"unknown ({what}: {type(error).__name__}: {error})"

    return call


def describe() -> dict:
    """Everything that a reader of a bug report asks about the machine."""
    return {
        "fused_contrastive": package_version(),
        "sources": where_the_package_is(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": system(),
        "torch": torch.__version__,
        "torch_built_for": built_for(),
        **{name: version(name) for name in PACKAGES},
        "cpu": cpu(),
        "threads": threads(),
        "gpus": gpus(),
        "nvidia_driver": nvidia_driver(),
        "cxx": cxx_compiler(),
        "nvcc": nvcc(),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def devices() -> list[torch.device]:
    """The CPU, and one accelerator of each kind and model that torch can use here."""
    found = [torch.device("cpu")]
    try:
        models: dict[str, torch.device] = {}
        if torch.cuda.is_available():
            for index in range(torch.cuda.device_count()):
                models.setdefault(torch.cuda.get_device_name(index), torch.device("cuda", index))
        found += models.values()
        found += [
            torch.device(kind)
            for kind, module in (("mps", torch.backends.mps), ("xpu", torch.xpu))
            if module.is_available()
        ]
    except Exception:
        # An accelerator that cannot even be asked is one that cannot be used.
        pass
    return found


def without_home(text: str) -> str:
    """The text with ``~`` in place of the home folder, as it is pasted into a public place."""
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text


@found_out
def package_version() -> str:
    """The version of the package."""
    return sys.modules[__name__.partition(".")[0]].__version__


@found_out
def where_the_package_is() -> str:
    """The folder of the package."""
    folder = Path(__file__).resolve().parents[1]
    kind = "a source checkout" if (folder.parent / "csrc").is_dir() else "an installed package"
    return f"{without_home(str(folder))}, {kind}"


@found_out
def system() -> str:
    """The operating system."""
    libc = " ".join(platform.libc_ver())
    return " ".join(filter(None, (platform.system(), platform.machine(), libc)))


@found_out
def built_for() -> str:
    """What torch was built for."""
    if torch.version.hip:
        return f"ROCm {torch.version.hip}"
    return f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA and no ROCm"


@found_out
def version(package: str) -> str:
    """The version of a package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@found_out
def cpu() -> str:
    """The processor."""
    try:
        names = re.findall(
            r"^(?:model name|Model)\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE
        )
    except OSError:
        names = []
    model = names[0].strip() if names else platform.processor() or platform.machine()
    return f"{model}, {usable_cores()} cores, {torch.backends.cpu.get_cpu_capability()}"


def usable_cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@found_out
def threads() -> str:
    """The number of threads that torch uses."""
    openmp = "with OpenMP" if torch.backends.openmp.is_available() else "without OpenMP"
    return f"{torch.get_num_threads()}, {openmp}"


@found_out
def gpus() -> list[str] | str:
    """The accelerators that torch can use."""
    found = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        found.append(
            f"cuda:{index} {properties.name}, compute capability "
            f"{properties.major}.{properties.minor}, {memory:.0f} GiB"
        )
    found += [str(device) for device in devices() if device.type in ("mps", "xpu")]
    return found or "none that torch can use"


@found_out
def nvidia_driver() -> str:
    """The version of the NVIDIA driver."""
    if shutil.which("nvidia-smi") is None:
        return "none found (there is no nvidia-smi)"
    lines = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return lines.splitlines()[0]


@found_out
def cxx_compiler() -> str:
    """The C++ compiler that a build would use."""
    if os.name == "nt":
        path = shutil.which("cl")
        return without_home(path) if path else "none found (cl is not on the path)"
    command = os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++"
    return _tool(command.split()[0], "--version", r"^(.+)$")


@found_out
def nvcc() -> str:
    """The CUDA compiler."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    inside = Path(home, "bin", "nvcc") if home else None
    command = str(inside) if inside is not None and inside.exists() else "nvcc"
    return _tool(command, "--version", r"^(.*release.*)$")


def _tool(command: str, option: str, pattern: str) -> str:
    """The path of a tool, and the line of its version."""
    path = shutil.which(command)
    if path is None:
        return f"none found ({Path(command).name} is not on the path)"
    found = re.search(pattern, _output(path, option), re.MULTILINE)
    return f"{without_home(path)}: {found[1].strip() if found else 'it names no version'}"


def _output(*command: str) -> str:
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=10
    ).stdout.strip()
