"""The pictures of measured results and of the prediction for GPUs."""

from __future__ import annotations

from pathlib import Path

from . import predicted, ranks, ratios, style

MATPLOTLIB = "no plot: it needs matplotlib (pip install matplotlib)"


def draw(result: dict, path: Path) -> str | None:
    """Draws one result, of whatever kind. Returns why nothing is drawn, or None."""
    return _draw(path, of_ranks if result["kind"] == "scaling" else of_losses, result)


def predict(rows: list[dict], assumptions: str, path: Path) -> str | None:
    """Draws the prediction of GPUs. Returns why nothing is drawn, or None."""
    return _draw(path, predicted.figure, rows, assumptions)


def of_losses(result: dict):
    """Returns the figure of a result of ``python -m bench``, or why there is none."""
    losses = list(dict.fromkeys(row["loss"] for row in result["rows"]))
    dtypes = list(dict.fromkeys(row["dtype"] for row in result["rows"]))
    what = losses[0] if len(losses) == 1 else "Losses"
    dtype = f", {dtypes[0]}" if len(dtypes) == 1 else ""
    title = f"{what}, forward + backward{dtype}, on {style.machine(result['environment'])}"
    return ratios.figure(result["rows"], title, style.provenance([result]))


def of_ranks(result: dict):
    """Returns the figure of a result of ``python -m bench scaling``, or why there is none."""
    return ranks.figure(result["rows"], style.provenance([result]))


def _draw(path: Path, figure, *arguments) -> str | None:
    try:
        import matplotlib
    except ImportError:
        return MATPLOTLIB
    with matplotlib.rc_context(style.RC):
        shown = figure(*arguments)
        if isinstance(shown, str):
            return f"no plot: {shown}"
        style.save(shown, path)
    return None
