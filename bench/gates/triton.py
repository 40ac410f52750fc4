"""The compile gate of the Triton kernels compiles them for GPUs that are not here.

``python -m bench.gates.triton`` runs the backend's own launch code on tensors without storage. It
takes the launches that this would make and compiles each for sm_80, sm_90, sm_100 and gfx942. It
fails where a kernel does not compile, spills, or needs more shared memory than the part has. It
also fails where the matrix instructions are missing or wgmma is serialised.

Kernels that have not changed are taken from ``bench/gates/records/triton.json``, and ``--all``
compiles everything. The gate needs Triton, but no GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import io
import json
import multiprocessing
import re
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from operator import itemgetter
from pathlib import Path

import torch
import triton
import triton.language as tl
from fused_contrastive.triton_kernels import configs, launch
from fused_contrastive.triton_kernels.hashes import kernel_hashes
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from . import scenarios

RECORD = Path(__file__).parent / "records" / "triton.json"
TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
SHARED_KIB = {"sm_80": 99, "sm_90": 227, "sm_100": 227, "gfx942": 64}
"""A program may use so many KiB.

sm_80 has 163, but its configurations also serve sm_86, sm_89 and sm_120, which have 99.
"""
MATRIX = {
    "sm_80": ("mma.sync",),
    "sm_90": ("wgmma.mma_async", "mma.sync"),
    "sm_100": ("tcgen05.mma", "mma.sync"),
    "gfx942": ("v_mfma",),
}
"""The first of a part's instructions is meant. The others serve tiles of few rows, and float64."""
MULTIPLYING = ("pair_reduce", "pair_weight", "fused_rows", "sigmoid_reduce", "sigmoid_weight")
SERIALISED = re.compile(r"C75(?:10|12|15)")
MOST = 150
"""A target has at most so many pairs of kernel and configuration."""


@dataclass(frozen=True)
class Case:
    """A case is one kernel with one set of types, constants and options for one target."""

    kernel: str
    module: str
    arch: str
    signature: tuple[tuple[str, str], ...]
    divisible: tuple[str, ...]
    constants: tuple[tuple[str, object], ...]
    num_warps: int
    num_stages: int

    @property
    def key(self) -> str:
        """Names the case in the record. The module, where the kernel is found, does not count."""
        named = {name: value for name, value in asdict(self).items() if name != "module"}
        return hashlib.sha256(repr(named).encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """Describes the configuration for people."""
        constants = dict(self.constants)
        types = dict(self.signature)
        named = ("a", "x", "slots", "rows", "points")
        element = next((types[name][1:] for name in named if types.get(name, "")[:1] == "*"), "")
        sizes = ("BLOCK_M", "BLOCK_N", "BLOCK", "BLOCK_K", "BLOCK_D")
        blocks = [constants[name] for name in sizes if name in constants]
        parts = [element, "x".join(map(str, blocks)), f"{self.num_warps}w{self.num_stages}s"]
        parts += [
            str(constants[name])
            for name in ("KIND", "PRECISION")
            if constants.get(name, "ieee") != "ieee"
        ]
        flags = (
            ("SYMMETRIC", "MIRROR", "COLUMNS", "RESIDENT", "EXTREMA")
            if self.kernel in MULTIPLYING
            else ()
        )
        flags += ("MEAN", "RMS", "SEPARATE", "MASK")
        parts += [f"K{constants['K']}"] if "K" in constants else []
        parts += [name.lower() for name in flags if constants.get(name) is True]
        parts += ["ragged"] * (constants.get("EVEN_K") is False)
        parts += [
            name
            for name in ("bias", "row_bias", "unit")
            if name in types and self.kernel in MULTIPLYING
        ]
        return " ".join(filter(None, parts))


@dataclass
class Outcome:
    """This is what the compiler said.

    `registers` are VGPRs on AMD. `failures` says what the gate objects to.
    """

    registers: int = 0
    spilled_bytes: int = 0
    shared_bytes: int = 0
    matrix: str = ""
    register_operands: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)


def launches(arch: str) -> list:
    """Returns every launch of every scenario as the backend would make it on `arch`."""
    previous = torch.get_float32_matmul_precision()
    with launch.recording(run=False) as recorded, configs.assume(arch):
        for scenario in scenarios.SCENARIOS:
            torch.set_float32_matmul_precision(scenario.precision)
            try:
                scenarios.run(scenario)
            finally:
                torch.set_float32_matmul_precision(previous)
    return recorded


