"""Time, memory and bytes of a rank against the number of ranks."""

from __future__ import annotations

from . import style

PANELS = (
    ("ms", 1.0, "Time of a step, ms"),
    ("peak_extra_bytes", 1e-6, "Peak memory of a rank, MB"),
    ("sent_bytes", 1e-6, "Sent by a rank, MB"),
)
LEAST = 0.001
"""A rank without others sends a byte or none. What is below this is none in the pictures."""
LOG_FROM = 12.0
"""An axis whose values differ by this factor is logarithmic."""


def merged(results: list[dict]) -> list[dict]:
    """Returns the newest row of each loss, size, number of ranks and strategy.

    Times and memory may come from different results. Where a line was also measured without times,
    its memory is from there alone: it then has no gaps that the allocator keeps.
    """
    found: dict[tuple, dict] = {}
    apart = {_line(row) for result in results for row in result["rows"] if not row.get("ms")}
    for result in sorted(results, key=lambda r: (r["date"], r["time"])):
        for row in result["rows"]:
            known = {key: value for key, value in row.items() if value is not None}
            if row.get("ms") and _line(row) in apart:
                known.pop("peak_extra_bytes", None)
            place = (*_line(row), row["ranks"])
            found[place] = found.get(place, {}) | known | {"strategy": row["strategy"]}
    return list(found.values())


def _line(row: dict) -> tuple:
    return row["loss"], row["N"], row["D"], row["strategy"]


def figure(rows: list[dict], caption: str):
    """Returns a figure with the panels that have values, or why there is none."""
    of_ranks = [row for row in rows if row["ranks"]]
    panels = [p for p in PANELS if any((r.get(p[0]) or 0) * p[1] > LEAST for r in of_ranks)]
    if len({row["ranks"] for row in rows if row["ranks"]}) < 2:
        return "a single number of ranks makes no line"
    lines: dict[tuple, list[dict]] = {}
    for row in rows:
        if row["ranks"]:
            lines.setdefault(_line(row), []).append(row)
    title = "A loss over ranks of one machine, a thread each: forward + backward, fp32"
    entries = len(lines) + 1
    height = 3.9 + 0.22 * ((entries + 1) // 2)
    canvas = style.canvas(height - 0.6, title, caption, width=max(3.6 * len(panels), 6.5))
    axes = canvas.subplots(1, len(panels), squeeze=False)[0]
    colors = {place[:3]: None for place in lines}
    colors = {place: style.SERIES[k % len(style.SERIES)] for k, place in enumerate(colors)}
    alone = {
        (row["loss"], row["N"], row["D"]): row for row in rows if not row["ranks"] and row.get("ms")
    }
    for axis, (name, scale, label) in zip(axes, panels, strict=True):
        for place, own in lines.items():
            draw(axis, own, name, scale, colors[place[:3]])
        if name == "ms":
            for place, row in alone.items():
                own = sorted({r["ranks"] for r in rows if r["ranks"] and r.get("ms")})
                axis.plot(0.75, row["ms"], ">", color=colors[place], markersize=7)
                axis.plot(own, [row["ms"] / W for W in own], ":", color=colors[place])
        finish(axis, {row["ranks"] for row in rows if row["ranks"]}, label)
    legend(canvas, lines, colors, bool(alone), any(map(is_crowded, rows)))
    return canvas


def draw(axis, rows: list[dict], name: str, scale: float, color: str) -> None:
    """Draws a line. Its marks are crosses where there were more ranks than cores."""
    points = [(row["ranks"], row[name] * scale, row) for row in rows if row.get(name) is not None]
    points.sort(key=lambda point: point[0])
    if not points:
        return
    dashed = rows[0]["strategy"] == "gather"
    style_ = {"color": color, "linestyle": "--" if dashed else "-", "linewidth": 1.8}
    axis.plot([p[0] for p in points], [p[1] for p in points], **style_)
    for ranks, value, row in points:
        crowded = name == "ms" and is_crowded(row)
        face = "white" if crowded or dashed else color
        marker = "X" if crowded else "o"
        axis.plot(ranks, value, marker, color=color, markerfacecolor=face, markersize=6)


def is_crowded(row: dict) -> bool:
    """Returns whether more ranks than cores were timed, so that the time says little."""
    return bool(row.get("ms") and row.get("cores") and row["ranks"] > row["cores"])


def finish(axis, ranks: set[int], label: str) -> None:
    values = [y for line in axis.lines for y in line.get_ydata() if y > LEAST]
    axis.set(xlabel="ranks W", title=label, xscale="log")
    axis.set_xlim(0.65, max(ranks) * 1.35)
    style.counts_axis(axis.xaxis, ranks)
    if max(values) > LOG_FROM * min(values):
        low, high = min(values) / 1.6, max(values) * 1.6
        axis.set(yscale="log", ylim=(low, high))
        style.plain_axis(axis.yaxis, low, high)
    else:
        axis.set_ylim(0, 1.12 * max(values))
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axis.grid(color=style.LIGHT, linewidth=0.6)


def legend(canvas, lines: dict, colors: dict, alone: bool, crowded: bool) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for loss, N, D, strategy in lines:
        color, dashed = colors[loss, N, D], strategy == "gather"
        handles.append(
            Line2D(
                [],
                [],
                color=color,
                marker="o",
                linestyle="--" if dashed else "-",
                markerfacecolor="white" if dashed else color,
                label=f"{loss}, N = {N:,}, D = {D}, {strategy}",
            )
        )
    if alone:
        shown = {"color": style.INK, "marker": ">", "linestyle": ""}
        handles.append(Line2D([], [], label="one process without a group", **shown))
        dotted = {"color": style.INK, "linestyle": ":"}
        handles.append(Line2D([], [], label="its time over W (not measured)", **dotted))
    if crowded:
        shown = {"color": style.INK, "marker": "X", "linestyle": ""}
        handles.append(Line2D([], [], label="more ranks than cores", **shown))
    canvas.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=9)
