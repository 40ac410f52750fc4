"""Calls of the ops over ranks, and what dense code makes of the rows of all ranks."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from conftest import host_kernels

from fused_contrastive.autograd.over_ranks import sigmoid_over_ranks, similarity_over_ranks
from fused_contrastive.distributed import exchange
from fused_contrastive.distributed.groups import Ranks
from fused_contrastive.losses._reduction import masked_logsumexp

D = 5
KEYED = ("other_key", "same_key")


@dataclass(frozen=True)
class Call:
    """One call of the op of a family on every rank.

    `rows` and `columns` are the sizes of each rank. With one set they are the same.
    """

    family: str
    kind: str
    rows: tuple[int, ...]
    columns: tuple[int, ...] | None = None
    offset: int = 0
    bias: bool = False
    both: bool = False
    extrema: bool = False
    lead: tuple[int, ...] = ()
    strategy: str = "ring"
    backend: str = "cpu"
    dtype: torch.dtype = torch.float64
    part: int = exchange.PIECE

    @property
    def sizes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The rows and the columns of each rank."""
        return self.rows, self.rows if self.columns is None else self.columns

    def draw(self) -> dict:
        """The operands of all ranks together, whose values `dtype` can hold."""
        generator = torch.Generator().manual_seed(sum(self.rows))

        def normal(*shape):
            x = torch.randn(*shape, generator=generator, dtype=torch.float64)
            return x.to(self.dtype).double()

        M, N = map(sum, self.sizes)
        found = {"a": normal(*self.lead, M, D), "scale": torch.tensor(0.75, dtype=torch.float64)}
        if self.columns is not None:
            found["b"] = normal(*self.lead, N, D)
        if self.bias:
            # The bias of the sigmoid family belongs to rows.
            found["bias"] = normal(M if self.family == "sigmoid" else N)
        if self.kind in KEYED:
            found["key_a"] = torch.randint(0, 3, (*self.lead, M), generator=generator)
            if self.columns is not None:
                found["key_b"] = torch.randint(0, 3, (*self.lead, N), generator=generator)
        return found

    def upstream(self) -> list[torch.Tensor]:
        """The upstream gradients of the rows, and of the columns."""
        generator = torch.Generator().manual_seed(1)
        shapes = ((*self.lead, sum(sizes)) for sizes in self.sizes)
        return [torch.rand(x, generator=generator, dtype=torch.float64) + 0.5 for x in shapes]


def own(call: Call, x: torch.Tensor, of_rows: bool, rank: int, dim: int) -> torch.Tensor:
    """A rank's part of a tensor of all ranks."""
    return x.split(call.sizes[not of_rows], dim)[rank].clone()


def share(call: Call, rank: int) -> dict:
    """A rank's operands, in the dtypes that the op takes."""
    wide = torch.promote_types(call.dtype, torch.float32)
    found = {}
    for name, x in call.draw().items():
        if x.dim() == 0:
            found[name] = x.to(wide)
            continue
        of_rows = name in ("a", "key_a") or (name == "bias" and call.family == "sigmoid")
        found[name] = own(call, x, of_rows, rank, -2 if name in "ab" else -1)
        if name in "ab":
            found[name] = found[name].to(call.dtype)
        elif name == "bias":
            found[name] = found[name].to(wide)
    return {k: x.requires_grad_() if x.is_floating_point() else x for k, x in found.items()}


def on_one_rank(group, calls) -> list[dict]:
    """What a rank computes in each call: results, and gradients by operand."""
    with pytest.MonkeyPatch.context() as patch:
        if any(call.backend == "cuda" for call in calls):
            host_kernels("cuda", torch.device("cpu"), patch)
        return [_one(group, call, patch) for call in calls]


