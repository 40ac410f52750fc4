"""The doctor finds out what works on this machine, and why the rest does not.

`examine` collects a report, `describe` writes it as text. Nothing here raises. What cannot be found
out is said in a sentence, and a part that fails is among the report's problems.
"""

from __future__ import annotations

import contextlib
import json
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from ..backends import dispatch
from . import machine, self_test, speed

FAMILIES = ("similarity", "sigmoid", "force")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LIBRARY_SUFFIXES = (".so", ".pyd", ".dylib")


def doctor(as_json: bool) -> int:
    """Print the report, and return the exit status.

    Args:
        as_json: print one JSON object in place of the text.

    Returns:
        0, or 1 where the report has problems.
    """
    report = examine()
    print(json.dumps(report, indent=1) if as_json else describe(report))
    return 1 if report["problems"] else 0


def examine() -> dict:
    """The report: plain values that JSON can hold.

    Its keys are

    - ``machine``: versions, devices and compilers, by name;
    - ``backends``: what `backends()` returns;
    - ``serving``: one row per family of ops, dtype and device, with the backend that serves it and
      the reasons of the others;
    - ``self_test``: one `self_test.Verdict` per case, backend, dtype and device;
    - ``speed``: one `speed.Timing` per size and device;
    - ``problems``: what failed, in sentences. Where there is one, the exit status is 1;
    - ``hints``: what works, but could work better.
    """
    problems: list[str] = []

    def part(function: Callable, *arguments):
        try:
            with warnings.catch_warnings():
                # What a warning would say is in the report.
                warnings.simplefilter("ignore")
                return function(*arguments)
        except Exception as error:
            what = (function.__doc__ or "").partition(".")[0]
            problems.append(
                f"The doctor could not finish ({what}): {type(error).__name__}: {error}"
            )
            return []

    found = {
        "machine": machine.describe(),
        "backends": part(dispatch.backends) or {},
        "serving": part(serving),
        "self_test": part(run_self_tests),
        "speed": part(time_losses),
    }
    problems += part(broken_libraries, found["backends"])
    problems += [
        f"{row['family']}, {row['case']}, by {row['backend']!r} on {row['device']} in "
        f"{row['dtype']}: {row['failure']}."
        for row in found["self_test"]
        if row["failure"]
    ]
    return found | {"problems": problems, "hints": part(hints, found)}


def dtypes(device: torch.device) -> tuple[torch.dtype, ...]:
    """The dtypes that tensors on this device can have. Metal knows no float64."""
    return DTYPES[:-1] if device.type == "mps" else DTYPES


def serving() -> list[dict]:
    """Which backend serves each family, dtype and device, and why the others do not."""
    rows = []
    for device in machine.devices():
        for dtype in dtypes(device):
            serves = dispatch.select(None, device, dtype)
            reasons = {"eager": "it is the dense reference, used by name only"}
            for name in dispatch.NAMES[1:]:
                reason = dispatch.refusal(name, device, dtype)
                if name != serves:
                    reasons[name] = reason or f"{serves!r} comes before it; it serves by name"
            rows += [
                {
                    "family": family,
                    "dtype": str(dtype).removeprefix("torch."),
                    "device": str(device),
                    "backend": serves,
                    "others": reasons,
                }
                for family in FAMILIES
            ]
    return rows


def run_self_tests() -> list[dict]:
    """Test every kernel that can run here.

    The panels are tested where they serve by default. In float64 on the CPU they are the truth. One
    thread is enough for most cases, and does not have to wait for the others on a busy machine.
    """
    with _threads(1):
        rows = [row for device in machine.devices() for row in _self_test(device, self_test.CASES)]
    if torch.get_num_threads() > 1:
        first = {case.family: case for case in reversed(self_test.CASES)}.values()
        several = [x._replace(name=f"{x.name}, {torch.get_num_threads()} threads") for x in first]
        rows += _self_test(torch.device("cpu"), several, DTYPES[:1])
    return rows


def _self_test(
    device: torch.device,
    cases: Sequence[self_test.Case],
    wanted: tuple[torch.dtype, ...] = DTYPES,
) -> list[dict]:
    """The verdicts of all backends on one device. An error that is not finite becomes None."""
    verdicts = [
        self_test.check(case, name, device, dtype)
        for name in dispatch.NAMES[1:]
        for dtype in dtypes(device)
        if dtype in wanted and _is_tested(name, device, dtype)
        for case in cases
    ]
    return [
        verdict._asdict() | {"worst": verdict.worst if math.isfinite(verdict.worst) else None}
        for verdict in verdicts
    ]


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let torch use so many threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _is_tested(name: str, device: torch.device, dtype: torch.dtype) -> bool:
    if dispatch.refusal(name, device, dtype) is not None:
        return False
    if name == "panels":
        is_truth = device.type == "cpu" and dtype == torch.float64
        return not is_truth and dispatch.select(None, device, dtype) == name
    # Triton's interpreter serves CPU tensors for tests. It would take minutes.
    return name != "triton" or device.type != "cpu"


