"""The log-sum-exp over negatives that a guide has not called false, as an op.

Contract
--------
``query [M, D]`` and ``docs [C, D]`` are rows as the products read them, in the accumulation dtype.
The first N documents are positives. The positive of query i is document ``offset + i``, and all
other documents are candidates. With `contrast_queries` all queries are candidates, too, whose
similarities are ``<query_i, query_j>``. With `contrast_positives` the positives are, and their
similarities are ``<docs_(offset + i), docs_j>``.

The guide's rows are ``guide_query [M, E]`` and ``guide_docs [C, E]``. Without them the similarities
themselves are the guide's. Let t be the guide's similarity of a query with its positive. Then a
candidate whose similarity is above ``t - margin``, or ``t - margin |t|`` if `relative`, is a false
negative and is left out. A query, or a positive, is a candidate of itself if `self_pairs`.

``guided_forward`` returns ``lse [M]``, of ``scale`` times the similarities. ``guided_backward``
takes ``g [M]``, too, and returns ``(lse, d_query, d_docs, d_scale)``. With ``pos [M]`` the gradient
is that of ``Σ g_i softplus(lse_i - pos_i)``, otherwise that of ``Σ g_i lse_i``.

Similarities live in panels of whole rows, one at a time. A row's softmax is known as soon as its
panel is, so that one sweep gives the loss and its gradient: ``6 D + 2 E`` flops for each pair,
where the dense form takes the same. Memory is O((M + C)(D + E)) and one panel. A panel has `ROWS`
rows, so the panel is O(M + C), too. Similarities that a guide rounds apart by less than `SLACK` are
equal, so that duplicates are treated alike wherever they stand.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..backends.panels._panel import product, widen
from ..dtypes import outside_autocast
from ._library import LIBRARY

ROWS = 256
"""A panel has so many rows on a CPU. Other devices get 4 times that."""

SLACK = 16.0
"""The guide's similarities are equal up to this many times the unit of their dtype."""

_ARGUMENTS = (
    "Tensor query, Tensor docs, Tensor scale, Tensor? guide_query, Tensor? guide_docs, "
    "SymInt positives, SymInt offset, bool contrast_queries, bool contrast_positives, "
    "bool self_pairs, float margin, bool relative, ScalarType dtype"
)
LIBRARY.define(f"guided_forward({_ARGUMENTS}) -> Tensor")
LIBRARY.define(
    f"guided_backward({_ARGUMENTS}, Tensor g, Tensor? pos) -> (Tensor, Tensor, Tensor, Tensor)"
)


class Guided(NamedTuple):
    """The arguments that both ops have, in their order."""

    query: Tensor  # [M, D]
    docs: Tensor  # [C, D]
    scale: Tensor  # []
    guide_query: Tensor | None  # [M, E]
    guide_docs: Tensor | None  # [C, E]
    positives: int
    offset: int
    contrast_queries: bool
    contrast_positives: bool
    self_pairs: bool
    margin: float
    relative: bool
    dtype: torch.dtype

    def blocks(self) -> Iterator[tuple[tuple[str, slice], tuple[str, slice], int | None]]:
        """The rows, the columns, and the diagonal that is no candidate, of each block of pairs.

        The blocks of a query stand beside one another. Rows and columns are parts of the set that
        is named.
        """
        M, C = self.query.shape[0], self.docs.shape[0]
        queries = "query", slice(0, M)
        yield queries, ("docs", slice(0, C)), self.offset
        itself = None if self.self_pairs else 0
        if self.contrast_queries:
            yield queries, queries, itself
        if self.contrast_positives:
            own = slice(self.offset, self.offset + M)
            columns = slice(0, self.positives)
            yield ("docs", own), ("docs", columns), None if itself is None else self.offset

    def guide(self) -> dict[str, Tensor] | None:
        """The guide's rows of both sets."""
        if self.guide_query is None:
            return None
        return {"query": self.guide_query, "docs": self.guide_docs}

    def limit(self, own: Tensor) -> Tensor:
        """The largest similarity of a true negative, where that of the positive is ``own [m]``."""
        limit = own - self.margin * (own.abs() if self.relative else 1.0)
        return limit + SLACK * torch.finfo(own.dtype).eps * (1 + own.abs())