def _one(group, call, patch) -> dict:
    patch.setattr(exchange, "PIECE", call.part)
    rank = dist.get_rank(group)
    ranks = Ranks(group.group_name, call.strategy, "test()")
    operands = share(call, rank)
    keys = {name: x for name, x in operands.items() if name.startswith("key")}
    if call.kind in KEYED and call.columns is None:
        keys["key_b"] = keys["key_a"]
    where = {"kind": call.kind, "offset": call.offset, "backend": call.backend, **keys}
    where |= {"extrema": call.extrema, "stride": 2 if call.kind == "not_pair" else 1}
    a, b, scale = operands["a"], operands.get("b"), operands["scale"]
    g_rows, g_cols = (
        own(call, g, i == 0, rank, -1).to(scale.dtype) for i, g in enumerate(call.upstream())
    )
    if call.family == "sigmoid":
        rows, _, row_max = sigmoid_over_ranks(a, b, scale, operands.get("bias"), ranks, **where)
        found, total = {"rows": rows, "row_max": row_max}, (rows * g_rows).sum()
    else:
        where |= {"bias": operands.get("bias"), "columns": call.both}
        result = similarity_over_ranks(a, b, scale, ranks, **where)
        found = {"rows": result.rows, "row_max": result.row_max, "col_max": result.col_max}
        total = _without_empty(result.rows, g_rows)
        if call.both:
            found["cols"] = result.cols
            total = total + _without_empty(result.cols, g_cols)
    total.backward()
    found |= {name: x.grad for name, x in operands.items() if x.requires_grad}
    return {name: x.detach() for name, x in found.items() if x is not None}


def together(call: Call, results: list[dict]) -> dict:
    """The results of all ranks put together. What they have of the scale is added up."""
    found = {}
    for name in results[0]:
        parts = [x[name].double() for x in results]
        if name == "scale":
            found[name] = sum(parts)
        else:
            found[name] = torch.cat(parts, -2 if name in "ab" else -1)
    return found


def candidates(call: Call, operands: dict) -> torch.Tensor:
    """Which columns of all ranks count for each row of all ranks, ``[..., M, N]``."""
    M, N = map(sum, call.sizes)
    key_a = operands.get("key_a")
    if key_a is not None:
        key_b = operands.get("key_b", key_a)
        same = key_a.unsqueeze(-1) == key_b.unsqueeze(-2)
        keep = same if call.kind == "same_key" else ~same
    else:
        keep = torch.ones(M, N, dtype=torch.bool)
    keep, start = keep.clone(), [0, 0]
    for m, n in zip(*call.sizes, strict=True):
        i, j = torch.arange(m)[:, None], torch.arange(n)[None]
        excluded = torch.zeros(m, n, dtype=torch.bool)
        if call.kind in ("not_self", "same_key"):
            excluded = j == i + call.offset
        elif call.kind == "not_pair":
            excluded = (j - i - call.offset) % 2 == 0
        block = keep[..., start[0] : start[0] + m, start[1] : start[1] + n]
        block &= ~excluded
        start = [start[0] + m, start[1] + n]
    return keep


def dense(call: Call) -> dict:
    """What `together` should be, in float64."""
    operands = {
        name: x.requires_grad_() if x.is_floating_point() else x for name, x in call.draw().items()
    }
    a, scale, bias = operands["a"], operands["scale"], operands.get("bias")
    b = operands.get("b", a)
    s = scale * (a @ b.mT)
    keep = candidates(call, operands)
    g_rows, g_cols = call.upstream()
    if call.family == "sigmoid":
        s = s if bias is None else s + bias.unsqueeze(-1)
        found = {"rows": F.softplus(s).masked_fill(~keep, 0.0).sum(-1)}
        total = (found["rows"] * g_rows).sum()
    else:
        s = (s if bias is None else s + bias).masked_fill(~keep, -torch.inf)
        found = {"rows": masked_logsumexp(s, -1)}
        total = _without_empty(found["rows"], g_rows)
        if call.both:
            found["cols"] = masked_logsumexp(s, -2)
            total = total + _without_empty(found["cols"], g_cols)
    masked = s.masked_fill(~keep, -torch.inf)
    if call.extrema:
        found["row_max"] = masked.amax(-1)
        if call.both:
            found["col_max"] = masked.amax(-2)
    total.backward()
    found |= {name: x.grad for name, x in operands.items() if x.requires_grad}
    return {name: x.detach() for name, x in found.items()}


def _without_empty(lse, g):
    return (lse.masked_fill(lse == -torch.inf, 0.0) * g).sum()
