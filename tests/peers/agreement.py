"""This module says what "equal to the installed package" means.

It also has the sizes and dtypes for which equality is checked.
"""

from __future__ import annotations

import contextlib
import inspect
import warnings

import pytest
import torch
from torch import nn

from fused_contrastive.integrations._common import FallbackWarning

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
SIZES = ((1, 1), (1, 5), (2, 1), (3, 4), (8, 3), (13, 16))
"""Each size gives the number of rows and of dimensions."""
FLOOR = {torch.float64: 1.0, torch.float32: 1.0, torch.float16: 0.05, torch.bfloat16: 0.05}
"""Below this magnitude errors are absolute.

This is for gradients that are 0 but for rounding, such as those of a single row. In one dimension
all gradients are like that, and the magnitude is 1.
"""

ULPS = {torch.float64: 512, torch.float32: 16, torch.float16: 4, torch.bfloat16: 4}


def draw(*shapes, spread: float = 1.0, seed: int = 0) -> list[torch.Tensor]:
    """Draws standard normal float64 tensors.

    Tensors of one shape are views of the same points, `spread` apart.
    """
    generator = torch.Generator().manual_seed(seed)
    points = {}
    drawn = []
    for shape in shapes:
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        drawn.append(points.setdefault(shape, noise) + (spread * noise if shape in points else 0))
    return drawn


def run(loss, inputs: list[torch.Tensor], autocast=None):
    """Returns ``[value, gradients...]`` of a loss that is a tensor or a dictionary of one.

    The upstream gradient is not constant.
    """
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    with torch.autocast("cpu", autocast) if autocast else contextlib.nullcontext():
        value = loss(*leaves)
        if isinstance(value, dict):
            (value,) = value.values()
    upstream = (
        torch.linspace(0.5, 1.5, max(value.numel(), 1))[: value.numel()]
        .view(value.shape)
        .to(value.dtype)
    )
    if value.requires_grad:
        value.backward(upstream)
    gradients = [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]
    return [value.detach(), *gradients]


def agree(
    ours, theirs, inputs: list[torch.Tensor], dtype: torch.dtype = torch.float64, autocast=None
):
    """Asserts that value, gradients and their dtypes are the package's.

    Our errors are measured against what the package gives in float64. They may be no larger than
    twice the package's own, plus a few units in the last place.

    0-d inputs (scales) are float32 at least. The test is skipped where the package has no such
    dtype.
    """
    inputs = [
        x.to(torch.promote_types(dtype, torch.float32) if x.dim() == 0 else dtype) for x in inputs
    ]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = run(theirs, inputs, autocast)
    except (RuntimeError, NotImplementedError) as error:
        pytest.skip(f"the package cannot: {error}")
    truth = expected
    if dtype != torch.float64 or autocast:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            truth = run(theirs, [x.double() for x in inputs])
    got = run(ours, inputs, autocast)
    eps = torch.finfo(autocast or dtype).eps
    floor = 1.0 if any(x.shape[-1:] == (1,) for x in inputs) else FLOOR[dtype]
    whole = max((float(x.nan_to_num().abs().max()) for x in truth if x.numel()), default=0.0)
    for place, (mine, package, true) in enumerate(zip(got, expected, truth, strict=True)):
        what = f"gradient {place - 1}" if place else "value"
        assert mine.shape == package.shape, what
        assert mine.dtype == package.dtype, what
        finite = true.isfinite()
        assert torch.equal(
            mine.double()[~finite].nan_to_num(), true.double()[~finite].nan_to_num()
        ), what
        mine, package, true = (x.double()[finite] for x in (mine, package, true))
        if not true.numel():
            continue
        scale = max(float(true.abs().max()), 1e-3 * whole, floor)
        error, theirs_error = (
            float((x - true).abs().nan_to_num(float("inf")).max()) for x in (mine, package)
        )
        allowed = 2 * theirs_error + ULPS[dtype] * eps * scale
        assert error <= allowed, (
            f"{what}: error {error:.2e}, the package's {theirs_error:.2e}, allowed {allowed:.2e}"
        )


def same_error(ours, theirs, *arguments, **keywords):
    """Asserts that both raise the same type with the same message."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(Exception) as expected:
            theirs(*arguments, **keywords)
        with pytest.raises(type(expected.value)) as got:
            ours(*arguments, **keywords)
    assert type(got.value) is type(expected.value)
    assert str(got.value) == str(expected.value)


def falls_back(ours, theirs, inputs: list[torch.Tensor], reason: str):
    """Asserts that our loss falls back and names the reason.

    It then gives what the package gives, to the bit.
    """
    with pytest.warns(FallbackWarning, match=reason):
        got = run(ours, inputs)
    for mine, package in zip(got, run(theirs, inputs), strict=True):
        torch.testing.assert_close(mine, package, rtol=0, atol=0, equal_nan=True)


def same_signature(ours, theirs, beside: tuple[str, ...] = ()):
    """Asserts that our class is a subclass with the same arguments.

    Names, kinds and defaults of the constructor's and forward's arguments are compared. Our
    constructor may have the keyword arguments `beside`, too.
    """
    if inspect.isclass(theirs):
        assert issubclass(ours, theirs)
        assert ours.__name__ == theirs.__name__
        same_signature(ours.__init__, theirs.__init__, beside)
        same_signature(ours.forward, theirs.forward)
        return
    mine, package = (
        [(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()]
        for f in (ours, theirs)
    )
    added = [x for x in mine if x[0] in beside]
    assert [(name, kind) for name, kind, _ in added] == [
        (name, inspect.Parameter.KEYWORD_ONLY) for name in beside
    ]
    mine = [x for x in mine if x not in added]
    assert mine == package


def same_weights(mine: nn.Module, package: nn.Module, start: nn.Module, rtol: float = 1e-3):
    """Asserts that the steps the weights took from `start` differ by `rtol` at most."""
    steps, difference = 0.0, 0.0
    for weights in zip(mine.parameters(), package.parameters(), start.parameters(), strict=True):
        x, y, z = (w.detach().double() for w in weights)
        steps += float((y - z).square().sum())
        difference += float((x - y).square().sum())
    assert steps > 0
    assert difference**0.5 <= rtol * steps**0.5
