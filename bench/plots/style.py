"""The pictures of bench share their colours, their names and their axes, which this module has."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path

EAGER, COMPILE, OURS, INK, LIGHT = "#e07b39", "#8b93a1", "#2563a8", "#2b2f36", "#d5d9e0"
SERIES = (OURS, "#2a9d74", "#8a56b2", "#c2416b", "#b08a1e", "#5a6b7d")
"""The colours of contenders beyond eager and torch.compile, and of lines."""
BASELINES = {"eager": ("eager", EAGER), "compile": ("torch.compile", COMPILE)}
RC = {
    "font.size": 10,
    "axes.edgecolor": COMPILE,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
}
WIDTH = 9.0
"""Inches. At this width a picture is read without zooming in."""


def contenders(backends: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Returns the name and the colour of each contender, the baselines first.

    What is not a baseline is called "ours". Where there are several of ours, the backend follows.
    """
    backends = list(dict.fromkeys(backends))
    own = [name for name in backends if name not in BASELINES]
    names = {name: shown for name, shown in BASELINES.items() if name in backends}
    for k, name in enumerate(own):
        label = "ours" if len(own) == 1 else f"ours ({name})"
        names[name] = (label, SERIES[k % len(SERIES)])
    return names


def shape(row: dict, dtype: bool = True) -> str:
    """Returns the size of a row in the words of the README's tables."""
    if row["loss"] == "contrastive_force":
        groups = f"{row['K']} group{'s' if row['K'] > 1 else ''}"
        size = f"{groups}, {row['N']} + {row['N']}, D = {row['D']}"
    else:
        wide = f" x {row['K']}" if row["K"] else ""
        size = f"N = {row['N']}{wide}, D = {row['D']}"
    return f"{size}, {row['dtype']}" if dtype else size


def plain(value: float) -> str:
    """Returns three significant digits as a plain number."""
    return f"{float(f'{value:.3g}'):,.10g}"


def padded(values: Iterable[float], share: float = 0.12) -> tuple[float, float]:
    """Returns the limits of a logarithmic axis that leave `share` of it at either end."""
    low, high = min(values), max(values)
    room = (high / low) ** (share / (1 - 2 * share)) if high > low else 2.0
    return low / room, high * room


def plain_axis(axis, low: float, high: float, most: int = 9) -> None:
    """Gives a logarithmic axis the ticks 1, 2, 5, 10 and so on between `low` and `high`.

    Where these would be more than `most`, the ticks are the powers of ten alone. Where there would
    be one or none, they are closer.
    """
    from matplotlib.ticker import FixedLocator, NullLocator

    ticks = [m * 10.0**e for e in range(-9, 13) for m in (1, 2, 5)]
    inside = [t for t in ticks if low <= t <= high]
    if len(inside) > most:
        inside = [t for t in inside if t in ticks[::3]]
    if len(inside) < 2:
        inside = [m * 10.0**e for e in range(-10, 12) for m in range(10, 100, 5)]
        inside = [t for t in inside if low <= t <= high]
    axis.set_major_locator(FixedLocator(inside))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: plain(value))


def counts_axis(axis, values: Iterable[float]) -> None:
    """Gives a logarithmic axis one tick for each of the values."""
    from matplotlib.ticker import FixedLocator, NullLocator

    axis.set_major_locator(FixedLocator(sorted(set(values))))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: f"{value:,.10g}")


def machine(environment: dict) -> str:
    """Returns the processor that was measured, and its threads."""
    gpu = environment.get("gpu")
    if gpu:
        return gpu["name"]
    threads = environment["threads"]
    return f"{environment['cpu']}, {threads} thread{'s' if threads != 1 else ''}"


def provenance(results: Iterable[dict]) -> str:
    """Returns a line for each machine and its versions, with all commits and dates there."""
    lines: dict[str, dict[str, list[str]]] = {}
    for result in results:
        e = result["environment"]
        parts = [e["cpu"], e["cpu_capability"]]
        if e.get("gpu"):
            parts = [e["gpu"]["name"], f"CUDA {e['gpu']['cuda']}"]
        parts += [f"torch {e['torch']}", *([f"Triton {e['triton']}"] if e["triton"] else [])]
        told = lines.setdefault(", ".join([*parts, f"Python {e['python']}"]), {})
        told.setdefault("commit", []).append((e["commit"] or "unknown")[:7])
        told.setdefault("date", []).append(result["date"])
    return "\n".join(
        f"{line}; measured {_listed(told['date'])} at commit {_listed(told['commit'])}"
        for line, told in lines.items()
    )


def _listed(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(words))


def canvas(height: float, title: str, caption: str, width: float = WIDTH, handles=()):
    """Returns a figure with a bold title, a small line and the legend `handles` above the rest."""
    from matplotlib.figure import Figure

    paragraphs = caption.replace(" %", "\u00a0%").splitlines()
    caption = "\n".join(textwrap.fill(text, int(15.5 * width)) for text in paragraphs)
    lines = caption.count("\n") + 1
    reserved = 0.42 + 0.16 * lines + (0.28 if handles else 0.0)
    height += reserved
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.06, hspace=0.03, wspace=0.04)
    left, top = 0.1 / width, 1 - 0.1 / height
    figure.text(left, top, title, fontsize=12, fontweight="bold", va="top")
    figure.text(left, top - 0.25 / height, caption, fontsize=8, va="top", linespacing=1.35)
    if handles:
        place = (0.0, 1 - (reserved - 0.32) / height)
        figure.legend(handles=handles, loc="upper left", bbox_to_anchor=place, ncols=len(handles))
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - reserved / height))
    return figure


def save(figure, path: Path, description: str = "") -> None:
    """Writes the PNG, which holds the description as a text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Description": description})
