"""Dots on a ratio axis: how much faster than eager a loss is, and how much memory it takes."""

from __future__ import annotations

from ..report import cell
from . import style

ROW, DENSE, HEAD = 0.42, 0.3, 0.75
"""The inches of a row with two dots, of one with one, and of a panel's title and ticks."""


def figure(rows: list[dict], title: str, caption: str):
    """Returns a figure with a row for each loss, size and dtype, or why there is none.

    Args:
        rows: the rows of results, of which those of the full pass beside eager count.
    """
    rows = [row for row in rows if row["pass"] == "full" and row["x_eager"]]
    if not rows:
        return "no rows of the full pass beside eager"
    names = style.contenders(row["backend"] for row in rows)
    losses = len({row["loss"] for row in rows}) > 1
    dtypes = len({row["dtype"] for row in rows}) > 1

    def label(row: dict) -> str:
        size = style.shape(row, dtypes)
        return f"{row['loss']}, {size}" if losses else size

    measured = [row for row in rows if row["peak_extra_bytes"]]
    speed_places = list(dict.fromkeys(label(r) for r in rows if r["backend"] != "eager"))
    memory_places = list(dict.fromkeys(map(label, measured)))
    several = len({row["backend"] for row in rows}) > 2
    heights = [HEAD + (ROW if several else DENSE) * len(speed_places)]
    if memory_places:
        heights.append(HEAD + DENSE * len(memory_places))
    canvas = style.canvas(sum(heights), title, caption, handles=legend(names))
    panels = canvas.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    placed = [(speed_places.index(label(r)), r) for r in rows if r["backend"] != "eager"]
    speed(panels[0], placed, names)
    finish(panels[0], speed_places)
    if memory_places:
        memory(panels[1], [(memory_places.index(label(r)), r) for r in measured], names)
        finish(panels[1], memory_places)
    return canvas


def speed(axes, placed: list[tuple[int, dict]], names: dict) -> None:
    """Draws how many times faster than eager each contender is, with the quartiles."""
    order = [name for name in names if any(row["backend"] == name for _, row in placed)]
    step = 0.44 / max(1, len(order) - 1)
    ends = [1.0]
    for place, row in placed:
        alone = sum(at == place for at, _ in placed) == 1
        y = place + (0 if alone else (order.index(row["backend"]) - (len(order) - 1) / 2) * step)
        color, ratio = names[row["backend"]][1], row["x_eager"]
        low, high = row["x_eager_quartiles"] or (ratio, ratio)
        axes.hlines(y, min(1, ratio), max(1, ratio), color=color, linewidth=1.6, alpha=0.45)
        axes.hlines(y, low, high, color=color, linewidth=3.6, alpha=0.45)
        axes.plot(ratio, y, "o", color=color, markersize=6.5, zorder=3)
        note(axes, cell("x_eager", ratio), (high if ratio >= 1 else low, y), ratio >= 1)
        ends += [low, high, ratio]
    low, high = style.padded(ends)
    axes.set(xscale="log", xlim=(min(low, 0.9), max(high, 2.2)))
    style.plain_axis(axes.xaxis, *axes.get_xlim())
    plain = axes.xaxis.get_major_formatter()
    axes.xaxis.set_major_formatter(lambda x, at: "1× (eager)" if x == 1 else f"{plain(x, at)}×")
    axes.axvline(1, color=style.EAGER, linewidth=1.6, zorder=0)
    axes.set_title("Times faster than eager, with the quartiles of the rounds")


def memory(axes, placed: list[tuple[int, dict]], names: dict) -> None:
    """Draws the peak memory of each contender, in MB."""
    for place in {place for place, _ in placed}:
        here = [row for at, row in placed if at == place]
        values = [row["peak_extra_bytes"] / 1e6 for row in here]
        axes.hlines(place, min(values), max(values), color=style.LIGHT, linewidth=1.6, zorder=0)
        for value, row in zip(values, here, strict=True):
            color = names[row["backend"]][1]
            axes.plot(value, place, "o", color=color, markersize=6.5, zorder=3)
            text = cell("peak_extra_bytes", row["peak_extra_bytes"])
            if value in (min(values), max(values)):
                note(axes, text, (value, place), value > min(values) or len(values) == 1)
    low, high = style.padded([row["peak_extra_bytes"] / 1e6 for _, row in placed])
    axes.set(xscale="log", xlim=(low, high))
    style.plain_axis(axes.xaxis, low, high, most=10)
    axes.set_title("Peak memory above inputs and gradients, MB")


def note(axes, text: str, place: tuple[float, float], right: bool) -> None:
    style_ = {"textcoords": "offset points", "va": "center", "fontsize": 9}
    axes.annotate(text, place, (8 if right else -8, 0), ha="left" if right else "right", **style_)


def finish(axes, places: list[str]) -> None:
    axes.set_yticks(range(len(places)), places)
    axes.set(ylim=(len(places) - 0.4, -0.6))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=style.LIGHT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)


def legend(names: dict[str, tuple[str, str]]) -> list:
    """Returns the dots of the legend."""
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], marker="o", linestyle="", color=color, label=label)
        for label, color in names.values()
    ]
