"""The cross entropy of a row with one positive, and what changes it.

The changes are keys, biases, label smoothing, margin, hardness and debiasing. Everything is
composed of the log-sum-exp of the negatives (`Comparison.lse`) and quantities of O(N D);
docs/maths.md has the derivations. Without options the loss is the forward op's own.
"""

from __future__ import annotations

import math

import torch

from ..autograd.keyed_sums import keyed_sums
from ..autograd.over_ranks import sum_over_ranks
from ..distributed.groups import Ranks
from ..ops.keyed_sums import widened
from ..problem import KEYED, Candidates
from ._arguments import Options
from ._comparison import Comparison, compare
from ._reduction import Direction, Outcome, one_positive


def sum_over_negatives(
    x: torch.Tensor,  # [..., N, C]
    rows: int,
    candidates: Candidates,
    ranks: Ranks | None = None,
) -> torch.Tensor:
    """``Σ_j x_j`` over the negatives of each row, ``[..., rows, C]``.

    There is one row where all rows have the same sum. The offset of the candidates is 0,
    ``not_pair`` has two views, and keys have one group or groups of one row. Over ranks the rows
    of all other ranks are negatives, too, but for those of equal keys.
    """
    kind, key_a, key_b = candidates.kind, candidates.key_a, candidates.key_b
    if ranks is None and not x.shape[-2]:
        return x.sum(-2, keepdim=True)
    if kind in KEYED and x.dim() == 3:
        return x.masked_fill((key_a == key_b).unsqueeze(-1), 0.0).sum(-2, keepdim=True)
    # A sum without its largest class may be small, so keys need float64 where the device has that.
    total = (widened(x) if kind in KEYED else x).sum(-2, keepdim=True)
    if ranks is not None:
        total = sum_over_ranks(total, ranks.encode())
    if kind == "all":
        return total
    if kind == "not_self":
        return total - x[:rows]
    if kind == "not_pair":
        return total - x - x.roll(rows // 2, 0)
    key_b = key_a if key_b is None else key_b
    return (total - keyed_sums(x, key_b, key_a, ranks, total.dtype)).to(x.dtype)


def count_and_total(
    compared: Comparison,
    candidates: Candidates,
    options: Options,
    bias: torch.Tensor | None = None,  # [..., N]
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The number of negatives of each row, and for smoothing the sum of their logits.

    Both are ``[..., M]``, or None where they are not needed.
    """
    if not (options.label_smoothing or options.tau_plus):
        return None, None
    a, scale = compared.rows, compared.scale
    columns = (a if compared.columns is None else compared.columns).to(scale.dtype)
    if not options.label_smoothing:
        columns = columns[..., :0]
    ones = columns.new_ones((*columns.shape[:-1], 1))
    parts = [columns, torch.zeros_like(ones), ones]
    if bias is not None:
        parts[1] = bias.to(scale.dtype).unsqueeze(-1)
        removed = parts[1] == -math.inf
        parts = [x.masked_fill(removed, 0.0) for x in parts]
    sums = sum_over_negatives(torch.cat(parts, -1), a.shape[-2], candidates, compared.ranks)
    count = sums[..., -1]
    if not options.label_smoothing:
        return count, None
    raw = compared.dot(sums[..., :-2])
    total = scale * raw + options.hardness * raw.detach() + sums[..., -2]
    # Over no negatives the total is 0, not what rounding has left of it.
    return count, total.masked_fill(count == 0, 0.0)


def debiased(
    lse: torch.Tensor,  # [M]
    pos: torch.Tensor,  # [M]
    count: torch.Tensor,  # [M]
    scale: torch.Tensor,  # []
    tau_plus: float,
) -> torch.Tensor:
    """The log-sum-exp of the negatives, corrected for those that are of the positive's class.

    It is ``log max((e^lse - tau_plus count e^pos) / (1 - tau_plus), count e^-|scale|)`` (Chuang et
    al. 2020, sec. 4).
    """
    log_count = count.log()
    # The product with 0 keeps NaN.
    floor = log_count - scale.abs() + 0 * lse.clamp_min(0)
    gap = pos + (log_count + math.log(tau_plus)) - lse

    def left(gap):
        return lse + torch.log(-torch.expm1(gap)) - math.log1p(-tau_plus)

    above = (left(gap.detach()) > floor).detach()
    return torch.where(above, left(gap.where(above, -1.0)), floor)


def cross_entropy(lse, pos, scale, options: Options, count=None, total=None) -> torch.Tensor:
    """The loss ``[M]`` of rows, from the log-sum-exp `lse` of their negatives.

    `pos` is the positive's logit before its margin; count and total are from `count_and_total`.
    """
    if options.tau_plus:
        lse = debiased(lse, pos, count, scale, options.tau_plus)
    if options.margin:
        pos = pos - options.margin * scale
    loss = one_positive(lse, pos)
    if options.label_smoothing:
        smooth = (count * pos - total) / (count + 1)
        # A loss whose positive is removed is infinite already.
        smooth = smooth.masked_fill(pos == -math.inf, 0.0)
        loss = loss + options.label_smoothing * smooth
    return loss


def one_direction(
    compared: Comparison,
    candidates: Candidates,
    product: torch.Tensor,  # [M]: <row_i, its positive>
    options: Options,
    *,
    bias: torch.Tensor | None = None,  # [..., N]
    own_bias: torch.Tensor | None = None,  # [M]: that of each row's positive
    found: tuple | None = None,
    metrics: bool = False,
):
    """The losses ``[M]`` of the rows, and their `Direction`.

    `found` is the pair of log-sum-exp and largest logit where a pass has found them already.
    """
    if found is None:
        result = compared.lse(candidates, hardness=options.hardness, bias=bias, extrema=metrics)
        found = result.rows, result.row_max
    lse, largest = found
    scale = compared.scale
    pos = scale * product if own_bias is None else scale * product + own_bias.to(scale.dtype)
    sums = count_and_total(compared, candidates, options, bias)
    if compared.rows.dim() == 3:
        # Each row is a group with columns of its own.
        lse, largest, *sums = (None if x is None else x.squeeze(-1) for x in (lse, largest, *sums))
    return cross_entropy(lse, pos, scale, options, *sums), Direction(pos, largest, lse)


def own_keys(b: torch.Tensor, ranks: Ranks | None) -> torch.Tensor:
    """A key ``[N]`` for each row of ``b [N, D]``, which no other row of any rank has."""
    keys = torch.arange(b.shape[0], device=b.device)
    return keys if ranks is None else keys * ranks.size + ranks.rank


def in_batch(
    a: torch.Tensor,  # [M, D]
    b: torch.Tensor,  # [N, D]
    scale: torch.Tensor,  # []
    options: Options,
    *,
    normalize: bool,
    both: bool = False,
    target: torch.Tensor | None = None,  # [M]
    keys: torch.Tensor | None = None,  # [N]
    bias: torch.Tensor | tuple | None = None,  # [N]; with `both` ([M], [N]), either None
    metrics: bool = False,
    group: Ranks | None = None,
    backend: str | None = None,
) -> Outcome:
    """Compare every row of a with all rows of b.

    The positive of row i is row i of b, or row ``target[i]``. With `both` the loss is the mean of
    this direction and the other. Keys and bias belong to the columns, and a row has the key of its
    positive.
    """
    kind, key_a, key_b = "not_self", None, None
    if target is not None or keys is not None:
        kind, key_b = "other_key", own_keys(b, group) if keys is None else keys
        key_a = key_b[: a.shape[0]] if target is None else key_b.index_select(0, target)
    candidates = Candidates(kind, key_a=key_a, key_b=key_b)
    to_cosine = scale if normalize else None
    if not any(options) and bias is None and target is None:
        wanted = {"normalize": normalize, "columns": both, "extrema": metrics}
        compared = Comparison(a, b, scale, backend=backend, ranks=group)
        result = compared.lse(candidates, positive=0, **wanted)
        directions = [Direction(result.pos, result.row_max, result.rows)]
        if both:
            directions.append(Direction(result.pos, result.col_max, result.cols))
        return Outcome(result.loss, result.pos, to_cosine, tuple(directions))

    def of_positives(x):
        """What belongs to the columns, taken at each row's positive."""
        if x is None:
            return None
        return x[: a.shape[0]] if target is None else x.index_select(0, target)

    compared = compare(a, b, scale, normalize=normalize, backend=backend, ranks=group)
    product = compared.dot(of_positives(compared.columns))
    found = (None, None)
    if both and bias is None:
        # One pass serves both directions.
        wanted = {"columns": True, "extrema": metrics}
        result = compared.lse(candidates, hardness=options.hardness, bias=None, **wanted)
        found = (result.rows, result.row_max), (result.cols, result.col_max)
    of_a, of_b = bias if both and bias is not None else (None, bias)
    biases = {"bias": of_b, "own_bias": of_positives(of_b)}
    forward = compared, candidates, product, options
    loss, direction = one_direction(*forward, **biases, found=found[0], metrics=metrics)
    if not both:
        return Outcome(loss, scale * product, to_cosine, (direction,))
    candidates = candidates._replace(key_a=key_b, key_b=key_a)
    backward = compared.reversed(), candidates, product, options
    biases = {"bias": of_a, "own_bias": of_a}
    other, turned = one_direction(*backward, **biases, found=found[1], metrics=metrics)
    return Outcome((loss + other) / 2, scale * product, to_cosine, (direction, turned))
