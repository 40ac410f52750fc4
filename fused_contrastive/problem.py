"""The vocabulary of every layer: who is compared with whom, and what travels between the layers.

Column ``j`` is a candidate of row ``i`` when

========== ========================================================================
all        always
not_self   ``j != i + offset``
not_pair   ``(j - i - offset) % stride != 0`` (self and partner of stacked views)
other_key  ``key_b[j] != key_a[i]``
same_key   ``key_b[j] == key_a[i]`` and ``j != i + offset``
========== ========================================================================

The positive of row ``i``, where a loss has one, is column ``(i + positive) % N``; ``positive = -1``
means that there is none. The index kinds exclude diagonals, so a mask is needed only in tiles that
cross one.

Sizes in the comments below: ``G`` groups, ``M`` rows, ``N`` columns, ``D`` features, ``K``
temperatures. A field that may be absent is None.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

MaybeNone: TypeAlias = Any
"""``Tensor | MaybeNone`` is a tensor, or None where it is absent. Whoever reads it knows which.

Type checkers do not ask for a test of None there. The name is typeshed's.
"""

ABSENT: MaybeNone = None
"""None, in place of a tensor that nothing reads."""

KINDS = ("all", "not_self", "not_pair", "other_key", "same_key")
KEYED = ("other_key", "same_key")
NO_SELF = -(2**31)
"""An offset that no pair of indices can have: there is no self."""

FAR = 1 << 30
"""An offset beyond any index, yet small enough for differences in 32 bits."""


def resolve_offset(kind: str, self_offset: int | None, one_set: bool) -> tuple[str, int]:
    """The (kind, offset) that the kernels see: without a self, ``not_self`` is ``all``."""
    offset = self_offset if self_offset is not None else (0 if one_set else NO_SELF)
    if kind == "not_self" and offset == NO_SELF:
        kind = "all"
    if kind == "not_pair" and offset == NO_SELF:
        offset = 0
    return kind, offset


class Candidates(NamedTuple):
    """The candidates of every row of a matrix of M rows and N columns, or of a part of it."""

    kind: str = "all"
    offset: int = 0
    stride: int = 1
    key_a: Tensor | MaybeNone = None  # [G, M] int64, for the kinds in KEYED
    key_b: Tensor | MaybeNone = None  # [G, N] int64; with one set it is key_a

    def resolved(self, M: int, N: int) -> Candidates:
        """The same candidates with an offset and a stride of the order of M and N.

        There is no mask where none is needed.

        Keys that the kind does not read are dropped; the others become contiguous.
        """
        kind, offset, stride, key_a, key_b = self
        if kind in KEYED:
            one_set = key_b is key_a
            key_a = key_a.contiguous()
            key_b = key_a if one_set else key_b.contiguous()
        else:
            key_a = key_b = None
        if kind == "not_pair":
            offset = (offset + stride // 2) % stride - stride // 2
            if stride < 2 * (M + N):
                return Candidates(kind, offset % stride, stride, None, None)
            kind = "not_self"
        if kind == "not_self" and not -M < offset < N:
            kind = "all"
        return Candidates(kind, max(-FAR, min(offset, FAR)), 1, key_a, key_b)

    def within(self, g: slice, i: slice, j: slice) -> Candidates:
        """The candidates of the part with groups `g`, rows `i` and columns `j`.

        Its indices count from 0 again.
        """
        kind, offset, stride, key_a, key_b = self
        if kind in KEYED:
            key_a, key_b = key_a[g, i], key_b[g, j]
        if kind in ("not_self", "not_pair", "same_key"):
            offset += i.start - j.start
        if kind == "not_pair":
            offset %= stride
        return Candidates(kind, offset, stride, key_a, key_b)

    def excluded_diagonals(self, m: int, n: int) -> range:
        """The diagonals ``j - i`` of m rows and n columns whose pairs an index kind excludes."""
        low, high = 1 - m, n
        if self.kind == "not_self":
            return range(self.offset, self.offset + 1) if low <= self.offset < high else range(0)
        if self.kind == "not_pair":
            return range(low + (self.offset - low) % self.stride, high, self.stride)
        return range(0)

    def mask(self, m: int, n: int, device: torch.device) -> Tensor | None:
        """Where a matrix of m rows and n columns has candidates.

        The mask is ``[m, n]``, or with keys ``[..., m, n]``. None stands for everywhere.
        """
        if self.kind == "all":
            return None
        rows, columns = torch.arange(m, device=device), torch.arange(n, device=device)
        difference = columns[None, :] - rows[:, None] - self.offset
        if self.kind == "not_self":
            return difference != 0
        if self.kind == "not_pair":
            return difference % self.stride != 0
        equal = self.key_a[..., :, None] == self.key_b[..., None, :]
        return ~equal if self.kind == "other_key" else equal & (difference != 0)


class LogSumExp(NamedTuple):
    """A log-sum-exp in two parts, so that no digit of it is lost: it is ``value + lost``."""

    parts: Tensor  # [2, G, M]

    @property
    def value(self) -> Tensor:
        """``[G, M]``, -inf where there are no candidates."""
        return self.parts[0]

    @property
    def lost(self) -> Tensor:
        """``[G, M]``: what the rounding of `value` has lost, 0 where `value` is not finite."""
        return self.parts[1]

    def at(self, order: Tensor) -> LogSumExp:
        """The log-sum-exps of these rows, ``[len(order)]``, in this order."""
        return LogSumExp(self.parts[..., order])


class Prepared(NamedTuple):
    """Rows as the products read them, and the inverse norms that led to them."""

    a_hat: Tensor | MaybeNone  # [G, M, D] in the matrix dtype; None: a is read as it is
    b_hat: Tensor | MaybeNone  # [G, N, D]; None: b is read as it is, or there is one set
    a_inv: Tensor | MaybeNone  # [G, M] accumulation dtype; None: nothing is normalised
    b_inv: Tensor | MaybeNone  # [G, N]


class Problem(NamedTuple):
    """One call of the similarity family.

    ``s_ij = scale * <a_i, b_j> + bias_j`` over the candidates.
    """

    a: Tensor  # [G, M, D]
    b: Tensor | MaybeNone  # [G, N, D]; None: b is a, and the problem is symmetric
    scale: Tensor  # []
    bias: Tensor | MaybeNone  # [G, N]
    candidates: Candidates
    positive: int  # offset of the positive's column, or -1
    normalize: bool
    dtype: torch.dtype  # of the products' operands

    @property
    def one_set(self) -> bool:
        """Whether the columns are the rows."""
        return self.b is None

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """``(G, M, N, D)``."""
        G, M, D = self.a.shape
        return G, M, M if self.b is None else self.b.shape[1], D


class Wanted(NamedTuple):
    """What a forward pass is asked for beside the rows' log-sum-exp."""

    columns: bool  # the columns' log-sum-exp
    extrema: bool  # the largest logits
    mean: bool  # the softmax-weighted mean of the columns


