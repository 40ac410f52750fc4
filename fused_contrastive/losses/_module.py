"""What the modules share: options, and a temperature that is fixed or learned."""

from __future__ import annotations

import math

import torch
from torch import nn

from .. import checks
from ._arguments import Options, check_options
from ._points import check_temperatures


class Loss(nn.Module):
    """Keeps the options of one loss function, checked; subclasses call the function."""

    def __init__(self, **options):
        super().__init__()
        check_options(**{name: options[name] for name in Options._fields if name in options})
        checks.choice("reduction", options["reduction"], checks.REDUCTIONS)
        self.options = options

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


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

    def __init__(self, temperature: float, learnable: bool, **options):
        super().__init__(**options)
        own_number("temperature", temperature, divisor=True)
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
