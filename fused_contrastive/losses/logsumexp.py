"""The primitive that the losses are made of, for losses of your own."""

from __future__ import annotations

import math

import torch

from .. import checks
from ..autograd.similarity import similarity
from ..dtypes import accumulation_dtype
from ..problem import KEYED, KINDS, resolve_offset
from ..scalars import as_scalar
from ._arguments import asks_for_eager
from ._comparison import fixed_zeros
from ._over_ranks import over_ranks
from ._unread import unread_columns

LARGEST = 1e37
"""Larger biases count as infinite. With an infinite logit some kernels return NaN."""


@over_ranks
def similarity_logsumexp(
    a: torch.Tensor,
    b: torch.Tensor | None = None,
    *,
    scale: float | torch.Tensor = 1.0,
    bias: torch.Tensor | None = None,
    normalize: bool = False,
    candidates: str = "all",
    self_offset: int | None = None,
    pair_stride: int | None = None,
    key_a: torch.Tensor | None = None,
    key_b: torch.Tensor | None = None,
    return_columns: bool = False,
    group=None,
    strategy: str = "auto",
    backend: str | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """``logsumexp_j(scale * <a_i, b_j> + bias_j)`` over the candidate columns of each row.

    It takes O((M + N) D) memory. Every loss here is made of this primitive. It is differentiable in
    `a`, `b`, `scale` and `bias`.

    >>> import torch
    >>> from fused_contrastive import similarity_logsumexp
    >>> z = torch.eye(3)
    >>> similarity_logsumexp(z, scale=2.0, candidates="not_self")
    tensor([0.6931, 0.6931, 0.6931])
    >>> rows, columns = similarity_logsumexp(z, torch.zeros(5, 3), return_columns=True)
    >>> rows.shape, columns.shape
    (torch.Size([3]), torch.Size([5]))

    Args:
        a: ``[..., M, D]`` embeddings.
        b: ``[..., N, D]``, with the leading dimensions, dtype and device of a; None: b is a.
        scale: a number or 0-d tensor, whose value is never read.
        bias: ``[N]`` or ``[..., N]``, added to the logits of each column; ``-inf`` removes a
            column.
        normalize: divide every row of a and b by ``max(|x|, 1e-12)`` first.
        candidates: which columns count for row i. ``"all"``; ``"not_self"`` (j != i + self_offset);
            ``"not_pair"`` (j - i - self_offset is not a multiple of `pair_stride`); ``"other_key"``
            (key_b[j] != key_a[i]); ``"same_key"`` (equal keys, without the self where there is
            one).
        self_offset: the column of row 0's self; None: 0 for one set, no self for two. Two sets need
            it with ``"not_self"``.
        pair_stride: rows per view of a set of stacked views, for ``"not_pair"``.
        key_a: integer keys of the rows, ``[M]`` or ``[..., M]``, and of the columns with one set.
        key_b: integer keys of the columns, ``[N]`` or ``[..., N]``, with two sets.
        return_columns: also return the log-sum-exp over the candidate rows of each column. It comes
            from the same pass.
        group, strategy: a and b are this rank's rows and columns, and all ranks' columns are
            candidates (see `fused_contrastive.losses`). `self_offset` and `pair_stride` describe
            this rank's own columns. A rank's inputs receive the gradient of the sum of what all
            ranks make of their results; of the scale's gradient a rank receives a share.
        backend: a name of `backends()`; None: the default of the device.

    Returns:
        ``[..., M]`` (and ``[..., N]``), float32, or float64 for float64 inputs. Where there is no
        candidate it is -inf, and where a candidate has the bias +inf it is +inf, with gradient 0.

    Raises:
        ValueError, TypeError: an argument is wrong; the error names it.
    """
    checks.embeddings("a", a, at_least=2)
    if b is not None:
        checks.embeddings("b", b, at_least=2, like=("a", a))
        if b.shape[:-2] != a.shape[:-2] or b.shape[-1] != a.shape[-1]:
            raise ValueError(
                f"b must have shape [..., N, D] matching a {tuple(a.shape)}, got {tuple(b.shape)}"
            )
    M, lead = a.shape[-2], a.shape[:-2]
    N = M if b is None else b.shape[-2]
    checks.number("scale", scale, a.device)
    checks.choice("candidates", candidates, KINDS)
    checks.flags(normalize=normalize, return_columns=return_columns)
    if bias is not None:
        checks.embeddings("bias", bias, at_least=1)
        if bias.device != a.device:
            raise ValueError(f"bias must be on the device of a ({a.device}), got {bias.device}")
        if bias.shape[-1] != N or not checks.broadcastable(bias.shape, (*lead, N)):
            raise ValueError(
                f"bias must be broadcastable to shape {(*lead, N)}, got {tuple(bias.shape)}"
            )
    checks.index("pair_stride", pair_stride)
    checks.index("self_offset", self_offset)
    if candidates == "not_self" and b is not None and self_offset is None:
        raise ValueError(
            "self_offset must be given with two sets and candidates='not_self', for no column is "
            "left out without it; with self_offset=0 row i leaves out column i"
        )
    if (pair_stride is not None) != (candidates == "not_pair") or (
        pair_stride is not None and pair_stride < 1
    ):
        raise ValueError(
            "pair_stride must be a positive number of rows, with candidates='not_pair' only, "
            f"got {pair_stride}"
        )
    if candidates in KEYED:
        checks.keys("key_a", key_a, (*lead, M), a.device)
        if b is None and key_b is not None:
            raise ValueError("key_b must be None with one set (b=None): its keys are key_a")
        if b is not None:
            checks.keys("key_b", key_b, (*lead, N), a.device)
    elif key_a is not None or key_b is not None:
        raise ValueError(
            f"key_a and key_b need candidates in {KEYED}, got candidates={candidates!r}"
        )
    asks_for_eager(backend, group)
    kind, offset = resolve_offset(candidates, self_offset, b is None)
    if normalize:
        a, b = fixed_zeros(a), None if b is None else fixed_zeros(b)
    if bias is not None:
        # Logits with a bias are not symmetric, so they need two sets anyway.
        b, key_b = (a, key_a) if b is None else (b, key_b)
        b = unread_columns(b, bias)
        bias = bias.to(accumulation_dtype(a.dtype)).clamp(max=LARGEST)
    result = similarity(
        a,
        b,
        as_scalar(scale, a),
        bias=bias,
        key_a=key_a,
        key_b=key_b,
        kind=kind,
        offset=offset,
        stride=pair_stride or 1,
        normalize=normalize,
        columns=return_columns,
        backend=backend,
        ranks=group,
    )
    found = [result.rows, result.cols] if return_columns else [result.rows]
    if bias is not None:
        found = [x.masked_fill(x > LARGEST / 2, math.inf) for x in found]
    rows, *columns = found
    return (rows, columns[0]) if return_columns else rows
