"""Wrong arguments raise an error that names the argument, what was given and what is expected."""

import math

import pytest
import torch
from support import cases
from support.modules import PAIRS, WITH_TEMPERATURE, arguments

import fused_contrastive as fc
from fused_contrastive.backends import dispatch

Z = torch.randn(4, 3)
META = torch.empty(4, 3, device="meta")


def required(name) -> list[str]:
    """The arguments of a loss that have no default."""
    found = arguments(getattr(fc, name))
    return [key for key, parameter in found.items() if parameter.default is parameter.empty]


TWO_SETS = {name: tuple(required(name)[:2]) for name in PAIRS.values() if len(required(name)) > 1}
"""Every loss of two sets in support/cases.py, with their names."""


def call(name, first, second, **options):
    example = cases.PLAINEST[name].example()
    others = {key: example[key] for key in required(name)[2:]}
    return getattr(fc, name)(first, second, **others | options)


def valid(name):
    return torch.randn(2, 4, 3) if name == "cpc_loss" else Z


@pytest.mark.parametrize("name", TWO_SETS)
@pytest.mark.parametrize("position", (0, 1))
@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    (
        (lambda z: z.long(), TypeError, "floating"),
        (lambda z: z.to(torch.complex64), TypeError, "floating"),
        (lambda z: z.tolist(), TypeError, "tensor"),
        (lambda z: None, TypeError, "tensor"),
        (lambda z: z.reshape(-1), ValueError, "dimensions"),
    ),
    ids=("integer", "complex", "list", "None", "1-d"),
)
def test_not_embeddings(name, position, wrong, error, message):
    arguments = [valid(name), valid(name)]
    arguments[position] = wrong(arguments[position])
    with pytest.raises(
        error,
        match=rf"^{TWO_SETS[name][position]} must (be|have) .*{message}",
    ):
        call(name, *arguments)


@pytest.mark.parametrize("name", TWO_SETS)
@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    (
        (lambda z: z[..., :2], ValueError, "shape"),
        (lambda z: z[..., :1, :], ValueError, "shape"),
        (lambda z: z.double(), TypeError, "dtype"),
        (lambda z: z.bfloat16(), TypeError, "dtype"),
        (lambda z: z.to("meta"), ValueError, "device"),
    ),
    ids=("features", "rows", "float64", "bfloat16", "device"),
)
def test_two_sets_that_do_not_match(name, wrong, error, message):
    first, second = TWO_SETS[name]
    with pytest.raises(error, match=rf"^{second} must .*{message}.*{first}"):
        call(name, valid(name), wrong(valid(name)))


@pytest.mark.parametrize("name", [n for n in TWO_SETS if n not in ("nt_xent_loss", "cpc_loss")])
def test_too_many_dimensions(name):
    with pytest.raises(ValueError, match=f"{TWO_SETS[name][0]} must have 2 dimensions"):
        call(name, torch.randn(2, 3, 4), torch.randn(2, 3, 4))


@pytest.mark.parametrize("name", TWO_SETS)
@pytest.mark.parametrize("reduction", ("average", "", None, 1))
def test_reduction(name, reduction):
    with pytest.raises(ValueError, match="reduction must be one of 'none', 'mean', 'sum'"):
        call(name, valid(name), valid(name), reduction=reduction)


BAD_NUMBERS = (
    (math.nan, ValueError, "finite"),
    (math.inf, ValueError, "finite"),
    ("0.1", TypeError, "number"),
    (True, TypeError, "number"),
    (torch.ones(1), ValueError, "0-d"),
    (torch.ones((), dtype=torch.long), ValueError, "floating"),
    (torch.ones((), device="meta"), ValueError, "must be on"),
)


@pytest.mark.parametrize(("value", "error", "message"), BAD_NUMBERS, ids=lambda v: repr(v)[:24])
@pytest.mark.parametrize(
    ("name", "argument"),
    [
        (name, argument)
        for name in TWO_SETS
        for argument in arguments(getattr(fc, name))
        if argument in ("temperature", "sigma", "logit_scale", "teacher_logit_scale", "logit_bias")
    ],
)
def test_numbers(name, argument, value, error, message):
    with pytest.raises(error, match=f"{argument} must be .*{message}|{argument} {message}"):
        call(name, Z, Z, **{argument: value})


