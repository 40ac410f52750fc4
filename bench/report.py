"""This module writes the JSON result, the Markdown table, the plot and the progress bar."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path

from .losses import PASSES

SCHEMA = 1
COLUMNS = (
    ("loss", "loss"),
    ("N", "N"),
    ("K", "K"),
    ("D", "D"),
    ("dtype", "dtype"),
    ("pass", "pass"),
    ("backend", "backend"),
    ("ms", "median ms"),
    ("ms_quartiles", "quartiles"),
    ("x_eager", "x eager"),
    ("x_compile", "x compile"),
    ("x_fp32", "x fp32"),
    ("gflops", "GFLOP/s"),
    ("gemm_fraction", "of GEMM"),
    ("peak_extra_bytes", "peak MB"),
    ("gradient_error", "grad error"),
)
ROW_KEYS = {
    "loss",
    "backend",
    "dtype",
    "N",
    "K",
    "D",
    "pass",
    "ms",
    "ms_quartiles",
    "rounds",
    "flops",
    "gflops",
    "gemm_gflops",
    "gemm_fraction",
    "peak_extra_bytes",
    "x_eager",
    "x_eager_quartiles",
    "x_compile",
    "x_compile_quartiles",
    "x_fp32",
    "gradient_error",
}
"""Every row holds these. ``kernels`` and ``peak_extra_reason`` are there where they apply."""


def new_result(kind: str, command: str, environment: dict) -> dict:
    """Returns a result without rows, where `kind` is "cpu" or "gpu"."""
    return {
        "schema": SCHEMA,
        "kind": kind,
        "date": time.strftime("%Y-%m-%d"),
        "time": time.strftime("%H:%M:%S"),
        "command": command,
        "environment": environment,
        "complete": False,
        "rows": [],
        "unavailable": [],
        "compile_seconds": {},
    }


def validate(result: dict) -> None:
    """Checks a result. Raises ValueError naming what is missing or not of this schema."""
    missing = set(new_result("cpu", "", {})) - set(result)
    if missing or result["schema"] != SCHEMA:
        raise ValueError(f"not a result of schema {SCHEMA}: missing {sorted(missing)}")
    for row in result["rows"]:
        if ROW_KEYS - set(row):
            raise ValueError(
                f"row {row.get('loss')} {row.get('backend')} lacks {sorted(ROW_KEYS - set(row))}"
            )


def write_json(result: dict, path: Path) -> None:
    """Replaces the file in one step, so that a killed run leaves the last whole state."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".json.part")
    draft.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(draft, path)


def cell(key: str, value) -> str:
    """Returns one table cell."""
    if value is None:
        return "-"
    if key == "peak_extra_bytes":
        return f"{value / 1e6:.1f}" if value < 1e8 else f"{value / 1e6:.0f}"
    if key == "ms_quartiles":
        return " - ".join(milliseconds(v) for v in value)
    if key == "ms":
        return milliseconds(value)
    if key.startswith("x_"):
        return f"{value:.2f}" if value < 10 else f"{value:.1f}"
    if key == "gflops":
        return f"{value:.0f}" if value >= 10 else f"{value:.1f}"
    if key == "gemm_fraction":
        return f"{value:.2f}"
    if key == "gradient_error":
        return f"{value:.1e}"
    if key == "K" and not value:
        return "-"
    return str(value)


def milliseconds(value: float) -> str:
    """Returns the value with three significant digits."""
    return (
        f"{value:.0f}"
        if value >= 100
        else f"{value:.1f}"
        if value >= 10
        else f"{value:.2f}"
        if value >= 1
        else f"{value:.3f}"
    )


def table(header: list[str], lines: list[list[str]]) -> str:
    """Returns a Markdown table with aligned columns."""
    widths = [max(len(line[k]) for line in [header, *lines]) for k in range(len(header))]

    def render(line):
        return (
            "| "
            + " | ".join(text.rjust(width) for text, width in zip(line, widths, strict=True))
            + " |"
        )

    rule = "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|"
    return "\n".join([render(header), rule, *(render(line) for line in lines)])


