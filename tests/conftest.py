"""This file gives the suite its devices, its backends, its choice of cases and poisoned memory.

`--device` says where inputs live. The default is cuda where there is a GPU, and cpu elsewhere.
Without a GPU, Triton's interpreter runs the Triton backend, and the host shim (cuda_host) runs the
CUDA backend. The interpreter must be chosen before anything imports triton.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import cuda_host
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from support import interpreter
from support import poison as poisoning
from support.processes import Pool

import fused_contrastive
from fused_contrastive.backends import cuda, dispatch

if os.environ.get("TRITON_INTERPRET") == "1":
    interpreter.patch_language_once_per_launch()

PEERS = Path(__file__).resolve().parent / "peers"
BACKENDS = tuple(name for name in dispatch.NAMES if name != "eager")
"""Every registered backend that streams."""


def pytest_addoption(parser):
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.addoption(
        "--device", default=default, help="where test inputs live (default here: %(default)s)"
    )


def pytest_ignore_collect(collection_path, config):
    """Leave tests/peers out unless it is asked for.

    It needs the packages that `make test-peers` installs.
    """
    if collection_path == PEERS:
        return not any(
            Path(str(argument).partition("::")[0]).resolve().is_relative_to(PEERS)
            for argument in config.args
        )
    return None


MARKERS = (
    "no_poison: leave torch.empty as it is, because tracing compilers see the patch",
    "interpreter(**values): the parameter values that the interpreter and the host shim run",
    "everyday(keep): a function of the parameters, true for what `make test` runs",
    "nightly: run by `make nightly` only",
)


def pytest_configure(config):
    compiled = tempfile.TemporaryDirectory()
    config.add_cleanup(compiled.cleanup)
    # The folder is new, so that graphs compiled for another version's ops are not found.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = compiled.name
    # Precompiling torch's headers takes 40 seconds, which the suite's few graphs never regain.
    os.environ.setdefault("TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS", "0")
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
    config.pluginmanager.register(LeftOut(), "left-out")


INTERPRETED = {
    "case": ("nt_xent", "info_nce-symmetric", "info_nce-queue", "n_pairs-target"),
    "dtype": (torch.float32, torch.bfloat16),
    "use": (
        "all-one-columns-bias-normalize",
        "all-two-columns-normalize-groups",
        "not_self-two-offset-3-normalize-groups",
        "not_pair-two-offset1-bias",
        "other_key-two-bias-normalize",
        "same_key-one-columns-bias",
        "same_key-two-offset1-columns-bias",
    ),
}
"""The interpreter and the host shim run these values of each parameter; a GPU runs all values.

A training step takes them a tenth of a second. The marker `interpreter` may choose other values.
"""


def needs_a_gpu(item, params: dict) -> bool:
    """Return whether only a GPU runs this case, by `INTERPRETED` and the case's marker."""
    if not is_interpreted(params.get("backend", params.get("any_backend"))):
        return False
    marker = item.get_closest_marker("interpreter")
    chosen = INTERPRETED | (marker.kwargs if marker else {})
    if "name" in params:
        params = {"case": params["name"]} | params
    for key, value in params.items():
        value = getattr(value, "name", str(value) if key == "use" else value)
        if key in chosen and value not in chosen[key]:
            return True
    return False


class LeftOut:
    """This plugin deselects what is not run here, and says at the end how many cases these were."""

    def __init__(self):
        self.gpu = self.nightly = 0

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config, items):
        kept, left = [], []
        on_a_gpu = config.getoption("--device").startswith("cuda")
        for item in items:
            params = dict(getattr(getattr(item, "callspec", None), "params", {}))
            everyday = item.get_closest_marker("everyday")
            # A GPU runs all cases: what it has passed is what the project calls verified.
            if everyday and not on_a_gpu and not everyday.kwargs["keep"](params):
                item.add_marker(pytest.mark.nightly)
            if needs_a_gpu(item, params):
                left.append(item)
            else:
                kept.append(item)
        self.gpu = len(left)
        if config.option.markexpr == "not nightly":
            self.nightly = sum(item.get_closest_marker("nightly") is not None for item in kept)
        items[:] = kept
        if left:
            config.hook.pytest_deselected(items=left)

    def pytest_sessionfinish(self, session):
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["left_out"] = (self.gpu, self.nightly)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node):
        self.gpu, self.nightly = getattr(node, "workeroutput", {}).get("left_out", (0, 0))

    def pytest_terminal_summary(self, terminalreporter):
        if self.gpu:
            terminalreporter.write_line(
                f"{self.gpu} cases left out: Triton's interpreter and the host shim run one case "
                "of each kind; a GPU runs all of them (--device cuda)"
            )
        if self.nightly:
            terminalreporter.write_line(
                f"{self.nightly} nightly cases left out: `make nightly` runs them"
            )


def pytest_report_header(config):
    versions = {"python": sys.version.split()[0], "torch": torch.__version__}
    for name in ("triton", "numpy"):
        try:
            versions[name] = __import__(name).__version__
        except ImportError:
            versions[name] = "none"
    device = config.getoption("--device")
    hardware = f" ({torch.cuda.get_device_name()})" if device.startswith("cuda") else ""
    return [
        ", ".join(f"{name} {version}" for name, version in versions.items()),
        f"device: {device}{hardware}, threads: {torch.get_num_threads()}",
        *(f"backend {name}: {status}" for name, status in fused_contrastive.backends().items()),
    ]


@pytest.fixture(scope="session")
def device(request) -> torch.device:
    return torch.device(request.config.getoption("--device"))


def skip_unless_served(name: str, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
    """Skip the test, with the backend's own reason, where it cannot serve this device and dtype."""
    reason = dispatch.refusal(name, device, dtype)
    if reason is not None:
        pytest.skip(f"backend {name} cannot serve {dtype} on {device}: {reason}")


def host_kernels(name: str, device: torch.device, monkeypatch) -> None:
    """Let the host shim run the CUDA backend on CPU tensors during this test, without a GPU."""
    if (
        name == "cuda"
        and is_interpreted(name)
        and device.type == "cpu"
        and cuda_host.compiler() is not None
    ):
        monkeypatch.setitem(cuda.LIBRARIES, "cpu", cuda_host.load().operators)


@pytest.fixture(params=BACKENDS)
def backend(request, device, monkeypatch) -> str:
    """Return each streaming backend in turn, and skip with its reason one that is not available."""
    host_kernels(request.param, device, monkeypatch)
    skip_unless_served(request.param, device)
    return request.param


@pytest.fixture(params=("eager", *BACKENDS))
def any_backend(request, device, monkeypatch) -> str:
    """Return each backend in turn, the dense reference included."""
    host_kernels(request.param, device, monkeypatch)
    skip_unless_served(request.param, device)
    return request.param


def is_interpreted(name: str) -> bool:
    """Return whether Triton's interpreter or the host shim runs this backend.

    Both want small sizes.
    """
    if name == "triton":
        return os.environ.get("TRITON_INTERPRET") == "1"
    return name == "cuda" and not torch.cuda.is_available()


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same numbers in every run, alone or behind others."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def poison(request, monkeypatch):
    """Fill uninitialised memory that the package allocates, so that unwritten outputs show."""
    if "no_poison" not in request.keywords:
        poisoning.poison(monkeypatch)


@pytest.fixture(scope="session")
def pool():
    """Four ranks, which are started when the first test uses them."""
    with Pool(4) as started:
        yield started
