"""Rows compared with columns: what nearly every loss is made of."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..autograd.sigmoid import SigmoidResult, sigmoid_sum
from ..autograd.similarity import Result, similarity
from ..distributed.groups import Ranks
from ..dtypes import accumulation_dtype, in_autocast, matrix_dtype, outside_autocast
from ..problem import Candidates, MaybeNone
from ._hardness import negatives


class Comparison(NamedTuple):
    """Rows, the columns that they are compared with, and where the rows stand among the columns.

    Row i belongs to column ``i + offset``. Every index in `Candidates`, and every positive, is
    counted from there. Where there are `ranks`, the columns of all other ranks are candidates, too,
    as ops/similarity_over_ranks.py describes; the offset is that among this rank's own columns.
    """

    rows: torch.Tensor  # [..., M, D]
    columns: torch.Tensor | MaybeNone  # [..., N, D]; None: the rows
    scale: torch.Tensor  # []
    # The dtype of the products' operands. With None it is the matrix dtype of the rows.
    dtype: torch.dtype | None = None
    offset: int = 0
    backend: str | None = None
    ranks: Ranks | None = None

    def lse(
        self,
        candidates: Candidates,
        *,
        positive: int | None = None,
        hardness: float = 0.0,
        **options,
    ) -> Result:
        """The log-sum-exp ``[..., M]`` of each row's logits with its candidates.

        The result has what the `options` of `similarity` ask for, too.

        Args:
            positive: the positive of row i is column ``i + offset + positive``; the result then has
                the loss, too.
            hardness: see `negatives`.
        """
        kind, offset, stride, key_a, key_b = candidates
        # Every layer of keyword arguments costs time, so plain calls skip `negatives`.
        compute = partial(negatives, hardness=hardness) if hardness else similarity
        rows, columns = self.rows, self.columns
        if rows.dtype == torch.float16 and options.get("normalize"):
            rows, columns = fixed_zeros(rows), None if columns is None else fixed_zeros(columns)
        return compute(
            rows,
            columns,
            self.scale,
            kind=kind,
            offset=self.offset + offset,
            stride=stride,
            positive=-1 if positive is None else self.offset + positive,
            key_a=key_a,
            key_b=key_b,
            dtype=self.dtype,
            backend=self.backend,
            ranks=self.ranks,
            **options,
        )

    def softplus_sum(
        self,
        candidates: Candidates,
        row_bias: torch.Tensor | None = None,  # broadcastable to [..., M]
        *,
        positive: int | None = None,
        **options,
    ) -> SigmoidResult:
        """The sum of softplus over each row's candidates: `sigmoid_sum`, ``[..., M]``."""
        kind, offset, stride, key_a, key_b = candidates
        return sigmoid_sum(
            self.rows,
            self.columns,
            self.scale,
            row_bias,
            kind=kind,
            offset=self.offset + offset,
            stride=stride,
            positive=-1 if positive is None else self.offset + positive,
            key_a=key_a,
            key_b=key_b,
            dtype=self.dtype,
            backend=self.backend,
            ranks=self.ranks,
            **options,
        )

    def dot(self, other: torch.Tensor) -> torch.Tensor:
        """``<row_i, other_i>``, ``[..., M]``, for one row ``[..., M, D]`` of `other` each."""
        return dot(self.rows, other, self.scale.dtype)

    def reversed(self) -> Comparison:
        """The columns compared with the rows."""
        return self._replace(rows=self.columns, columns=self.rows, offset=-self.offset)


def compare(
    a: torch.Tensor,  # [..., M, D]
    b: torch.Tensor | None,  # [..., N, D]; None: a
    scale: torch.Tensor,  # []
    *,
    normalize: bool,
    offset: int = 0,
    backend: str | None = None,
    ranks: Ranks | None = None,
) -> Comparison:
    """The `Comparison` of a with b, whose rows become `exact_rows`."""
    rows = exact_rows(a, normalize)
    columns = None if b is None else exact_rows(b, normalize)
    compared = Comparison(rows, columns, scale, matrix_dtype(a))
    return compared._replace(offset=offset, backend=backend, ranks=ranks)


def dot(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``<a_i, b_i>`` in `dtype`, of rows as the products read them."""
    return (a.to(dtype) * b.to(dtype)).sum(-1)


def rounded(x: torch.Tensor, normalize: bool) -> torch.Tensor:
    """x in the matrix dtype, as the products read it.

    Where asked, it is normalised in its accumulation dtype first.
    """
    if not normalize:
        return x.to(matrix_dtype(x))
    x = fixed_zeros(x)
    return F.normalize(x if x.dtype == torch.float64 else x.float(), dim=-1).to(matrix_dtype(x))


def exact_rows(x: torch.Tensor, normalize: bool) -> torch.Tensor:
    """x in its accumulation dtype, normalised where asked, but rounded to what the products read.

    Gradients are not rounded. This is for losses that add up the gradients of several terms. With
    ``similarity(..., dtype=matrix_dtype(x))`` all of them arrive, and cancel, in the accumulation
    dtype.
    """
    z = (fixed_zeros(x) if normalize else x).to(accumulation_dtype(x.dtype))
    return as_read(F.normalize(z, dim=-1) if normalize else z, matrix_dtype(x))


def fixed_zeros(x: torch.Tensor) -> torch.Tensor:
    """x, whose rows of zeros get no gradient in float16.

    Through the normalisation it would be that of the direction over 1e-12, which float16 cannot
    hold. GradScaler would leave out every step in which such a row occurs.
    """
    if x.dtype != torch.float16:
        return x
    return torch.where((x == 0).all(-1, keepdim=True), x.detach(), x)


def as_read(z: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """z rounded to the matrix dtype, but in its own dtype; its gradient is that of z."""
    if z.dtype == dtype:
        return z
    fixed = z.detach()
    # The difference is exact: the two numbers differ by less than a factor of two, or one is 0.
    return z + (fixed.to(dtype).to(z.dtype) - fixed)


class Product(torch.autograd.Function):
    """``x @ y`` and its gradients outside autocast.

    They stay outside it also where a compiler traces the backward pass inside autocast.
    """

    @staticmethod
    def forward(x, y):
        with outside_autocast(x.device):
            return x @ y

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        x, y = ctx.saved_tensors
        with outside_autocast(x.device):
            return g @ y.transpose(-1, -2), x.transpose(-1, -2) @ g


def product(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """``x @ y`` of ``[..., M, K]`` and ``[..., K, N]``, not rounded by autocast."""
    if in_autocast(x.device) and not torch.compiler.is_exporting():
        return Product.apply(x, y)
    with outside_autocast(x.device):
        return x @ y
