"""The losses over ranks that ``make gpu`` runs over NCCL, run here over gloo."""

from __future__ import annotations

import json

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from bench.gpu import ranks
from bench.gpu import run as gpu_run
from bench.losses import LOSSES, Size, make_inputs


@pytest.mark.parametrize("world", [1, 2])
def test_ranks_find_out_everything(tmp_path, world):
    out = tmp_path / "ranks.json"
    ranks.run(world, "cpu", out, (Size(64, 0, 16),))
    result = json.loads(out.read_text())
    assert ranks.failed(result) == [], result
    assert len(result["errors"]) == len(ranks.CHECKED) * 2 and len(result["waits"]) == 4
    assert len(result["times"]) == len(ranks.TIMED) * (1 + 2 * world)
    assert "as one process" in ranks.markdown(result)


def test_failures_are_told():
    result = {**ranks.unfinished(2), "errors": {"clip ring": 1e-7, "dcl ring": float("nan")}}
    result["waits"] = {"clip ring": "no", "clip gather": "called a synchronizing operation"}
    told = "\n".join(ranks.failed(result))
    assert "dcl ring: relative error nan" in told and "clip ring" not in told
    assert "clip gather: the host waits: called" in told and "did not finish" in told


def test_numbers_of_ranks():
    assert [ranks.worlds(n) for n in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]


class Operators(TorchDispatchMode):
    """Collects the names of the operators that run outside of the package's own."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.name())
        return function(*args, **(kwargs or {}))


@pytest.fixture
def world_of_one(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("loss", ["nt_xent", "clip", "siglip", "info_nce", "dcl"])
def test_a_loss_has_no_operator_that_waits_for_a_gpu(world_of_one, loss):
    """A number that becomes a tensor on a GPU is copied, and the host waits for the copy."""
    inputs = make_inputs(loss, Size(16, 0, 8), torch.float32, torch.device("cpu"))
    with Operators() as run:
        value = LOSSES[loss].call(*inputs, group="world")
        torch.autograd.grad(value, inputs)
    waiting = {"aten::_local_scalar_dense", "aten::lift_fresh", "aten::nonzero", "aten::item"}
    assert not run.names & waiting
    assert any("over_ranks" in name for name in run.names)


def test_the_ranks_are_a_part_of_a_run(tmp_path, monkeypatch):
    calls = []

    def child(command, limit, extra, poll):
        calls.append(command)
        out = command[command.index("--out") + 1]
        with open(out, "w") as file:
            json.dump({**ranks.unfinished(1), "complete": len(calls) > 1}, file)
        poll()

    monkeypatch.setattr(gpu_run, "child", child)
    run = gpu_run.Run({"ranks": None}, tmp_path / "result.json", device="cpu")
    run.begin(60)
    for _ in range(3):
        gpu_run.run_ranks(run, quick=True)
    assert len(calls) == 2 and run.result["ranks"]["complete"], "what is complete is not repeated"
    assert calls[0][-3:] == ["--world", "1", "--quick"]
