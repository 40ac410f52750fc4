"""What a rank does in an exchange of the similarity family (ops/similarity_over_ranks.py).

The blocks, this rank's rows against the columns of one or several ranks, are calls of the family's
own ops. What is left to do here is to merge what they return, and to add the positives and the
normalisation, which a block knows nothing of.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends.panels._panel import EPS, prepare
from ..backends.panels.similarity import logit_gradients, paired_loss
from ..distributed.exchange import Exchange, Result, Visit
from ..distributed.groups import Ranks, agree
from ..problem import (
    ABSENT,
    Forward,
    Gradients,
    LogSumExp,
    MaybeNone,
    Needs,
    Prepared,
    Problem,
    Saved,
    Upstream,
    Wanted,
)
from ._columns import Kinds, as_one, in_two_parts, packed, rounded, unpacked, unread
from .similarity import call_backward, call_forward


def forward(
    problem: Problem, wanted: Wanted, backend: str, ranks: Ranks
) -> tuple[Forward, list[tuple[int, int]]]:
    """The forward pass, and the rows and columns of every rank."""
    scale, one_set, dtype = problem.scale, problem.one_set, problem.dtype
    G, M, N, D = problem.sizes
    call = f"candidates {problem.candidates.kind}, D = {D}, groups = {G}, {dtype}, {wanted}"
    call += f", bias {problem.bias is not None}, positive {problem.positive >= 0}"
    sizes = agree(ranks, M, N, call)
    x, a_inv = prepare(problem.a, problem.normalize, dtype)
    y, b_inv = (x, None) if one_set else prepare(problem.b, problem.normalize, dtype)
    of_columns = wanted.columns or one_set
    results = (Result("lse", 1, torch.float64),) * of_columns
    if of_columns and wanted.extrema:
        results += (Result("max", 1, scale.dtype),)
    candidates = problem.candidates
    kinds = Kinds(*candidates[:4])
    vectors = [v for v in (candidates.key_b, problem.bias) if v is not None]
    total = scale.new_full((G, M), -torch.inf, dtype=torch.float64)
    row_max = scale.new_full((G, M), -torch.inf)

    def compute(visit: Visit, met: list[Tensor]) -> list[Tensor]:
        rows, others = x[:, visit.rows], met[0]
        symmetric = one_set and visit.own
        if symmetric:
            # What other ranks find out about this rank's columns is about its rows.
            found = [v.unsqueeze(-1) for v in (total, row_max)[: len(results)]]
        else:
            shape = G, others.shape[1], 1
            found = [total.new_full(shape, r.nothing, dtype=r.dtype) for r in results]
        if rows.numel() == 0 or others.shape[1] == 0:
            return found
        values = iter(unpacked(met[1:], [v.dtype for v in vectors]))
        key = None if candidates.key_b is None else next(values)
        block = problem._replace(
            a=rows,
            b=None if symmetric else others,
            bias=None if problem.bias is None else next(values),
            candidates=kinds.among(visit.own, visit.rows, key),
            positive=-1,
            normalize=False,
        )
        both = of_columns and not symmetric
        result = call_forward(block, wanted._replace(columns=both), backend)
        mine = total[:, visit.rows]
        torch.logaddexp(mine, as_one(result.row_lse.parts), out=mine)
        if wanted.extrema:
            largest = row_max[:, visit.rows]
            torch.maximum(largest, result.row_max, out=largest)
        if both:
            found[0] = as_one(result.col_lse.parts).unsqueeze(-1)
            if wanted.extrema:
                found[1] = result.col_max.unsqueeze(-1)
        return found

    columns = [n for _, n in sizes]
    exchange = Exchange(ranks.process_group, ranks.strategy, columns, one_set, results)
    home = [v.squeeze(-1) for v in exchange.run([y, *packed(vectors)], compute)]
    row_lse = LogSumExp(in_two_parts(total, scale.dtype))
    col_lse = LogSumExp(in_two_parts(home[0], scale.dtype)) if wanted.columns else ABSENT
    pos = loss = ABSENT
    if problem.positive >= 0:
        pos = scale * positive_dots(problem, x, y)
        if problem.bias is not None:
            for rows, its in positive_pairs(problem):
                pos[:, rows] += problem.bias[:, its]
        loss = paired_loss(problem, row_lse, col_lse, pos) if M else pos.clone()
    kept = problem.normalize or problem.a.dtype != dtype
    kept_b = not one_set and (problem.normalize or problem.b.dtype != dtype)
    prepared = Prepared(x if kept else None, y if kept_b else None, a_inv, b_inv)
    found = Forward(
        row_lse=row_lse,
        col_lse=col_lse,
        pos=pos,
        loss=loss,
        row_max=row_max if wanted.extrema else None,
        col_max=home[1] if wanted.extrema and wanted.columns else None,
        prepared=prepared,
        mean=None,
    )
    return found, sizes


def backward(
    upstream: Upstream,
    problem: Problem,
    saved: Saved,
    need: Needs,
    columns: list[int],
    *,
    backend: str,
    ranks: Ranks,
) -> Gradients:
    """The backward pass, from the numbers of columns of all ranks."""
    scale, one_set = problem.scale, problem.one_set
    wide, candidates = scale.dtype, problem.candidates
    G, M, N, D = problem.sizes
    x = problem.a if saved.prepared.a_hat is None else saved.prepared.a_hat
    y = problem.b if saved.prepared.b_hat is None else saved.prepared.b_hat
    y = x if one_set else y
    c, h, g_pos = upstream.rows, upstream.cols, None
    if problem.positive >= 0 and M:
        c, h, g_pos = logit_gradients(upstream, problem, saved)
    two = saved.col_lse is not None
    of_columns = one_set or two
    if two and h is None:
        h = scale.new_zeros(G, N)
    row_lse = saved.row_lse.parts
    kinds = Kinds(*candidates[:4])
    vectors = [v for v in (candidates.key_b, problem.bias) if v is not None]
    if of_columns:
        # A column's weights are exp(s - lse) times the gradient of its log-sum-exp.
        col_lse, g = row_lse, c
        if not one_set:
            col_lse, g = saved.col_lse.parts, h
        vectors += [col_lse[0], col_lse[1], g]
    wanted = need._replace(b=need.a if one_set else need.b)
    results = (Result("sum", D, wide),) * wanted.b + (Result("sum", 1, wide),) * need.bias
    gradient = scale.new_empty((G, M, D) if need.a else 0)
    of_scale = torch.zeros((), dtype=torch.float64, device=x.device)

    def block(visit: Visit, met: list[Tensor]) -> list[Tensor]:
        nonlocal gradient
        rows, others = x[:, visit.rows], met[0]
        n, symmetric = others.shape[1], one_set and visit.own
        if rows.numel() == 0 or n == 0:
            if visit.own:
                gradient.zero_()
            if symmetric:
                return [gradient] * len(results)
            return [scale.new_zeros(G, n, r.width) for r in results]
        values = iter(unpacked(met[1:], [v.dtype for v in vectors]))
        key = None if candidates.key_b is None else next(values)
        bias = None if problem.bias is None else next(values)
        lse, g = None, None
        if of_columns:
            lse, g = torch.stack([next(values), next(values)]), next(values)
        block = problem._replace(
            a=unread(rows, wide),
            b=None if symmetric else unread(others, wide),
            bias=bias,
            candidates=kinds.among(visit.own, visit.rows, key),
            positive=-1,
            normalize=False,
        )
        its = Saved(
            row_lse=LogSumExp(row_lse[:, :, visit.rows]),
            col_lse=None if symmetric or lse is None else LogSumExp(lse),
            pos=None,
            prepared=rounded(rows, None if symmetric else others, wide),
            mean=None,
        )
        given = Upstream(c[:, visit.rows], None if symmetric else g)
        asked = wanted._replace(b=wanted.b and not symmetric)
        found = call_backward(given, block, its, asked, backend)
        if need.a and visit.own:
            gradient = found.a
        elif need.a:
            gradient[:, visit.rows] += found.a
        if need.scale:
            of_scale.add_(found.scale)
        home = []
        if wanted.b:
            # What other ranks find out about this rank's columns is about its rows.
            home.append(gradient if symmetric else found.b)
        if need.bias:
            home.append(found.bias.unsqueeze(-1))
        return home

    def compute(visit: Visit, met: list[Tensor]) -> list[Tensor]:
        if visit.own:
            return block(visit, met)
        home: list[Tensor] = []
        for part in visit.parts(M):
            home = added(home, block(part, met))
        return home

    exchange = Exchange(ranks.process_group, ranks.strategy, columns, one_set, results)
    home = exchange.run([y, *packed(vectors)], compute)
    G_a = gradient if need.a else ABSENT
    G_b = home[0] if need.b and not one_set else ABSENT
    dbias = home[-1].squeeze(-1) if need.bias else ABSENT
    if g_pos is not None:
        add_positives(problem, x, y, scale * g_pos, (G_a, G_a if one_set else G_b))
        if need.scale:
            of_scale += (g_pos * positive_dots(problem, x, y)).sum()
        for rows, its in positive_pairs(problem) if need.bias else ():
            dbias[:, its] += g_pos[:, rows]
    a_hat, b_hat, a_inv, b_inv = saved.prepared
    return Gradients(
        a=finish(G_a, problem.a, a_hat, a_inv) if need.a else None,
        b=None if G_b is None else finish(G_b, problem.b, b_hat, b_inv),
        scale=of_scale.to(wide) if need.scale else None,
        bias=dbias,
    )


def added(totals: list[Tensor], found: list[Tensor]) -> list[Tensor]:
    """The totals, to which what was found is added, or what was found where there are none yet."""
    for total, x in zip(totals, found, strict=bool(totals)):
        total += x
    return totals or found


def positive_pairs(problem: Problem) -> list[tuple[slice, slice]]:
    """Slices of the rows, and of the columns that are their positives, in the same order."""
    _, M, N, _ = problem.sizes
    if not M:
        return []
    place = problem.positive % N
    first = min(M, N - place)
    pairs = [(slice(0, first), slice(place, place + first)), (slice(first, M), slice(0, M - first))]
    return pairs if first < M else pairs[:1]


def positive_dots(
    problem: Problem,
    x: Tensor,  # [G, M, D]
    y: Tensor,  # [G, N, D]
) -> Tensor:
    """``<x_i, y_p(i)>``, ``[G, M]``, of rows as the products read them."""
    dtype = problem.scale.dtype
    dots = problem.scale.new_empty(x.shape[:2])
    for rows, its in positive_pairs(problem):
        dots[:, rows] = torch.linalg.vecdot(x[:, rows].to(dtype), y[:, its].to(dtype))
    return dots


def add_positives(
    problem: Problem,
    x: Tensor,  # [G, M, D]
    y: Tensor,  # [G, N, D]
    g: Tensor,  # [G, M]
    gradients: tuple[Tensor | None, Tensor | None],  # [G, M, D] and [G, N, D]
) -> None:
    """Add the gradients of ``<x_i, y_p(i)>`` times g to those of the prepared rows and columns."""
    dtype = problem.scale.dtype
    G_a, G_b = gradients
    for rows, its in positive_pairs(problem):
        factor = g[:, rows].unsqueeze(-1)
        if G_a is not None:
            G_a[:, rows].addcmul_(y[:, its].to(dtype), factor)
        if G_b is not None:
            G_b[:, its].addcmul_(x[:, rows].to(dtype), factor)


def finish(
    gradient: Tensor,  # [G, M, D], overwritten
    x: Tensor,  # [G, M, D]
    hat: Tensor | MaybeNone,  # [G, M, D]; None: nothing is normalised or rounded
    inv: Tensor | None,  # [G, M]
) -> Tensor:
    """The gradient of the input x, in its dtype, from that of its prepared rows.

    Where there is a normalisation it is that of x, not of its rounded direction.
    """
    if inv is not None:
        inv = inv.unsqueeze(-1)
        exact = hat.dtype == gradient.dtype
        unit = hat if exact else x.to(gradient.dtype) * inv
        radial = torch.linalg.vecdot(unit, gradient).unsqueeze(-1) * (inv < 1 / EPS)
        gradient = gradient.addcmul_(unit, radial, value=-1).mul_(inv)
    return gradient.to(x.dtype)
