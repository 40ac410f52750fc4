"""What travels with a rank's columns, and which pairs of two ranks' rows and columns count."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..problem import KEYED, NO_SELF, Candidates, MaybeNone, Prepared


def packed(vectors: list[Tensor]) -> list[Tensor]:
    """Vectors ``[G, n]``, one number for each column, as at most one tensor ``[G, n, count]``.

    Integers and float64 numbers travel together as 64 bits. `unpacked` undoes this.
    """
    if not vectors:
        return []
    bits = [x if x.dtype == torch.int64 else x.double().view(torch.int64) for x in vectors]
    return [torch.stack(bits, -1)]


def unpacked(packed: list[Tensor], dtypes: list[torch.dtype]) -> list[Tensor]:
    """The vectors ``[G, n]`` that `packed` was given, in these dtypes."""
    found = []
    for bits, dtype in zip(packed[0].unbind(-1) if packed else (), dtypes, strict=True):
        x = bits.contiguous()
        found.append(x if dtype == torch.int64 else x.view(torch.float64).to(dtype))
    return found


class Kinds(NamedTuple):
    """The candidates of a rank's rows among its own columns, and their keys."""

    kind: str
    offset: int
    stride: int
    key_a: Tensor | MaybeNone  # [G, M]

    def among(self, own: bool, rows: slice, key_b: Tensor | None) -> Candidates:
        """The candidates of some rows among this rank's own columns, or those of another one."""
        keyed = self.kind in KEYED
        key_a = self.key_a[:, rows] if keyed else None
        if own:
            return Candidates(self.kind, self.offset, self.stride, key_a, key_b)
        if keyed:
            return Candidates(self.kind, NO_SELF, 1, key_a, key_b)
        return Candidates("all")


def in_two_parts(total: Tensor, dtype: torch.dtype) -> Tensor:
    """Log-sum-exps ``[G, M]`` in float64 as the two parts ``[2, G, M]`` that ops return."""
    value = total.to(dtype)
    lost = (total - value.double()).to(dtype)
    return torch.stack([value, lost.masked_fill(~value.isfinite(), 0.0)])


def as_one(parts: Tensor) -> Tensor:
    """``[2, G, M]`` as the sum ``[G, M]`` of both parts in float64."""
    return parts[0].double() + parts[1].double()


def unread(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows ``[G, n, D]`` whose gradient shall be in `dtype`, although products read another one.

    The products read the values of `rounded`, and these are never read.
    """
    return x if x.dtype == dtype else x.new_empty((), dtype=dtype).expand(x.shape)


def rounded(a: Tensor, b: Tensor | None, dtype: torch.dtype) -> Prepared:
    """Rows and columns as the products read them, None where they are of `dtype` themselves."""
    hats = (None if x is None or x.dtype == dtype else x.contiguous() for x in (a, b))
    a_hat, b_hat = hats
    return Prepared(a_hat, b_hat, None, None)
