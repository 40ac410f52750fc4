"""Who is a candidate and who is a positive: described here once, for every layer and every backend.

Column ``j`` is a candidate of row ``i`` when

========== ========================================================================
all        always
not_self   ``j != i + offset``
not_pair   ``(j - i - offset) % stride != 0`` (self and partner of stacked views)
other_key  ``key_b[j] != key_a[i]``
same_key   ``key_b[j] == key_a[i]`` and ``j != i + offset``
========== ========================================================================

The positive of row ``i``, where a loss has one, is column ``(i + positive) % N``; ``positive = -1`` means there is none.
The index kinds exclude diagonals: a mask is needed only in tiles that cross one (`excluded_diagonals`).
"""

from __future__ import annotations

import torch

KINDS = ("all", "not_self", "not_pair", "other_key", "same_key")
KEYED = ("other_key", "same_key")
NO_SELF = -(2**31)
"""An offset no pair of indices can have: there is no self."""


def resolve_offset(kind: str, self_offset: int | None, one_set: bool) -> tuple[str, int]:
    """The (kind, offset) the kernels see: without a self, ``not_self`` is ``all``."""
    offset = self_offset if self_offset is not None else (0 if one_set else NO_SELF)
    if kind == "not_self" and offset == NO_SELF:
        kind = "all"
    if kind == "not_pair" and offset == NO_SELF:
        offset = 0
    return kind, offset


def excluded_diagonals(kind: str, offset: int, stride: int, i0: int, i1: int, j0: int, j1: int) -> range:
    """The diagonals ``(j - j0) - (i - i0)`` of the tile of rows [i0, i1) and columns [j0, j1) whose pairs an index kind excludes."""
    low, high = 1 - (i1 - i0), j1 - j0  # diagonals of the tile: [low, high)
    first = offset + i0 - j0
    if kind == "not_self":
        return range(first, first + 1) if low <= first < high else range(0)
    if kind == "not_pair":
        return range(low + (first - low) % stride, high, stride)
    return range(0)


def candidate_mask(
    kind: str,
    offset: int,
    stride: int,
    rows: torch.Tensor,
    columns: torch.Tensor,
    key_rows: torch.Tensor | None = None,
    key_columns: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """Boolean mask of the candidates for row indices ``[m]`` against column indices ``[n]``.

    Keys are ``[..., m]`` and ``[..., n]``. Returns ``[m, n]`` (``[..., m, n]`` with keys), or None when all are candidates.
    """
    if kind == "all":
        return None
    difference = columns[None, :] - rows[:, None] - offset
    if kind == "not_self":
        return difference != 0
    if kind == "not_pair":
        return difference % stride != 0
    equal = key_rows[..., :, None] == key_columns[..., None, :]
    return ~equal if kind == "other_key" else equal & (difference != 0)