@pytest.mark.parametrize(("value", "error", "message"), BAD_NUMBERS, ids=lambda v: repr(v)[:24])
def test_scale_of_the_primitive(value, error, message):
    with pytest.raises(error, match=f"scale must be .*{message}|scale {message}"):
        fc.similarity_logsumexp(Z, scale=value)


@pytest.mark.parametrize("value", (0, 0.0, 1e-9, -1e-9))
@pytest.mark.parametrize(
    "name", [name for name in TWO_SETS if "temperature" in arguments(getattr(fc, name))]
)
def test_temperature_near_zero(name, value):
    with pytest.raises(ValueError, match="temperature must not be smaller than 1e-8"):
        call(name, Z, Z, temperature=value)
    assert call(name, Z, Z, temperature=-0.5).isfinite(), "a negative temperature is legal"


def test_logit_bias():
    with pytest.raises(ValueError, match="logit_bias must be"):
        fc.clip_loss(Z, Z, 1.0, torch.zeros(4))


@pytest.mark.parametrize("given", ({"negative_mode": "both"}, {"negative_mode": None}))
def test_negative_mode(given):
    with pytest.raises(ValueError, match="negative_mode must be one of"):
        fc.info_nce_loss(Z, Z, **given)


@pytest.mark.parametrize(
    ("negatives", "mode", "error", "message"),
    (
        (torch.randn(5, 2), "unpaired", ValueError, r"negative_keys must have shape \[K, 3\]"),
        (torch.randn(4, 5, 3), "unpaired", ValueError, "need negative_mode='paired'"),
        (torch.randn(5, 3), "paired", ValueError, "negative_keys must have 3 dimensions"),
        (torch.randn(5, 2, 3), "paired", ValueError, r"negative_keys must have shape \[4, K, 3\]"),
        (
            torch.randn(5, 3).double(),
            "unpaired",
            TypeError,
            "negative_keys must have the dtype of query",
        ),
        (torch.ones(5, 3).int(), "unpaired", TypeError, "negative_keys must be a floating-point"),
        (
            torch.empty(5, 3, device="meta"),
            "unpaired",
            ValueError,
            "negative_keys must be on the device of query",
        ),
    ),
)
def test_negative_keys(negatives, mode, error, message):
    with pytest.raises(error, match=message):
        fc.info_nce_loss(Z, Z, negatives, negative_mode=mode)


def test_symmetric_with_negatives():
    with pytest.raises(ValueError, match=r"symmetric.*negative_keys must be None"):
        fc.info_nce_loss(Z, Z, torch.randn(5, 3), symmetric=True)


@pytest.mark.parametrize(
    ("target", "error"),
    (
        ([0, 1, 2, 3], TypeError),
        (torch.arange(3), ValueError),
        (torch.arange(4.0), ValueError),
        (torch.tensor([0, 1, 2, 4]), ValueError),
        (torch.tensor([0, 1, -1, 2]), ValueError),
        (torch.ones(4, 4), ValueError),
        (torch.eye(4)[[1, 0, 2, 3]], ValueError),
        (torch.eye(3), ValueError),
        (torch.empty(4, dtype=torch.long, device="meta"), ValueError),
    ),
    ids=(
        "list",
        "short",
        "float",
        "too-large",
        "negative",
        "ones",
        "permuted",
        "small-matrix",
        "device",
    ),
)
def test_n_pairs_target(target, error):
    with pytest.raises(error, match="target must"):
        fc.n_pairs_loss(Z, Z, target)


