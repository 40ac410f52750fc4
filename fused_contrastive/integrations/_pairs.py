"""Pairs of rows and columns by their indices, which pytorch-metric-learning's losses list."""

from __future__ import annotations

import torch

from ..losses._comparison import Comparison, product
from ..problem import NO_SELF

# The rows of this many listed pairs are gathered at a time.
CHUNK = 1 << 12


class ListedDots(torch.autograd.Function):
    """``<a[i], b[j]>`` for index vectors i and j ``[P]``, in O(P) memory beside the operands."""

    @staticmethod
    def forward(ctx, a, b, i, j):
        ctx.save_for_backward(a, b, i, j)
        pairs = zip(i.split(CHUNK), j.split(CHUNK), strict=True)
        return torch.cat([(a[x] * b[y]).sum(1) for x, y in pairs])

    @staticmethod
    def backward(ctx, g):
        a, b, i, j = ctx.saved_tensors
        da, db = torch.zeros_like(a), torch.zeros_like(b)
        chunks = (v.split(CHUNK) for v in (i, j, g.unsqueeze(1)))
        for x, y, w in zip(*chunks, strict=True):
            da.index_add_(0, x, w * b[y])
            db.index_add_(0, y, w * a[x])
        return da, db, None, None


def listed_logits(compared: Comparison, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
    """The logits of the pairs of rows i and columns j, ``[P]``."""
    rows, columns, scale = compared.rows, compared.columns, compared.scale
    if 8 * len(i) > len(rows) * len(columns):
        return scale * product(rows, columns.T)[i, j]
    return scale * ListedDots.apply(rows, columns, i, j)


def listed_logsumexp(logits: torch.Tensor, row: torch.Tensor, rows: int) -> torch.Tensor:
    """The log-sum-exp ``[rows]`` of each row's logits, −inf where there are none.

    Logit ``p`` of the ``[P]`` belongs to row ``row[p]``.
    """
    largest = logits.new_full((rows,), float("-inf")).scatter_reduce(
        0, row, logits.detach(), "amax"
    )
    total = logits.new_zeros(rows).index_add(0, row, (logits - largest[row]).exp())
    return largest + total.log()


class Labelled:
    """The positives of each row, by labels ``[M]`` of the rows and ``[N]`` of the columns.

    They are the ``size`` entries of ``order`` from ``first`` on. With `exclude` both sets are one,
    and a row's own place is among these entries but is no positive.
    """

    def __init__(self, labels: torch.Tensor, ref_labels: torch.Tensor):
        self.exclude = ref_labels is labels
        self.labels = labels.to(torch.int64)
        self.ref_labels = self.labels if self.exclude else ref_labels.to(torch.int64)
        self.offset = 0 if self.exclude else NO_SELF
        ordered, self.order = self.ref_labels.sort(stable=True)
        self.first = torch.searchsorted(ordered, self.labels)
        self.size = torch.searchsorted(ordered, self.labels, right=True) - self.first
        self.ref_first = self.first
        if not self.exclude:
            self.ref_first = torch.searchsorted(ordered, self.ref_labels)
        self.count = self.size - 1 if self.exclude else self.size
        self.positives = int(self.count.sum())
        selves = len(labels) if self.exclude else 0
        self.negatives = len(labels) * len(ref_labels) - self.positives - selves

    def pairs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All pairs of row and positive, ``[P]`` each, in the library's order."""
        rows = torch.arange(len(self.labels), device=self.labels.device)
        a = rows.repeat_interleave(self.size)
        within = torch.arange(len(a), device=a.device) - (self.size.cumsum(0) - self.size)[a]
        p = self.order[self.first[a] + within]
        if self.exclude:
            others = a != p
            a, p = a[others], p[others]
        return a, p

    def sums(self, r: torch.Tensor) -> torch.Tensor:
        """The sum ``[M, D]`` of each row's positives among the columns ``r [N, D]``."""
        sums = r.new_zeros(len(r) + 1, r.shape[1]).index_add(0, self.ref_first, r)[self.first]
        return sums - r if self.exclude else sums

    def single_keys(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys ``[M]`` and ``[N]`` that agree for a row and what its log-sum-exp leaves out.

        It leaves out a positive that is the only one and, with `exclude`, the row's own place.
        """
        apart = len(self.ref_labels) + torch.arange(len(self.labels), device=self.labels.device)
        key_a = torch.where(self.count == 1, self.first, apart if self.exclude else -1)
        if self.exclude:
            return key_a, key_a
        return key_a, self.ref_first
