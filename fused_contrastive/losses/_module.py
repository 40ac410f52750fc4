"""What the modules share: options, and a temperature that is fixed or learned."""

from __future__ import annotations

import math
from typing import Any

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

    def __init__(self, learnable: bool | str = False, **options):
        super().__init__()
        checks.choice("learnable", learnable, (False, True, "averaged"))
        self.learnable, self.ranks = bool(learnable), None
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

    def extra_repr(self) -> str:
        given = {name: x for name, x in self.options.items() if x is not NOT_GIVEN}
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


def given_once(name: str, own, passed, example: str) -> Any:
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

    def __init__(self, temperature: float, learnable: bool | str, **options):
        super().__init__(learnable, **options)
        own_number("temperature", temperature, divisor=True)
        if learnable and temperature <= 0:
            raise ValueError(f"temperature must be positive to be learnable, got {temperature}")
        if learnable:
            self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))
        else:
            self._temperature = temperature

    @property
    def temperature(self) -> float | torch.Tensor:
        """The number, or the current value as a tensor that carries the parameter's gradient."""
        return self.learned(self.log_temperature).exp() if self.learnable else self._temperature

    def extra_repr(self) -> str:
        value = "learnable" if self.learnable else repr(self._temperature)
        return f"temperature={value}, {super().extra_repr()}"
