"""This pytest plugin (``-p bench.gpu.device_tests``) records the tests with device inputs.

The tests of GPU kernels come first. A line is written when a test starts, before each kernel's
first launch, and when a phase of the test ends. When a test kills its process, the first two kinds
of lines remain.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from ..source_tree import complete_package

LOG = "FUSED_CONTRASTIVE_TEST_LOG"
"""This environment variable has the path of the file that the lines go to."""
DEVICE_LOST = 70
"""A process that has lost the device ends with this exit status."""

_launched: set[str] = set()
_test = ""
_lost = False


def earlier(log: Path) -> Path:
    """Returns the file with the tests that are recorded already.

    Every worker of a run leaves out the same ones.
    """
    return log.with_suffix(".earlier")


def _write(**line) -> None:
    """Writes one line at once, because several processes may write."""
    if os.environ.get(LOG):
        with open(os.environ[LOG], "a") as log:
            log.write(json.dumps(line) + "\n")


def _launching(kernel: str) -> None:
    if kernel not in _launched:
        _launched.add(kernel)
        if _test:
            _write(test=_test, kernel=kernel)


FINISHING = ("finish_forward", "finish_weighted", "finish_backward")
TILES = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float64: "f64"}
FLOAT32_TILES = ("tf32", "tf32x3", "fma")


def source_of(operator: str, arguments: tuple) -> str:
    """Returns the name of the CUDA source whose kernel an operator launches, as in `kernel_hashes`.

    Args: `operator` is a name in csrc/cuda/*_ops.cpp, and `arguments` are those of the call.
    """
    if operator in ("prepare", "terms"):
        return "cuda/prepare"
    if operator in FINISHING:
        return "cuda/finish"
    if operator.startswith("force_"):
        # The derivatives take an upstream gradient as their first argument.
        x = arguments[operator in ("force_group_gradient", "force_inverses")]
        return f"cuda/force_{TILES.get(x.dtype, 'f32')}"
    if operator in ("sigmoid_finish", "sigmoid_terms"):
        return "cuda/sigmoid_finish"
    x, family = arguments[0], "sigmoid" if operator.startswith("sigmoid_") else "similarity"
    if x.dtype == torch.float32:
        return f"cuda/{family}_{FLOAT32_TILES[arguments[-1]]}"
    by_copies = operator != "fused_rows" and x.is_cuda and _by_tensor_copies(*arguments[:2])
    return f"cuda/{family}_sm90" if by_copies else f"cuda/{family}_{TILES[x.dtype]}"


def _by_tensor_copies(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Decides as csrc/cuda/pair_operators.h does."""
    aligned = all((z.data_ptr() | 2 * z.shape[2]) % 16 == 0 for z in (x, y))
    return x.itemsize == 2 and aligned and torch.cuda.get_device_capability(x.device)[0] == 9


class Recorder:
    """This stands for the CUDA library's operators and notes the sources of kernels they launch."""

    def __init__(self, operators):
        self._operators = operators

    def __getattr__(self, name):
        operator = getattr(self._operators, name)

        def call(*arguments):
            _launching(source_of(name, arguments))
            return operator(*arguments)

        return call


def pytest_configure(config):
    """Runs after the suite's conftest.

    The conftest chooses Triton's interpreter where it is needed, before anything imports triton.
    """
    complete_package()
    from fused_contrastive.backends import cuda

    # This loads the library where there is one.
    cuda.status()
    cuda.LIBRARIES.update(
        {device: Recorder(operators) for device, operators in cuda.LIBRARIES.items()}
    )
    try:
        from triton import knobs
    except ImportError:
        return
    knobs.runtime.launch_enter_hook.add(lambda metadata: _launching(metadata.get()["name"]))


def pytest_collection_modifyitems(config, items):
    """Keeps the tests with inputs on the device that are not recorded already.

    Those of Triton and CUDA kernels come first.
    """
    done = (
        set(json.loads(earlier(Path(os.environ[LOG])).read_text())) if LOG in os.environ else set()
    )
    chosen = [item for item in items if "device" in item.fixturenames and item.nodeid not in done]
    if len(chosen) < len(items):
        kept = set(chosen)
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])

    def rank(item) -> int:
        parameters = getattr(getattr(item, "callspec", None), "params", {}).values()
        named = {str(value) for value in parameters}
        file = item.nodeid.partition("::")[0].rpartition("/")[2]
        if named & {"triton", "cuda"} or file.startswith(("test_triton", "test_cuda")):
            return 0
        return 2 if named & {"panels", "cpu", "eager"} else 1

    items[:] = sorted(chosen, key=rank)


def pytest_runtest_setup(item):
    global _test
    _test = item.nodeid
    _launched.clear()


def pytest_exception_interact(node, call, report):
    """Asks after a failure whether the device still answers."""
    global _lost
    if torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            _lost = True


def pytest_runtest_logfinish(nodeid, location):
    """Ends this process where every later test would fail, too.

    The next process goes on behind this test.
    """
    if _lost:
        os._exit(DEVICE_LOST)


def _collects() -> bool:
    """Says whether this process sees every worker's tests."""
    return "PYTEST_XDIST_WORKER" not in os.environ


def pytest_runtest_logstart(nodeid, location):
    if _collects():
        _write(test=nodeid, started=True)


def pytest_runtest_logreport(report):
    """Writes a line for each phase that matters: those that failed or skipped, and the last."""
    if not _collects() or (report.when != "teardown" and report.passed):
        return
    line = {"test": report.nodeid, "outcome": report.outcome, "when": report.when}
    if report.failed:
        line["message"] = str(report.longrepr)[-1500:]
    elif report.skipped and isinstance(report.longrepr, (tuple, list)):
        line["message"] = str(report.longrepr[2])[:300]
    _write(**line)
