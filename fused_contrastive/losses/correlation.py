"""Correlation matrices against the identity.

They are of samples with samples, or of features with features (Barlow Twins). The products are the
library's, of factors rounded to the inputs' dtype (inside autocast to autocast's). Everything else
is float32 (float64 for float64 inputs), also the distance of the diagonal from 1.
"""

from __future__ import annotations

import torch

from .. import checks, reference
from ..autograd._formulas import FirstDerivative, refuse_transforms
from ..distributed.collectives import add_over_ranks, gather_rows, ranks
from ..distributed.groups import Ranks, agree, resolve
from ..dtypes import accumulation_dtype, matrix_dtype, outside_autocast
from ..scalars import as_scalar
from ._arguments import asks_for_eager, two_sets
from ._help import Documented
from ._module import own_number
from ._over_ranks import NOT_GIVEN, over_ranks

# This is the eps of batch_norm.
EPS = 1e-5


def standardized(z: torch.Tensor, scratch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns of ``z [K, F]`` with mean 0 and variance ``v / (v + EPS)``, and factors ``[F]``.

    Here v is the variance that a column had. Its factor is ``1 / sqrt(v + EPS)``. `scratch` has
    the shape of z and is overwritten.
    """
    z = z - z.mean(0)
    # This is what the rounding of the first mean left.
    mean = z.mean(0)
    factor = (scratch.copy_(z).square_().mean(0) - mean * mean + EPS).rsqrt()
    return z.sub_(mean).mul_(factor), factor


def squares(x: torch.Tensor) -> torch.Tensor:
    """The sum of the squares of ``x [M, N]``.

    It goes row by row, so that no rounding piles up and no second matrix is made.
    """
    return torch.linalg.vector_norm(x, dim=1).square().sum()


def inner(x: torch.Tensor, y: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``x^T y`` of factors ``[n, M]`` and ``[n, N]`` rounded to `dtype`.

    In float16 the factors are divided first, so that no sum of n products of numbers around 1
    overflows.
    """
    if dtype != torch.float16:
        return product(x.T, y, dtype)
    n = x.shape[0]
    return product((x * n**-0.5).T, y * n**-0.5, dtype).mul_(n)


def product(x: torch.Tensor, y: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``x y`` of matrices rounded to `dtype`."""
    return x @ y if x.dtype == dtype else (x.to(dtype) @ y.to(dtype)).to(torch.float32)


class Correlation(torch.autograd.Function):
    """``sum_i (c_ii - 1)^2`` and ``sum_{i != j} c_ij^2`` of a correlation matrix c.

    It is that of ``z1, z2 [N, D]``, averaged over the ranks. With a and b ``[K, F]`` the
    standardised inputs, ``c = a^T b / N``. For features ``[K, F] = [N, D]``; with `samples` the
    inputs are transposed, and ``[K, F] = [D, N]``. Where ``F < 2 K``, c itself is stored, else the
    products ``a a^T`` and ``b b^T``. Exported programs are for any N, so they store what has D^2
    elements. ``c_ii - 1`` and its gradient are computed from ``a - b``; docs/maths.md shows how.
    """

    @staticmethod
    def forward(z1, z2, samples, group, low):
        dtype = accumulation_dtype(torch.promote_types(z1.dtype, z2.dtype))
        columns = [(z.T if samples else z).to(dtype) for z in (z1, z2)]
        (K, F), N, world = columns[0].shape, z1.shape[0], ranks(group)
        with outside_autocast(z1.device):
            # Fresh memory costs more than what is done in it.
            scratch = columns[0].clone()
            (a, factor_a), (b, factor_b) = (standardized(z, scratch) for z in columns)
            distance = scratch.copy_(a).sub_(b).square_().mean(0)
            # This is mean(a b) - 1.
            lack = (distance + EPS * (factor_a.square() + factor_b.square())) / -2
            near = lack > -0.5

            def gaps(mean):
                """``c_ii - 1`` from mean(a b), or from how far it is from 1 where it is near it."""
                return torch.where(near, lack * (K / N) + (K / N - 1), mean * (K / N) - 1) / world

            if (not samples) if torch.compiler.is_exporting() else (F < 2 * world * K):
                c = inner(a, b, low)
                mean = c.diagonal() / K if low == dtype else (a * b).mean(0)
                c /= N * world
                c.diagonal().copy_(gaps(mean))
                add_over_ranks(c, group)
                gap = c.diagonal().clone()
                c.diagonal().zero_()
                rest, kept = squares(c), (c,)
            else:
                others = () if group is None else (gather_rows(a, group), gather_rows(b, group))
                p, q = (inner(x.T, y.T, low) for x, y in zip((a, b), others or (a, b), strict=True))
                total = add_over_ranks((p * q).sum(), group) / (N * world) ** 2
                mean = (a * b).mean(0)
                gap = add_over_ranks(gaps(mean), group)
                rest, kept = total - (1 + gap).square().sum(), (p, q, *others)
            # This is mean(a b) - near. Where near is 0 it is no difference, and nothing cancels.
            lack, near = torch.where(near, lack, mean), near.to(dtype)
        return gap.square().sum(), rest, a, b, factor_a, factor_b, near, lack, gap, *kept

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        z1, z2, ctx.samples, ctx.group, ctx.low = inputs
        ctx.mark_non_differentiable(*outputs[2:])
        ctx.save_for_backward(z1, z2, *outputs[2:])

    @staticmethod
    def backward(ctx, g_diagonal, g_rest, *_):
        z1, z2, a, b, factor_a, factor_b, near, lack, gap, *kept = ctx.saved_tensors
        share = 1 / (z1.shape[0] * ranks(ctx.group))
        g = 2 * add_over_ranks(torch.stack([g_diagonal, g_rest]), ctx.group)
        diagonal = share * g[0] * gap
        with outside_autocast(z1.device):
            if len(kept) == 1:
                weight, products = share * g[1], ((b, kept[0].T), (a, kept[0]))
            else:
                p, q, *others = kept
                # Here p and q are divided by F for a product in half precision.
                F = a.shape[1]
                weight = share**2 * g[1] * F
                first, second = others or (a, b)
                products = ((q / F, first), (p / F, second))
                diagonal = diagonal - share * g[1] * (1 + gap)
            gradients: list[torch.Tensor | None] = []
            scratch = a.clone()
            sides = ((a, b, factor_a, z1), (b, a, factor_b, z2))
            for (x, y, factor, z), pair, need in zip(
                sides, products, ctx.needs_input_grad, strict=False
            ):
                if not need:
                    gradients.append(None)
                    continue
                left, right = pair
                flow = product(left, right, ctx.low).mul_(weight * factor)
                flow.addcmul_(x, -scratch.copy_(flow).mul_(x).mean(0) - factor * diagonal * lack)
                flow.addcmul_(scratch.copy_(y).addcmul_(x, near, value=-1), factor * diagonal)
                gradient = (flow.T if ctx.samples else flow).to(z.dtype)
                if torch.is_grad_enabled():
                    # This is create_graph=True.
                    (gradient,) = FirstDerivative.apply(1, gradient, g_diagonal, g_rest, z1, z2)
                gradients.append(gradient)
        return *gradients, None, None, None


def _loss(z1, z2, lamb, scale_loss, samples, group):
    refuse_transforms(z1, z2, lamb, scale_loss)
    lamb, scale_loss = as_scalar(lamb, z1), as_scalar(scale_loss, z1)
    # Exported programs keep no formulas of Python, only operations.
    function = Correlation.forward if torch.compiler.is_exporting() else Correlation.apply
    low = torch.promote_types(matrix_dtype(z1), matrix_dtype(z2))
    diagonal, rest, *_ = function(z1, z2, samples, group, low)
    return scale_loss * (diagonal + lamb * rest)


class UnevenShards(ValueError):
    """The ranks have different numbers of rows. Every rank raises it."""


def equal_shards(ranks: Ranks, z1: torch.Tensor):
    """The process group, once the ranks are found to have as many rows each."""
    if not torch.compiler.is_compiling():
        rows = [n for n, _ in agree(ranks, z1.shape[0], 0, f"{z1.shape[1]}")]
        if len(set(rows)) > 1:
            raise UnevenShards(f"z1 must have as many rows on all ranks of the group, got {rows}")
    return ranks.process_group


def _check(z1, z2, lamb, scale_loss, backend) -> bool:
    """Whether the reference serves the call, after a check of all arguments."""
    two_sets("z1", z1, "z2", z2)
    checks.number("lamb", lamb, z1.device)
    checks.number("scale_loss", scale_loss, z1.device)
    return asks_for_eager(backend) or z1.numel() == 0


@over_ranks
def correlation_loss(
    z1: torch.Tensor,
    z2: torch.Tensor,
    lamb: float | torch.Tensor = 5e-3,
    scale_loss: float | torch.Tensor = 0.025,
    *,
    group=NOT_GIVEN,
    backend: str | None = None,
) -> torch.Tensor:
    """Correlation of samples with samples against the identity.

    The loss is ``scale_loss * (sum_i (c_ii - 1)^2 + lamb * sum_{i != j} c_ij^2)``. Here ``c = a b^T
    / N``, where a and b are z1 and z2 with every row (sample) standardised over its features. The
    standardisation is that of batch_norm (biased variance, eps 1e-5).

    Args:
        z1, z2: two views ``[N, D]``, D > 1.
        group: the ranks of a process group, which call with one shape (see
            `fused_contrastive.losses`). Then c is the mean of theirs, and all return the same loss.
            The mean of their gradients, which DistributedDataParallel takes, is exactly that of the
            loss.
        backend: "eager" for the dense form; every other name computes alike.

    Returns:
        A scalar, float32 (float64 for float64 inputs), in ``O(N D + min(N, D)^2)`` memory. With the
        products of the rows of W ranks it takes W times that.

    Raises:
        ValueError, TypeError: an argument is wrong; the error names it.

    >>> import torch, fused_contrastive
    >>> z = torch.tensor([[1.0, -1.0, 1.0, -1.0], [1.0, 1.0, -1.0, -1.0]])
    >>> round(fused_contrastive.correlation_loss(z, z, scale_loss=1.0).item(), 2)
    2.0
    """
    use_reference = _check(z1, z2, lamb, scale_loss, backend)
    group = None if group is None else equal_shards(group, z1)
    if z1.shape[1] == 1:
        raise ValueError(
            f"z1 must have more than one feature to have a variance, got shape {tuple(z1.shape)}"
        )
    if use_reference:
        return reference.correlation_loss(z1, z2, lamb, scale_loss, group=group)
    return _loss(z1, z2, lamb, scale_loss, True, group)


@over_ranks
def barlow_twins_loss(
    z1: torch.Tensor,
    z2: torch.Tensor,
    lamb: float | torch.Tensor = 5e-3,
    scale_loss: float | torch.Tensor = 1.0,
    *,
    group=NOT_GIVEN,
    backend: str | None = None,
) -> torch.Tensor:
    """Barlow Twins (Zbontar et al. 2021, arXiv:2103.03230, eq. 1).

    It is `correlation_loss` of features with features. Here ``c = a^T b / N``, where a and b are z1
    and z2 with every feature standardised over the batch as batch_norm does. With `group` each rank
    standardises over its own batch.

    Args:
        z1, z2: two views ``[N, D]``, N > 1.
        group, backend: as in `correlation_loss`.

    Returns:
        A scalar, as `correlation_loss` does.

    >>> import torch, fused_contrastive
    >>> z = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    >>> round(fused_contrastive.barlow_twins_loss(z, z).item(), 4)
    0.0
    """
    use_reference = _check(z1, z2, lamb, scale_loss, backend)
    group = None if group is None else equal_shards(group, z1)
    if z1.shape[0] == 1:
        raise ValueError(
            f"z1 must have more than one row to have a variance, got shape {tuple(z1.shape)}"
        )
    if use_reference:
        return reference.barlow_twins_loss(z1, z2, lamb, scale_loss, group=group)
    return _loss(z1, z2, lamb, scale_loss, False, group)


class _Correlation(Documented):
    def __init__(self, lamb, scale_loss, group, backend):
        super().__init__()
        own_number("lamb", lamb)
        own_number("scale_loss", scale_loss)
        if group is not NOT_GIVEN:
            resolve(group)
        self.options = {"lamb": lamb, "scale_loss": scale_loss, "group": group, "backend": backend}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


class CorrelationLoss(_Correlation):
    """Module form of `correlation_loss`: ``CorrelationLoss()(z1, z2)``.

    >>> import torch, fused_contrastive
    >>> z = torch.tensor([[1.0, -1.0, 1.0, -1.0], [1.0, 1.0, -1.0, -1.0]])
    >>> round(fused_contrastive.CorrelationLoss(scale_loss=1.0)(z, z).item(), 2)
    2.0
    """

    def __init__(self, lamb=5e-3, scale_loss=0.025, *, group=NOT_GIVEN, backend=None):
        super().__init__(lamb, scale_loss, group, backend)

    def forward(self, z1: torch.Tensor, z2: torch.Tensor) -> torch.Tensor:
        return correlation_loss(z1, z2, **self.options)


class BarlowTwinsLoss(_Correlation):
    """Module form of `barlow_twins_loss`: ``BarlowTwinsLoss()(z1, z2)``.

    >>> import torch, fused_contrastive
    >>> z = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    >>> round(fused_contrastive.BarlowTwinsLoss()(z, z).item(), 4)
    0.0
    """

    def __init__(self, lamb=5e-3, scale_loss=1.0, *, group=NOT_GIVEN, backend=None):
        super().__init__(lamb, scale_loss, group, backend)

    def forward(self, z1: torch.Tensor, z2: torch.Tensor) -> torch.Tensor:
        return barlow_twins_loss(z1, z2, **self.options)