def time_losses() -> list[dict]:
    """Time NT-Xent beside the eager form."""
    return [
        speed.measure(device, pairs)._asdict()
        for device in machine.devices()
        for pairs in speed.SIZES.get(device.type, speed.SIZES["cpu"])
    ]


def broken_libraries(backends: dict[str, str]) -> list[str]:
    """Find compiled kernels that lie in the package and cannot be used on a device that is here."""
    folder = Path(__file__).resolve().parents[1]
    found = []
    for name in {device.type for device in machine.devices()} & {"cpu", "cuda"}:
        libraries = [x.name for x in folder.glob(f"*{name}*") if x.suffix in LIBRARY_SUFFIXES]
        status, _, reason = backends.get(name, "").partition(": ")
        if libraries and status == "unavailable":
            found.append(f"The compiled kernels in {libraries[0]} cannot be used: {reason}.")
    return found


def hints(report: dict) -> list[str]:
    """What works, but could work better."""
    found = []
    facts, served = report["machine"], report["serving"]
    slow = sorted(
        {r["device"] for r in served if r["backend"] == "panels" and r["device"] == "cpu"}
    )
    if slow:
        reason = report["backends"].get("cpu", "unknown").removeprefix("unavailable: ")
        found.append(f"The slower backend 'panels' serves the CPU: {reason}.")
    driver, cuda = facts["nvidia_driver"], facts["torch_built_for"]
    if driver[:1].isdigit() and not cuda.startswith("CUDA"):
        found.append(f"There is an NVIDIA driver ({driver}), but torch was built for {cuda}.")
    return found


def describe(report: dict) -> str:
    """The report as text, with a block between two fences for a bug report."""
    lines = ["Paste the lines between the fences into a bug report.", "```text"]
    lines += [f"{name}: {_shown(fact)}" for name, fact in report["machine"].items()]
    lines += ["", "Backends:"]
    lines += [f"  {name}: {machine.without_home(x)}" for name, x in report["backends"].items()]
    lines += ["", "Which backend serves, and why not the others:", *_serving_lines(report)]
    lines += ["", "Self-test against float64:", *_self_test_lines(report)]
    lines += ["", "NT-Xent, forward and backward, float32:", *_speed_lines(report)]
    for title, sentences in (("Hints", report["hints"]), ("Problems", report["problems"])):
        if sentences:
            lines += ["", f"{title}:", *(f"  {machine.without_home(x)}" for x in sentences)]
    count = len(report["problems"])
    end = "Everything that can be tested here works."
    if count:
        end = f"{count} {'thing fails' if count == 1 else 'things fail'}: see Problems."
    return "\n".join([*lines, "```", end])


def _shown(fact) -> str:
    if isinstance(fact, dict):
        return ", ".join(f"{key}={value}" for key, value in fact.items()) or "nothing set"
    return "; ".join(fact) if isinstance(fact, list) else str(fact)


def _serving_lines(report: dict) -> list[str]:
    """One paragraph for all families and dtypes that are served alike."""
    alike: dict[tuple, dict[str, list[str]]] = {}
    for row in report["serving"]:
        key = (row["device"], row["backend"], tuple(row["others"].items()))
        found = alike.setdefault(key, {"family": [], "dtype": []})
        for name, values in found.items():
            if row[name] not in values:
                values.append(row[name])
    lines = []
    for (device, backend, others), found in alike.items():
        lines.append(
            f"  {device}: {backend!r} serves {', '.join(found['family'])} in "
            f"{', '.join(found['dtype'])}"
        )
        lines += [f"    not {name!r}: {machine.without_home(reason)}" for name, reason in others]
    return lines


def _self_test_lines(report: dict) -> list[str]:
    groups: dict[tuple[str, str, str], list[dict]] = {}
    for row in report["self_test"]:
        groups.setdefault((row["device"], row["backend"], row["family"]), []).append(row)
    lines = []
    for (device, backend, family), rows in groups.items():
        passed = sum(not row["failure"] for row in rows)
        dtypes = ", ".join(dict.fromkeys(row["dtype"] for row in rows))
        errors = [row["worst"] for row in rows if not row["failure"]]
        worst = f"; the largest error is {max(errors):.2f} of what is allowed" if errors else ""
        lines.append(
            f"  {device}, {backend!r}, {family}: {passed} of {len(rows)} pass ({dtypes}){worst}"
        )
    return lines or ["  nothing could be tested"]


def _speed_lines(report: dict) -> list[str]:
    return [
        f"  {row['device']}, {row['pairs']} pairs of {row['features']} features: "
        f"{row['ms']:.2f} ms, eager {row['eager_ms']:.2f} ms, {row['faster'][1]:.1f} times as "
        f"fast (quartiles {row['faster'][0]:.1f} to {row['faster'][2]:.1f})"
        for row in report["speed"]
    ] or ["  nothing could be timed"]
