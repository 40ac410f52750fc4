"""The drifting losses as published.

`drift_loss` is that of the training code, and `drift_field` that of the toy notebook.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import checks
from ..autograd._formulas import refuse_export, refuse_transforms
from ..autograd.force import Drift, call_forward
from ..autograd.over_ranks import sum_over_ranks
from ..backends import dispatch
from ..distributed.groups import Ranks
from ..ops import drift_over_ranks as ops_over_ranks
from ..ops import force as ops
from ..problem import ForceProblem, MaybeNone
from ..reference import drift as reference
from ..scalars import inverse_scale
from ._arguments import asks_for_eager, check_temperature
from ._help import Documented
from ._module import own_temperatures
from ._over_ranks import NOT_GIVEN, over_ranks
from ._points import check_temperatures, inverse_temperatures, points_dtype, stacked

MIN_DISTANCE = 1e-4
"""The published lower bound of a distance."""

MIN_SCALE = 1e-3
"""The published lower bound of both scales."""

LOG_FLOOR = math.log(1e-6) / 2
"""The log of the published lower bound of an affinity, which is the root of the bounded product."""


@over_ranks
def drift_loss(
    gen: Tensor,
    positive: Tensor,
    negative: Tensor | None = None,
    *,
    weight_gen: Tensor | None = None,
    weight_positive: Tensor | None = None,
    weight_negative: Tensor | None = None,
    temperatures: tuple = (0.02, 0.05, 0.2),
    group=NOT_GIVEN,
    strategy: str = "auto",
    backend: str | None = None,
):
    """The drifting loss as published (lambertae/drifting, ``drift_loss.py``).

    Samples drift towards the positives and away from one another and from the fixed negatives. Let
    x be the samples of a group and y all its points: gen, negative and positive, with weights w.
    Let d be their distances over ``scale``, the mean distance, plus 100 for a sample and itself.

    - Affinities of temperature T: ``A_ij = w_j sqrt(max(softmax_j(-d_ij / T) softmax_i(-d_ij / T),
      1e-6))``, with rows that are the samples only.
    - Drift: ``V_i = sum_n A_in sum_p A_ip y_p - sum_p A_ip sum_n A_in y_n``, over positives p and
      all others n, in coordinates divided by ``s_in = scale / sqrt(D)``.
    - Loss of a group: ``mean((x / s_in - stopgrad(x / s_in + sum_T V / sqrt(mean V^2)))^2)``.

    The scale and the mean square of each temperature are taken over the whole batch. Everything but
    ``gen / s_in`` is a constant. `contrastive_force_loss` with ``mask_self="softmax"``,
    ``normalizer="force_rms"`` and ``affinity_floor=1e-6`` is the nearest to it: its columns'
    softmax has all points as rows, and it takes scale and mean square group by group. Take
    `drift_loss` to repeat the paper, and `contrastive_force_loss` for gradients through the scale.

    Args:
        gen, positive, negative: ``[G, n, D]``, each with its own n.
        weight_gen, weight_positive, weight_negative: ``[G, n]``, weights of the points as columns,
            which multiply their affinities. None is 1.
        temperatures: numbers in units of the mean distance, at least one.
        group: the ranks of which each passes its own groups; the batch is then that of all ranks.
            Every set has the same n on all ranks, and G may differ and be 0. The groups stay where
            they are, and only sums are exchanged, so `strategy` makes no difference.

    Returns:
        ``(loss, info)``. The loss is ``[G]``, float32, or float64 for float64 inputs. The
        dictionary ``{"scale": ..., "loss_<temperature>": ...}`` has the mean distance and the mean
        square of each temperature's drift. With `group` the loss is of this rank's groups, and the
        dictionary is of the whole batch.

    Raises:
        ValueError, TypeError: an argument is wrong; the error names it.

    Example:
        >>> import torch
        >>> from fused_contrastive import drift_loss
        >>> gen = torch.tensor([[[0.0, 0.0], [0.0, 1.0]]], requires_grad=True)
        >>> positive = torch.tensor([[[3.0, 0.0], [3.0, 1.0]]])
        >>> loss, info = drift_loss(gen, positive, temperatures=(0.5,))
        >>> loss.shape, list(info)
        (torch.Size([1]), ['scale', 'loss_0.5'])

        A step against the gradient takes both samples towards the positives.

        >>> loss.sum().backward()
        >>> (-gen.grad[0, :, 0]).sign()
        tensor([1., 1.])
    """
    checks.embeddings("gen", gen, dim=3)
    others = [("positive", positive)]
    if negative is not None:
        others.append(("negative", negative))
    for name, x in others:
        checks.embeddings(name, x, dim=3, like=("gen", gen))
        if x.shape[0] != gen.shape[0] or x.shape[2] != gen.shape[2]:
            raise ValueError(
                f"{name} must have shape [G, n, D] matching gen {tuple(gen.shape)}, "
                f"got {tuple(x.shape)}"
            )
    _check_weight("weight_gen", weight_gen, "gen", gen)
    _check_weight("weight_positive", weight_positive, "positive", positive)
    if negative is None and weight_negative is not None:
        raise ValueError("weight_negative must be None without negative")
    _check_weight("weight_negative", weight_negative, "negative", negative)
    check_temperatures(temperatures)
    if any(isinstance(value, Tensor) for value in temperatures):
        raise TypeError(
            "temperatures must be numbers, got a tensor: nothing here is differentiable in them"
        )
    inverse = inverse_temperatures(temperatures, gen)
    eager = asks_for_eager(backend, group)
    gen = gen.to(inverse.dtype)
    # Means over nothing are NaN.
    if gen.numel() == 0 and group is None:
        nan = gen.detach().sum() + math.nan
        info = {"scale": nan, **{f"loss_{t}": nan.clone() for t in temperatures}}
        return (gen * gen).mean((1, 2)), info
    if eager:
        return reference.drift_loss(
            gen,
            positive,
            negative,
            weight_gen=weight_gen,
            weight_positive=weight_positive,
            weight_negative=weight_negative,
            temperatures=temperatures,
        )
    refuse_transforms(gen, positive, negative)
    refuse_export(gen)
    sets = [(gen, weight_gen), (negative, weight_negative), (positive, weight_positive)]
    x, weight = _columns([(points, w) for points, w in sets if points is not None], gen.dtype)
    n = gen.shape[1]
    fixed = 0 if negative is None else negative.shape[1]
    name = dispatch.select(backend, x.device, x.dtype)
    scale, groups = _scale(x, weight, n, name, group)
    s_in, fields = _fields(x, weight, inverse, scale, (n, n + fixed), name)
    if group is None:
        squares = (fields * fields).mean((1, 2, 3))
    else:
        squares = sum_over_ranks((fields * fields).sum((1, 2, 3)), group.encode())
        squares = squares / (groups * n * gen.shape[2])
    force = (fields / squares.clamp_min(1e-8).sqrt()[:, None, None, None]).sum(0)
    by_temperature = zip(temperatures, squares.unbind(), strict=True)
    info = {"scale": scale, **{f"loss_{t}": square for t, square in by_temperature}}
    return Drift.apply(gen, force, s_in), info


def _scale(
    x: Tensor,  # [G, P, D]
    weight: Tensor | None,  # [G, P]
    n: int,
    backend: str,
    group: Ranks | None,
) -> tuple[Tensor, Tensor | MaybeNone]:
    """The weighted mean distance ``[]``, and with `group` the number of groups of all ranks."""
    if group is not None:
        scale, groups = ops_over_ranks.drift_scale_over_ranks(
            x, weight, n, MIN_DISTANCE**2, backend, group.encode()
        )
        return scale, groups.sum()
    scale = ops.distance_sums(x, weight, n, MIN_DISTANCE**2, backend).mean() / x.shape[1]
    return scale if weight is None else scale / weight.mean(), None


def _check_weight(
    name: str, weight: Tensor | None, points_name: str, points: Tensor | MaybeNone
) -> None:
    """Raise unless a weight of points ``[G, n, D]`` is None or ``[G, n]`` on their device."""
    if weight is None:
        return
    checks.embeddings(name, weight, dim=2)
    if weight.shape != points.shape[:2]:
        raise ValueError(
            f"{name} must have shape {tuple(points.shape[:2])} ({points_name}), "
            f"got {tuple(weight.shape)}"
        )
    if weight.device != points.device:
        raise ValueError(
            f"{name} must be on the device of {points_name} ({points.device}), got {weight.device}"
        )


def _columns(
    sets: list[tuple[Tensor, Tensor | None]],  # points [G, n, D] and their weight [G, n]
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]:
    """All points ``[G, P, D]`` and their weights ``[G, P]``, None where no set has any."""
    x = torch.cat([points.detach().to(dtype) for points, _ in sets], 1)
    if all(weight is None for _, weight in sets):
        return x, None
    weights = [
        x.new_ones(points.shape[:2]) if weight is None else weight.detach().to(dtype)
        for points, weight in sets
    ]
    return x, torch.cat(weights, 1)


def _fields(
    x: Tensor,  # [G, P, D]
    weight: Tensor | None,  # [G, P]
    inverse: Tensor,  # [K]
    scale: Tensor,  # []
    sizes: tuple[int, int],  # the samples; these and the fixed negatives
    backend: str,
) -> tuple[Tensor, Tensor]:
    """The scale of the features and the drift of each temperature: ``[]``, ``[K, G, n, D]``."""
    rows, negatives = sizes
    G, _, D = x.shape
    s_in = (scale / math.sqrt(D)).clamp_min(MIN_SCALE)
    if G * rows * D == 0:
        return s_in, x.new_zeros((len(inverse), G, rows, D))
    problem = ForceProblem(
        x,
        inverse,
        scale.clamp_min(MIN_SCALE).expand(G).contiguous(),
        weight,
        rows=rows,
        negatives=negatives,
        all_rows=False,
        mask=True,
        self_logit=LOG_FLOOR,
        floor=LOG_FLOOR,
        clip=MIN_DISTANCE**2,
        separate=True,
    )
    found = call_forward(problem, backend)
    return s_in, found.force * (found.log_norm.exp() / s_in)[:, :, None, None]


@torch.no_grad()
def drift_field(
    gen: Tensor,
    positive: Tensor,
    temperature: float | Tensor = 0.05,
    *,
    backend: str | None = None,
) -> Tensor:
    """The drift of each sample as in the published toy notebook (drifting_model_demo.ipynb).

    Distances d are raw and nothing is normalised. Let y be gen and positive.

    - Kernel: ``K_ij = exp(-d_ij / temperature)``, 0 for a sample and itself.
    - Affinities: ``A_ij = K_ij / sqrt(max(sum_k K_ik sum_k K_kj, 1e-12))``.
    - Field: ``V_i = sum_n A_in sum_p A_ip y_p - sum_p A_ip sum_n A_in y_n``, over positives p and
      samples n.

    Train with ``mse_loss(gen, (gen + drift_field(gen, positive)).detach())``. Over several ranks
    the field is that of this rank's points alone.

    Args:
        gen, positive: ``[..., n, D]`` and ``[..., N, D]``. Each leading index is a group of its
            own.
        temperature: in units of distance.
        backend: a name of `fused_contrastive.backends()`; None: the default of the device.

    Returns:
        ``[..., n, D]`` in the dtype of gen, a constant.

    Raises:
        ValueError, TypeError: an argument is wrong; the error names it.

    Example:
        >>> import torch
        >>> from fused_contrastive import drift_field
        >>> gen = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
        >>> positive = torch.tensor([[1.0, 0.0]])
        >>> drift_field(gen, positive, temperature=0.5)[0].sign()
        tensor([ 1., -1.])
    """
    dtype = points_dtype("gen", gen, "positive", positive)
    check_temperature(temperature, gen.device)
    eager = asks_for_eager(backend)
    if gen.numel() == 0 or positive.numel() == 0:
        return torch.zeros_like(gen)
    if eager:
        return reference.drift_field(gen, positive, temperature).to(gen.dtype)
    x = stacked(gen, positive, dtype)
    name = dispatch.select(backend, x.device, dtype)
    inverse = inverse_scale(temperature, x).reshape(1)
    problem = ForceProblem(
        x,
        inverse,
        scale=inverse.new_ones(x.shape[0]),
        weight=None,
        rows=gen.shape[-2],
        negatives=gen.shape[-2],
        all_rows=False,
        mask=True,
        denominator=math.log(1e-12),
    )
    field = call_forward(problem, name).force
    return field[0].reshape(gen.shape).to(gen.dtype)


class DriftLoss(Documented):
    """Module form of `drift_loss`: ``DriftLoss()(gen, positive, negative)``.

    The weights are keyword arguments of `forward`.

    Example:
        >>> import torch
        >>> from fused_contrastive import DriftLoss
        >>> gen, positive = torch.zeros(2, 3, 4, requires_grad=True), torch.ones(2, 5, 4)
        >>> loss, info = DriftLoss()(gen, positive, weight_positive=torch.ones(2, 5))
        >>> loss.sum().backward()
        >>> gen.grad.shape
        torch.Size([2, 3, 4])
    """

    def __init__(
        self,
        temperatures=(0.02, 0.05, 0.2),
        *,
        group=NOT_GIVEN,
        strategy="auto",
        backend=None,
    ):
        super().__init__()
        where = {"group": group, "strategy": strategy, "backend": backend}
        self.options = {"temperatures": own_temperatures(temperatures), **where}

    def forward(self, gen: Tensor, positive: Tensor, negative: Tensor | None = None, **weights):
        """``(loss, info)`` of gen, positive and negative, ``[G, n, D]`` with each its own n."""
        return drift_loss(gen, positive, negative, **weights, **self.options)

    def extra_repr(self) -> str:
        """The options, as the constructor takes them."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())
