"""The force kernels of CUDA are right on sites of many equal points far from all others.

They run as those of test_cuda_force.py do.
"""

from __future__ import annotations

import pytest
import torch
from support.cuda_calls import backend, operators  # noqa: F401
from support.force_contract import Force, way  # noqa: F401


@pytest.mark.parametrize("weight", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"mask": True}, {"separate": True}, {"separate": True, "mask": True}, {"rms": True}],
    ids=str,
)
def test_rows_that_equal_points_of_either_side(options, weight, way):
    """Forces on sites of many equal points are exact relative to themselves.

    Such sites are 60 or 120 temperatures apart, or one of them is far from points that are spread.
    The forces are exact even where float32 does not hold the ratio of an affinity to that of equal
    points.
    """
    weight = weight and not options.get("rms")
    negative, positive = (
        torch.arange(3).repeat_interleave(torch.tensor(n)) for n in ((18, 18, 24), (6, 12, 18))
    )
    order = torch.randperm(len(negative), generator=torch.Generator().manual_seed(0))
    place = torch.cat([negative[order], positive])
    call = Force(1, 96, 5, 2, 50, 60, 1.0, weight, options, torch.float32)
    _, inverse, scale, weights = call.inputs
    inverse = torch.tensor([1.0, 0.9]).to(inverse)
    spread = torch.randn(96, 5, generator=torch.Generator().manual_seed(1)) * (place > 0).unsqueeze(
        1
    )
    for distance, apart in ((60.0, 0.0), (60.0, 1.0), (120.0, 0.0)):
        # The forces themselves are less than float32 holds.
        if distance > 100 and not options.keys() & {"separate", "rms"}:
            continue
        sites = torch.zeros(3, 5)
        sites[1, 0], sites[2, 1] = distance, distance + 5
        x = sites[place] + apart * spread
        inputs = (x[None], inverse, scale, None if weights is None else weights.abs())
        force, want = (f(inputs)[0].double() for f in (call.run, call.expected))
        size = want.norm(dim=-1)
        assert (size > 0).all()
        error = ((force - want).norm(dim=-1) / size).max()
        assert error < 1e-4, f"{distance}: {error:.2e}"
