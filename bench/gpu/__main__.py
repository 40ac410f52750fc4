"""``make gpu`` runs everything that needs an NVIDIA GPU, in three parts of at most eight minutes.

PART=verify takes or builds the CUDA library. Then it runs the tests with device inputs on every
backend, and compute-sanitizer where there is one. PART=sweep measures, the most valuable rows
first. Without PART both run, and QUICK=1 is a two-minute version of its own.

It uses the Python and torch found there, needs no network and installs nothing. The package is
imported from the checkout (source_tree.py). Tests and measurements run in processes of their own,
so that a kernel that breaks the device ends one stage only.

One JSON is rewritten as results come in. It holds hardware, versions, bare rates, test outcomes,
rows, and the source hash of every kernel that passed. A run may find the result of an earlier one
with the same sources, versions and GPU. It then goes on with it and repeats nothing. The exit
status is 2 without a GPU and 1 on failures.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import torch

from .. import environment, plots, report
from ..environment import ROOT, slug
from ..losses import DTYPES
from ..measure import Copy, Product, interleave, quartiles, seconds_of
from ..source_tree import complete_package
from . import kernel_table, small_case
from . import library as gpu_library
from . import ranks as over_ranks
from .run import Run, Stage, run_rows, run_tests
from .run import run_ranks as ranks

RESULTS = ROOT / "bench" / "results"
PARTS = ("verify", "sweep", "ranks")
SECONDS, QUICK_SECONDS = 450.0, 60.0
"""Each part has this budget. Building the CUDA library takes at most BUILD_SHARE of the first."""
BUILD_SHARE = 0.7
SANITIZER_SECONDS = 90.0

OURS = "eager,compile,triton,cuda"
SWEEP = (
    Stage("nt_xent", "bf16", ("16384x256", "16384x1024", "16384x128", "16384x512"), 12),
    Stage("clip,info_nce,siglip", "bf16", ("16384x512",), 12),
    Stage("info_nce_queue", "bf16", ("4096x65536x128",), 5),
    Stage("contrastive_force", "fp32", ("64x256x256", "4096x1x128"), 6),
    Stage("nt_xent", "bf16", ("65536x256", "65536x1024", "65536x128"), 12),
    Stage("nt_xent", "tf32,fp32", ("8192x256", "16384x128"), 10),
    Stage("nt_xent", "bf16", ("4096x128", "4096x512", "1024x128", "16384x64", "32768x256"), 10),
    Stage("clip,info_nce", "tf32,fp32", ("8192x256",), 8),
    Stage("nt_xent", "fp16", ("16384x256",), 4),
    Stage("nt_xent", "bf16", ("262144x128",), 4, "triton,cuda"),
)
QUICK_SWEEP = (
    Stage("nt_xent", "bf16", ("16384x256",), 3),
    Stage("clip", "bf16", ("8192x512",), 3),
    Stage("nt_xent", "fp32", ("8192x128",), 3),
)
QUICK_TESTS = (
    "tests/backends/test_cuda_similarity.py",
    "tests/backends/test_triton_similarity.py",
    "tests/backends/test_cuda_sigmoid.py",
    "tests/backends/test_triton_sigmoid.py",
    "tests/backends/test_triton_force.py",
    "tests/backends/test_cuda_backend.py",
    "tests/bench/test_gpu.py",
)


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    p = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.split("\n\n")[0])
    p.add_argument("--part", choices=PARTS, help="one part alone (default: all, verify first)")
    p.add_argument(
        "--quick",
        action="store_true",
        help="the two-minute version; its results are not for committing",
    )
    p.add_argument(
        "--out", type=Path, help="folder of the JSON (default: bench/results; quick: bench/out)"
    )
    p.add_argument(
        "--seconds",
        type=float,
        help=f"budget of each part (default: {SECONDS:.0f}; quick: {QUICK_SECONDS:.0f})",
    )
    return p


def describe() -> dict:
    """Returns the environment, without this machine's paths."""
    described = environment.describe(torch.device("cuda"))
    tool = described["gpu"]["ptxas"]
    chosen = os.environ.get("TRITON_PTXAS_PATH", "")
    print(f"ptxas of Triton: {tool['version']} at {tool['path']} (TRITON_PTXAS_PATH={chosen!r})")
    major, minor = torch.cuda.get_device_capability()
    warning = environment.ptxas_warning(10 * major + minor, tool["version"])
    if warning:
        print(f"warning: {warning}")
    described["gpu"]["ptxas"] = {
        "version": tool["version"],
        "from": "TRITON_PTXAS_PATH" if "TRITON_PTXAS_PATH" in os.environ else "triton",
    }
    return described


