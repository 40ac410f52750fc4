"""The demo runs through with few images and steps."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn", reason="the demo's images ship with scikit-learn")
pytest.importorskip("matplotlib", reason="the demo draws with matplotlib")

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_both_losses_train_alike(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import simclr_digits

    monkeypatch.setattr(simclr_digits, "measure_memory", lambda jobs, *_: dict.fromkeys(jobs, 1.0))
    picture = tmp_path / "demo.png"
    options = "--images 64 --epochs 8 --copies 2".split()
    result = simclr_digits.main([*options, "--out", str(picture)])
    eager, fused = (result["runs"][name].losses for name in ("eager", "fused"))
    assert len(eager) == len(fused) == 8 and all(map(math.isfinite, fused))
    assert fused[-1] < fused[0]
    assert max(abs(x - y) for x, y in zip(eager[:5], fused[:5], strict=True)) < 1e-4
    assert set(result["accuracy"]) == {
        "raw pixels",
        "untrained encoder",
        "SimCLR, eager",
        "SimCLR, fused",
    }
    assert [row["N"] for row in result["rows"]] == [128, 256]
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "largest difference of the loss curves" in capsys.readouterr().out


def test_ranks_train_as_one_process():
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    options = "--images 65 --epochs 4 --double".split()
    result = subprocess.run(
        [*torchrun, "--standalone", str(EXAMPLES / "simclr_digits.py"), *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=EXAMPLES.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    (parted,) = re.findall(r"curves: \S+ in the first 20 steps, (\S+) in all 4", result.stdout)
    assert float(parted) < 1e-10, result.stdout


def test_memory_is_that_of_the_loss_alone(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import simclr_digits

    memory = simclr_digits.measure_memory([("eager", 2048)], 0.5, torch.device("cpu"))
    if not math.isnan(memory["eager", 2048]):
        # The eager loss holds at least the matrix.
        assert memory["eager", 2048] > 4 * 2048**2


def test_generators_follow_the_data(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import force_generator

    picture = tmp_path / "force.png"
    options = "--steps 20 --compared 5 --only moons digits".split()
    results = force_generator.main([*options, "--out", str(picture)])
    assert set(results) == {"moons", "digits"}
    for result in results.values():
        first, *_, last = result["distances"].values()
        assert result["parted"] < 1e-3 and 0 <= result["floor"] < last < first
        assert all(map(math.isfinite, result["runs"]["fused"].losses))
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    told = capsys.readouterr().out
    assert "energy distance" in told and re.search(r"step 1 +step 2 +step 20 +other data", told)


def test_digits_have_gaps(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import force_generator

    image = force_generator.picture(torch.zeros(10, 12, 64))
    assert image.shape == (91, 91)
    gaps = image > 0
    assert gaps[::9].all() and gaps[:, ::9].all()
    assert gaps.sum() == 91 * 91 - (80 * 80)


def test_points_drift_onto_the_ring(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import drift_field

    picture = tmp_path / "drift.png"
    shown = drift_field.main(["--out", str(picture)])
    away = [float((x.norm(dim=1) - 1).abs().mean()) for x, _ in shown.values()]
    length = [float(drift.norm(dim=1).mean()) for _, drift in shown.values()]
    # The data themselves are 0.04 away from the circle.
    assert away[0] > 0.4 and away[-1] < 0.1
    assert length[0] > 0.1 and length[-1] < 0.001
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
