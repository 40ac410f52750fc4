"""The pictures of results show what the records say, in the README's words."""

from __future__ import annotations

import json
import shutil

import pytest

from bench import __main__ as cli
from bench import plots, report

pytest.importorskip("matplotlib", reason="the pictures are drawn with matplotlib")
from bench.plots import committed, ranks, ratios, sizes, style


def row(loss="nt_xent", backend="cpu", N=1024, x_eager=4.0, **other) -> dict:
    found = dict.fromkeys(report.ROW_KEYS)
    found |= {"loss": loss, "backend": backend, "N": N, "K": 0, "D": 64, "dtype": "fp32"}
    found |= {
        "pass": "full",
        "ms": 8.0 / (x_eager or 1),
        "x_eager": x_eager,
        "peak_extra_bytes": None,
    }
    return found | other


def result(rows: list[dict], day="2026-01-01", kind="cpu") -> dict:
    e = dict.fromkeys(("cpu", "cpu_capability", "torch", "triton", "python", "commit", "gpu"), "x")
    made = report.new_result(kind, "python -m bench", e | {"gpu": None, "threads": 2})
    return made | {"rows": rows, "date": day, "time": "12:00:00", "complete": True}


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_rows_are_named_as_in_the_readme():
    assert style.shape(row()) == "N = 1024, D = 64, fp32"
    assert style.shape(row("info_nce_queue", N=256, K=65536), False) == "N = 256 x 65536, D = 64"
    one = style.shape(row("contrastive_force", N=4096, K=1, D=128), False)
    assert one == "1 group, 4096 + 4096, D = 128"
    assert style.shape(row("contrastive_force", K=2), False).startswith("2 groups, ")
    labels = [label for label, _ in style.contenders(["cpu", "compile", "eager"]).values()]
    assert labels == ["eager", "torch.compile", "ours"]
    several = style.contenders(["triton", "cuda", "eager"])
    assert [several[name][0] for name in ("triton", "cuda")] == ["ours (triton)", "ours (cuda)"]


def test_dots_are_on_a_ratio_axis_with_plain_numbers():
    large = [row(backend="eager", x_eager=1.0, peak_extra_bytes=8e8), row(peak_extra_bytes=5e6)]
    small = [row(backend="eager", N=64, x_eager=1.0), row(N=64, x_eager=0.5)]
    figure = ratios.figure([*large, *small], "title", "caption")
    figure.draw_without_rendering()
    speed, memory = figure.axes
    assert speed.get_xscale() == "log"
    shown = [label.get_text() for label in speed.get_xticklabels()]
    assert shown == ["0.5×", "1× (eager)", "2×", "5×"]
    assert texts(speed) == ["4.00", "0.50"]
    places = [label.get_text() for label in speed.get_yticklabels()]
    assert places == ["N = 1024, D = 64", "N = 64, D = 64"]
    # What was not measured has no row.
    assert [label.get_text() for label in memory.get_yticklabels()] == places[:1]
    assert texts(memory) == ["800", "5.0"]
    assert ratios.figure([row(x_eager=None)], "", "").startswith("no rows")


def test_a_size_sweep_comes_from_the_record_with_most_sizes():
    newer = result([row(N=64)], day="2026-02-01")
    of_sizes = [row(backend="eager", N=N, x_eager=1.0) for N in (64, 256, 1024)]
    older = result([*of_sizes, *(row(N=N) for N in (64, 256, 1024))])
    assert sizes.series([newer]) is None
    found, D, rows = sizes.series([older, newer])
    assert found is older and D == 64 and len(rows) == 6
    with_memory = [r | {"peak_extra_bytes": 4e6} for r in rows]
    time, memory = sizes.figure(found, D, with_memory).axes
    assert texts(time) == ["4.00×"] * 3 and texts(memory) == ["1.00×"] * 3


def rank_row(ranks: int, **other) -> dict:
    named = {"loss": "clip", "N": 8, "D": 4, "strategy": "ring" if ranks else None, "cores": 2}
    return named | {"ranks": ranks, "ms": 12.0, "sent_bytes": 1, "peak_extra_bytes": None} | other


def test_ranks_join_the_newest_times_and_memory():
    timed = [rank_row(0), rank_row(1, peak_extra_bytes=9e6), rank_row(4, peak_extra_bytes=9e6)]
    times = result(timed, "2026-02-01", "scaling")
    untimed = [rank_row(2, ms=None, peak_extra_bytes=8e6)]
    untimed.append(rank_row(4, ms=None, peak_extra_bytes=7e6))
    memory = result(untimed, kind="scaling")
    rows = ranks.merged([memory, times])
    # With the times, a peak has gaps that the allocator keeps.
    peaks = {r["ranks"]: r.get("peak_extra_bytes") for r in rows}
    assert peaks == {0: None, 1: None, 2: 8e6, 4: 7e6}
    (last,) = [r for r in rows if r["ranks"] == 4]
    assert last["ms"] == 12.0 and last["peak_extra_bytes"] == 7e6
    figure = ranks.figure(rows, "caption")
    # Nobody sent anything, so that there is no panel for it.
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [title for *_, title in ranks.PANELS[:2]]
    told = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert "clip, N = 8, D = 4, ring" in told and "more ranks than cores" in told
    assert "single number" in ranks.figure([rank_row(4)], "")


def test_a_record_leaves_out_what_was_measured_again(tmp_path):
    old = result([row(), row("clip"), row(backend="eager", x_eager=1.0)])
    new = result([row("clip", x_eager=2.0)], day="2026-02-01")
    for name, made in (("cpu-a", old), ("cpu-b", new), ("cpu-c", result([]))):
        (tmp_path / f"{name}.json").write_text(json.dumps(made))
    found = committed.pictures(tmp_path, tmp_path / "docs")
    shown = {picture.path.name: {r["loss"] for r in picture.rows} for picture in found}
    assert shown["cpu-a.png"] == {"nt_xent"} and shown["cpu-b.png"] == {"clip"}
    assert shown["losses.png"] == {"nt_xent", "clip"} and "cpu-c.png" not in shown
    (picture,) = [picture for picture in found if picture.path.name == "cpu-b.png"]
    assert "cpu-b.png is missing" in committed.faults(found)
    style.save(picture.figure(), picture.path, picture.digest())
    shutil.copy(picture.path, tmp_path / "cpu-old.png")
    told = committed.faults([picture])
    assert told == ["cpu-old.png belongs to no record: delete it"]
    changed = picture._replace(rows=[row("clip", x_eager=3.0)])
    assert "cpu-b.png does not show its record" in committed.faults([changed])


def test_a_record_is_drawn_beside_itself(tmp_path, capsys):
    record = tmp_path / "mine.json"
    record.write_text(json.dumps(result([row(backend="eager", x_eager=1.0), row()])))
    assert cli.main(["plot", str(record)]) == 0
    assert (tmp_path / "mine.png").stat().st_size > 1000 and "mine.png" in capsys.readouterr().out
    assert plots.draw(result([]), tmp_path / "none.png").startswith("no plot")
    assert not (tmp_path / "none.png").exists()


def test_the_committed_pictures_show_the_committed_records():
    assert committed.faults(committed.pictures()) == [], "run: python -m bench plot"