def rates(
    device: torch.device | None = None, n: int = 8192, nbytes: int = 2 << 30, seconds: float = 3.0
) -> dict:
    """Measures the bare rates of this GPU.

    A device copy is given in GB/s (bytes read and written), n-cubed products in TFLOP/s.
    """
    device = device or torch.device("cuda")
    dtypes = ("bf16", "tf32", "fp32")
    work = {name: Product(n, n, DTYPES[name], device, name == "tf32") for name in dtypes}
    work["copy"] = Copy(nbytes, device)
    for contender in work.values():
        contender(2)
    samples = interleave(
        work, seconds, {name: sum(contender()) for name, contender in work.items()}, most=15
    )
    median = {name: quartiles(seconds_of(taken, "forward"))[1] for name, taken in samples.items()}
    measured = {
        f"gemm_{name}_tflops": round(work[name].flops / median[name] / 1e12, 3) for name in dtypes
    }
    measured["copy_gb_per_s"] = round(work["copy"].moved / median["copy"] / 1e9, 1)
    del work
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return measured


def verify(run: Run, quick: bool) -> None:
    """Runs the tests, then compute-sanitizer."""
    if not run.tests_done():
        run_tests(
            run,
            run.left() - (0 if quick else SANITIZER_SECONDS),
            QUICK_TESTS if quick else ("tests",),
        )
    said = run.result["sanitizer"]
    if (
        not quick
        and not all(small_case.decided(said.get(tool, "")) for tool in small_case.TOOLS)
        and run.left() > 30
    ):
        print("\ncompute-sanitizer on a small case", flush=True)
        run.result["sanitizer"] = small_case.sanitize(min(SANITIZER_SECONDS, run.left()), said)
        run.write()


def sweep(run: Run, quick: bool, measured_rates=rates) -> None:
    """Measures the bare rates, then every stage that is not measured yet."""
    if not run.result["rates"]:
        run.result["rates"] = measured_rates()
        run.write()
    print(run.result["rates"], flush=True)
    for stage in QUICK_SWEEP if quick else SWEEP:
        run_rows(run, stage._replace(backends=stage.backends or OURS))
    run.result["swept"] = not any(run.missing(stage) for stage in (QUICK_SWEEP if quick else SWEEP))
    run.write()


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if not torch.cuda.is_available():
        cuda = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "has no CUDA"
        built = f"torch {torch.__version__} {cuda}"
        print(f"no GPU to run on: torch.cuda.is_available() is False ({built})", file=sys.stderr)
        return 2
    budget, began = (
        options.seconds or (QUICK_SECONDS if options.quick else SECONDS),
        time.monotonic(),
    )
    complete_package()
    library = gpu_library.ready(torch.cuda.get_device_capability(), BUILD_SHARE * budget)
    print(f"CUDA library: {library}", flush=True)
    described = describe()
    print(report.summary(described), flush=True)
    folder = options.out or (ROOT / "bench" / "out" if options.quick else RESULTS)
    stem = f"gpu-{slug(torch.cuda.get_device_name())}-{'quick-' if options.quick else ''}"
    run = Run.opened(described, folder, stem, environment.command_line("bench.gpu"))
    run.result["library"] = library
    for part in PARTS if options.part is None else (options.part,):
        run.begin(budget - (time.monotonic() - began))
        {"verify": verify, "sweep": sweep, "ranks": ranks}[part](run, options.quick)
        began = time.monotonic()
    return conclude(run)


def conclude(run: Run) -> int:
    """Prints rows, kernels and tests, and draws the plot.

    Returns 1 where a test or the sanitizer failed.
    """
    result = run.result
    result["complete"] = bool(run.tests_done() and result["swept"])
    run.write()
    print("\n" + report.markdown(result, ("full",)))
    print(kernel_table.markdown(result))
    for name, state in sorted(result["kernels"].items()):
        verdict = "passed" if state["passed"] else "FAILED" if state["tests"] else "not run"
        print(f"{name}: {verdict} ({state['tests']} tests)")
    tests = result["tests"]
    if tests:
        print(
            f"tests: {tests['passed']} passed, {tests['failed']} failed, {tests['skipped']} skipped"
        )
        for failure in tests["failures"][:10]:
            message = failure["message"].strip().splitlines() or [""]
            print(f"  {failure['test']}: {message[-1][:200]}")
    for tool, said in result["sanitizer"].items():
        print(f"{tool}: {said}")
    if result["rows"]:
        print(
            plots.draw(result, run.path.with_suffix(".png"))
            or f"plot: {run.path.with_suffix('.png').name}"
        )
    left = "" if result["complete"] else " (not complete: the same command goes on with it)"
    print(f"results: {run.path.name}{left}")
    if result["ranks"]:
        print(over_ranks.markdown(result["ranks"]))
    faults = bool(result["ranks"] and over_ranks.failed(result["ranks"])) or any(
        said.startswith("failed") for said in result["sanitizer"].values()
    )
    return 1 if faults or (tests and (tests["failed"] or not tests["passed"])) else 0


if __name__ == "__main__":
    sys.exit(main())
