"""These tests check what the Triton backend does around its kernels.

They check launches, offsets, panels, refusals, precision and hashes of the sources.
"""

from __future__ import annotations

import importlib.util
import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import skip_unless_served
from fused_contrastive.triton_kernels import hashes
from fused_contrastive.triton_kernels import support as guard
from support.dense import BF16, F32, F64, Call
from torch.utils._python_dispatch import TorchDispatchMode

from fused_contrastive import problem as candidates
from fused_contrastive import triton_kernels as backend
from fused_contrastive.backends.tiled import plan
from fused_contrastive.ops._codec import call_flat

if guard.missing() is not None:
    pytest.skip(guard.missing(), allow_module_level=True)

from fused_contrastive.triton_kernels import configs, launch, similarity


class Operations(TorchDispatchMode):
    """This mode records the tensor operations that are products or passes over data.

    It does not count views, allocations and fills.
    """

    FREE = (
        "new_empty",
        "empty",
        "view",
        "slice",
        "select",
        "transpose",
        "unsqueeze",
        "detach",
        "zero",
        "fill",
        "expand",
        "alias",
        "reshape",
    )

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.__name__.split(".")[0]
        if not name.strip("_").startswith(self.FREE) and not name.startswith("_unsafe_view"):
            self.names.append(name)
        return function(*arguments, **(options or {}))


def test_launches_of_one_nt_xent_step(device):
    """One step starts three kernels forward, and three backward with one product.

    The gradient of the temperature takes one sum more.
    """
    call = Call(64, kind="not_pair", stride=32, positive=32, dtype=F32)
    skip_unless_served("triton", device, F32)
    operands = call.draw(device)
    a, _, scale, _, _, _ = operands
    with launch.recording(run=False) as launches, Operations() as operations:
        arguments = (*operands, *call.options, False, False, False, F32)
        out = call_flat(backend, "similarity_forward", arguments)
        assert [started.kernel.__name__ for started in launches] == [
            "prepare",
            "pair_reduce",
            "finish_forward",
        ]
        assert operations.names == []
        launches.clear()
        tensors = (out[3], out[1], a, None, scale, None, None, None, *out[:3], *out[6:])
        arguments = (*tensors, *call.options, F32, True, False, True, False)
        call_flat(backend, "similarity_backward", arguments)
    assert [started.kernel.__name__ for started in launches] == [
        "prepare_backward",
        "pair_weight",
        "finish_backward",
    ]
    assert operations.names == ["bmm", "sum"]


def test_kernels_have_few_arguments(device):
    """Every kernel has at most 15 runtime arguments."""
    skip_unless_served("triton", device, F32)
    with launch.recording(run=False) as launches:
        for call in (
            Call(kind="not_pair", stride=25, positive=25),
            Call(N=40, columns=True, bias=True),
        ):
            call = replace(call, dtype=F32)
            operands, flags = call.draw(device), (call.columns, True, False)
            out = call_flat(backend, "similarity_forward", (*operands, *call.options, *flags, F32))
            tensors = (out[0][0], out[1][0] if call.columns else out[1], *operands)
            need = (True, call.N is not None, True, call.bias)
            arguments = (*tensors, *out[:3], *out[6:], *call.options, F32, *need)
            call_flat(backend, "similarity_backward", arguments)
    assert {
        "prepare",
        "pair_reduce",
        "finish_forward",
        "prepare_backward",
        "pair_weight",
        "finish_backward",
    } == {started.kernel.__name__ for started in launches}
    assert max(len(started.arguments) for started in launches) <= 15


@pytest.mark.parametrize("kind", ["not_self", "not_pair"])
def test_resolved_offsets_mean_the_same(kind):
    """The offset and stride that the kernels get describe the same candidates.

    They are within the range of 32 bits.
    """
    offsets = (0, 3, -4, 11, -9, 1000, -(2**31) + 7, 2**31 - 3)
    strides = (1, 4, 9, 1000, 2**31 - 1) if kind == "not_pair" else (1,)
    for (M, N), offset, stride in itertools.product(((9, 12), (12, 9), (1, 1)), offsets, strides):
        difference = torch.arange(N)[None, :] - torch.arange(M)[:, None] - offset
        expected = difference != 0 if kind == "not_self" else difference % stride != 0
        resolved = candidates.Candidates(kind, offset, stride).resolved(M, N)
        mask = resolved.mask(M, N, difference.device)
        mask = torch.ones(M, N, dtype=torch.bool) if mask is None else mask
        assert torch.equal(mask, expected), (offset, stride, resolved)
        assert all(abs(value) <= 2**30 for value in (resolved.offset, resolved.stride))


