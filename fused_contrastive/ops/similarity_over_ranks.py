"""The similarity family over the ranks of a process group: each op is one exchange.

Contract
--------
Every rank calls with its own rows ``a [G, M, D]`` and columns ``b [G, N, D]``. G and D are those of
all ranks, M and N are its own, and may be 0. Every column of every rank is a candidate of every
row, with this exception: `kind`, `offset` and `stride` (problem.py) describe this rank's own
columns. In the columns of other ranks the index kinds exclude nothing, and the keyed kinds compare
keys, without a self. A row's positive is one of this rank's own columns.

``similarity_over_ranks`` takes the arguments of ``similarity_forward`` without ``weighted``, and
``ranks`` after them. It returns the same tensors without ``mean``, and at the end

    sizes [W, 2]       the rows and columns of each rank, int64 on the CPU

The log-sum-exps and largest logits of rows are over the columns of all ranks, and those of columns
over the rows of all ranks. With one set (``b=None``) the offset is 0 or NO_SELF. An absent tensor
has one dimension, for a tensor with more of them may be empty.

``similarity_over_ranks_backward`` takes the arguments of ``similarity_backward`` with ``sizes`` in
place of ``mean``, and ``ranks`` after them. It returns the gradients of the sum of what all ranks
make of their results, with respect to this rank's a, b and bias. Of the scale's gradient it returns
a share: the shares of all ranks add up to the gradient.

The flops of all ranks together are those of one process with all rows. A pair of shards of one set
is computed by one of its ranks only. ``ranks`` is `Ranks.encode`. Its ``call`` and the options are
compared on the host before anything is exchanged. There are no second derivatives.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..distributed.groups import Ranks
from ..dtypes import accumulation_dtype
from ..problem import (
    Candidates,
    Forward,
    Gradients,
    LogSumExp,
    Needs,
    Prepared,
    Problem,
    Saved,
    Upstream,
    Wanted,
)
from . import _fakes
from ._codec import similarity_operands
from ._library import LIBRARY, implement_over_ranks
from ._similarity_exchange import backward, forward

_OPERANDS = "Tensor a, Tensor? b, Tensor scale, Tensor? bias, Tensor? key_a, Tensor? key_b, "
_CANDIDATES = "str kind, SymInt offset, SymInt stride, SymInt positive, bool normalize, "
LIBRARY.define(
    f"similarity_over_ranks({_OPERANDS}{_CANDIDATES}bool columns, bool extrema, ScalarType dtype, "
    "str backend, str ranks) -> (" + ", ".join(["Tensor"] * 11) + ")"
)
LIBRARY.define(
    f"similarity_over_ranks_backward(Tensor g_rows, Tensor g_cols, {_OPERANDS}Tensor rows, "
    "Tensor cols, Tensor pos, Tensor a_hat, Tensor b_hat, Tensor a_inv, Tensor b_inv, "
    f"Tensor sizes, {_CANDIDATES}ScalarType dtype, bool need_a, bool need_b, bool need_scale, "
    "bool need_bias, str backend, str ranks) -> (Tensor, Tensor, Tensor, Tensor)"
)


def _problem(operands, candidates, dtype: torch.dtype) -> Problem:
    a, b, scale, bias, key_a, key_b = operands
    kind, offset, stride, positive, normalize = candidates
    among = Candidates(kind, offset, stride, key_a, key_a if b is None else key_b)
    return Problem(a, b, scale, bias, among, positive, normalize=normalize, dtype=dtype)


def _or_absent(x: Tensor | None, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return like.new_empty(0, dtype=dtype) if x is None else x


def _present(x: Tensor) -> Tensor | None:
    return x if x.dim() > 1 else None


def _forward(*arguments) -> tuple[Tensor, ...]:
    *operands, kind, offset, stride, positive, normalize = arguments[:11]
    columns, extrema, dtype, backend, ranks = arguments[11:]
    problem = _problem(operands, (kind, offset, stride, positive, normalize), dtype)
    wanted = Wanted(columns, extrema, mean=False)
    found, sizes = forward(problem, wanted, backend, Ranks.decode(ranks))
    scale = problem.scale
    hats = (_or_absent(x, scale, dtype) for x in found.prepared[:2])
    inverses = (_or_absent(x, scale) for x in found.prepared[2:])
    return (
        found.row_lse.parts,
        _or_absent(None if found.col_lse is None else found.col_lse.parts, scale),
        _or_absent(found.pos, scale),
        _or_absent(found.loss, scale),
        _or_absent(found.row_max, scale),
        _or_absent(found.col_max, scale),
        *hats,
        *inverses,
        torch.tensor(sizes),
    )


def _backward(*arguments) -> tuple[Tensor, ...]:
    g_rows, g_cols, *operands = arguments[:8]
    rows, cols, pos, *prepared, sizes = arguments[8:16]
    *candidates, dtype = arguments[16:22]
    *needs, backend, ranks = arguments[22:]
    problem = _problem(operands, candidates, dtype)
    saved = Saved(
        row_lse=LogSumExp(rows),
        col_lse=None if _present(cols) is None else LogSumExp(cols),
        pos=_present(pos),
        prepared=Prepared(*(_present(x) for x in prepared)),
        mean=None,
    )
    columns = sizes[:, 1].tolist()
    upstream, need = Upstream(g_rows, _present(g_cols)), Needs(*needs)
    where = {"backend": backend, "ranks": Ranks.decode(ranks)}
    found = backward(upstream, problem, saved, need, columns, **where)
    a, b, scale = problem.a, problem.b, problem.scale
    return (
        _or_absent(found.a, a),
        _or_absent(found.b, a if b is None else b),
        _or_absent(found.scale, scale),
        _or_absent(found.bias, scale),
    )


implement_over_ranks("similarity_over_ranks", _forward)
implement_over_ranks("similarity_over_ranks_backward", _backward)
similarity_over_ranks = torch.ops.fused_contrastive.similarity_over_ranks.default
similarity_over_ranks_backward = torch.ops.fused_contrastive.similarity_over_ranks_backward.default


@torch.library.register_fake("fused_contrastive::similarity_over_ranks", lib=LIBRARY)
def _(a, b, scale, bias, key_a, key_b, kind, offset, stride, positive, normalize, *rest):
    columns, extrema, dtype, _backend, ranks = rest
    G, M, _ = a.shape
    N = M if b is None else b.shape[1]
    accumulate = accumulation_dtype(dtype)

    def tensor(present, *shape):
        return a.new_empty(shape if present else (0,), dtype=accumulate)

    return (
        tensor(True, 2, G, M),
        tensor(columns, 2, G, N),
        tensor(positive >= 0, G, M),
        tensor(positive >= 0, G, M),
        tensor(extrema, G, M),
        tensor(extrema and columns, G, N),
        *_fakes.prepared(a, b, normalize, dtype),
        torch.empty((Ranks.decode(ranks).size, 2), dtype=torch.int64, device="cpu"),
    )


@torch.library.register_fake("fused_contrastive::similarity_over_ranks_backward", lib=LIBRARY)
def _(g_rows, g_cols, a, b, scale, *rest):
    G, N, _ = (a if b is None else b).shape
    return _fakes.gradients(a, b, scale, rest[-6:-2], (G, N))


def call_forward(
    problem: Problem, wanted: Wanted, backend: str, ranks: Ranks
) -> tuple[Forward, Tensor]:
    """Call the forward op on named arguments. The sizes follow what it found."""
    operands, candidates = similarity_operands(problem)
    options = (problem.normalize, wanted.columns, wanted.extrema, problem.dtype)
    found = similarity_over_ranks(*operands, *candidates, *options, backend, ranks.encode())
    rows, cols, pos, loss, row_max, col_max, *prepared, sizes = found
    forward = Forward(
        row_lse=LogSumExp(rows),
        col_lse=None if _present(cols) is None else LogSumExp(cols),
        pos=_present(pos),
        loss=_present(loss),
        row_max=_present(row_max),
        col_max=_present(col_max),
        prepared=Prepared(*(_present(x) for x in prepared)),
        mean=None,
    )
    return forward, sizes


def call_backward(
    upstream: Upstream,
    problem: Problem,
    saved: Saved,
    need: Needs,
    sizes: Tensor,
    *,
    backend: str,
    ranks: Ranks,
) -> Gradients:
    """Call the backward op on named arguments."""
    operands, candidates = similarity_operands(problem)
    scale = problem.scale
    tensors = (
        upstream.rows,
        _or_absent(upstream.cols, scale),
        *operands,
        saved.row_lse.parts,
        _or_absent(None if saved.col_lse is None else saved.col_lse.parts, scale),
        _or_absent(saved.pos, scale),
        *(_or_absent(x, scale) for x in saved.prepared),
    )
    options = (*candidates, problem.normalize, problem.dtype, *need)
    where = backend, ranks.encode()
    found = similarity_over_ranks_backward(*tensors, sizes, *options, *where)
    return Gradients(*(x if needed else None for x, needed in zip(found, need, strict=True)))
