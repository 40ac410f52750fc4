"""The library that the ops are registered in, and how an op gets its implementation and its vmap rule."""

from __future__ import annotations

import torch

from ..backends import dispatch
from ..dtypes import in_autocast
from . import _codec
from ._vmap import folding_rule

LIBRARY = torch.library.Library("fused_contrastive", "DEF")


def implement(name: str, module=None) -> None:
    """Register the op `name`: the function of that name in `module`, else in the backend that the last argument names.

    Autocast is off inside. A module lists in ``FLAT`` the functions that take an op's own arguments; all others take and
    return the named tuples of problem.py.
    """
    typed = getattr(_codec, name, None)

    def run(arguments, backend):
        owner = module or dispatch.module(backend)
        function = getattr(owner, name)
        if typed is None or name in getattr(owner, "FLAT", ()):
            return function(*arguments)
        return typed(function, arguments)

    def call(*arguments):
        *arguments, backend = arguments
        device = next(x for x in arguments if x is not None).device
        if not in_autocast(device):
            return run(arguments, backend)
        with torch.autocast(device.type, enabled=False):
            return run(arguments, backend)

    LIBRARY.impl(name, call, "CompositeExplicitAutograd")


def register_vmap(op, *dimensions) -> None:
    """The vmap rule of `op`, whose outputs have their groups in `dimensions` (None: none at all)."""
    torch.library.register_vmap(op, folding_rule(op, dimensions), lib=LIBRARY)
