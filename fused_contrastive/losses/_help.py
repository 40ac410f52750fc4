"""Completes the docstrings of the losses and of their modules.

A loss describes in its own file what is special about its arguments. What all losses share is
written once, here. A module's arguments are those of its function.
"""

from __future__ import annotations

import inspect
import re
import sys

from torch import nn

COMMON = {
    "temperature": "divides the similarities; a number, or a 0-d tensor, which then gets a "
    "gradient. Its value is never read.",
    "logit_scale": "multiplies the similarities; a number, or a 0-d tensor, which then gets a "
    "gradient.",
    "logit_bias": "added to every logit; a number, or a 0-d tensor, which then gets a gradient.",
    "normalize": "compare cosines (rows divided by ``max(|x|, 1e-12)``) instead of raw dot "
    "products.",
    "hardness": "how much more the negatives near the row weigh; see `fused_contrastive.losses`.",
    "temperatures": "in units of distance, at least one.",
    "reduction": 'what becomes of the losses of the rows: ``"none"``, ``"mean"`` or ``"sum"``.',
    "metrics": "also return the detached accuracy (the share of rows whose positive is at least "
    "their largest other candidate), mean similarity of the positives, and the log-sum-exp of each "
    "row's negatives where the loss has one.",
    "group": "the ranks that share the batch: a process group, a one-dimensional DeviceMesh or "
    '``"world"``. With None the batch is this process\'s own; see docs/many_gpus.md.',
    "strategy": '``"gather"`` collects the columns of all ranks, ``"ring"`` passes them around, '
    '``"auto"`` chooses.',
    "backend": "a name of `fused_contrastive.backends()`; None: the default of the device.",
    "lamb": "the weight of what is not on the diagonal.",
    "scale_loss": "multiplies the loss.",
    "learnable": "whether the module owns the temperature, or scale and bias, as parameters. "
    'With ``"averaged"`` it also averages their gradients over `group`.',
    "max_scale": "with `learnable`, the largest scale, or 1 / temperature, that the loss uses, as "
    "CLIP's 100. The parameter is clamped where it is read, so beyond the bound its gradient is 0. "
    "open_clip sets the parameter itself back to log 100 after each step instead.",
    "weight_gen": "``[G, n]``, weights of the points as columns; so are the next two.",
}
"""What an argument is where a loss says nothing else about it."""

RAISES = "Raises:\n    ValueError, TypeError: an argument is wrong; the error names it."
_ENTRY = re.compile(r"    ((?:\w+, )*\w+): ")


def entries(doc: str) -> dict[str, str]:
    """The descriptions under "Args:", by the names they are for, as in ``"keys, weights"``."""
    block = re.search(r"^Args:\n((?:(?: {4}.*)?\n?)*)", doc, re.MULTILINE)
    found: dict[str, str] = {}
    name = ""
    for line in block[1].splitlines() if block else ():
        start = _ENTRY.match(line)
        if start:
            name = start[1]
            found[name] = line[start.end() :]
        elif line.strip() and name:
            found[name] += " " + line.strip()
    return found


def arguments(names, described: dict[str, str], title: str = "Args") -> str:
    """A block of descriptions of these names, from `described` or from what is common."""
    lines = [f"{title}:"]
    done: set[str] = set()
    for name in names:
        together = next((x for x in described if name in x.split(", ")), None)
        if name in done or (together is None and name not in COMMON):
            continue
        shown = name
        if together is not None:
            shown = ", ".join(x for x in together.split(", ") if x in names)
        done.update(shown.split(", "))
        text = COMMON[name] if together is None else described[together]
        lines += _wrapped(f"{shown}: {text}")
    return "\n".join(lines)


def _wrapped(text: str) -> list[str]:
    lines, indent = ["   "], " " * 7
    for word in text.split():
        if len(lines[-1]) + 1 + len(word) > 96:
            lines.append(indent)
        lines[-1] += " " + word
    return lines


def _sections(doc: str) -> tuple[str, str]:
    """The text before the examples, and the examples."""
    place = re.search(r"^(Example:|>>> )", doc, re.MULTILINE)
    return (doc, "") if place is None else (doc[: place.start()], doc[place.start() :])


def complete(function) -> None:
    """Describe every argument of a loss, and its errors, in its docstring."""
    if not function.__doc__:
        return
    doc = inspect.cleandoc(function.__doc__)
    described = entries(doc)
    known = {name for names in described for name in names.split(", ")}
    missing = [x for x in inspect.signature(function).parameters if x not in known]
    head, example = _sections(doc)
    if missing:
        block = arguments(missing, {}).partition("\n")[2]
        head = re.sub(r"(^Args:\n(?:(?: {4}.*)\n)+)", rf"\1{_escaped(block)}\n", head, flags=re.M)
    if "Raises:" not in head:
        head = f"{head.rstrip()}\n\n{RAISES}\n\n"
    function.__doc__ = head + example


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\")


def complete_module(module: type, function) -> None:
    """Describe the arguments of a module and of its `forward`, as those of its function."""
    if not module.__doc__ or not function.__doc__:
        return
    described = entries(inspect.cleandoc(function.__doc__))
    own = [x for x in inspect.signature(module.__init__).parameters if x != "self"]
    inputs = [x for x in inspect.signature(module.forward).parameters if x != "self"]
    of_forward = arguments(inputs, described, "Args of forward")
    head, example = _sections(inspect.cleandoc(module.__doc__))
    returned = re.search(r"^Returns:\n(?: {4}.*\n?)+", function.__doc__, re.MULTILINE)
    parts = [head.rstrip(), arguments(own, described), of_forward]
    parts += [returned[0].rstrip()] if returned else []
    module.__doc__ = "\n\n".join([*parts, RAISES, example])
    if module.forward.__doc__ is None:
        module.forward.__doc__ = f"Return what `{function.__name__}` does.\n\n{of_forward}"


class Documented(nn.Module):
    """A module of the loss that its docstring names first. Its docstring is completed."""

    def __init_subclass__(cls):
        super().__init_subclass__()
        of = re.search(r"`(\w+)`", cls.__doc__ or "")
        function = vars(sys.modules[cls.__module__]).get(of[1]) if of else None
        if function is not None:
            complete_module(cls, function)
