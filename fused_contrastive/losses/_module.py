"""What the modules share: options, and a temperature that is fixed or learned."""

from __future__ import annotations

import math

import torch
from torch import nn

from .. import checks
from ..autograd.over_ranks import averaged_gradient
from ..distributed.groups import Ranks, resolve
from ._arguments import Options, check_options
from ._help import Documented
from ._over_ranks import NOT_GIVEN
from ._points import check_temperatures


class Loss(Documented):
    """Keeps the options of one loss function, checked; subclasses call the function."""

    def __init__(self, learnable: bool | str = False, max_scale: float | None = None, **options):
        super().__init__()
        checks.choice("learnable", learnable, (False, True, "averaged"))
        self.learnable, self.ranks = bool(learnable), None
        self.max_scale = own_bound(max_scale, self.learnable)
        if learnable == "averaged":
            group = options["group"]
            if group is NOT_GIVEN or group is None:
                raise ValueError("learnable='averaged' needs a group to average over")
            self.ranks = Ranks(resolve(group).group_name, "auto", "a learned number")
        check_options(**{name: options[name] for name in Options._fields if name in options})
        checks.choice("reduction", options["reduction"], checks.REDUCTIONS)
        self.options = options

    def learned(self, parameter: torch.Tensor) -> torch.Tensor:
        """A parameter ``[]``, whose gradient is averaged with ``learnable="averaged"``.

        Ranks that start with the same parameter go on having the same. Nothing is exchanged before
        the backward pass, so that one rank alone may read the value.
        """
        if self.ranks is None:
            return parameter
        return averaged_gradient(parameter, self.ranks.encode())

    def log_scale(self, name: str, scale: float) -> nn.Parameter:
        """A parameter that starts at the logarithm of a scale, which is within the bound.

        With the name ``"temperature"`` the parameter is minus this, the logarithm of 1 / scale.
        """
        sign = -1 if name == "temperature" else 1
        start, bound = math.log(scale), self._log_bound()
        # A bound that is the scale itself may be rounded another way.
        if start > bound + 1e-6:
            allowed = f"at least 1 / max_scale = {1 / self.max_scale}"
            if name != "temperature":
                allowed = f"at most max_scale = {self.max_scale}"
            raise ValueError(
                f"{name} must be {allowed} to be learned, got {scale**sign}: "
                "beyond the bound it has no gradient"
            )
        return nn.Parameter(torch.tensor(sign * min(start, bound)))

    def bounded(self, log_scale: torch.Tensor) -> torch.Tensor:
        """The logarithm of a scale, clamped to that of `max_scale`."""
        return log_scale if self.max_scale is None else log_scale.clamp(max=self._log_bound())

    def _log_bound(self) -> float:
        if self.max_scale is None:
            return math.inf
        # Parameters start in float32, so the bound is a number of float32, too.
        return torch.tensor(math.log(self.max_scale), dtype=torch.float32).item()

    def extra_repr(self) -> str:
        given = {name: x for name, x in self.options.items() if x is not NOT_GIVEN}
        if self.max_scale is not None:
            given["max_scale"] = self.max_scale
        return ", ".join(f"{name}={value!r}" for name, value in given.items())


def own_number(name: str, value, *, divisor: bool = False) -> None:
    """Check that `value` is a finite number.

    A tensor would be neither learned nor saved nor moved with the module.
    """
    if isinstance(value, torch.Tensor):
        raise TypeError(
            f"{name} must be a number, got a tensor: "
            "pass learnable=True to learn it, or call the function"
        )
    checks.number(name, value, torch.device("cpu"), divisor=divisor)


def own_scale(scale, learnable: bool):
    """The logit scale of a module: a number, or None where each call has its own."""
    if scale is None and learnable:
        raise ValueError("logit_scale must be given to be learned, got None")
    if scale is not None:
        own_number("logit_scale", scale)
        if learnable and scale <= 0:
            raise ValueError(f"logit_scale must be positive to be learnable, got {scale}")
    return scale


def own_bound(max_scale, learnable: bool):
    """The largest scale that a module may learn: a positive number, or None."""
    if max_scale is not None:
        own_number("max_scale", max_scale)
        if max_scale <= 0:
            raise ValueError(f"max_scale must be positive, got {max_scale}")
        if not learnable:
            raise ValueError(
                f"max_scale must be None where nothing is learned, got {max_scale}: "
                "pass learnable=True to learn a scale within this bound"
            )
    return max_scale


def given_once(name: str, own, passed, example: str):
    """The number of the module, or the one passed to `forward`, whichever there is."""
    if own is None and passed is None:
        raise ValueError(f"{name} must be passed to forward, or to the module as in {example}")
    if own is not None and passed is not None:
        raise ValueError(f"{name} must not be passed to forward, for the module has its own")
    return passed if own is None else own


def own_temperatures(values) -> tuple:
    """The values as a tuple, once they are at least one finite number and none is 0."""
    check_temperatures(values)
    for value in values:
        own_number("temperatures", value, divisor=True)
    return tuple(values)


class TemperatureLoss(Loss):
    """A loss with a temperature, which is fixed or learned.

    It is learned as its logarithm (parameter ``log_temperature``), so it is always positive.
    """

    def __init__(self, temperature: float, learnable: bool | str, max_scale=None, **options):
        super().__init__(learnable, max_scale, **options)
        own_number("temperature", temperature, divisor=True)
        if learnable and temperature <= 0:
            raise ValueError(f"temperature must be positive to be learnable, got {temperature}")
        if learnable:
            self.log_temperature = self.log_scale("temperature", 1 / temperature)
        else:
            self._temperature = temperature

    @property
    def temperature(self) -> float | torch.Tensor:
        """The number, or the current value as a tensor that carries the parameter's gradient."""
        if not self.learnable:
            return self._temperature
        log_temperature = self.learned(self.log_temperature)
        if self.max_scale is not None:
            log_temperature = -self.bounded(-log_temperature)
        return log_temperature.exp()

    def extra_repr(self) -> str:
        value = "learnable" if self.learnable else repr(self._temperature)
        return f"temperature={value}, {super().extra_repr()}"
