"""Here losses and uses of the primitive are functions of their differentiable arguments."""

from __future__ import annotations

import torch

from support import cases

# The weights of DCLW depend on the inputs and count as constants.
LOSSES = [case for case in cases.LOSSES if case.function != "dclw_loss"]


def loss_of(case, backend, inputs):
    names = list(inputs)
    return lambda *values: case.loss(dict(zip(names, values, strict=True)), backend)


def outputs_of(use, backend, named):
    names = [name for name, x in named.items() if x.requires_grad]
    return names, lambda *values: use.apply(named | dict(zip(names, values, strict=True)), backend)


def small_inputs(use, device) -> dict:
    """Draw a few rows, with candidates in every row and column.

    A row or column without candidates has the value -inf, which other tests check.
    """
    named = use.draw(4, 4 if use.kind == "not_pair" else 3, 2, device=device)
    if use.kind in ("other_key", "same_key"):
        named["key_a"] = torch.tensor([0, 0, 1, 1], device=device).expand(named["key_a"].shape)
        if not use.one_set:
            named["key_b"] = torch.tensor(
                [0, 1, 1] if use.self_offset is None else [1, 0, 1], device=device
            )
    if use.kind == "same_key" and use.self_offset is not None:
        named["key_a"] = torch.tensor([0, 0, 1, 1], device=device)
        named["key_b"] = torch.tensor([0, 1, 0], device=device)
    return named