KEY = torch.arange(4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    (
        ({"a": Z[0]}, ValueError, "a must have at least 2 dimensions"),
        ({"a": KEY[None]}, TypeError, "a must be a floating-point"),
        ({"b": Z[:, :2]}, ValueError, r"b must have shape \[\.\.\., N, D\] matching a"),
        ({"b": torch.randn(2, 4, 3)}, ValueError, "b must have shape"),
        ({"b": Z.half()}, TypeError, "b must have the dtype of a"),
        ({"b": META}, ValueError, "b must be on the device of a"),
        ({"bias": torch.zeros(3)}, ValueError, r"bias must be broadcastable to shape \(4,\)"),
        ({"bias": torch.zeros(2, 4)}, ValueError, "bias must be broadcastable"),
        ({"bias": torch.zeros(())}, ValueError, "bias must have at least 1 dimension"),
        ({"bias": KEY}, TypeError, "bias must be a floating-point"),
        ({"bias": torch.zeros(4, device="meta")}, ValueError, "bias must be on the device of a"),
        ({"candidates": "self"}, ValueError, "candidates must be one of 'all'"),
        ({"candidates": None}, ValueError, "candidates must be one of"),
        ({"normalize": "l2"}, ValueError, "normalize must be one of"),
        ({"candidates": "not_pair"}, ValueError, "pair_stride must be a positive"),
        (
            {"candidates": "not_pair", "pair_stride": 0},
            ValueError,
            "pair_stride must be a positive",
        ),
        (
            {"candidates": "not_pair", "pair_stride": 2.0},
            (TypeError, ValueError),
            "pair_stride must be",
        ),
        ({"pair_stride": 2}, ValueError, "pair_stride must be .*not_pair"),
        (
            {"candidates": "not_self", "self_offset": 0.5},
            (TypeError, ValueError),
            "self_offset must be",
        ),
        ({"candidates": "not_self", "b": Z}, ValueError, "self_offset must be given with two sets"),
        ({"candidates": "other_key"}, TypeError, "key_a must be an integer tensor"),
        (
            {"candidates": "other_key", "key_a": [0, 1, 2, 3]},
            TypeError,
            "key_a must be an integer tensor",
        ),
        (
            {"candidates": "other_key", "key_a": KEY.float()},
            TypeError,
            "key_a must be an integer tensor",
        ),
        ({"candidates": "other_key", "key_a": KEY[:3]}, ValueError, "key_a must have shape"),
        ({"candidates": "other_key", "key_a": KEY[0]}, ValueError, "key_a must have shape"),
        ({"candidates": "other_key", "key_a": KEY.to("meta")}, ValueError, "key_a must be on"),
        (
            {"candidates": "other_key", "key_a": KEY, "key_b": KEY},
            ValueError,
            "key_b must be None with one set",
        ),
        (
            {"candidates": "same_key", "b": Z, "key_a": KEY},
            TypeError,
            "key_b must be an integer tensor",
        ),
        (
            {"candidates": "same_key", "b": Z, "key_a": KEY, "key_b": KEY[:2]},
            ValueError,
            "key_b must have shape",
        ),
        ({"key_a": KEY}, ValueError, "key_a and key_b need candidates in"),
    ),
    ids=lambda v: str(list(v))[:40] if isinstance(v, dict) else "",
)
def test_primitive(arguments, error, message):
    with pytest.raises(error, match=message):
        fc.similarity_logsumexp(**{"a": Z} | arguments)


@pytest.mark.parametrize("name", TWO_SETS)
def test_unknown_backend(name):
    names = ", ".join(dispatch.NAMES)
    with pytest.raises(ValueError, match=f"backend must be one of {names} or None, got 'gpu'"):
        call(name, valid(name), valid(name), backend="gpu")


def test_unknown_backend_elsewhere():
    with pytest.raises(ValueError, match="backend must be one of"):
        fc.similarity_logsumexp(Z, backend="Panels")
    with pytest.raises(ValueError, match="backend must be one of"), fc.use_backend("none"):
        pass


def test_backend_that_cannot_serve():
    """Naming a backend that cannot serve this device raises a RuntimeError with the reason.

    This holds inside use_backend as well.
    """
    z = torch.empty(4, 3, device="meta")
    for name in ("cpu", "triton"):
        reason = dispatch.refusal(name, z.device, z.dtype)
        assert reason, f"{name} must refuse the meta device"
        with pytest.raises(
            RuntimeError, match=f"backend='{name}' cannot serve torch.float32 on meta: .{{8,}}"
        ):
            fc.nt_xent_loss(z, z, backend=name)
        with pytest.raises(RuntimeError, match="cannot serve"), fc.use_backend(name):
            fc.nt_xent_loss(z, z)


@pytest.mark.parametrize("module", WITH_TEMPERATURE)
def test_module_temperature(module):
    for bad, error in ((0.0, ValueError), (math.nan, ValueError), ("1", TypeError)):
        with pytest.raises(error, match="temperature must"):
            getattr(fc, module)(bad)
    with pytest.raises(ValueError, match="temperature must be positive to be learnable"):
        getattr(fc, module)(-0.5, learnable=True)


@pytest.mark.parametrize("module", PAIRS)
def test_module_reduction(module):
    with pytest.raises(ValueError, match="reduction must be one of"):
        getattr(fc, module)(reduction="average")
