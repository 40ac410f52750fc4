"""The CUDA kernels of the sigmoid family agree with the dense form in float64.

They run on a GPU with ``--device cuda``, and else by the host shim.
"""

from __future__ import annotations

from dataclasses import replace

import cuda_host
import pytest
import torch
from support.cuda_calls import backend, operators  # noqa: F401
from support.cuda_cases import TOLERANCE, precision  # noqa: F401
from support.sigmoid_cases import USES, Use, check, run

from fused_contrastive.backends.cuda import _tiles
from fused_contrastive.backends.tiled import plan as tiling

PLUS, MINUS = USES[0], USES[2]


@pytest.fixture
def way(precision):
    """Give (dtype, tolerance) of every way in which matrices are multiplied."""
    return precision[1], TOLERANCE[precision[0]]


@pytest.mark.parametrize("use", USES, ids=str)
def test_sizes(use, device):
    """The sums and gradients are right at every size.

    Tiles are 64 wide. The sizes are one element, whole and ragged tiles, many rows by few columns,
    and few rows by many columns.
    """
    for m, n in ((1, 1), (65, 129), (7, 200), (150, 5)):
        check(use, "cuda", m, n, 9, device=device)


@pytest.mark.parametrize("use", (PLUS, MINUS), ids=str)
def test_precisions(use, way, device):
    dtype, tolerance = way
    for m, n, d in ((90, 200, 33), (200, 140, 64), (3, 300, 136)):
        check(use, "cuda", m, n, d, dtype, device, 2 * tolerance)


@pytest.mark.parametrize("tiles", (2, 5), ids=lambda n: f"{n}-tiles")
def test_strips_of_tiles(tiles, way, device, monkeypatch):
    """Super-tiles of several tiles are right where the last one is cut in both directions."""
    dtype, tolerance = way
    unit = _tiles.super_unit(torch.empty(0, dtype=dtype, device=device))
    monkeypatch.setattr(tiling, "super_tile", lambda M, N, symmetric, unit: tiles * unit)
    check(
        Use("not_self", offset=3),
        "cuda",
        3 * unit + 10,
        5 * unit + 3,
        8,
        dtype,
        device,
        2 * tolerance,
    )


@pytest.mark.parametrize("use", (PLUS, replace(MINUS, lead=(2,))), ids=str)
def test_panels_of_a_small_workspace(use, device, monkeypatch):
    for workspace in (8 * 3000, 8 * 9000):
        monkeypatch.setattr(tiling, "WORKSPACE", workspace)
        check(use, "cuda", 90, 130, 9, device=device)


@pytest.mark.parametrize("use", (PLUS, MINUS), ids=str)
def test_the_order_of_threads_does_not_matter(use, way, device, monkeypatch):
    """Every order of threads between barriers gives the same bits, so there is no race.

    Copies and warpgroup products are done at once, or when they are waited for. On a GPU, every run
    gives the same bits.
    """
    options = cuda_host.load().options if device.type == "cpu" else lambda *options: None
    dtype, _ = way
    unit = _tiles.super_unit(torch.empty(0, dtype=dtype, device=device))
    monkeypatch.setattr(tiling, "super_tile", lambda M, N, symmetric, unit: 2 * unit)
    named = {k: x.to(device) for k, x in use.draw(unit + 6, 2 * unit + 6, 136, dtype).items()}
    results = []
    for order, copies_at_once, products_at_once in ((1, 0, 1), (3, 1, 0), (4, 1, 0), (0, 0, 0)):
        options(order, copies_at_once, products_at_once)
        results.append(run(use, named, "cuda"))
    for other in results[1:]:
        assert all(torch.equal(x, other[name]) for name, x in results[0].items())
