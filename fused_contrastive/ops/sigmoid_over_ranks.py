"""The sigmoid family over the ranks of a process group: sums of softplus over all ranks' columns.

Contract
--------
As in ops/similarity_over_ranks.py, each rank calls with its own rows and columns, and the
candidates describe its own columns. The positive, where there is one, is among these, too.

``sigmoid_over_ranks`` takes ``a, b, scale, row_bias, key_a, key_b``, the candidates, ``positive``
and ``sign`` as ``sigmoid_forward`` does. It returns

    rows [G, M]        sums of softplus over the candidates of all ranks
    pos [G, M]         the logit of the positive, with ``positive >= 0``
    row_max [G, M]     as ``sigmoid_forward``, with ``extrema``
    sizes [W, 2]       the rows and columns of each rank, int64 on the CPU

``sigmoid_over_ranks_backward`` returns the gradients of the sum over all ranks of
``<g_rows, rows>`` with respect to this rank's a, b and row_bias, and a share of the scale's. Sums
need no merging. Every rank meets the columns of all ranks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..distributed.exchange import Exchange, Result, Visit
from ..distributed.groups import Ranks, agree
from . import _fakes
from ._columns import Kinds, packed, unpacked, unread
from ._library import LIBRARY, implement_over_ranks
from .sigmoid import sigmoid_backward, sigmoid_forward

_OPERANDS = "Tensor a, Tensor? b, Tensor scale, Tensor? row_bias, Tensor? key_a, Tensor? key_b, "
_CANDIDATES = "str kind, SymInt offset, SymInt stride, SymInt positive, int sign, "
LIBRARY.define(
    f"sigmoid_over_ranks({_OPERANDS}{_CANDIDATES}bool extrema, ScalarType dtype, str backend, "
    "str ranks) -> (Tensor, Tensor, Tensor, Tensor)"
)
LIBRARY.define(
    f"sigmoid_over_ranks_backward(Tensor g_rows, {_OPERANDS}Tensor pos, Tensor sizes, "
    f"{_CANDIDATES}ScalarType dtype, bool need_a, bool need_b, bool need_scale, bool need_bias, "
    "str backend, str ranks) -> (Tensor, Tensor, Tensor, Tensor)"
)


def forward(
    a: Tensor,
    b: Tensor | None,
    scale: Tensor,
    row_bias: Tensor | None,
    key_a: Tensor | None,
    key_b: Tensor | None,
    kind: str,
    offset: int,
    stride: int,
    positive: int,
    sign: int,
    extrema: bool,
    dtype: torch.dtype,
    backend: str,
    encoded: str,
) -> tuple[Tensor, ...]:
    """The op ``sigmoid_over_ranks``."""
    ranks = Ranks.decode(encoded)
    G, M, D = a.shape
    a = a.to(dtype)
    b, key_b = (a, key_a) if b is None else (b.to(dtype), key_b)
    call = f"candidates {kind}, D = {D}, groups = {G}, {dtype}, sign {sign}, extrema {extrema}"
    call += f", positive {positive >= 0}"
    sizes = agree(ranks, M, b.shape[1], call)
    kinds = Kinds(kind, offset, stride, key_a)
    keys = [] if key_b is None else [key_b]
    total = scale.new_zeros((G, M), dtype=torch.float64)
    row_max = scale.new_full((G, M), -torch.inf)
    pos = scale.new_empty((G, M) if positive >= 0 else 0)

    def compute(visit: Visit, met: list[Tensor]) -> list[Tensor]:
        others = met[0]
        if M == 0 or others.shape[1] == 0:
            return []
        key = unpacked(met[1:], [torch.int64] * len(keys))
        candidates = kinds.among(visit.own, slice(None), key[0] if key else None)
        found = sigmoid_forward(
            *(a, others, scale, row_bias, candidates.key_a, candidates.key_b),
            *(candidates.kind, candidates.offset, candidates.stride),
            positive if visit.own else -1,
            sign,
            False,
            extrema,
            dtype,
            backend,
        )
        rows, its_pos, largest, *_ = found
        total.add_(rows)
        if visit.own and positive >= 0:
            pos.copy_(its_pos)
        if extrema:
            torch.maximum(row_max, largest, out=row_max)
        return []

    columns = [n for _, n in sizes]
    exchange = Exchange(ranks.process_group, ranks.strategy, columns, half=False, results=())
    exchange.run([b, *packed(keys)], compute)
    row_max = row_max if extrema else scale.new_empty(0)
    return total.to(scale.dtype), pos, row_max, torch.tensor(sizes)


def backward(
    g_rows: Tensor,
    a: Tensor,
    b: Tensor | None,
    scale: Tensor,
    row_bias: Tensor | None,
    key_a: Tensor | None,
    key_b: Tensor | None,
    pos: Tensor,
    sizes: Tensor,
    kind: str,
    offset: int,
    stride: int,
    positive: int,
    sign: int,
    dtype: torch.dtype,
    need_a: bool,
    need_b: bool,
    need_scale: bool,
    need_bias: bool,
    backend: str,
    encoded: str,
) -> tuple[Tensor, ...]:
    """The op ``sigmoid_over_ranks_backward``."""
    ranks, one_set = Ranks.decode(encoded), b is None
    inputs = a, a if b is None else b
    a = a.to(dtype)
    b, key_b = (a, key_a) if b is None else (b.to(dtype), key_b)
    G, M, D = a.shape
    need_b = need_a if one_set else need_b
    wide, nothing = scale.dtype, scale.new_empty(0)
    kinds = Kinds(kind, offset, stride, key_a)
    keys = [] if key_b is None else [key_b]
    results = (Result("sum", D, wide),) * need_b
    gradient = scale.new_zeros((G, M, D) if need_a else 0)
    of_bias = scale.new_zeros((G, M) if need_bias else 0)
    of_scale = torch.zeros((), dtype=torch.float64, device=a.device)

    def compute(visit: Visit, met: list[Tensor]) -> list[Tensor]:
        others = met[0]
        if M == 0 or others.shape[1] == 0:
            return [scale.new_zeros(G, others.shape[1], r.width) for r in results]
        key = unpacked(met[1:], [torch.int64] * len(keys))
        candidates = kinds.among(visit.own, slice(None), key[0] if key else None)
        hats = (nothing.to(dtype) if dtype == wide else x.contiguous() for x in (a, others))
        da, db, dscale, dbias = sigmoid_backward(
            g_rows,
            *(unread(a, wide), unread(others, wide), scale, row_bias),
            *(candidates.key_a, candidates.key_b),
            *(pos if visit.own else nothing, *hats, nothing, nothing),
            *(candidates.kind, candidates.offset, candidates.stride),
            positive if visit.own else -1,
            sign,
            False,
            dtype,
            *(need_a, need_b, need_scale, need_bias),
            backend,
        )
        if need_a:
            gradient.add_(da)
        if need_scale:
            of_scale.add_(dscale)
        if need_bias:
            of_bias.add_(dbias)
        return [db] if need_b else []

    columns = [int(n) for n in sizes[:, 1]]
    exchange = Exchange(ranks.process_group, ranks.strategy, columns, half=False, results=results)
    home = exchange.run([b, *packed(keys)], compute)
    if one_set and need_a:
        gradient += home[0]
    return (
        gradient.to(inputs[0].dtype),
        home[0].to(inputs[1].dtype) if need_b and not one_set else inputs[1].new_empty(0),
        of_scale.to(wide) if need_scale else scale.new_empty(0),
        of_bias,
    )


implement_over_ranks("sigmoid_over_ranks", forward)
implement_over_ranks("sigmoid_over_ranks_backward", backward)
sigmoid_over_ranks = torch.ops.fused_contrastive.sigmoid_over_ranks.default
sigmoid_over_ranks_backward = torch.ops.fused_contrastive.sigmoid_over_ranks_backward.default


@torch.library.register_fake("fused_contrastive::sigmoid_over_ranks", lib=LIBRARY)
def _(a, b, scale, *rest):
    *_, positive, _sign, extrema, _dtype, _backend, ranks = rest
    rows = a.shape[:2]
    return (
        scale.new_empty(rows),
        scale.new_empty(rows if positive >= 0 else (0,)),
        scale.new_empty(rows if extrema else (0,)),
        torch.empty((Ranks.decode(ranks).size, 2), dtype=torch.int64, device="cpu"),
    )


@torch.library.register_fake("fused_contrastive::sigmoid_over_ranks_backward", lib=LIBRARY)
def _(g_rows, a, b, scale, *rest):
    return _fakes.gradients(a, b, scale, rest[-6:-2], a.shape[:2])
