"""This module takes samples of several contenders in turns.

It also computes their medians, quartiles and paired ratios. One sample is one training step. Its
forward and backward passes are timed apart, and full is their sum. The backward pass is
`torch.autograd.grad`, so that no gradient buffer is added to. Samples go round-robin over the
contenders, so that drift of the machine meets all of them alike. A ratio is the median of the
ratios within rounds.
"""

from __future__ import annotations

import contextlib
import functools
import random
import statistics
import time
from collections.abc import Callable

import torch

Sample = tuple[float, float]
"""A sample has the seconds of the forward and of the backward pass."""

MIN_SAMPLE = 1e-3
"""Steps of fewer seconds are repeated within a sample until it takes about this long."""


class Step:
    """A contender computes ``loss = function(*inputs)`` and the gradients of its inputs.

    Only inputs that require a gradient get one. Calling it with a repeat count returns a `Sample`,
    the mean of the repeats. ``tf32`` sets torch's float32 matmul precision around the step ("high"
    against "highest").
    """

    def __init__(self, function: Callable, inputs: list[torch.Tensor], tf32: bool = False):
        self.function, self.inputs, self.tf32 = function, inputs, tf32
        self.differentiable = [x for x in inputs if x.requires_grad]

    def forward(self) -> torch.Tensor:
        return self.function(*self.inputs)

    def backward(self, loss: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(loss, self.differentiable)

    def gradients(self) -> tuple[torch.Tensor, ...]:
        with matmul_precision(self.tf32):
            return self.backward(self.forward())

    def __call__(self, repeats: int = 1) -> Sample:
        with matmul_precision(self.tf32):
            timed = _cuda_sample if self.inputs[0].is_cuda else _host_sample
            return timed(self.forward, self.backward, repeats)


class Product:
    """This contender is the matrix product ``[n, D] @ [D, n]`` with n = min(N, 8192).

    It gives the library's rate for this dtype and shape.
    """

    def __init__(
        self, N: int, D: int, dtype: torch.dtype, device: torch.device, tf32: bool = False
    ):
        n = min(N, 8192)
        generator = torch.Generator().manual_seed(0)
        self.x, self.y = (
            torch.randn(n, D, generator=generator).to(device, dtype) for _ in range(2)
        )
        self.out = torch.empty(n, n, dtype=dtype, device=device)
        self.flops, self.tf32 = 2 * n * n * D, tf32

    def forward(self):
        return torch.mm(self.x, self.y.T, out=self.out)

    def __call__(self, repeats: int = 1) -> Sample:
        with matmul_precision(self.tf32):
            timed = _cuda_sample if self.x.is_cuda else _host_sample
            return timed(self.forward, None, repeats)


class Copy:
    """This contender is a device copy of ``nbytes``.

    ``moved`` counts the bytes read and written.
    """

    def __init__(self, nbytes: int, device: torch.device):
        self.source = torch.randint(0, 255, (nbytes,), dtype=torch.uint8, device=device)
        self.target = torch.empty_like(self.source)
        self.moved = 2 * nbytes

    def __call__(self, repeats: int = 1) -> Sample:
        timed = _cuda_sample if self.source.is_cuda else _host_sample
        return timed(lambda: self.target.copy_(self.source), None, repeats)


@contextlib.contextmanager
def matmul_precision(tf32: bool):
    """Sets torch's float32 matmul precision to "high" with `tf32`, and else leaves it as it is."""
    if not tf32:
        yield
        return
    matmul = torch.backends.cuda.matmul
    try:
        previous = torch.get_float32_matmul_precision()
    except RuntimeError:
        # The precision was set by fp32_precision, which the older functions do not read.
        previous, matmul.fp32_precision = matmul.fp32_precision, "tf32"
        restore = functools.partial(setattr, matmul, "fp32_precision", previous)
    else:
        torch.set_float32_matmul_precision("high")
        restore = functools.partial(torch.set_float32_matmul_precision, previous)
    try:
        yield
    finally:
        restore()


def _host_sample(forward, backward, repeats: int) -> Sample:
    ahead = behind = 0.0
    for _ in range(repeats):
        start = time.perf_counter()
        loss = forward()
        middle = time.perf_counter()
        if backward is not None:
            gradients = backward(loss)
            behind += time.perf_counter() - middle
            del gradients
        ahead += middle - start
        del loss
    return ahead / repeats, behind / repeats


def _cuda_sample(forward, backward, repeats: int) -> Sample:
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(3)] for _ in range(repeats)]
    torch.cuda.synchronize()
    for start, middle, end in events:
        start.record()
        loss = forward()
        middle.record()
        if backward is not None:
            backward(loss)
        end.record()
        del loss
    torch.cuda.synchronize()
    ahead = sum(start.elapsed_time(middle) for start, middle, _ in events)
    behind = (
        sum(middle.elapsed_time(end) for _, middle, end in events) if backward is not None else 0.0
    )
    return ahead / repeats / 1e3, behind / repeats / 1e3


def interleave(
    contenders: dict[str, Callable[[int], Sample]],
    seconds: float,
    estimates: dict[str, float],
    *,
    least: int = 5,
    most: int = 40,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, list[Sample]]:
    """Takes round-robin samples of warmed-up contenders.

    There are as many rounds as `seconds` hold, between `least` and `most`. ``estimates`` are the
    seconds of one step of each. The order within a round is shuffled with a fixed seed.
    ``tick(done, total)`` reports rounds.
    """
    repeats = {name: max(1, round(MIN_SAMPLE / max(estimates[name], 1e-7))) for name in contenders}
    cost = sum(repeats[name] * estimates[name] for name in contenders)
    rounds = max(least, min(most, int(seconds / max(cost, 1e-7))))
    samples: dict[str, list[Sample]] = {name: [] for name in contenders}
    order, generator = list(contenders), random.Random(0)
    for done in range(rounds):
        generator.shuffle(order)
        for name in order:
            samples[name].append(contenders[name](repeats[name]))
        tick(done + 1, rounds)
    return samples


def seconds_of(samples: list[Sample], which: str) -> list[float]:
    """Returns the seconds of one pass in every sample."""
    return [{"forward": f, "backward": b, "full": f + b}[which] for f, b in samples]


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Returns the first quartile, median and third quartile (inclusive method).

    One value is all three.
    """
    if len(values) == 1:
        return (values[0],) * 3
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, statistics.median(values), high


def paired_ratio(baseline: list[float], values: list[float]) -> tuple[float, float, float]:
    """Returns quartiles of ``baseline / value`` within rounds.

    They say how many times faster than the baseline the values are.
    """
    if len(baseline) != len(values):
        raise ValueError(
            f"paired samples must be of the same rounds, got {len(baseline)} and {len(values)}"
        )
    return quartiles([b / v for b, v in zip(baseline, values, strict=True)])


def relative_error(gradients, truth) -> float:
    """Returns the norm of the difference over the norm of `truth`, in float64.

    All gradients are taken together.
    """
    difference = sum(
        float((g.double() - t).norm()) ** 2 for g, t in zip(gradients, truth, strict=True)
    )
    return (difference / sum(float(t.norm()) ** 2 for t in truth)) ** 0.5
