"""The type stub of the public names, ``fused_contrastive/__init__.pyi``, from their signatures.

In the sources each loss has one signature. Type checkers need more: what is returned depends on an
argument, and the choices of an argument are a closed set. Both are written once here.
``python tests/test_types.py --update`` writes the stub anew.
"""

from __future__ import annotations

import inspect
import re

import torch

import fused_contrastive as fc
from fused_contrastive import checks, problem
from fused_contrastive.backends import dispatch
from fused_contrastive.distributed import groups
from fused_contrastive.losses import force, info_nce, ranking, sup_con
from fused_contrastive.losses._module import TemperatureLoss
from fused_contrastive.losses._over_ranks import NOT_GIVEN
from fused_contrastive.memory_bank import FILLS, WRAPS

CHOICES = {
    "reduction": checks.REDUCTIONS,
    "strategy": groups.STRATEGIES,
    "candidates": problem.KINDS,
    "negative_mode": info_nce.NEGATIVE_MODES,
    "partition": ("joint", "per_direction"),
    "hardness_mode": ranking.HARDNESS_MODES,
    "positives": sup_con.POSITIVES,
    "contrast_mode": sup_con.CONTRAST_MODES,
    "mask_self": force.MASKS,
    "normalizer": force.NORMALIZERS,
    "learnable": (False, True, "averaged"),
    "wrap": WRAPS,
    "fill": FILLS,
}
"""Arguments with a closed set of values. Tensors of the same name keep their annotation."""

NUMBER, SEVERAL = "float | Tensor", "Sequence[float]"
ANNOTATIONS = {
    "group": "Group",
    "backend": "Backend | None",
    "logit_scale": f"{NUMBER} | None",
    "logit_bias": f"{NUMBER} | None",
    "max_scale": "float | None",
    "bias": "Tensor | tuple[Tensor, Tensor] | None",
    "temperatures": SEVERAL,
    "directions": "Sequence[Direction]",
    "scaler": "torch.amp.GradScaler | None",
    "encoders": "Callable[..., Any] | Sequence[Callable[..., Any]]",
    "inputs": "Any",
    "name": "Backend | None",
    "device": "torch.device | str | int | None",
    "keys": "Tensor | None",
    "weights": "Tensor | None",
}
"""Arguments that have no annotation of their own, or a wider one."""

RETURNS = {
    "cpc_loss": "tuple[Tensor, Tensor]",
    "CPCLoss": "tuple[Tensor, Tensor]",
    "drift_loss": "tuple[Tensor, dict[str, Tensor]]",
    "DriftLoss": "tuple[Tensor, dict[str, Tensor]]",
    "cached_step": "Any",
    "use_backend": "AbstractContextManager[None]",
}
DECIDES = {"metrics": "WithMetrics", "return_columns": "tuple[Tensor, Tensor]"}
"""Flags, and what is returned in place of one tensor where they are True."""

HEAD = """\
# Made by `python tests/test_types.py --update` from the signatures. Do not edit.
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Generic, Literal, TypeAlias, TypeVar, overload

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.nn import Module

{aliases}
Group: TypeAlias = ProcessGroup | DeviceMesh | Literal["world"] | None
WithMetrics: TypeAlias = tuple[Tensor, dict[str, Tensor]]
_R = TypeVar("_R")

__version__: str
__all__: list[str]

"""


def literal(values) -> str:
    shown = ", ".join(f'"{v}"' if isinstance(v, str) else repr(v) for v in values)
    return f"Literal[{shown}]"


def alias(name: str) -> str:
    """Return the name of the type of a choice, as "MaskSelf" for mask_self."""
    return name.title().replace("_", "")


def plain(annotation: str) -> str:
    return annotation.replace("torch.Tensor", "Tensor").strip("'")


def annotation(parameter: inspect.Parameter, function: dict[str, inspect.Parameter]) -> str:
    """Return the type of a parameter; a module's is that of the parameter of its function."""
    name = parameter.name
    like = function.get(name, parameter)
    given = next((p.annotation for p in (parameter, like) if p.annotation is not p.empty), None)
    tensor = given is not None and plain(given).startswith("Tensor")
    if name in CHOICES and not tensor:
        return alias(name)
    if name in ("logit_scale", "logit_bias") and parameter.default is not None:
        return plain(given)
    if name in ANNOTATIONS and name != "bias":
        return ANNOTATIONS[name]
    if name == "bias" and given is None:
        given = function["bias"].annotation
    if given is None:
        raise TypeError(f"nothing says what {name} is")
    return plain(given)


def default(value) -> str:
    if value is NOT_GIVEN or isinstance(value, torch.dtype):
        return "..."
    return f'"{value}"' if isinstance(value, str) else repr(value)


