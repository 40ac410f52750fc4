"""Every private name of torch that this package uses, each with its reason.

torch 2.11, the oldest version that the package supports, has all of them, and so has 2.13. A test
checks that the installed torch has them. The rest of the package takes them from here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._C._functorch import TransformType, is_functorch_wrapped_tensor
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

# This is torch.autograd.Function below torch.func's transforms. They have been dealt with by the
# time an op's formula is asked for.
SingleLevelFunction = torch.autograd.function._SingleLevelFunction

# In this context ops do without their formulas. That saves autograd's work for what is not
# differentiated.
below_autograd = torch._C._AutoDispatchBelowAutograd

# This tells whether a call runs inside a torch.func transform, where tensors have no values to look
# at and may have tangents.
are_transforms_active = torch._C._are_functorch_transforms_active

# This tells in one call into C++ whether any of an op's arguments requires a gradient.
any_requires_grad = torch._C._any_requires_grad

# This tells whether a tensor takes part in a transform of torch.func.
is_wrapped_by_transform = is_functorch_wrapped_tensor

# This switches forward-mode differentiation on again inside an op's formula, where Function.apply
# has turned it off.
set_forward_mode_enabled = forward_ad._set_fwd_grad_enabled


def in_forward_mode() -> bool:
    """Whether a level of forward-mode differentiation is open."""
    return forward_ad._current_level >= 0


def active_transforms() -> set[TransformType]:
    """The kinds of the torch.func transforms around this call."""
    return {interpreter.key() for interpreter in retrieve_all_functorch_interpreters()}


def argument_names(op) -> list[str]:
    """The names of an op's arguments, in the order of its schema."""
    return [argument.name for argument in op._schema.arguments]


def group_with_name(name: str):
    """The process group whose ``group_name`` this is. An op knows its group by name."""
    import torch.distributed.distributed_c10d as c10d

    # The stubs of torch neither export this function nor let it take a string.
    resolve: Any = vars(c10d)["_resolve_process_group"]
    return resolve(name)


def group_timeout(group):
    """How long the collectives of a process group wait, or None where it does not say."""
    for kind in ("cuda", "cpu"):
        try:
            return group._get_backend(torch.device(kind)).options._timeout
        except (RuntimeError, AttributeError):
            continue
    return None


def keep_in_order(op) -> None:
    """Have compiled programs run this op in the order of the calls of all such ops."""
    from torch._higher_order_ops.effects import _EffectType, _register_effectful_op

    _register_effectful_op(op, _EffectType.ORDERED)


def constant_result(function):
    """Have torch.compile call `function` while it traces, and take the result for a constant.

    This is torch.compiler.assume_constant_result without its import of all of Dynamo. That import
    takes 2 s.
    """
    function._dynamo_marked_constant = True
    return function


__all__ = [
    "SingleLevelFunction",
    "TransformType",
    "active_transforms",
    "any_requires_grad",
    "are_transforms_active",
    "argument_names",
    "below_autograd",
    "constant_result",
    "enable_single_level_autograd_function",
    "forward_ad",
    "group_timeout",
    "group_with_name",
    "in_forward_mode",
    "is_wrapped_by_transform",
    "keep_in_order",
    "set_forward_mode_enabled",
    "tree_flatten",
    "tree_map",
    "tree_unflatten",
]
