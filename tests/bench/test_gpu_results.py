"""The results of GPU runs tell the outcomes of tests and which kernels are verified."""

from __future__ import annotations

import json

import pytest

import fused_contrastive
from bench import environment
from bench.gpu import log as test_log
from bench.gpu import status as gpu_status
from fused_contrastive.backends import _verified as verification
from fused_contrastive.backends import dispatch


def test_outcomes_give_the_kernels_that_passed(tmp_path):
    lines = [
        {"test": "t1", "started": True},
        {"test": "t1", "kernel": "reduce"},
        {"test": "t1", "kernel": "other"},
        {"test": "t1", "outcome": "passed", "when": "teardown"},
        {"test": "t2", "kernel": "weight"},
        {"test": "t2", "outcome": "failed", "when": "call", "message": "wrong at /home/me/t.py:3"},
        {"test": "t2", "kernel": "reduce2"},
        {"test": "t2", "outcome": "passed", "when": "teardown"},
        {"test": "t3", "kernel": "weight"},
        {"test": "t3", "outcome": "passed", "when": "teardown"},
        {"test": "t4", "outcome": "skipped", "when": "setup", "message": "no such device"},
        {"test": "t4", "outcome": "passed", "when": "teardown"},
        {"test": "t5", "started": True},
        {"test": "t5", "kernel": "reduce"},
        {"test": "t5", "outcome": "failed", "when": "call", "message": "wrong"},
    ]
    log = tmp_path / "log.jsonl"
    log.write_text("\n".join(map(json.dumps, lines)) + '\n{"test": "torn')
    outcomes = test_log.read(log)
    assert test_log.unfinished(log) == {"t5": ["reduce"]}
    assert test_log.unpacked(test_log.packed(outcomes)) == outcomes
    counts = test_log.summary(outcomes)
    assert (counts["passed"], counts["failed"], counts["skipped"]) == (2, 1, 1)
    assert counts["failures"] == [{"test": "t2", "message": "wrong at t.py:3"}]
    assert counts["skip_reasons"] == {"no such device": 1}
    states = test_log.kernels(outcomes, {"reduce": "aa", "weight": "bb", "unused": "cc"})
    assert states == {
        "reduce": {"hash": "aa", "passed": True, "tests": 1, "failed": 0},
        "weight": {"hash": "bb", "passed": False, "tests": 2, "failed": 1},
        "unused": {"hash": "cc", "passed": False, "tests": 0, "failed": 0},
    }


def test_gpu_status_follows_the_hashes(tmp_path, monkeypatch):
    def run(name, day, time="", gpu="G", complete=True, **kernels):
        result = {
            "date": day,
            "time": time,
            "environment": {"gpu": {"name": gpu}},
            "kernels": kernels,
        }
        result["tests"] = {"complete": complete}
        (tmp_path / f"gpu-{name}.json").write_text(json.dumps(result))

    def state(source, passed=True, tests=3):
        return {"hash": source, "passed": passed, "tests": tests}

    run(
        "b",
        "2025-01-01",
        same=state("s"),
        worse=state("w"),
        better=state("b", passed=False),
        changed=state("old"),
        idle=state("i", tests=0, passed=False),
    )
    run(
        "a-newer",
        "2025-02-01",
        "10:00:00",
        "H",
        same=state("s"),
        worse=state("w", passed=False),
        better=state("b"),
    )
    run(
        "unfinished",
        "2025-03-01",
        complete=False,
        worse=state("w"),
        better=state("b"),
        fresh=state("f"),
    )
    hashes = {"same": "s", "worse": "w", "better": "b", "changed": "new", "idle": "i", "fresh": "f"}
    monkeypatch.setattr(verification, "RESULTS", tmp_path)
    assert gpu_status.status(hashes, verification.outcomes()) == {
        "same": "verified on H, 2025-02-01",
        "worse": "failed on H, 2025-02-01",
        "better": "verified on H, 2025-02-01",
        "changed": "no GPU has run it since it changed (last run 2025-01-01)",
        "idle": "no finished run on a GPU",
        "fresh": "no finished run on a GPU",
    }
    assert verification.verified(hashes) == "2 of 6 kernels verified on H"
    assert verification.verified({"same": "s"}) == "all kernels verified on H"
    assert (
        verification.verified({"worse": "w"})
        == verification.verified({})
        == "not verified on a GPU"
    )


def test_records_that_are_not_whole_verify_nothing_and_break_nothing(tmp_path, monkeypatch):
    whole = {"date": "d", "time": "t", "environment": {"gpu": {"name": "G"}}}
    entries = {
        "k": {"tests": 1, "passed": True},
        "l": "x",
        "m": {"tests": 1, "hash": "m"},
        "n": {"hash": "n", "passed": True},
    }
    contents = [
        "",
        "{",
        "[]",
        "null",
        "7",
        '"text"',
        "{}",
        json.dumps(whole),
        json.dumps({**whole, "kernels": [1]}),
    ]
    contents += [
        json.dumps({**whole, "environment": {"gpu": None}, "kernels": {}}),
        json.dumps({**whole, "kernels": entries}),
    ]
    for k, text in enumerate(contents):
        (tmp_path / f"gpu-{k}.json").write_text(text)
    (tmp_path / "gpu-bytes.json").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "gpu-folder.json").mkdir()
    monkeypatch.setattr(verification, "RESULTS", tmp_path)
    assert verification.verified(dict(zip("klmn", "klmn", strict=True))) == "not verified on a GPU"
    assert set(fused_contrastive.backends()) == set(dispatch.NAMES)


@pytest.mark.parametrize(
    "file, family",
    [
        ("csrc/cuda/similarity_ops.cpp", "similarity"),
        ("fused_contrastive/backends/tiled/similarity.py", "similarity"),
        ("csrc/cuda/force_ops.cpp", "force"),
        ("fused_contrastive/backends/cuda/force.py", "force"),
        ("csrc/cuda/sigmoid_ops.cpp", "sigmoid"),
        ("fused_contrastive/backends/cuda/sigmoid.py", "sigmoid"),
    ],
)
def test_what_launches_the_kernels_is_part_of_their_hashes(tmp_path, monkeypatch, file, family):
    """A change of a file that launches kernels changes the hashes of its own family's kernels."""
    for folder in (
        "csrc/cuda",
        "fused_contrastive/backends/cuda",
        "fused_contrastive/backends/tiled",
    ):
        (tmp_path / folder).mkdir(parents=True)
        for path in (environment.ROOT / folder).glob("*.*"):
            if path.suffix != ".so":
                (tmp_path / folder / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    before = environment.kernel_hashes()
    assert len(before) > 5
    (tmp_path / file).write_text((tmp_path / file).read_text() + "\n")
    after = environment.kernel_hashes()
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name] != after[name]}
    families = {
        name: name.partition("/")[2].partition("_")[0]
        for name in before
        if name.startswith("cuda/")
    }
    of = {
        name: found if found in ("force", "sigmoid") else "similarity"
        for name, found in families.items()
    }
    assert changed == {name for name in before if of.get(name) == family}


def test_gpu_status_runs_without_a_gpu(capsys):
    assert gpu_status.main() == 0
    assert capsys.readouterr().out.strip()


def test_gpu_status_covers_the_cuda_kernels(capsys):
    assert gpu_status.main() == 0
    names = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    assert {
        "cuda/prepare",
        "cuda/finish",
        "cuda/similarity_bf16",
        "cuda/similarity_sm90",
        "pair_reduce",
    } <= names
