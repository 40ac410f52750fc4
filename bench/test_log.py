"""The outcome of a device test run, read from the lines that the plugin of source_tree.py writes."""

from __future__ import annotations

import json
from pathlib import Path

KEPT = 50
"""Failures whose messages are kept."""


def read(path: Path) -> dict[str, dict]:
    """``{test: {"outcome", "kernels", "message"}}``; a test fails when any of its phases does. A torn last line is left out."""
    outcomes: dict[str, dict] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            phase = json.loads(line)
        except json.JSONDecodeError:
            continue
        state = outcomes.setdefault(phase["test"], {"outcome": "passed", "kernels": [], "message": ""})
        if phase["outcome"] == "failed" or (phase["outcome"] == "skipped" and state["outcome"] == "passed"):
            state["outcome"] = phase["outcome"]
        state["kernels"] = sorted({*state["kernels"], *phase.get("kernels", [])})
        state["message"] = state["message"] or phase.get("message", "")
    return outcomes


def summary(outcomes: dict[str, dict]) -> dict:
    """Counts, the failures with their messages, and how often each reason to skip was given."""
    counts = {
        name: sum(state["outcome"] == name for state in outcomes.values()) for name in ("passed", "failed", "skipped")
    }
    failures = [{"test": test, "message": s["message"]} for test, s in outcomes.items() if s["outcome"] == "failed"]
    skips: dict[str, int] = {}
    for state in outcomes.values():
        if state["outcome"] == "skipped":
            skips[state["message"]] = skips.get(state["message"], 0) + 1
    return {**counts, "failures": failures[:KEPT], "skip_reasons": skips, "complete": False}


def kernels(outcomes: dict[str, dict], hashes: dict[str, str]) -> dict[str, dict]:
    """Of every kernel its source hash and whether it passed: some passing test launched it, and no failing one did."""
    states = {}
    for name, source in hashes.items():
        users = [state["outcome"] for state in outcomes.values() if name in state["kernels"]]
        passed = "passed" in users and "failed" not in users
        states[name] = {"hash": source, "passed": passed, "tests": len(users), "failed": users.count("failed")}
    return states
