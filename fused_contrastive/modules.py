"""nn.Module shells of the losses: the function's options as constructor arguments, a learnable temperature on request."""

from __future__ import annotations

import math

import torch
from torch import nn

from . import checks, drift, force, losses


class _Loss(nn.Module):
    """Keeps the options of one loss function; subclasses name the function."""

    def __init__(self, **options):
        super().__init__()
        checks.choice("reduction", options["reduction"], checks.REDUCTIONS)
        self.options = options

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


def _own_number(name: str, value, *, divisor: bool = False) -> None:
    """A finite number; a tensor would be neither learned nor saved nor moved with the module."""
    if isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a number, got a tensor: pass learnable=True to learn it, or call the function")
    checks.number(name, value, torch.device("cpu"), divisor=divisor)


def _own_temperatures(values) -> tuple:
    """At least one finite number other than 0."""
    force.check_temperatures(values)
    for value in values:
        _own_number("temperatures", value, divisor=True)
    return tuple(values)


class _TemperatureLoss(_Loss):
    """A loss with a temperature: fixed, or learned as its logarithm (parameter ``log_temperature``), hence always positive."""

    def __init__(self, temperature: float, learnable: bool, **options):
        super().__init__(**options)
        _own_number("temperature", temperature, divisor=True)
        if learnable and temperature <= 0:
            raise ValueError(f"temperature must be positive to be learnable, got {temperature}")
        self.learnable = learnable
        if learnable:
            self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))
        else:
            self._temperature = temperature

    @property
    def temperature(self) -> float | torch.Tensor:
        """The number, or the current value as a tensor that carries the parameter's gradient."""
        return self.log_temperature.exp() if self.learnable else self._temperature

    def extra_repr(self) -> str:
        value = "learnable" if self.learnable else repr(self._temperature)
        return f"temperature={value}, {super().extra_repr()}"


class NTXentLoss(_TemperatureLoss):
    """Module form of `nt_xent_loss`: ``NTXentLoss(temperature)(z1, z2)``."""

    def __init__(
        self, temperature=0.5, *, normalize=True, reduction="mean", metrics=False, backend=None, learnable=False
    ):
        super().__init__(
            temperature, learnable, normalize=normalize, reduction=reduction, metrics=metrics, backend=backend
        )

    def forward(self, z1: torch.Tensor, z2: torch.Tensor):
        return losses.nt_xent_loss(z1, z2, self.temperature, **self.options)


class InfoNCELoss(_TemperatureLoss):
    """Module form of `info_nce_loss`: ``InfoNCELoss(temperature)(query, positive_key, negative_keys)``."""

    def __init__(
        self, temperature=0.1, *, negative_mode="unpaired", normalize=True, symmetric=False, reduction="mean",
        metrics=False, backend=None, learnable=False,
    ):  # fmt: skip
        checks.choice("negative_mode", negative_mode, ("unpaired", "paired"))
        super().__init__(
            temperature, learnable, negative_mode=negative_mode, normalize=normalize, symmetric=symmetric,
            reduction=reduction, metrics=metrics, backend=backend,
        )  # fmt: skip

    def forward(self, query: torch.Tensor, positive_key: torch.Tensor, negative_keys: torch.Tensor | None = None):
        return losses.info_nce_loss(query, positive_key, negative_keys, self.temperature, **self.options)


class ClipLoss(_Loss):
    """Module form of `clip_loss`: ``ClipLoss()(image_features, text_features, logit_scale)``.

    With ``learnable=True`` the module owns the scale, as parameter ``log_logit_scale`` starting at log(`logit_scale`), and
    `forward` takes none: ``ClipLoss(1 / 0.07, learnable=True)(image_features, text_features)``.
    """

    def __init__(self, logit_scale=None, *, reduction="mean", metrics=False, backend=None, learnable=False):
        super().__init__(reduction=reduction, metrics=metrics, backend=backend)
        if learnable != (logit_scale is not None):
            raise ValueError(f"logit_scale must be given exactly when learnable=True, got {logit_scale}")
        if learnable:
            _own_number("logit_scale", logit_scale)
            if logit_scale <= 0:
                raise ValueError(f"logit_scale must be positive to be learnable, got {logit_scale}")
            self.log_logit_scale = nn.Parameter(torch.tensor(math.log(logit_scale)))
        self.learnable = learnable

    def forward(self, image_features: torch.Tensor, text_features: torch.Tensor, logit_scale=None, logit_bias=None):
        if self.learnable == (logit_scale is not None):
            raise ValueError("logit_scale must be passed to forward exactly when the module does not learn it")
        scale = self.log_logit_scale.exp() if self.learnable else logit_scale
        return losses.clip_loss(image_features, text_features, scale, logit_bias, **self.options)


class NPairsLoss(_Loss):
    """Module form of `n_pairs_loss`: ``NPairsLoss()(anchors, positives)``."""

    def __init__(self, *, normalize=True, reduction="mean", metrics=False, backend=None):
        super().__init__(normalize=normalize, reduction=reduction, metrics=metrics, backend=backend)

    def forward(self, anchors: torch.Tensor, positives: torch.Tensor, target: torch.Tensor | None = None):
        return losses.n_pairs_loss(anchors, positives, target, **self.options)


class CPCLoss(_Loss):
    """Module form of `cpc_loss`: ``CPCLoss()(predictions, latents)`` returns ``(loss, accuracy)``."""

    def __init__(self, *, reduction="mean", backend=None):
        super().__init__(reduction=reduction, backend=backend)

    def forward(self, predictions: torch.Tensor, latents: torch.Tensor):
        return losses.cpc_loss(predictions, latents, **self.options)


class ContrastiveForceLoss(_Loss):
    """Module form of `contrastive_force_loss`: ``ContrastiveForceLoss()(positive, negative)``."""

    def __init__(
        self,
        temperatures=(0.01, 0.02, 0.05, 0.1, 0.2),
        *,
        mask_self="sum",
        normalizer="dist_affinity_rms",
        scale=None,
        detach_scale=False,
        affinity_floor=0.0,
        reduction="none",
        backend=None,
    ):
        super().__init__(
            temperatures=_own_temperatures(temperatures),
            mask_self=mask_self,
            normalizer=normalizer,
            scale=scale,
            detach_scale=detach_scale,
            affinity_floor=affinity_floor,
            reduction=reduction,
            backend=backend,
        )
        force.check_options(mask_self, normalizer, affinity_floor)
        checks.choice("detach_scale", detach_scale, (True, False))
        if scale is not None:
            _own_number("scale", scale, divisor=True)

    def forward(self, positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
        return force.contrastive_force_loss(positive, negative, **self.options)


class DriftLoss(nn.Module):
    """Module form of `drift_loss`: ``DriftLoss()(gen, positive, negative)``, with its weights as keyword arguments."""

    def __init__(self, temperatures=(0.02, 0.05, 0.2), *, backend=None):
        super().__init__()
        self.options = {"temperatures": _own_temperatures(temperatures), "backend": backend}

    def forward(self, gen: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor | None = None, **weights):
        return drift.drift_loss(gen, positive, negative, **weights, **self.options)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())
