"""The tables of docs/drop_ins.md: which classes of other packages stream, and what the rest are."""

from __future__ import annotations

from fused_contrastive.integrations._classes import TABLES


def classes(_folder=None) -> str:
    """Returns a Markdown table for each package."""
    parts = []
    for name, package in TABLES.items():
        rows = [["class", "streams", "runs the package's own code", "absent: use instead"]]
        rows.append(["---"] * 4)
        for line in package.lines:
            names = ", ".join(f"`{x}`" for x in line.names)
            rows.append([names, line.streams, line.own, line.instead])
        shown = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        parts.append(f"### {name}\n\nThe losses of {package.module}.\n\n{shown}")
    return "\n\n".join(parts)
