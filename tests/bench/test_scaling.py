"""``python -m bench scaling`` counts bytes and memory of ranks, and its model agrees with them."""

from __future__ import annotations

import json

import pytest

from bench import __main__ as cli
from bench import scaling, scaling_model
from bench.losses import Size
from bench.ranks import size_of_rank


def test_ranks_are_measured_and_send_what_the_model_says(tmp_path):
    stem = tmp_path / "result"
    options = ["--ranks", "2", "--losses", "nt_xent", "clip", "info_nce", "--sizes", "1024x64"]
    assert cli.main(["scaling", *options, "--rounds", "1", "--out", str(stem)]) == 0
    result = json.loads(stem.with_suffix(".json").read_text())
    assert result["complete"] and result["kind"] == "scaling"
    assert len(result["rows"]) == 3 * (1 + 2 * 2)
    for row in result["rows"]:
        assert row["ms"] > 0 and row["speedup"] > 0
        if row["sent_bytes"] is not None:
            # The agreement and the messages' headers are not in the model.
            assert row["expected_bytes"] <= row["sent_bytes"] < row["expected_bytes"] + 20_000, row
        if row["peak_extra_bytes"] is not None:
            assert row["peak_extra_bytes"] < 64e6
    assert "no group" in stem.with_suffix(".md").read_text()
    assert stem.with_suffix(".png").exists()


def test_shares_are_equal():
    assert size_of_rank("clip", Size(12, 0, 4), 4).N == 3
    for loss, N in (("clip", 10), ("nt_xent", 12)):
        with pytest.raises(ValueError, match=f"{loss} {N}x4: {N} rows"):
            size_of_rank(loss, Size(N, 0, 4), 4)
    assert cli.main(["scaling", "--ranks", "3", "--sizes", "1024x64"]) == 2


def test_the_model_keeps_what_is_known():
    for loss in ("nt_xent", "clip"):
        ring = scaling_model.predict(loss, 1 << 20, 512, 8, "ring")
        one = scaling_model.predict(loss, 1 << 20, 512, 1, "ring")
        assert ring.compute == pytest.approx(one.compute / 8, rel=0.03)
        assert ring.total >= ring.compute and ring.exposed >= 0
        flops = (8 if loss == "clip" else 4) * (1 << 40) * 512
        assert 400e12 < flops / one.compute < 700e12
    assert scaling_model.sent_bytes("clip", 4096, 64, 1, "ring") == 0
    # One set meets half of the ranks.
    sent = [scaling_model.sent_bytes(loss, 4096, 64, 9, "ring") for loss in ("nt_xent", "clip")]
    assert 2 * sent[0] == sent[1]
    with pytest.raises(ValueError, match="predicts nothing for D = 100"):
        scaling_model.rates(100)


def test_the_prediction_names_its_assumptions(tmp_path):
    assert cli.main(["scaling", "--model", "--out", str(tmp_path / "model")]) == 0
    page = (tmp_path / "model.md").read_text()
    assert page.startswith("# Predicted, not measured")
    assert scaling_model.assumptions() in page and "1024" in page
    assert (tmp_path / "model.png").exists()


def test_more_ranks_than_cores_have_no_speed():
    row = {"loss": "clip", "strategy": "ring", "sent_bytes": None, "peak_extra_bytes": None}
    row.update(N=8, D=4, ranks=4, cores=2, ms=10.0, speedup=1.5, speedup_quartiles=[1.4, 1.6])
    environment = dict.fromkeys(["gpu", "cpu", "threads", "cpu_capability", "python", "torch"])
    environment.update(triton=None, commit=None)
    page = scaling.markdown({"environment": environment, "rows": [row]})
    assert "10" in page and "1.50" not in page