def cases(arch: str) -> list[Case]:
    """Returns the distinct kernels and configurations (`Case.label`) among the launches.

    Where several launches have the same kernel and configuration, the one with the most operands
    counts. Cases are specialised as Triton would do it, except that only D may be known as a
    multiple of 16. So the general code is compiled.
    """
    found = {}
    for started in launches(arch):
        constants, signature, divisible = dict(started.constants), [], []
        for name, value in zip(started.kernel.arg_names, started.arguments, strict=False):
            if value is None:
                constants[name] = None
            elif isinstance(value, torch.Tensor):
                signature.append((name, "*" + TYPES[value.dtype]))
                divisible.append(name)
            else:
                signature.append((name, "i32"))
                if name in ("D", "features", "LD") and value % 16 == 0:
                    divisible.append(name)
        plain = {
            name: str(value) if isinstance(value, tl.dtype) else value
            for name, value in sorted(constants.items())
        }
        case = Case(
            kernel=started.kernel.__name__,
            module=started.kernel.fn.__module__,
            arch=arch,
            signature=tuple(signature),
            divisible=tuple(divisible),
            constants=tuple(plain.items()),
            num_warps=started.num_warps,
            num_stages=started.num_stages,
        )
        place = case.kernel, case.label
        if place not in found or len(case.signature) > len(found[place].signature):
            found[place] = case
    return sorted(found.values(), key=lambda case: (case.kernel, case.label))


TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
TYPES |= {torch.float64: "fp64", torch.int64: "i64"}


