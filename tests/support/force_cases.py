"""The tests of the force losses use these points, oracles and errors."""

import functools

import numpy as np
import pytest
import torch
from conftest import is_interpreted
from oracles import force as force_oracle
from oracles.force import array

from support.selection import one_in


@pytest.fixture
def exact_distances(monkeypatch):
    """Let eager compute distances from differences.

    By default torch.cdist loses half the digits for more than 25 points.
    """
    exact = functools.partial(torch.cdist, compute_mode="donot_use_mm_for_euclid_dist")
    monkeypatch.setattr(torch, "cdist", exact)


def draw(size, data="normal", dtype=torch.float64, device="cpu", seed=0):
    """Draw positives `[G, N, D]` and negatives `[G, M, D]` that are exact in `dtype`."""
    G, N, M, D = size
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((G, N + M, D), generator=generator, dtype=torch.float64)
    if data in ("clustered", "duplicated"):
        centres = 3 * torch.randn((G, 4, D), generator=generator, dtype=torch.float64)
        place = torch.randint(0, 4, (G, N + M, 1), generator=generator).expand(-1, -1, D)
        x = centres.gather(1, place) + (1e-2 if data == "clustered" else 0.5) * x
    if data == "duplicated":
        x[:, 1::2] = x[:, : (N + M) // 2 * 2 : 2][:, : x[:, 1::2].shape[1]]
    if data == "far":
        x += 1000
    x = x.to(dtype).to(device)
    return [x[:, M:].clone().requires_grad_(), x[:, :M].clone().requires_grad_()]


def upstream_of(shape, seed=0):
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(seed + 77), dtype=torch.float64
    )


def error(x, expected) -> float:
    """Return the relative error by norm, or the absolute one where all is 0."""
    x, expected = array(x), np.asarray(expected, dtype=np.longdouble)
    assert x.shape == expected.shape, (x.shape, expected.shape)
    return float(np.linalg.norm((x - expected).ravel()) / (np.linalg.norm(expected.ravel()) or 1))


_known = {}


def known(function):
    """Keep the oracle's answers for the other backends."""

    def call(*arguments, **options):
        flat = [
            x.detach().cpu().double().numpy().tobytes() if hasattr(x, "detach") else x
            for x in arguments
        ]
        given = {
            k: v.detach().cpu().numpy().tobytes() if hasattr(v, "detach") else v
            for k, v in options.items()
        }
        key = (function.__name__, *flat, *sorted(given.items()))
        if key not in _known:
            _known[key] = function(*arguments, **options)
        return _known[key]

    return call


@known
def oracle_force(positive, negative, temperature, **options):
    pairs = zip(array(positive), array(negative), strict=True)
    return np.stack([force_oracle.force(p, n, temperature, **options) for p, n in pairs])


@known
def oracle_loss(positive, negative, temperatures, upstream, scale=None, **options):
    scales = [None] * len(positive) if scale is None else array(scale)
    groups = zip(array(positive), array(negative), array(upstream), scales, strict=True)
    parts = [
        force_oracle.force_loss(p, n, temperatures, g, scale=s, **options) for p, n, g, s in groups
    ]
    return {name: np.stack([part[name] for part in parts]) for name in parts[0]}


def interpreted(params) -> bool:
    """Tell whether Triton's interpreter runs these parameters. The other backends are fast."""
    name = params.get("any_backend", params.get("backend"))
    return name == "triton" and is_interpreted(name)


def some_of(step, **values):
    """Keep one combination in `step` where Triton's interpreter runs it."""
    return pytest.mark.everyday(keep=lambda p: not interpreted(p) or one_in(step, p, **values))