def sweep(problem: Guided, g: Tensor | None = None, pos: Tensor | None = None):
    """The log-sum-exps ``[M]``, and with ``g [M]`` the gradients of both sets and of the scale."""
    (M, _), blocks = problem.query.shape, list(problem.blocks())
    sets = {name: widen(getattr(problem, name).to(problem.dtype)) for name in ("query", "docs")}
    guide = problem.guide()
    gradients = {name: torch.zeros_like(getattr(problem, name)) for name in sets}
    widths = [columns[1].stop - columns[1].start for _, columns, _ in blocks]
    ends = [sum(widths[: k + 1]) for k in range(len(widths))]
    places = [slice(end - width, end) for end, width in zip(ends, widths, strict=True)]
    lse, d_scale = problem.query.new_empty(M), torch.zeros_like(problem.scale)
    step = ROWS if problem.query.device.type == "cpu" else 4 * ROWS
    room = problem.query.new_empty(min(M, step), ends[-1])
    other = torch.empty_like(room)
    for start in range(0, M, step):
        stop = min(start + step, M)
        s, t = room[: stop - start], other[: stop - start]
        _products(s, sets, blocks, places, start)
        if guide is None:
            t.copy_(s)
        else:
            _products(t, guide, blocks, places, start)
        own = t.diagonal(problem.offset + start, 0, 1).clone()
        s.mul_(problem.scale).masked_fill_(t > problem.limit(own).unsqueeze(1), -torch.inf)
        for (_, _, diagonal), columns in zip(blocks, places, strict=True):
            if diagonal is not None:
                s[:, columns].diagonal(diagonal + start, 0, 1).fill_(-torch.inf)
        largest = s.amax(1)
        largest.masked_fill_(largest == -torch.inf, 0.0)
        e = s.sub_(largest.unsqueeze(1)).exp_()
        total = e.sum(1)
        lse[start:stop] = largest + total.log()
        if g is None:
            continue
        weight = g[start:stop]
        if pos is not None:
            weight = weight * torch.sigmoid(lse[start:stop] - pos[start:stop])
        weight = (weight / total).masked_fill_(total == 0, 0.0).unsqueeze(1)
        for (rows, columns, _), place in zip(blocks, places, strict=True):
            a, b = _part(sets, rows, start, stop), sets[columns[0]][columns[1]]
            found = _product(e[:, place], b).mul_(weight)
            d_scale += (found * a).sum()
            _part(gradients, rows, start, stop).add_(found)
            _add_product(gradients[columns[0]][columns[1]], e[:, place].mT, a, weight)
    if g is None:
        return lse
    return lse, *(x.mul_(problem.scale) for x in gradients.values()), d_scale


def _part(sets: dict[str, Tensor], rows: tuple[str, slice], start: int, stop: int) -> Tensor:
    """The rows `start` to `stop` of those that a block has."""
    name, whole = rows
    return sets[name][whole.start + start : whole.start + stop]


def _products(out: Tensor, sets: dict[str, Tensor], blocks, places: list[slice], start: int):
    """Fill a panel with the similarities of the rows from `start` on in all blocks."""
    for (rows, (name, columns), _), place in zip(blocks, places, strict=True):
        a = _part(sets, rows, start, start + out.shape[0])
        b = sets[name][columns].mT
        if a.dtype == out.dtype:
            torch.mm(a, b, out=out[:, place])
        else:
            out[:, place] = product(a[None], b[None])[0]


def _product(e: Tensor, b: Tensor) -> Tensor:
    """``e @ b`` in the dtype of e. float16 could not hold the exponentials, but bfloat16 can."""
    if b.dtype == torch.bfloat16:
        return product(e.to(b.dtype)[None], b[None])[0]
    return e @ b.to(e.dtype)


def _add_product(total: Tensor, e: Tensor, a: Tensor, weight: Tensor) -> None:
    """Add ``e @ (weight a)`` to `total`."""
    rows = a * weight
    if a.dtype == torch.bfloat16:
        total.add_(_product(e, rows.to(a.dtype)))
    else:
        total.addmm_(e, rows)


def _forward(*arguments) -> Tensor:
    with torch.no_grad(), outside_autocast(arguments[0].device):
        return sweep(Guided(*arguments))


def _backward(*arguments) -> tuple[Tensor, ...]:
    *problem, g, pos = arguments
    with torch.no_grad(), outside_autocast(g.device):
        return sweep(Guided(*problem), g, pos)


LIBRARY.impl("guided_forward", _forward, "CompositeExplicitAutograd")
LIBRARY.impl("guided_backward", _backward, "CompositeExplicitAutograd")
guided_forward = torch.ops.fused_contrastive.guided_forward.default
guided_backward = torch.ops.fused_contrastive.guided_backward.default


@torch.library.register_fake("fused_contrastive::guided_forward", lib=LIBRARY)
def _(query, *_):
    return query.new_empty(query.shape[0])


@torch.library.register_fake("fused_contrastive::guided_backward", lib=LIBRARY)
def _(query, docs, scale, *_):
    rows = query.new_empty(query.shape[0])
    return rows, *(x.new_empty(x.shape) for x in (query, docs)), torch.empty_like(scale)