def compile_case(case: Case) -> Outcome:
    """Compiles one case and judges what comes out."""
    kernel = getattr(importlib.import_module(case.module), case.kernel)
    types = {"fp32": tl.float32, "fp64": tl.float64}
    constants = {name: types[value] if name == "ACC" else value for name, value in case.constants}
    signature = dict(case.signature) | dict.fromkeys(constants, "constexpr")
    signature = {name: signature[name] for name in kernel.arg_names}
    attributes = {
        (kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in case.divisible
    }
    source = ASTSource(kernel, signature, constants, attributes)
    options = {
        "num_warps": case.num_warps,
        "num_stages": case.num_stages,
        "enable_fp_fusion": False,
    }
    log, started = io.StringIO(), time.monotonic()
    triton.knobs.nvidia.dump_ptxas_log = True
    try:
        with tempfile.TemporaryDirectory() as cache, contextlib.redirect_stdout(log):
            triton.knobs.cache.dir = cache
            compiled = triton.compile(
                source, target=GPUTarget(*TARGETS[case.arch]), options=options
            )
    except Exception as error:
        # Whatever the compiler raises is the result.
        return Outcome(failures=[f"does not compile: {type(error).__name__}: {str(error)[-400:]}"])
    outcome = inspect(case, compiled, log.getvalue())
    outcome.seconds = round(time.monotonic() - started, 1)
    return outcome


def inspect(case: Case, compiled, log: str) -> Outcome:
    """Returns registers, spills, shared memory and matrix instructions of a compiled kernel."""
    outcome = Outcome(shared_bytes=compiled.metadata.shared)
    if case.arch.startswith("sm"):
        code = compiled.asm["ptx"]
        outcome.registers = int(re.search(r"Used (\d+) registers", log)[1])
        outcome.spilled_bytes = sum(map(int, re.findall(r"(\d+) bytes spill", log)))
        outcome.register_operands = len(re.findall(r"wgmma\.mma_async\S*\s*\{[^}]*\},\s*\{", code))
        if SERIALISED.search(log):
            outcome.failures.append(f"wgmma serialised ({SERIALISED.search(log)[0]})")
    else:
        code = compiled.asm["amdgcn"]
        number = {
            name: int(value)
            for name, value in re.findall(r"\.(\w+):\s*(\d+)", code[code.find("amdhsa.kernels") :])
        }
        outcome.registers = number["vgpr_count"]
        outcome.spilled_bytes = (
            4 * number["vgpr_spill_count"] + number["private_segment_fixed_size"]
        )
    found = [name for name in MATRIX[case.arch] if name in code]
    outcome.matrix = " ".join(found)
    outcome.failures += missing_matrix(case, found)
    if outcome.register_operands and may_not_use_registers(case):
        outcome.failures.append(
            "feeds wgmma from registers, which triton_kernels/support.py does not know"
        )
    if outcome.spilled_bytes:
        outcome.failures.append(f"spills {outcome.spilled_bytes} bytes")
    if outcome.shared_bytes > SHARED_KIB[case.arch] * 1024:
        outcome.failures.append(
            f"{outcome.shared_bytes} bytes of shared memory, {SHARED_KIB[case.arch]} KiB there"
        )
    return outcome


def missing_matrix(case: Case, found: list[str]) -> list[str]:
    """Returns what is wrong with the matrix instructions.

    Plain float32 products on NVIDIA have none.
    """
    constants, types = dict(case.constants), dict(case.signature)
    operand = "a" if case.kernel in MULTIPLYING else scenarios.FORCE_PRODUCTS.get(case.kernel)
    element = None if operand is None else types[operand][1:]
    if element is None or (
        element == "fp32" and constants["PRECISION"] == "ieee" and case.arch != "gfx942"
    ):
        return []
    if not found:
        return ["no matrix instructions"]
    wide = element != "fp64" and constants["BLOCK_M"] >= 64
    return [f"no {MATRIX[case.arch][0]}"] if wide and MATRIX[case.arch][0] not in found else []


def may_not_use_registers(case: Case) -> bool:
    """Says whether triton_kernels/support.py counts on operands all coming from shared memory."""
    known = case.kernel == "fused_rows" or case.kernel in scenarios.FORCE_PRODUCTS
    return not known and dict(case.constants).get("PRECISION") != "tf32x3"


def read_record() -> dict[str, dict]:
    return json.loads(RECORD.read_text()) if RECORD.exists() else {}


def run(todo: list[Case], jobs: int):
    """Yields (case, outcome) in order.

    Where a compiler takes its process down, that case fails. The cases beside it are tried again,
    alone.
    """
    context = multiprocessing.get_context("spawn")
    while todo:
        with ProcessPoolExecutor(min(jobs, len(todo)), mp_context=context) as pool:
            futures = [pool.submit(compile_case, case) for case in todo]
            try:
                for case, future in zip(todo, futures, strict=True):
                    yield case, future.result()
                return
            except BrokenProcessPool:
                todo = todo[todo.index(case) :]
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            try:
                yield case, pool.submit(compile_case, case).result()
            except BrokenProcessPool:
                yield case, Outcome(failures=["the compiler crashed"])
        todo = todo[1:]


def line(case: Case, outcome: Outcome, state: str) -> str:
    verdict = "; ".join(outcome.failures) or "ok"
    shared = f"{outcome.shared_bytes / 1024:.0f}"
    return (
        f"{case.arch:7} {case.kernel:16} {case.label:58} {outcome.registers:4} {shared:>4} "
        f"{outcome.matrix:26} {state:>8}  {verdict}"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gates.triton", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--all", action="store_true", help="compile also what the record holds")
    parser.add_argument(
        "--check", action="store_true", help="compile nothing: fail where the record is not current"
    )
    parser.add_argument(
        "--arch", choices=TARGETS, action="append", help="only this target (repeatable)"
    )
    parser.add_argument(
        "--jobs", type=int, default=2, help="compilations at a time (default %(default)s)"
    )
    options = parser.parse_args(arguments)
    if launch.is_interpreted():
        print("the kernels are interpreted here: unset TRITON_INTERPRET", file=sys.stderr)
        return 2

    hashes = kernel_hashes()
    archs = options.arch or list(TARGETS)
    everything = [case for arch in archs for case in cases(arch)]
    record = {} if options.all else read_record()

    def stamp(case: Case) -> dict:
        place = {"kernel": case.kernel, "arch": case.arch, "configuration": case.label}
        return place | {"hash": hashes[case.kernel], "triton": triton.__version__}

    known = {
        c.key: record[c.key]
        for c in everything
        if c.key in record and record[c.key].items() >= stamp(c).items()
    }
    todo = [case for case in everything if case.key not in known]
    print(
        f"{len(everything)} kernels and configurations, {len(todo)} to compile, "
        f"Triton {triton.__version__}"
    )
    print(
        f"{'target':7} {'kernel':16} {'configuration':58} {'regs':>4} {'KiB':>4} "
        f"{'matrix instructions':26} {'':8}  verdict"
    )
    failed = 0
    for case in everything:
        if case.key in known:
            print(line(case, Outcome(**known[case.key]["outcome"]), "recorded"))
    if options.check:
        for case in todo:
            print(line(case, Outcome(failures=["not in the record"]), ""))
        print(f"{len(todo)} not current" if todo else "all pass")
        return 1 if todo else 0
    others = (
        {}
        if options.arch is None
        else {k: v for k, v in read_record().items() if v["arch"] not in archs}
    )
    for case, outcome in run(todo, options.jobs):
        print(line(case, outcome, f"{outcome.seconds:.1f} s"), flush=True)
        failed += bool(outcome.failures)
        if not outcome.failures:
            known[case.key] = stamp(case) | {"outcome": asdict(outcome)}
            write_record(others | known)
    too_many = [arch for arch in archs if sum(case.arch == arch for case in everything) > MOST]
    for arch in too_many:
        print(f"{arch}: more than {MOST} kernels and configurations")
    write_record(others | known)
    print(f"{failed} failed" if failed else "all pass")
    return 1 if failed or too_many else 0


def write_record(record: dict[str, dict]) -> None:
    place = itemgetter("arch", "kernel", "configuration")
    ordered = dict(sorted(record.items(), key=lambda item: place(item[1])))
    RECORD.write_text(json.dumps(ordered, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