@pytest.mark.parametrize(
    ("G", "M", "N"), [(1, 100, 100), (3, 40, 900), (2, 900, 40), (50, 8, 8), (1, 5000, 3000)]
)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("budget", [4096, 1 << 20, 1 << 30])
def test_panels_cover_the_matrix_once(G, M, N, symmetric, budget):
    N = M if symmetric else N
    covered = torch.zeros(G, M, N, dtype=torch.int8)
    for g, i, j in plan.panels(G, M, N, symmetric, budget // 2):
        covered[g, i, j] += 1
        if symmetric and i != j:
            covered[g, j, i] += 1
        groups, rows, columns = (part.stop - part.start for part in (g, i, j))
        assert 2 * groups * rows * -(-columns // 16) * 16 <= max(budget, 2 * 16 * 16)
        assert groups == 1 or (rows, columns) == (M, N)
    assert (covered == 1).all()


def test_autotune_times_once_and_only_on_request(monkeypatch):
    """Inside the block, autotune uses the fastest neighbour of the table's entry.

    Outside the block, and without it, the entry of the table is used.
    """
    timed, used = [], []
    monkeypatch.setattr(configs, "_fastest", {})
    monkeypatch.setattr(
        configs,
        "measure",
        lambda work: (work(), timed.append(used.pop()), len(timed) == 2)[2] and -1.0,
    )
    table = configs.select("pair_weight", "sm_90", BF16, 512)

    def run():
        configs.run("pair_weight", "sm_90", BF16, 512, 4096, False, used.append)
        return used.pop()

    assert run() == table and not timed
    with configs.autotune():
        chosen = run()
        assert chosen == timed[1] != table
        count = len(timed)
        assert run() == chosen and len(timed) == count == len(configs.neighbours(table))
    assert run() == table


def test_refusals_say_why(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert "interpreter" in guard.refusal(cpu, F32)
    assert guard.refusal(torch.device("mps"), F32) is not None
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert guard.refusal(cpu, F32) is None
    assert "float8" in guard.refusal(cpu, torch.float8_e4m3fn)
    monkeypatch.setattr(guard, "triton_version", lambda: (3, 5))
    assert "3.6" in guard.refusal(cuda, F32) and guard.status().startswith("unavailable")
    monkeypatch.setattr(guard, "triton_version", lambda: None)
    assert "not installed" in guard.refusal(cuda, F32) and guard.status().startswith("unavailable")


def test_products_from_registers_wait_for_a_safe_assembler(monkeypatch, device):
    """On sm_90 an older ptxas gets neither fused_rows nor three-term tf32 (kernels.md 4.1)."""
    monkeypatch.setattr(guard, "ptxas_version", lambda capability: (12, 9))
    assert not guard.register_operands_are_safe("sm_90") and guard.register_operands_are_safe(
        "sm_80"
    )
    assert "ptxas 12.9" in guard.status()
    with configs.assume("sm_90"):
        assert configs.precision(F32, "sm_90") == "ieee"
        assert not similarity.fits_fused_rows(torch.empty(1, 8, 64, dtype=BF16))
    monkeypatch.setattr(guard, "ptxas_version", lambda capability: (13, 4))
    with configs.assume("sm_90"):
        assert configs.precision(F32, "sm_90") == "tf32x3"
        assert similarity.fits_fused_rows(torch.empty(1, 8, 64, dtype=BF16))


def test_matrix_precision_is_torchs(monkeypatch):
    monkeypatch.setattr(guard, "ptxas_version", lambda capability: (13, 4))
    for setting, expected in (("highest", "tf32x3"), ("high", "tf32"), ("medium", "tf32")):
        monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda setting=setting: setting)
        assert configs.precision(F32, "sm_90") == expected
        assert (
            configs.precision(F32, "gfx942")
            == configs.precision(F64, "sm_90")
            == configs.precision(BF16, "sm_80")
            == "ieee"
        )


def test_hashes_follow_the_code_only(tmp_path):
    """A changed helper changes the hashes of the kernels that call it.

    Comments and docstrings change no hash.
    """
    package = Path(hashes.__file__).parent

    def hashes_of(edit):
        for path in package.glob("*.py"):
            (tmp_path / path.name).write_text(edit(path.read_text()))
        spec = importlib.util.spec_from_file_location("hashes_copy", tmp_path / "hashes.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.kernel_hashes()

    original = hashes.kernel_hashes()
    assert set(original) == {
        "prepare",
        "prepare_backward",
        "pair_reduce",
        "pair_weight",
        "fused_rows",
        "finish_forward",
        "finish_weighted",
        "finish_backward",
        "sigmoid_reduce",
        "sigmoid_finish",
        "sigmoid_terms",
        "sigmoid_weight",
        "force_group",
        "force_lse",
        "force_sums",
        "force_rows",
        "distance_group",
        "distance_rows",
        "distance_pull",
    }
    assert (
        hashes_of(
            lambda text: text.replace("One program per", "One  program for each").replace(
                "\n    total = tl", "\n    # sum\n    total = tl"
            )
        )
        == original
    )
    changed = hashes_of(
        lambda text: text.replace("return tl.maximum(x, 0.0) + log1p", "return log1p")
    )
    assert {name for name in original if original[name] != changed[name]} == {
        "finish_forward",
        "sigmoid_finish",
    }
    changed = hashes_of(
        lambda text: text.replace("DIRECT = tl.constexpr(60.0)", "DIRECT = tl.constexpr(50.0)")
    )
    assert {name for name in original if original[name] != changed[name]} == {"pair_reduce"}
