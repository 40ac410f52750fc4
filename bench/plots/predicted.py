"""The prediction of a step over GPUs: its time, and the memory that a GPU takes for it."""

from __future__ import annotations

from . import style

MARKERS = {"ring": "o", "gather": "s"}


def figure(rows: list[dict], assumptions: str):
    """Returns the figure of the predictions of ``bench/scaling_model.py``.

    Args:
        rows: its predictions. Of both strategies that one is drawn that ``strategy="auto"`` takes.
        assumptions: what the prediction assumes, in words, which the figure shows.
    """
    from matplotlib.lines import Line2D

    losses = list(dict.fromkeys(row["loss"] for row in rows))
    title = f"PREDICTED, not measured: a step over GPUs, forward + backward, D = {rows[0]['D']}"
    told = f"In bf16, with the strategy that auto takes. {assumptions}"
    canvas = style.canvas(7.2, title, told, width=10.0)
    axes = canvas.subplots(2, len(losses), squeeze=False, sharey="row", sharex=True)
    sizes = list(dict.fromkeys(row["N"] for row in rows))
    for column, loss in zip(axes.T, losses, strict=True):
        own = [row for row in rows if row["loss"] == loss]
        for k, N in enumerate(sizes):
            of_size = [row for row in own if row["N"] == N]
            color = style.SERIES[k % len(style.SERIES)]
            draw(column[0], of_size, lambda p: 1e3 * p["total"], color)
            draw(column[1], of_size, lambda p: p["bytes"] / 1e6, color)
            ideal = [1e3 * row[row["auto"]]["compute"] for row in of_size]
            column[0].plot([r["gpus"] for r in of_size], ideal, ":", color=color, linewidth=1.3)
        column[0].set_title(f"{loss}: time of a step")
        column[1].set_title(f"{loss}: memory of a GPU beyond its own rows")
        column[1].set_xlabel("GPUs W")
    gpus = sorted({row["gpus"] for row in rows})
    for line, unit in zip(axes, (milliseconds, megabytes), strict=True):
        for axis in line:
            finish(axis, gpus, unit)
    handles = [
        Line2D([], [], color=style.SERIES[k % len(style.SERIES)], label=f"N = {N:,}", linewidth=2)
        for k, N in enumerate(sizes)
    ]
    for name, marker in MARKERS.items():
        handles.append(Line2D([], [], color=style.INK, marker=marker, linestyle="-", label=name))
    dotted = {"color": style.INK, "linestyle": ":", "label": "products alone"}
    handles.append(Line2D([], [], **dotted))
    canvas.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=9)
    return canvas


def draw(axis, rows: list[dict], value, color: str) -> None:
    points = [(row["gpus"], value(row[row["auto"]]), row["auto"]) for row in rows]
    axis.plot([p[0] for p in points], [p[1] for p in points], "-", color=color, linewidth=1.8)
    for gpus, height, auto in points:
        axis.plot(gpus, height, MARKERS[auto], color=color, markersize=5)


def finish(axis, gpus: list[int], written) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set(xscale="log", yscale="log")
    style.counts_axis(axis.xaxis, gpus)
    axis.yaxis.set_major_locator(LogLocator(10))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(lambda value, _: written(value))
    axis.grid(color=style.LIGHT, linewidth=0.6)


def milliseconds(value: float) -> str:
    return f"{style.plain(value)} ms" if value < 1000 else f"{style.plain(value / 1e3)} s"


def megabytes(value: float) -> str:
    return f"{style.plain(value)} MB" if value < 1000 else f"{style.plain(value / 1e3)} GB"
