"""A pytest plugin (``-p bench.device_tests``): the tests with device inputs, those of GPU kernels first, recorded line by line as they
end, each with the kernels that it launched."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from . import test_log
from .source_tree import complete_package

LOG = "FUSED_CONTRASTIVE_TEST_LOG"
"""Environment variable with the path of the lines."""
DEVICE_LOST = 70
"""Exit status."""

_launched: set[str] = set()
_lost = False


def earlier(log: Path) -> Path:
    """The lines of earlier processes: as they were when this run began, so that all its workers collect the same tests."""
    return log.with_suffix(".earlier")


def _note_launch(metadata) -> None:
    _launched.add(metadata.get()["name"])


FINISHING = ("finish_forward", "finish_weighted", "finish_backward")
TILES = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float64: "f64"}
FLOAT32_TILES = ("tf32", "tf32x3", "fma")


def source_of(operator: str, arguments: tuple) -> str:
    """Name in `kernel_hashes` of the CUDA source whose kernel this call of an operator of csrc/cuda/library.cpp launches."""
    if operator in ("prepare", "terms"):
        return "cuda/prepare"
    if operator in FINISHING:
        return "cuda/finish"
    x = arguments[0]
    if x.dtype == torch.float32:
        return f"cuda/tiles_{FLOAT32_TILES[arguments[-1]]}"
    on_sm90 = x.is_cuda and x.itemsize == 2 and torch.cuda.get_device_capability(x.device)[0] == 9
    return "cuda/tiles_sm90" if on_sm90 else f"cuda/tiles_{TILES[x.dtype]}"


class Recorder:
    """Operators of the CUDA library, noting the sources of the kernels they launch."""

    def __init__(self, operators):
        self._operators = operators

    def __getattr__(self, name):
        operator = getattr(self._operators, name)

        def call(*arguments):
            _launched.add(source_of(name, arguments))
            return operator(*arguments)

        return call


def pytest_configure(config):
    """After the suite's conftest, which chooses Triton's interpreter where it is needed before anything imports triton."""
    complete_package()
    from fused_contrastive import cuda

    cuda.status()  # loads the library where there is one
    cuda.LIBRARIES.update({device: Recorder(operators) for device, operators in cuda.LIBRARIES.items()})
    try:
        from triton import knobs
    except ImportError:
        return
    knobs.runtime.launch_enter_hook.add(_note_launch)


def pytest_collection_modifyitems(config, items):
    """Only tests with inputs on the device that an earlier process has not recorded; those of Triton and CUDA kernels first."""
    done = test_log.read(earlier(Path(os.environ[LOG]))) if LOG in os.environ else {}
    chosen = [item for item in items if "device" in item.fixturenames and item.nodeid not in done]
    if len(chosen) < len(items):
        kept = set(chosen)
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])

    def rank(item) -> int:
        named = {str(value) for value in getattr(getattr(item, "callspec", None), "params", {}).values()}
        ours = named & {"triton", "cuda"} or item.nodeid.partition("::")[0].endswith(("_kernels.py", "cuda_backend.py"))
        return 0 if ours else 2 if named & {"panels", "cpu", "eager"} else 1

    items[:] = sorted(chosen, key=rank)


def pytest_runtest_setup(item):
    _launched.clear()


def pytest_runtest_teardown(item):
    item.user_properties.append(("kernels", sorted(_launched)))


def pytest_exception_interact(node, call, report):
    """After a failure: whether the device still answers."""
    global _lost
    if torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            _lost = True


def pytest_runtest_logfinish(nodeid, location):
    """Every later test would fail too: end this process; the next one goes on behind this test."""
    if _lost:
        os._exit(DEVICE_LOST)


def pytest_runtest_logreport(report):
    """One line per test phase that matters, written at once (by the process that collects the workers' reports)."""
    path = os.environ.get(LOG)
    if not path or "PYTEST_XDIST_WORKER" in os.environ or (report.when != "teardown" and report.passed):
        return
    line = {"test": report.nodeid, "outcome": report.outcome, "when": report.when}
    if report.when == "teardown":
        line["kernels"] = dict(report.user_properties).get("kernels", [])
    if report.failed:
        line["message"] = str(report.longrepr)[-1500:]
    elif report.skipped and isinstance(report.longrepr, (tuple, list)):
        line["message"] = str(report.longrepr[2])[:300]
    with open(path, "a") as log:
        log.write(json.dumps(line) + "\n")