class Forward(NamedTuple):
    """What a forward pass of the similarity family returns."""

    row_lse: LogSumExp
    col_lse: LogSumExp | MaybeNone
    pos: Tensor | MaybeNone  # [G, M]
    loss: Tensor | MaybeNone  # [G, M]
    row_max: Tensor | MaybeNone  # [G, M]
    col_max: Tensor | MaybeNone  # [G, N]
    prepared: Prepared
    mean: Tensor | MaybeNone  # [G, M, D]


class Upstream(NamedTuple):
    """The gradients of what a forward pass returned."""

    rows: Tensor  # [G, M]: of the loss where there is a positive, else of the rows' log-sum-exp
    cols: Tensor | MaybeNone  # [G, N]: of the columns' log-sum-exp


class Saved(NamedTuple):
    """What a forward pass of the similarity family leaves for the backward pass."""

    row_lse: LogSumExp
    col_lse: LogSumExp | MaybeNone
    pos: Tensor | MaybeNone
    prepared: Prepared
    mean: Tensor | MaybeNone


class Needs(NamedTuple):
    """Which gradients a backward pass has to compute."""

    a: bool
    b: bool
    scale: bool
    bias: bool


class Gradients(NamedTuple):
    """The gradients that were needed, the others None."""

    a: Tensor | MaybeNone  # [G, M, D]; with one set the whole gradient of the set
    b: Tensor | MaybeNone  # [G, N, D]
    scale: Tensor | MaybeNone  # []
    bias: Tensor | MaybeNone  # [G, N]; in the sigmoid family of the row bias [G, M]


class SigmoidProblem(NamedTuple):
    """One call of the sigmoid family.

    ``y_ij = sign * (scale * <a_i, b_j> + row_bias_i)`` over the candidates.
    """

    a: Tensor  # [G, M, D]
    b: Tensor | MaybeNone  # [G, N, D]; None: b is a
    scale: Tensor  # []
    row_bias: Tensor | MaybeNone  # [G, M]
    candidates: Candidates
    positive: int
    sign: int
    normalize: bool
    dtype: torch.dtype

    @property
    def one_set(self) -> bool:
        """Whether the columns are the rows."""
        return self.b is None

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """``(G, M, N, D)``."""
        G, M, D = self.a.shape
        return G, M, M if self.b is None else self.b.shape[1], D


class SigmoidForward(NamedTuple):
    """What a forward pass of the sigmoid family returns."""

    rows: Tensor  # [G, M]
    pos: Tensor | MaybeNone  # [G, M]
    row_max: Tensor | MaybeNone  # [G, M]
    prepared: Prepared


class SigmoidSaved(NamedTuple):
    """What a forward pass of the sigmoid family leaves for the backward pass."""

    pos: Tensor | MaybeNone
    prepared: Prepared


class ForceProblem(NamedTuple):
    """One call of the force family.

    The defaults are those of the plain force; ops/force.py defines every field.
    """

    x: Tensor  # [G, P, D]: the negatives, then the positives
    inverse_temperatures: Tensor  # [K]
    scale: Tensor | MaybeNone  # [G]; None: the mean distance
    weight: Tensor | MaybeNone  # [G, P]
    rows: int
    negatives: int
    all_rows: bool = True
    mask: bool = False
    self_logit: float = -math.inf
    floor: float = -math.inf
    denominator: float = -math.inf
    clip: float = 0.0
    rms: bool = False
    separate: bool = False


class ForceForward(NamedTuple):
    """What a forward pass of the force family returns.

    S is 1, or K where the temperatures stay separate.
    """

    force: Tensor  # [S, G, rows, D]
    log_norm: Tensor  # [K, G]
    scale: Tensor  # [G]
    lse_rows: Tensor  # [K, G, rows or P]
    lse_cols: Tensor | MaybeNone  # [K, G, P]; None where every point is a row
    shift: Tensor  # [2, K, G, rows]
    sums: Tensor  # [2, K, G, rows]
