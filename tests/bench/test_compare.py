"""The comparison of two revisions tells equal results from results with a changed bit.

The samples of the two revisions take turns.
"""

from __future__ import annotations

import json
import random

import pytest
import torch

import fused_contrastive
from bench import compare, digest, revisions
from bench import worker as workers
from bench.digest_cases import LOSSES, MODULES, Module, cases, function_of, plain


def test_the_cases_cover_every_public_loss_and_module():
    public = {name for name in fused_contrastive.__all__ if name.endswith(("_loss", "_field"))}
    public |= {"contrastive_force", "similarity_logsumexp"}
    assert {loss.call.__name__ for loss in LOSSES.values()} == public
    modules = {name for name in fused_contrastive.__all__ if name.endswith("Loss")}
    assert set(MODULES) == modules


def test_losses_without_a_row_have_a_plain_case():
    """Its call, its module and its bits are those of the loss that `bench.losses` measures."""
    case, row = some_cases("dcl(backend=panels, reduction=mean) 37")[0], plain("dcl_loss")
    assert row.call.__name__ == "dcl_loss" and row.reductions == LOSSES["dcl"].reductions
    assert plain("barlow_twins_loss").reductions == ()
    assert function_of("DCLLoss") == "dcl_loss"
    found = {
        digest.outcome(case._replace(call=call, inputs=row.inputs, options={}))
        for call in (row.call, fused_contrastive.dcl_loss, Module(fused_contrastive.DCLLoss))
    }
    assert len(found) == 1 and "Error" not in found.pop()


def test_case_names_are_distinct():
    names = [case.name for case in cases(digest.BACKENDS)]
    assert len(set(names)) == len(names)


def some_cases(part):
    return [case for case in cases(("panels",)) if part in case.name]


@pytest.mark.parametrize("part", ["cpc(backend=panels, reduction=mean) 37", "DCLLoss 37"])
def test_a_digest_repeats_and_sees_one_bit(monkeypatch, part):
    case = some_cases(part)[0]
    before = digest.outcome(case)
    random_state = torch.get_rng_state()
    torch.manual_seed(random.randrange(1000))
    assert digest.outcome(case) == before, "the inputs depend on nothing outside the case"
    torch.set_rng_state(random_state)

    def nudged(*inputs, **options):
        found = case.call(*inputs, **options)
        loss = found[0] if isinstance(found, tuple) else found
        return loss + torch.finfo(loss.dtype).eps * loss.detach().abs()

    assert digest.outcome(case._replace(call=nudged)) != before


def test_errors_are_outcomes():
    case = next(case for case in cases(("panels",)) if case.name.startswith("correlation"))
    said = digest.outcome(case._replace(options={"lamb": "x"}))
    assert said.startswith(("TypeError: ", "ValueError: "))


def test_digests_of_special_values():
    x = torch.tensor([1.0, float("nan"), 0.0])
    other = x.clone()
    other[1] = -other[1]
    assert digest.digest([x]) == digest.digest([other]), "every NaN is the same"
    assert digest.digest([x]) != digest.digest([x.double()])
    assert digest.digest([torch.tensor(0.0)]) != digest.digest([torch.tensor(-0.0)])
    assert digest.digest([None]) != digest.digest([])


def test_differing_cases_are_listed():
    lines = digest.differing({"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "9", "d": "4"})
    assert lines == ["b: 2 -> 9", "c: 3 -> absent", "d: absent -> 4"]


class Fake:
    """This worker notes its turns and says that a step takes `seconds`."""

    def __init__(self, name, seconds, turns):
        self.name, self.seconds, self.turns = name, seconds, turns

    def ask(self, what, repeats):
        self.turns.append(self.name)
        return {"forward": self.seconds, "backward": 2 * self.seconds}


def test_samples_take_turns_and_the_ratio_is_of_medians():
    turns = []
    base, head = compare.rounds(Fake("a", 1.0, turns), Fake("b", 1.5, turns), 1, 4)
    assert "".join(turns) == "abbaabba"
    row = compare.row({"loss": "clip", "size": "4x4", "dtype": "fp32"}, "full", base, head)
    assert row["base_ms"] == 3000 and row["head_ms"] == 4500 and row["ratio"] == 1.5
    assert row["round_ratio_quartiles"] == [1.5, 1.5, 1.5] and row["rounds"] == 4
    assert "1.500" in compare.text([row], heading=True).splitlines()[1]


def test_a_worker_answers_requests():
    worker = workers.Worker()
    assert worker.prepare("nt_xent", "8x4", "fp32")["seconds"] > 0
    assert set(worker.sample(2)) == {"forward", "backward"}
    threads = torch.get_num_threads()
    assert worker.package(threads)["file"] == fused_contrastive.__file__


def test_two_processes_are_compared(monkeypatch, tmp_path, capsys):
    """The comparison runs this checkout against itself in two processes and builds nothing."""
    monkeypatch.setattr(compare, "build", lambda revision: (revision, revisions.ROOT))
    out = tmp_path / "found.json"
    options = "--losses nt_xent --sizes 8x4 --rounds 2 --passes full --threads 1".split()
    match = ["--match", "dclw(backend=panels, reduction=none) 37"]
    assert compare.main(["a", "b", *options, *match, "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["digest"]["cases"] == found["digest"]["equal"] == 4
    assert [row["rounds"] for row in found["rows"]] == [2]
    assert "4 of 4 cases are equal" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", ["--losses triplet", "--sizes 3", "--dtypes int8", "--passes up", "--rounds 0"]
)
def test_unknown_choices_are_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        compare.parse(["a", "b", *arguments.split()])
    assert arguments.split()[0] in capsys.readouterr().err or "size" in arguments


def test_a_revision_that_is_not_there():
    with pytest.raises(ValueError, match="rev-parse"):
        revisions.identity("no such revision")
