"""The compile gate passes what it should and objects to what it must.

The tests also check that the gate's record is current.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

from bench.gates import triton as compile_gate  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


def gate(*arguments, code=None):
    """Runs the gate in a process where kernels are compiled, not interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = ["-m", "bench.gates.triton", *arguments] if code is None else ["-c", code]
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_record_is_current():
    """Every shipped kernel and configuration has passed with its present source.

    If this fails, run ``python -m bench.gates.triton``.
    """
    record = json.loads(compile_gate.RECORD.read_text())
    if {entry["triton"] for entry in record.values()} != {triton.__version__}:
        pytest.skip("the record is of another Triton version")
    done = gate("--check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all pass" in done.stdout
    assert {entry["arch"] for entry in record.values()} == set(compile_gate.TARGETS)
    assert not any(entry["outcome"]["failures"] for entry in record.values())


def test_a_kernel_compiles_and_a_bad_configuration_does_not_pass():
    """A shipped kernel compiles for sm_90, and a tile that is too large does not pass for sm_80.

    That tile does not fit into the registers of sm_80.
    """
    done = gate(
        code="""
from bench.gates import scenarios, triton as gate
from fused_contrastive.triton_kernels import configs
scenarios.SCENARIOS = [s for s in scenarios.SIMILARITY if s.kind == "all" and s.dtype == "bfloat16"]
def outcome(arch):
    kernels = [c for c in gate.cases(arch) if c.kernel == "pair_weight"]
    wanted = [c for c in kernels if dict(c.constants)["KIND"] == "all" and "bf16" in c.label]
    return gate.compile_case(wanted[0])
good = outcome("sm_90")
assert not good.failures and good.registers > 32, good
assert "wgmma" in good.matrix and good.shared_bytes > 1024, good
with configs.override(pair_weight=configs.Config(128, 256, 64, 4, 3)):
    bad = outcome("sm_80")
assert bad.spilled_bytes > 0 and any("spills" in f for f in bad.failures), bad
with configs.override(pair_weight=configs.Config(128, 128, 128, 8, 4)):
    big = outcome("sm_80")
assert any("shared memory" in f for f in big.failures), big
"""
    )
    assert done.returncode == 0, done.stdout + done.stderr


def compiled(code, shared=1024, log_registers=100):
    return types.SimpleNamespace(asm={"ptx": code}, metadata=types.SimpleNamespace(shared=shared))


def case(kernel="pair_weight", arch="sm_90", element="bf16", **constants):
    constants = {"BLOCK_M": 128, "PRECISION": "ieee"} | constants
    return compile_gate.Case(
        kernel, "", arch, (("a", f"*{element}"),), (), tuple(constants.items()), 8, 3
    )


LOG = (
    "ptxas info : Used 100 registers\n"
    "    0 bytes stack frame, {spill} bytes spill stores, 0 bytes spill loads\n{more}"
)
WGMMA = (
    "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {%f1, %f2}, %rd1, %rd2, p, 1, 1, 0, 1;"
)
FROM_REGISTERS = WGMMA.replace("%rd1, %rd2, p, 1, 1, 0, 1;", "{%r1, %r2}, %rd2, p, 1, 1, 1;")


@pytest.mark.parametrize(
    ("chosen", "code", "log", "objection"),
    [
        (case(), WGMMA, {}, None),
        (case(), WGMMA, {"spill": 8}, "spills 8"),
        (
            case(),
            WGMMA,
            {
                "more": "(C7510) Potential Performance Loss: "
                "wgmma.mma_async instructions are serialized"
            },
            "serialised",
        ),
        (case(), FROM_REGISTERS, {}, "from registers"),
        (case(PRECISION="tf32x3", element="fp32"), FROM_REGISTERS, {}, None),
        (case(kernel="fused_rows"), FROM_REGISTERS, {}, None),
        (case(), "mma.sync.aligned", {}, "no wgmma"),
        (case(BLOCK_M=16), "mma.sync.aligned", {}, None),
        (case(), "fma.rn.f32", {}, "no matrix instructions"),
        (case(element="fp32"), "fma.rn.f32", {}, None),
        (case(kernel="prepare"), "add.f32", {}, None),
    ],
)
def test_objections(chosen, code, log, objection):
    outcome = compile_gate.inspect(
        chosen, compiled(code), LOG.format(**{"spill": 0, "more": ""} | log)
    )
    assert outcome.registers == 100
    assert (objection is None) == (not outcome.failures), outcome.failures
    assert objection is None or objection in outcome.failures[0]


def test_shared_memory_limit():
    limit = compile_gate.SHARED_KIB["sm_90"] * 1024
    assert not compile_gate.inspect(
        case(), compiled(WGMMA, limit), LOG.format(spill=0, more="")
    ).failures
    assert compile_gate.inspect(
        case(), compiled(WGMMA, limit + 1), LOG.format(spill=0, more="")
    ).failures
