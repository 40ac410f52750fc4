"""Log-sum-exps of negatives whose logits grow with their own similarity."""

from __future__ import annotations

import torch

from ..autograd._formulas import is_transformed
from ..autograd.similarity import Result, similarity


def negatives(
    a: torch.Tensor,  # [..., M, D]
    b: torch.Tensor | None,  # [..., N, D]; None: a
    scale: torch.Tensor,  # []
    hardness: float,
    *,
    extrema: bool = False,
    **arguments,
) -> Result:
    """`similarity` with ``hardness * stopgrad(<a_i, b_j>)`` added to every logit.

    The scale is ``scale + hardness`` in the forward pass, and `scale` in the backward pass. With
    `extrema`, the largest logits are those without hardness, from a pass of their own.
    """
    if is_transformed() or torch.compiler.is_exporting():
        result = hardened(a, b, scale, hardness, arguments)
    else:
        total = scale + hardness
        # A sum of 0 would have no share. This one leaves the logits 0 to any precision.
        total = total + 1e-20 * (total.detach() == 0).to(total.dtype)
        share = (scale / total).detach()

        def softened(x: torch.Tensor) -> torch.Tensor:
            return x.detach() + share * (x - x.detach())

        columns = None if b is None else softened(b)
        result = similarity(softened(a), columns, total, **arguments)
        # Over ranks there are no second derivatives, and asking for them is an error.
        again = arguments.get("ranks") is None and not torch.compiler.is_compiling()
        if again and result.rows.requires_grad:
            bias = arguments.get("bias")
            options = {name: x for name, x in arguments.items() if name != "bias"}
            operands = a, b, scale, bias, hardness, options
            rows, cols = Hardened.apply(result.rows, result.cols, *operands)
            result = result._replace(rows=rows, cols=cols)
    if extrema:
        with torch.no_grad():
            plain = similarity(a, b, scale, extrema=True, **arguments)
        result = result._replace(row_max=plain.row_max, col_max=plain.col_max)
    return result


def hardened(a, b, scale, hardness: float, arguments: dict) -> Result:
    """`negatives` in products of twice the width, which have derivatives of any order.

    A logit is ``scale <a_i, b_j> + hardness <stopgrad(a_i), stopgrad(b_j)>``.
    """
    if b is None:
        b, arguments = a, arguments | {"key_b": arguments.get("key_a")}
    a, b = torch.cat([scale * a, hardness * a.detach()], -1), torch.cat([b, b.detach()], -1)
    return similarity(a, b, torch.ones_like(scale).detach(), **(arguments | {"dtype": scale.dtype}))


class Hardened(torch.autograd.Function):
    """The log-sum-exps of a result whose own derivatives are first derivatives only.

    Where the first derivatives are differentiated again (``create_graph=True``), they become those
    of `hardened`.
    """

    @staticmethod
    def forward(rows, cols, a, b, scale, bias, hardness, options):
        return rows.clone(), None if cols is None else cols.clone()

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        *operands, ctx.hardness, ctx.options = inputs[2:]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*operands)

    @staticmethod
    def backward(ctx, g_rows, g_cols):
        if not torch.is_grad_enabled():
            return g_rows, g_cols, *[None] * 6
        a, b, scale, bias = operands = ctx.saved_tensors
        result = hardened(a, b, scale, ctx.hardness, ctx.options | {"bias": bias})
        pairs = ((result.rows, g_rows), (result.cols, g_cols))
        outputs, upstream = zip(*((x, g) for x, g in pairs if g is not None), strict=True)
        needs = ctx.needs_input_grad[2:6]
        leaves = [x for x, need in zip(operands, needs, strict=True) if need]
        options = {"create_graph": True, "allow_unused": True}
        found = iter(torch.autograd.grad(outputs, leaves, upstream, **options))
        gradients = (next(found) if need else None for need in needs)
        return None, None, *gradients, None, None
