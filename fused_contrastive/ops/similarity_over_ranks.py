"""The similarity family over the ranks of a process group: each op is one exchange.

Contract
--------
Every rank calls with its own rows ``a [G, M, D]`` and columns ``b [G, N, D]``. G and D are those of
all ranks, M and N are its own, and may be 0. Every column of every rank is a candidate of every
row, with this exception: `kind`, `offset` and `stride` (problem.py) describe this rank's own
columns. In the columns of other ranks the index kinds exclude nothing, and the keyed kinds compare
keys, without a self. There is no positive and no normalisation: the losses add both to what these
ops return.

``similarity_over_ranks`` takes ``a, b, scale, bias, key_a, key_b`` and the candidates as
``similarity_forward`` does. It returns

    rows [2, G, M]     log-sum-exp over the candidate columns of all ranks, in two parts
    cols [2, G, N]     the same of this rank's columns over the rows of all ranks, with ``columns``
    row_max [G, M]     the largest logit of each row, with ``extrema``
    col_max [G, N]     the largest logit of each column, with ``extrema`` and ``columns``
    sizes [W, 2]       the rows and columns of each rank, int64 on the CPU

``similarity_over_ranks_backward`` returns the gradients of the sum over all ranks of
``<g_rows, rows> + <g_cols, cols>``, with respect to this rank's a, b and bias. Of the scale's
gradient it returns a share: the shares of all ranks add up to the gradient of that sum.

The flops of all ranks together are those of one process with all rows. A pair of shards of one set
(``b=None``) is computed by one of its ranks only. ``ranks`` is `Ranks.encode`; its ``call`` and the
options below are compared on the host before anything is exchanged. There are no second
derivatives.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..distributed.exchange import Exchange, Result, Visit
from ..distributed.groups import Ranks, agree
from ..problem import LogSumExp, Needs, Problem, Saved, Upstream, Wanted
from . import _fakes
from ._columns import Kinds, as_one, in_two_parts, packed, rounded, unpacked, unread
from ._library import LIBRARY, implement_over_ranks
from .similarity import call_backward, call_forward

_OPERANDS = "Tensor a, Tensor? b, Tensor scale, Tensor? bias, Tensor? key_a, Tensor? key_b, "
_CANDIDATES = "str kind, SymInt offset, SymInt stride, "
LIBRARY.define(
    f"similarity_over_ranks({_OPERANDS}{_CANDIDATES}bool columns, bool extrema, ScalarType dtype, "
    "str backend, str ranks) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
LIBRARY.define(
    f"similarity_over_ranks_backward(Tensor g_rows, Tensor g_cols, {_OPERANDS}Tensor rows, "
    f"Tensor cols, Tensor sizes, {_CANDIDATES}ScalarType dtype, bool need_a, bool need_b, "
    "bool need_scale, bool need_bias, str backend, str ranks) -> (Tensor, Tensor, Tensor, Tensor)"
)


def forward(
    a: Tensor,
    b: Tensor | None,
    scale: Tensor,
    bias: Tensor | None,
    key_a: Tensor | None,
    key_b: Tensor | None,
    kind: str,
    offset: int,
    stride: int,
    columns: bool,
    extrema: bool,
    dtype: torch.dtype,
    backend: str,
    ranks: str,
) -> tuple[Tensor, ...]:
    """The op ``similarity_over_ranks``."""
    ranks, one_set = Ranks.decode(ranks), b is None
    G, M, D = a.shape
    # The shards are sent as the products read them.
    a = a.to(dtype)
    b, key_b = (a, key_a) if one_set else (b.to(dtype), key_b)
    call = f"{kind} {columns} {extrema} {bias is None} {dtype} {G} {D}"
    sizes = agree(ranks, M, b.shape[1], call)
    of_columns = columns or one_set
    results = (Result("lse", 1, torch.float64),) * of_columns
    if of_columns and extrema:
        results += (Result("max", 1, scale.dtype),)
    kinds = Kinds(kind, offset, stride, key_a)
    vectors = [x for x in (key_b, bias) if x is not None]
    total = a.new_full((G, M), -torch.inf, dtype=torch.float64)
    row_max = scale.new_full((G, M), -torch.inf)

    def compute(visit: Visit, met: list[Tensor]) -> list[Tensor]:
        rows, others = a[:, visit.rows], met[0]
        symmetric = one_set and visit.own
        if symmetric:
            # What other ranks find out about this rank's columns is about its rows.
            found = [x.unsqueeze(-1) for x in (total, row_max)[: len(results)]]
        else:
            shape = G, others.shape[1], 1
            found = [total.new_full(shape, r.nothing, dtype=r.dtype) for r in results]
        if rows.numel() == 0 or others.shape[1] == 0:
            return found
        values = iter(unpacked(met[1:], [x.dtype for x in vectors]))
        key = None if key_b is None else next(values)
        problem = Problem(
            rows,
            None if symmetric else others,
            scale,
            None if bias is None else next(values),
            candidates=kinds.among(visit.own, visit.rows, key),
            positive=-1,
            normalize=False,
            dtype=dtype,
        )
        both = of_columns and not symmetric
        result = call_forward(problem, Wanted(both, extrema, mean=False), backend)
        mine = total[:, visit.rows]
        mine.copy_(torch.logaddexp(mine, as_one(result.row_lse.parts)))
        if extrema:
            largest = row_max[:, visit.rows]
            largest.copy_(torch.maximum(largest, result.row_max))
        if both:
            found[0] = as_one(result.col_lse.parts).unsqueeze(-1)
            if extrema:
                found[1] = result.col_max.unsqueeze(-1)
        return found

    exchange = Exchange(
        ranks.process_group, ranks.strategy, [n for _, n in sizes], one_set, results
    )
    home = [x.squeeze(-1) for x in exchange.run([b, *packed(vectors)], compute)]
    # Outputs of an op share no memory, so each absent one is a tensor of its own.
    cols, col_max = scale.new_empty(0), scale.new_empty(0)
    if columns:
        cols = in_two_parts(home[0], scale.dtype)
        col_max = home[1] if extrema else col_max
    rows = in_two_parts(total, scale.dtype)
    row_max = row_max if extrema else scale.new_empty(0)
    return rows, cols, row_max, col_max, torch.tensor(sizes)


def backward(
    g_rows: Tensor,
    g_cols: Tensor,
    a: Tensor,
    b: Tensor | None,
    scale: Tensor,
    bias: Tensor | None,
    key_a: Tensor | None,
    key_b: Tensor | None,
    rows: Tensor,
    cols: Tensor,
    sizes: Tensor,
    kind: str,
    offset: int,
    stride: int,
    dtype: torch.dtype,
    need_a: bool,
    need_b: bool,
    need_scale: bool,
    need_bias: bool,
    backend: str,
    ranks: str,
) -> tuple[Tensor, ...]:
    """The op ``similarity_over_ranks_backward``."""
    ranks, one_set = Ranks.decode(ranks), b is None
    inputs = a, a if one_set else b
    a = a.to(dtype)
    b, key_b = (a, key_a) if one_set else (b.to(dtype), key_b)
    G, M, D = a.shape
    of_columns = one_set or cols.dim() == 3
    need = Needs(need_a, need_a if one_set else need_b, need_scale, need_bias)
    wide = scale.dtype
    kinds = Kinds(kind, offset, stride, key_a)
    vectors = [x for x in (key_b, bias) if x is not None]
    if of_columns:
        # A column's weights are exp(s - lse) times its upstream gradient.
        lse, g = (rows, g_rows) if one_set else (cols, g_cols)
        vectors += [lse[0], lse[1], g]
    results = (Result("sum", D, wide),) * need.b + (Result("sum", 1, wide),) * need.bias
    gradient = scale.new_zeros((G, M, D) if need.a else 0)
    of_scale = torch.zeros((), dtype=torch.float64, device=a.device)

    def compute(visit: Visit, met: list[Tensor]) -> list[Tensor]:
        part, others = a[:, visit.rows], met[0]
        n, symmetric = others.shape[1], one_set and visit.own
        if part.numel() == 0 or n == 0:
            if symmetric:
                return [gradient] * len(results)
            return [scale.new_zeros(G, n, r.width) for r in results]
        values = iter(unpacked(met[1:], [x.dtype for x in vectors]))
        key = None if key_b is None else next(values)
        of_bias = None if bias is None else next(values)
        lse, g = None, None
        if of_columns:
            lse, g = torch.stack([next(values), next(values)]), next(values)
        problem = Problem(
            unread(part, wide),
            None if symmetric else unread(others, wide),
            scale,
            of_bias,
            candidates=kinds.among(visit.own, visit.rows, key),
            positive=-1,
            normalize=False,
            dtype=dtype,
        )
        saved = Saved(
            row_lse=LogSumExp(rows[:, :, visit.rows]),
            col_lse=None if symmetric or lse is None else LogSumExp(lse),
            pos=None,
            prepared=rounded(part, None if symmetric else others, wide),
            mean=None,
        )
        upstream = Upstream(g_rows[:, visit.rows], None if symmetric else g)
        wanted = need._replace(b=need.b and not symmetric)
        found = call_backward(upstream, problem, saved, wanted, backend)
        if need.a:
            gradient[:, visit.rows] += found.a
        if need.scale:
            of_scale.add_(found.scale)
        home = []
        if need.b:
            # What other ranks find out about this rank's columns is about its rows.
            home.append(gradient if symmetric else found.b)
        if need.bias:
            home.append(found.bias.unsqueeze(-1))
        return home

    columns = [int(n) for n in sizes[:, 1]]
    exchange = Exchange(ranks.process_group, ranks.strategy, columns, one_set, results)
    home = exchange.run([b, *packed(vectors)], compute)
    return (
        gradient.to(inputs[0].dtype),
        home[0].to(inputs[1].dtype) if need_b and not one_set else inputs[1].new_empty(0),
        of_scale.to(wide) if need_scale else scale.new_empty(0),
        home[-1].squeeze(-1) if need_bias else scale.new_empty(0),
    )


implement_over_ranks("similarity_over_ranks", forward)
implement_over_ranks("similarity_over_ranks_backward", backward)
similarity_over_ranks = torch.ops.fused_contrastive.similarity_over_ranks.default
similarity_over_ranks_backward = torch.ops.fused_contrastive.similarity_over_ranks_backward.default


@torch.library.register_fake("fused_contrastive::similarity_over_ranks", lib=LIBRARY)
def _(a, b, scale, bias, key_a, key_b, kind, offset, stride, columns, extrema, *rest):
    *_, ranks = rest
    G, M, _ = a.shape
    N = M if b is None else b.shape[1]

    def tensor(present, *shape):
        return scale.new_empty(shape if present else (0,))

    sizes = torch.empty((Ranks.decode(ranks).size, 2), dtype=torch.int64, device="cpu")
    return (
        tensor(True, 2, G, M),
        tensor(columns, 2, G, N),
        tensor(extrema, G, M),
        tensor(extrema and columns, G, N),
        sizes,
    )


@torch.library.register_fake("fused_contrastive::similarity_over_ranks_backward", lib=LIBRARY)
def _(g_rows, g_cols, a, b, scale, *rest):
    G, N, _ = (a if b is None else b).shape
    return _fakes.gradients(a, b, scale, rest[-6:-2], (G, N))
