"""The drifting losses as published: `drift_loss`, the training code's, and `drift_field`, the toy notebook's."""

from __future__ import annotations

import math

import torch

from .. import checks
from ..autograd._formulas import FirstDerivative, refuse_export, refuse_transforms
from ..autograd.similarity import inverse_scale
from ..backends import dispatch
from ..ops import force as force_ops
from ..reference import drift as reference
from .force import check_temperatures, groups, inverse_temperatures, points_dtype


class Drift(torch.autograd.Function):
    """``mean((gen / s_in - constant)^2)`` where the difference is ``-force``: ``[G]``."""

    @staticmethod
    def forward(gen, force, s_in):
        return (force * force).mean((1, 2))

    @staticmethod
    def setup_context(ctx, inputs, output):
        gen, force, s_in = inputs
        ctx.save_for_backward(force, s_in, gen)

    @staticmethod
    def backward(ctx, g):
        force, s_in, gen = ctx.saved_tensors
        d = (g[:, None, None] * force * (-2 / (force.shape[1] * force.shape[2] * s_in))).to(
            gen.dtype
        )
        if torch.is_grad_enabled():  # create_graph=True
            (d,) = FirstDerivative.apply(1, d, g, gen)
        return d, None, None


def _weight(name, weight, points_name, points):
    if weight is None:
        return
    checks.embeddings(name, weight, dim=2)
    if weight.shape != points.shape[:2]:
        raise ValueError(
            f"{name} must have shape {tuple(points.shape[:2])} ({points_name}), got {tuple(weight.shape)}"
        )
    if weight.device != points.device:
        raise ValueError(
            f"{name} must be on the device of {points_name} ({points.device}), got {weight.device}"
        )


def drift_loss(
    gen: torch.Tensor,
    positive: torch.Tensor,
    negative: torch.Tensor | None = None,
    *,
    weight_gen: torch.Tensor | None = None,
    weight_positive: torch.Tensor | None = None,
    weight_negative: torch.Tensor | None = None,
    temperatures: tuple = (0.02, 0.05, 0.2),
    backend: str | None = None,
):
    """The drifting loss as published (lambertae/drifting, ``drift_loss.py``).

    Samples drift towards the positives and away from one another and from the fixed negatives. The scale and the mean square of the
    drift of each temperature are taken over the whole batch. Everything but ``gen / s_in`` is a constant.

    Args:
        gen, positive, negative: ``[G, n, D]`` with each its own n.
        weight_gen, weight_positive, weight_negative: ``[G, n]``, weights of the points as columns, applied to their affinities; None: 1.
        temperatures: numbers in units of the mean distance, at least one.

    Returns:
        ``(loss, info)``: loss ``[G]``, float32 (float64 for float64 inputs); info ``{"scale": ..., "loss_<temperature>": ...}``, the mean
        distance and the mean square of each temperature's drift.

    Raises:
        ValueError, TypeError: naming the argument.
    """
    checks.embeddings("gen", gen, dim=3)
    for name, x in (("positive", positive), ("negative", negative)):
        if x is None and name == "negative":
            continue
        checks.embeddings(name, x, dim=3, like=("gen", gen))
        if x.shape[0] != gen.shape[0] or x.shape[2] != gen.shape[2]:
            raise ValueError(
                f"{name} must have shape [G, n, D] matching gen {tuple(gen.shape)}, got {tuple(x.shape)}"
            )
    _weight("weight_gen", weight_gen, "gen", gen)
    _weight("weight_positive", weight_positive, "positive", positive)
    if negative is None and weight_negative is not None:
        raise ValueError("weight_negative must be None without negative")
    _weight("weight_negative", weight_negative, "negative", negative)
    check_temperatures(temperatures)
    if any(isinstance(value, torch.Tensor) for value in temperatures):
        raise TypeError(
            "temperatures must be numbers, got a tensor: nothing here is differentiable in them"
        )
    inverse = inverse_temperatures(temperatures, gen)
    if backend is not None:
        dispatch.check_name(backend)
    weights = {
        "weight_gen": weight_gen,
        "weight_positive": weight_positive,
        "weight_negative": weight_negative,
    }
    gen = gen.to(inverse.dtype)
    if gen.numel() == 0:  # means over nothing
        nan = gen.detach().sum() + math.nan
        return (gen * gen).mean((1, 2)), {
            "scale": nan,
            **{f"loss_{t}": nan.clone() for t in temperatures},
        }
    if dispatch.is_eager(backend):
        return reference.drift_loss(
            gen, positive, negative, temperatures=temperatures, **weights
        )
    refuse_transforms(gen, positive, negative)
    refuse_export(gen)
    parts, columns = reference.drift_columns(gen, positive, negative, *weights.values())
    x = torch.cat(parts, 1)
    weight = None if all(w is None for w in weights.values()) else torch.cat(columns, 1)
    G, n, D = gen.shape
    negatives = n + (0 if negative is None else negative.shape[1])
    name = dispatch.select(backend, x.device, x.dtype, D, "force")
    scale = force_ops.distance_sums(x, weight, n, 1e-8, name).mean() / x.shape[1]
    if weight is not None:
        scale = scale / weight.mean()
    s_in, floor = (scale / math.sqrt(D)).clamp_min(1e-3), math.log(1e-6) / 2
    fields, log_norm, *_ = force_ops.force_forward(
        x, inverse, scale.clamp_min(1e-3).expand(G).contiguous(), weight, n, negatives, False, True, floor, floor,
        -math.inf, 1e-8, False, True, name,
    )  # fmt: skip
    fields = fields * (log_norm.exp() / s_in)[:, :, None, None]
    squares = (fields * fields).mean((1, 2, 3))
    force = (fields / squares.clamp_min(1e-8).sqrt()[:, None, None, None]).sum(0)
    info = {
        "scale": scale,
        **{f"loss_{t}": f for t, f in zip(temperatures, squares.unbind(), strict=True)},
    }
    return Drift.apply(gen, force, s_in), info


@torch.no_grad()
def drift_field(
    gen: torch.Tensor,
    positive: torch.Tensor,
    temperature: float | torch.Tensor = 0.05,
    *,
    backend: str | None = None,
) -> torch.Tensor:
    """The drift of each sample as in the published toy notebook (drifting_model_demo.ipynb): raw distances, nothing normalised.

    Train with ``mse_loss(gen, (gen + drift_field(gen, positive)).detach())``.

    Args:
        gen, positive: ``[..., n, D]`` and ``[..., N, D]``, each leading index a group of its own.
        temperature: in units of distance.

    Returns:
        ``[..., n, D]`` in the dtype of gen, a constant.

    Raises:
        ValueError, TypeError: naming the argument.
    """
    dtype = points_dtype("gen", gen, "positive", positive)
    checks.number("temperature", temperature, gen.device, divisor=True)
    if backend is not None:
        dispatch.check_name(backend)
    if gen.numel() == 0 or positive.numel() == 0:
        return torch.zeros_like(gen)
    if dispatch.is_eager(backend):
        return reference.drift_field(gen, positive, temperature).to(gen.dtype)
    x = torch.cat([groups(gen).to(dtype), groups(positive).to(dtype)], 1)
    name = dispatch.select(backend, x.device, dtype, x.shape[2], "force")
    inverse = inverse_scale(temperature, x).reshape(1)
    n = gen.shape[-2]
    field, *_ = force_ops.force_forward(
        x, inverse, inverse.new_ones(x.shape[0]), None, n, n, False, True, -math.inf, -math.inf, math.log(1e-12), 0.0,
        False, False, name,
    )  # fmt: skip
    return field[0].reshape(gen.shape).to(gen.dtype)
