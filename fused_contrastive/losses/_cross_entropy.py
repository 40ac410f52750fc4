"""The cross entropy of a row with one positive, and what changes it: keys, biases, label smoothing, margin, hardness, debiasing.

Everything is composed over the log-sum-exp of the negatives (functions.similarity) and quantities of O(N D); derivations: docs/maths.md.
Without options the loss is the forward op's own.
"""

from __future__ import annotations

import math

import torch

from ..autograd._formulas import is_transformed
from ..autograd.similarity import Result, similarity
from ..dtypes import matrix_dtype
from ._arguments import Options
from ._reduction import Outcome, exact_rows, one_positive


def dot(a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """``<a_i, b_i>`` of the rows as the products read them, in the dtype of scale."""
    return (a.to(scale.dtype) * b.to(scale.dtype)).sum(-1)


def negatives(a, b, scale, hardness=0.0, *, extrema=False, **arguments) -> Result:
    """`similarity` with ``hardness * stopgrad(<a_i, b_j>)`` added to every logit: the scale is scale + hardness forward, scale backward.
    The largest are those of the logits without it, from a pass of their own."""
    if not hardness:
        return similarity(a, b, scale, extrema=extrema, **arguments)
    if is_transformed() or torch.compiler.is_exporting():
        result = hardened(a, b, scale, hardness, arguments)
    else:
        share = (scale / (scale + hardness)).detach()
        softened = (x if x is None else x.detach() + share * (x - x.detach()) for x in (a, b))
        result = similarity(*softened, scale + hardness, **arguments)
        if result.rows.requires_grad and not torch.compiler.is_compiling():
            options = {name: x for name, x in arguments.items() if name != "bias"}
            rows, cols = Hardened.apply(
                result.rows, result.cols, a, b, scale, arguments.get("bias"), hardness, options
            )
            result = result._replace(rows=rows, cols=cols)
    if extrema:
        with torch.no_grad():
            plain = similarity(a, b, scale, extrema=True, **arguments)
        result = result._replace(row_max=plain.row_max, col_max=plain.col_max)
    return result


def hardened(a, b, scale, hardness, arguments) -> Result:
    """`negatives` in products of twice the width, for derivatives of any order: ``scale <a_i, b_j> + hardness <stopgrad(a_i), stopgrad(b_j)>``."""
    if b is None:
        b, arguments = a, arguments | {"key_b": arguments.get("key_a")}
    a, b = torch.cat([scale * a, hardness * a.detach()], -1), torch.cat([b, b.detach()], -1)
    return similarity(a, b, torch.ones_like(scale).detach(), **(arguments | {"dtype": scale.dtype}))


class Hardened(torch.autograd.Function):
    """rows and cols of a result that has the first derivatives only; where these are differentiated (create_graph=True), they are those of
    `hardened`."""

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
        outputs = [
            (x, g) for x, g in ((result.rows, g_rows), (result.cols, g_cols)) if g is not None
        ]
        needed = [x for x, need in zip(operands, ctx.needs_input_grad[2:6], strict=True) if need]
        x, g = zip(*outputs, strict=True)
        found = iter(torch.autograd.grad(x, needed, g, create_graph=True, allow_unused=True))
        return (
            None,
            None,
            *(next(found) if need else None for need in ctx.needs_input_grad[2:6]),
            None,
            None,
        )


def sum_over_negatives(x, rows: int, kind: str, key_a=None, key_b=None) -> torch.Tensor:
    """``Σ_j x_j`` of the columns ``x [..., N, C]`` over the negatives of each row, ``[..., rows, C]`` (or one row for all).

    The kinds are those of candidates.py with offset 0, ``not_pair`` with two views, keys in one group or in groups of one row.
    """
    if kind == "all" or not x.shape[-2]:
        return x.sum(-2, keepdim=True)
    if kind == "not_self":
        return x.sum(0) - x[:rows]
    if kind == "not_pair":
        return x.sum(0) - x - x.roll(rows // 2, 0)
    if x.dim() == 3:
        return x.masked_fill((key_a == key_b).unsqueeze(-1), 0.0).sum(-2, keepdim=True)
    key_a, key_b = key_a.long(), (key_a if key_b is None else key_b).long()
    wide = (
        x.double() if x.device.type in ("cpu", "cuda") else x
    )  # what is left of a sum without its largest class
    order = key_b.sort().values
    classes = torch.zeros_like(wide).index_add(0, torch.searchsorted(order, key_b), wide)
    place = torch.searchsorted(order, key_a).clamp_max(x.shape[0] - 1)
    own = classes.index_select(0, place).masked_fill((order[place] != key_a).unsqueeze(-1), 0.0)
    return (wide.sum(0) - own).to(x.dtype)


def count_and_total(a, b, scale, options: Options, kind, key_a=None, key_b=None, bias=None):
    """``(count, total)``: the number of negatives of each row and, for smoothing, the sum of their logits; None where not needed."""
    if not (options.label_smoothing or options.tau_plus):
        return None, None
    columns = (a if b is None else b).to(scale.dtype)
    if not options.label_smoothing:
        columns = columns[..., :0]
    ones = columns.new_ones((*columns.shape[:-1], 1))
    parts = [columns, torch.zeros_like(ones), ones]
    if bias is not None:
        parts[1] = bias.to(scale.dtype).unsqueeze(-1)
        removed = parts[1] == -math.inf
        parts = [x.masked_fill(removed, 0.0) for x in parts]
    sums = sum_over_negatives(torch.cat(parts, -1), a.shape[-2], kind, key_a, key_b)
    count = sums[..., -1]
    if not options.label_smoothing:
        return count, None
    raw = dot(a, sums[..., :-2], scale)
    total = scale * raw + options.hardness * raw.detach() + sums[..., -2]
    return count, total.masked_fill(count == 0, 0.0)  # not what rounding has left of it


def debiased(lse, pos, count, scale, tau_plus: float) -> torch.Tensor:
    """``log max((e^lse - tau_plus count e^pos) / (1 - tau_plus), count e^-|scale|)`` (Chuang et al. 2020, sec. 4)."""
    log_count = count.log()
    floor = log_count - scale.abs() + 0 * lse.clamp_min(0)  # NaN stays
    gap = pos + (log_count + math.log(tau_plus)) - lse

    def left(gap):
        return lse + torch.log(-torch.expm1(gap)) - math.log1p(-tau_plus)

    above = (left(gap.detach()) > floor).detach()
    return torch.where(above, left(gap.where(above, -1.0)), floor)


def cross_entropy(lse, pos, scale, options: Options, count=None, total=None):
    """The loss of rows with the log-sum-exp of their negatives and the positive's logit before its margin."""
    if options.tau_plus:
        lse = debiased(lse, pos, count, scale, options.tau_plus)
    if options.margin:
        pos = pos - options.margin * scale
    loss = one_positive(lse, pos)
    if options.label_smoothing:
        smooth = (count * pos - total) / (count + 1)
        loss = loss + options.label_smoothing * smooth.masked_fill(
            pos == -math.inf, 0.0
        )  # the loss is infinite already
    return loss


def one_direction(
    a, b, product, scale, options: Options, candidates, *, bias=None, own_bias=None, found=None, metrics=False, dtype=None,
    backend=None,
):  # fmt: skip
    """``(loss, (positive logit before its margin, largest other))`` of the rows of a against the `candidates` ``(kind, key_a, key_b)`` among b,
    as the products read them; `product` is the positive's ``<a_i, p_i>``, `own_bias` its bias, `found` what `lse_and_largest` has
    found already."""
    if found is None:
        found = lse_and_largest(
            a,
            b,
            scale,
            options,
            candidates,
            bias=bias,
            extrema=metrics,
            dtype=dtype,
            backend=backend,
        )[0]
    lse, largest = found
    pos = scale * product if own_bias is None else scale * product + own_bias.to(scale.dtype)
    sums = count_and_total(a, b, scale, options, *candidates, bias)
    if a.dim() == 3:  # each row a group with columns of its own
        lse, largest, *sums = (None if x is None else x.squeeze(-1) for x in (lse, largest, *sums))
    return cross_entropy(lse, pos, scale, options, *sums), (pos, largest)


def lse_and_largest(a, b, scale, options: Options, candidates, **arguments):
    """Of the rows, and of the columns (None without), the log-sum-exp of the negatives and, with `extrema`, the largest."""
    kind, key_a, key_b = candidates
    stride = max(a.shape[-2] // 2, 1) if b is None else 1
    result = negatives(
        a,
        b,
        scale,
        options.hardness,
        kind=kind,
        stride=stride,
        key_a=key_a,
        key_b=key_b,
        **arguments,
    )
    return (result.rows, result.row_max), (result.cols, result.col_max)


def in_batch(
    a, b, scale, options: Options, *, normalize, both=False, target=None, keys=None, bias=None, metrics=False, backend=None
) -> Outcome:  # fmt: skip
    """Every row of a against all rows of b, the positive of row i being row i of b, or ``target[i]``; with `both` the mean with the other
    direction.

    ``keys``: of the columns; a row has that of its positive. ``bias``: of the columns; with `both` a pair, of a and of b, or None.
    """
    kind, key_a, key_b = "not_self", None, None
    if target is not None or keys is not None:
        kind = "other_key"
        key_b = torch.arange(b.shape[0], device=b.device) if keys is None else keys
        key_a = key_b[: a.shape[0]] if target is None else key_b.index_select(0, target)
    unit = scale if normalize else None
    if not any(options) and bias is None and target is None:
        result = similarity(
            a, b, scale, kind=kind, key_a=key_a, key_b=key_b, positive=0, normalize=normalize, columns=both,
            extrema=metrics, backend=backend,
        )  # fmt: skip
        ranks = ((result.pos, result.row_max), (result.pos, result.col_max))
        return Outcome(result.loss, result.pos, unit, ranks if both else ranks[:1])

    def own(x):
        """What belongs to the columns, of each row's positive."""
        return (
            None if x is None else x[: a.shape[0]] if target is None else x.index_select(0, target)
        )

    dtype, a, b = matrix_dtype(a), exact_rows(a, normalize), exact_rows(b, normalize)
    product = dot(a, own(b), scale)
    forward, backward = (kind, key_a, key_b), (kind, key_b, key_a)
    found = (None, None)
    if both and bias is None:  # one pass for both
        found = lse_and_largest(
            a,
            b,
            scale,
            options,
            forward,
            columns=True,
            extrema=metrics,
            dtype=dtype,
            backend=backend,
        )
    of_a, of_b = bias if both and bias is not None else (None, bias)
    more = {"metrics": metrics, "dtype": dtype, "backend": backend}
    loss, rank = one_direction(
        a,
        b,
        product,
        scale,
        options,
        forward,
        bias=of_b,
        own_bias=own(of_b),
        found=found[0],
        **more,
    )
    if not both:
        return Outcome(loss, scale * product, unit, (rank,))
    other, other_rank = one_direction(
        b, a, product, scale, options, backward, bias=of_a, own_bias=of_a, found=found[1], **more
    )
    return Outcome((loss + other) / 2, scale * product, unit, (rank, other_rank))
