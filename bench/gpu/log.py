"""This module reads the outcome of a device test run from the lines of device_tests.py."""

from __future__ import annotations

import json
from pathlib import Path

from ..environment import without_paths

KEPT = 50
"""The messages of at most so many failures are kept."""


def read(path: Path) -> dict[str, dict]:
    """Returns ``{test: {"outcome", "kernels", "message"}}`` of the tests that ended.

    A test has failed when any of its phases has.
    """
    return {test: state for test, state in _states(path).items() if state.pop("ended")}


def unfinished(path: Path) -> dict[str, list[str]]:
    """Returns the tests that started and did not end, with the kernels they had launched."""
    return {test: state["kernels"] for test, state in _states(path).items() if not state["ended"]}


def _states(path: Path) -> dict[str, dict]:
    """Returns the state of every test in the lines. A torn last line is left out."""
    states: dict[str, dict] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            phase = json.loads(line)
        except json.JSONDecodeError:
            continue
        fresh = {"outcome": "passed", "kernels": [], "message": "", "ended": False}
        state = states.setdefault(phase["test"], fresh)
        if "kernel" in phase:
            state["kernels"] = sorted({*state["kernels"], phase["kernel"]})
        if "outcome" not in phase:
            continue
        if phase["outcome"] == "failed" or (
            phase["outcome"] == "skipped" and state["outcome"] == "passed"
        ):
            state["outcome"] = phase["outcome"]
        state["message"] = state["message"] or without_paths(phase.get("message", ""))
        # xdist reports a worker that died in a phase of its own.
        state["ended"] |= phase["when"] not in (
            "setup",
            "call",
        )
    return states


def packed(outcomes: dict[str, dict]) -> dict[str, str]:
    """Returns outcomes for a result file, a line each.

    A line has the outcome and the kernels, and after a bar the message.
    """
    return {
        test: " | ".join(filter(None, [" ".join([s["outcome"], *s["kernels"]]), s["message"]]))
        for test, s in outcomes.items()
    }


def unpacked(lines: dict[str, str]) -> dict[str, dict]:
    outcomes = {}
    for test, line in lines.items():
        words, _, message = line.partition(" | ")
        outcome, *kernels = words.split()
        outcomes[test] = {"outcome": outcome, "kernels": kernels, "message": message}
    return outcomes


def summary(outcomes: dict[str, dict]) -> dict:
    """Returns counts, failures with their messages, and how often each reason to skip was given."""
    counts = {
        name: sum(state["outcome"] == name for state in outcomes.values())
        for name in ("passed", "failed", "skipped")
    }
    failures = [
        {"test": test, "message": s["message"]}
        for test, s in outcomes.items()
        if s["outcome"] == "failed"
    ]
    skips: dict[str, int] = {}
    for state in outcomes.values():
        if state["outcome"] == "skipped":
            skips[state["message"]] = skips.get(state["message"], 0) + 1
    return {**counts, "failures": failures[:KEPT], "skip_reasons": skips, "complete": False}


def kernels(outcomes: dict[str, dict], hashes: dict[str, str]) -> dict[str, dict]:
    """Returns the source hash of every kernel, and whether it passed.

    A kernel has passed when some passing test launched it and no failing one did.
    """
    states = {}
    for name, source in hashes.items():
        users = [state["outcome"] for state in outcomes.values() if name in state["kernels"]]
        passed = "passed" in users and "failed" not in users
        states[name] = {
            "hash": source,
            "passed": passed,
            "tests": len(users),
            "failed": users.count("failed"),
        }
    return states
