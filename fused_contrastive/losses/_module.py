"""What the modules share: options, and a temperature that is fixed or learned."""

from __future__ import annotations

import math

import torch
from torch import nn

from .. import checks
from ..autograd.over_ranks import sum_over_ranks
from ..distributed.groups import Ranks, resolve
from ._arguments import Options, check_options
from ._over_ranks import NOT_GIVEN
from ._points import check_temperatures


class Loss(nn.Module):
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
        """A parameter ``[]``, or with ``learnable="averaged"`` its mean over the ranks.

        That mean is the parameter itself, up to its rounding, as long as all ranks have the same.
        Its gradient is the mean of the ranks' gradients, so they go on having the same.
        """
        if self.ranks is None:
            return parameter
        return sum_over_ranks(parameter, self.ranks.encode()) / self.ranks.size

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
