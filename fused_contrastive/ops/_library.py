"""The ops' library, and how an op gets its implementation and its vmap rule."""

from __future__ import annotations

import torch

from .._torch_internals import keep_in_order
from ..backends import dispatch
from ..dtypes import in_autocast, outside_autocast
from . import _codec
from ._vmap import folding_rule

LIBRARY = torch.library.Library("fused_contrastive", "DEF")


def implement(name: str, module=None) -> None:
    """Register the op `name`, implemented by the function of that name in `module`.

    Without a module it is the function of the backend that the op's last argument names. So the ops
    that have one implementation for all backends name its module here. Autocast is off inside.
    """

    def call(*arguments):
        owner = module or dispatch.module(arguments[-1])
        # The first arguments of the second derivatives are tangents, which may be absent.
        first = arguments[0]
        x = next(x for x in arguments if x is not None) if first is None else first
        if not in_autocast(x.device):
            return _codec.call_flat(owner, name, arguments[:-1])
        with torch.autocast(x.device.type, enabled=False):
            return _codec.call_flat(owner, name, arguments[:-1])

    LIBRARY.impl(name, call, "CompositeExplicitAutograd")


def implement_over_ranks(name: str, function) -> None:
    """Register the op `name`, implemented by `function` on every device, with autocast off.

    A compiler must not change the order of such ops, for then ranks would wait for one another.
    """

    def call(*arguments):
        with outside_autocast(arguments[0].device):
            return function(*arguments)

    LIBRARY.impl(name, call, "CompositeExplicitAutograd")
    keep_in_order(getattr(torch.ops.fused_contrastive, name).default)


def register_vmap(op, dimensions: tuple[int | None, ...]) -> None:
    """Register the vmap rule of `op`, whose outputs have their groups in `dimensions`.

    None stands for an output without groups.
    """
    torch.library.register_vmap(op, folding_rule(op, dimensions), lib=LIBRARY)
