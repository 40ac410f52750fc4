"""Time and memory of NT-Xent against the number of rows, eager and ours."""

from __future__ import annotations

from ..report import cell
from . import ratios, style

LEAST_SIZES = 3


def series(results: list[dict], loss: str = "nt_xent") -> tuple[dict, int, list[dict]] | None:
    """Returns the result and the D with the most sizes of this loss in fp32, and its rows.

    Where several results have equally many, the newest counts. Returns None where none has three.
    """
    found = []
    for result in results:
        rows = [r for r in result["rows"] if r["loss"] == loss and r["pass"] == "full"]
        rows = [r for r in rows if r["dtype"] == "fp32" and not r["K"]]
        for D in {row["D"] for row in rows}:
            here = [row for row in rows if row["D"] == D]
            count = len({row["N"] for row in here})
            found.append(((count, result["date"], result["time"], D), result, here))
    best = max(found, key=lambda entry: entry[0], default=None)
    if best is None or best[0][0] < LEAST_SIZES:
        return None
    return best[1], best[0][3], best[2]


def figure(result: dict, D: int, rows: list[dict]):
    """Returns the figure of what `series` found."""
    title = f"NT-Xent, forward + backward, D = {D}, fp32, on {style.machine(result['environment'])}"
    names = style.contenders(row["backend"] for row in rows)
    handles = [*ratios.legend(names), computed()]
    canvas = style.canvas(3.4, title, style.provenance([result]), width=8.8, handles=handles)
    time, memory = canvas.subplots(1, 2)
    lines(time, rows, "ms", 1.0)
    lines(memory, rows, "peak_extra_bytes", 1e-6)
    time.set_title("Time, ms (times faster than eager)")
    memory.set_title("Peak memory, MB (times less than eager)")
    return canvas


def computed():
    """Returns the line in the legend for the bytes of one matrix, which are not measured."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=style.EAGER, linestyle=":", label="one N × N matrix (computed)")


def lines(axes, rows: list[dict], key: str, scale: float) -> None:
    """Draws a line for each contender, and writes eager over ours below our points.

    The picture of memory also has a line for the bytes of one N x N matrix, which are computed.
    """
    rows = [row for row in rows if row[key]]
    names = style.contenders(row["backend"] for row in rows)
    values = {(row["backend"], row["N"]): row[key] * scale for row in rows}
    for name, (_, color) in names.items():
        points = sorted((N, value) for (of, N), value in values.items() if of == name)
        axes.plot(*zip(*points, strict=True), "o-", color=color, linewidth=2.2, markersize=6)
    counts = sorted({row["N"] for row in rows})
    if key == "peak_extra_bytes":
        bytes_ = [4 * scale * N * N for N in counts]
        axes.plot(counts, bytes_, ":", color=style.EAGER, linewidth=1.6)
    for row in rows:
        base = values.get(("eager", row["N"]))
        if row["backend"] in style.BASELINES or base is None:
            continue
        # The ratio of times is the median within rounds, as in the tables.
        ratio = row["x_eager"] if key == "ms" else base / (row[key] * scale)
        place = (row["N"], row[key] * scale)
        style_ = {"textcoords": "offset points", "va": "top", "fontsize": 9}
        axes.annotate(f"{cell('x_eager', ratio)}×", place, (4, -5), **style_)
    low, high = style.padded(values.values(), 0.08)
    axes.set(xscale="log", yscale="log", ylim=(low / 1.2, high), xlabel="rows N (of both views)")
    axes.set_xlim(counts[0] / 1.5, counts[-1] * 1.9)
    style.counts_axis(axes.xaxis, counts)
    style.plain_axis(axes.yaxis, low / 1.2, high)
    axes.grid(color=style.LIGHT, linewidth=0.6)