def parameters(signature, function=None, types=None, *, flag=None, required=False) -> str:
    """Return the parameters as source, with another type for a flag that decides."""
    parts, starred = [], False
    for p in signature.parameters.values():
        if p.name == "self":
            continue
        if p.kind is p.VAR_KEYWORD:
            parts.append(f"**{p.name}: Tensor | None")
            continue
        if p.kind is p.KEYWORD_ONLY and not starred:
            parts.append("*")
            starred = True
        kind, optional = (types or {}).get(p.name), p.default is not p.empty
        kind = kind or annotation(p, function or {})
        if p.name in DECIDES and flag is not None:
            kind, optional = flag, optional and not required
        parts.append(f"{p.name}: {kind}" + (f" = {default(p.default)}" if optional else ""))
    return ", ".join(parts)


def versions(signature) -> list[tuple[str | None, bool, str]]:
    """Return the types of the flag that decides, whether it must be given, and what is returned."""
    flag = next((name for name in DECIDES if name in signature.parameters), None)
    if flag is None:
        return [(None, False, "Tensor")]
    return [
        ("Literal[True]", True, DECIDES[flag]),
        ("Literal[False]", False, "Tensor"),
        ("bool", True, f"Tensor | {DECIDES[flag]}"),
    ]


def function(name: str) -> str:
    signature = inspect.signature(getattr(fc, name))
    given = signature.return_annotation
    several, lines = versions(signature), []
    for flag, required, result in several:
        if name in RETURNS:
            result = RETURNS[name]
        elif flag is None and given is not signature.empty:
            result = plain(given)
        lines += ["@overload"] * (len(several) > 1)
        shown = parameters(signature, flag=flag, required=required)
        lines.append(f"def {name}({shown}) -> {result}: ...")
    return "\n".join(lines)


def broken(line: str) -> str:
    """Return a definition as several lines of at most 100 columns, broken between parameters."""
    if len(line) <= 100:
        return line
    head, _, rest = line.partition("(")
    inside, _, tail = rest.rpartition(") -> ")
    indent = " " * (len(line) - len(line.lstrip()) + 4)
    # A comma inside of brackets has no parameter after it.
    parameters = re.split(r", (?![^\[(]*[\])])", inside)
    lines = [indent]
    for parameter in parameters:
        if len(lines[-1]) + len(parameter) > 98:
            lines.append(indent)
        lines[-1] += parameter + ", "
    body = "\n".join(line.rstrip() for line in lines)
    return f"{head}(\n{body}\n{indent[4:]}) -> {tail}"


def function_of(cls: type) -> dict[str, inspect.Parameter]:
    """Return the parameters of the loss that a module is the module of."""
    name = re.search(r"`(\w+)`", cls.__doc__)[1]
    return dict(inspect.signature(getattr(fc, name)).parameters)


def module(cls: type) -> str:
    signature, call = inspect.signature(cls.__init__), inspect.signature(cls.forward)
    of = function_of(cls)
    several = versions(signature)
    generic = len(several) > 1
    result = "_R" if generic else RETURNS.get(cls.__name__, "Tensor")
    lines = [f"class {cls.__name__}(Module{', Generic[_R]' if generic else ''}):"]
    if issubclass(cls, TemperatureLoss):
        lines.append("    @property\n    def temperature(self) -> float | Tensor: ...")
    # A module owns its numbers.
    numbers = {"temperature": "float", "logit_scale": "float | None", "logit_bias": "float | None"}
    for flag, required, returned in several:
        lines += ["    @overload"] * generic
        own = f"self: {cls.__name__}[{returned}]" if generic else "self"
        shown = parameters(signature, of, numbers, flag=flag, required=required)
        lines.append(f"    def __init__({own}, {shown}) -> None: ...")
    lines.append(f"    def forward(self, {parameters(call, of)}) -> {result}: ...")
    lines.append(f"    def __call__(self, {parameters(call, of)}) -> {result}: ...")
    return "\n".join(lines)


def bank() -> str:
    cls = fc.MemoryBank
    lines = ["class MemoryBank(Module):", "    rows: Tensor"]
    shown = parameters(inspect.signature(cls.__init__))
    lines.append(f"    def __init__(self, {shown}) -> None: ...")
    for name, member in vars(cls).items():
        if isinstance(member, property):
            kind = plain(member.fget.__annotations__["return"])
            lines.append(f"    @property\n    def {name}(self) -> {kind}: ...")
        elif name in ("reset", "enqueue", "__len__"):
            signature = inspect.signature(member)
            shown = ", ".join(["self", parameters(signature)]).removesuffix(", ")
            lines.append(f"    def {name}({shown}) -> {plain(signature.return_annotation)}: ...")
    return "\n".join(lines)


def stub() -> str:
    """Return the text of the stub."""
    choices = {**CHOICES, "direction": ranking.DIRECTIONS, "backend": dispatch.NAMES}
    aliases = [f"{alias(name)}: TypeAlias = {literal(x)}" for name, x in sorted(choices.items())]
    head = HEAD.format(aliases="\n".join(aliases))
    parts = []
    for name in fc.__all__:
        value = getattr(fc, name)
        if value is fc.MemoryBank:
            parts.append(bank())
        else:
            parts.append(module(value) if inspect.isclass(value) else function(name))
    lines = "\n".join(parts).split("\n")
    return head + "\n".join(map(broken, lines)) + "\n"
