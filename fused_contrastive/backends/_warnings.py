"""Warnings that point at the user's line, and come once for each line."""

from __future__ import annotations

import sys
import warnings
from types import FrameType

from .._torch_internals import constant_result

PACKAGE = __name__.partition(".")[0]

# What has been said, with the file and the line at which the warning pointed.
_said: set[tuple[str, str, int]] = set()


@constant_result
def warn(message: str, category: type[Warning] = UserWarning, beside: str = PACKAGE) -> None:
    """Warn about the line of the user that led here, once for each message and line.

    The user's line is the innermost one outside this package, torch and the package `beside`.
    Python's own filter would forget what it has shown whenever a library changes the filters for a
    moment. So this function remembers it. Inside torch.compile the warning comes while tracing.

    Args:
        message: what is said.
        category: the class of the warning.
        beside: the import name of another package, whose frames are not the user's either.
    """
    frame = _frame_of_user((PACKAGE, "torch", beside))
    file, line = frame.f_code.co_filename, frame.f_lineno
    if (message, file, line) in _said:
        return
    warnings.warn_explicit(
        message,
        category,
        file,
        line,
        module=frame.f_globals.get("__name__", "<unknown>"),
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
    )
    # Where a filter makes an error of the warning, it has not been said yet.
    _said.add((message, file, line))


def _frame_of_user(skipped: tuple[str, ...]) -> FrameType:
    """The innermost frame of a module in none of these packages, or else the outermost frame."""
    frame = sys._getframe(1)
    while _package(frame) in skipped and frame.f_back is not None:
        frame = frame.f_back
    return frame


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]