def markdown(result: dict, passes: tuple[str, ...] = PASSES) -> str:
    """Returns the result as a page.

    The page says where it was measured, has the rows of `passes`, and says what was not available.
    """
    rows = sorted((row for row in result["rows"] if row["pass"] in passes), key=_order)
    shown = [(key, title) for key, title in COLUMNS if any(row.get(key) for row in rows)]
    lines = [[cell(key, row.get(key)) for key, _ in shown] for row in rows]
    parts = [
        f"# {result['kind'].upper()} benchmark, {result['date']}",
        "",
        summary(result["environment"]),
        "",
    ]
    parts += [METHOD, "", table([title for _, title in shown], lines) if lines else "No rows."]
    if result["unavailable"]:
        parts += ["", "Not available:", ""]
        grouped: dict[str, list[str]] = {}
        for entry in result["unavailable"]:
            grouped.setdefault(
                f"{entry['backend']} {entry['dtype']}: {entry['reason']}", []
            ).append(f"{entry['loss']} {entry['N']}x{entry['D']}")
        parts += [f"- {reason} ({', '.join(places)})" for reason, places in grouped.items()]
    if not result["complete"]:
        parts += ["", "The run ended before every group was measured."]
    return "\n".join(parts) + "\n"


def _order(row: dict) -> tuple:
    """Returns a sort key: the largest size first, then the full pass, then the slowest row."""
    dtype, which = row["dtype"], row["pass"]
    return (
        row["loss"],
        -row["N"],
        -row["K"],
        row["D"],
        dtype != "fp32",
        dtype,
        which != "full",
        which != "forward",
        -row["ms"],
    )


METHOD = (
    "Medians of interleaved runs in one process, round-robin over all contenders of a size. "
    "A ratio is the median of the ratios within rounds. It is the result; the milliseconds are "
    "this machine's. FLOP/s count each algorithm's own matrix products. \"of GEMM\" is that rate "
    "over the library's for the same dtype and shape in the same rounds. Peak MB is the memory "
    "above inputs and gradients. The gradient error is relative to the dense loss in float64."
)


def summary(environment: dict) -> str:
    """Returns one line on hardware and versions."""
    gpu = environment.get("gpu")
    parts = [f"{gpu['name']} (driver {gpu['driver']}, CUDA {gpu['cuda']})"] if gpu else []
    parts += [
        f"{environment['cpu']}, {environment['threads']} threads ({environment['cpu_capability']})",
        f"Python {environment['python']}, torch {environment['torch']}, "
        f"Triton {environment['triton'] or 'none'}",
        f"commit {environment['commit'] or 'unknown'}",
    ]
    return "; ".join(parts) + "."


class Progress:
    """This draws a one-line bar over `total` groups on stderr.

    Without a terminal it prints a line per group.
    """

    def __init__(self, total: int, stream=sys.stderr):
        self.total, self.done, self.name, self.stream, self.start = (
            total,
            0,
            "",
            stream,
            time.monotonic(),
        )

    def begin(self, name: str) -> None:
        self.name = name
        self.tick("")

    def tick(self, detail: str) -> None:
        if not self.stream.isatty():
            return
        filled = int(24 * self.done / max(self.total, 1))
        elapsed = time.monotonic() - self.start
        bar = "#" * filled + "." * (24 - filled)
        text = f"[{bar}] {self.done}/{self.total} {elapsed:4.0f} s  {self.name}: {detail}"
        self.stream.write(
            "\r"
            + text[: shutil.get_terminal_size().columns - 1].ljust(
                shutil.get_terminal_size().columns - 1
            )
        )
        self.stream.flush()

    def end(self, note: str = "") -> None:
        self.done += 1
        self.tick(note)
        if not self.stream.isatty():
            elapsed = time.monotonic() - self.start
            place = f"[{self.done}/{self.total}] {elapsed:4.0f} s"
            self.stream.write(f"{place}  {self.name}: {note}\n")
            self.stream.flush()

    def close(self) -> None:
        if self.stream.isatty():
            self.stream.write("\n")
