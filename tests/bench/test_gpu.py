"""The losses can be captured in a CUDA graph, never synchronise, and use the current stream.

Only a GPU can show this, so the tests are skipped elsewhere.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from support import cases

import fused_contrastive as fc


class ForceCase(NamedTuple):
    """This is a loss of the force family in the form of the other cases.

    It has groups of n + n points, or one large group.
    """

    function: object
    groups: int

    def draw(self, n, d, dtype, device, seed=0):
        generator = torch.Generator().manual_seed(seed)
        shape = (self.groups, n if self.groups > 1 else 5 * n, d)
        sets = [
            torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)
            for _ in range(2)
        ]
        return {
            name: x.requires_grad_() for name, x in zip(("positive", "negative"), sets, strict=True)
        }

    def loss(self, inputs, backend, reduction="mean"):
        return self.function(inputs["positive"], inputs["negative"], backend).mean()


FORCE = {
    "force_loss": lambda p, n, backend: fc.contrastive_force_loss(p, n, backend=backend),
    "force": lambda p, n, backend: (
        fc.contrastive_force(p, n, 3.0, normalizer="dist_affinity_rms", backend=backend) ** 2
    ),
}
CASES = {case.name: case for case in cases.LOSSES if case.target is None}
"""Cases with a target are left out: they copy an index vector to the device in every call."""
CASES |= {
    f"{name}-{groups}": ForceCase(function, groups)
    for name, function in FORCE.items()
    for groups in (1, 40)
}
NAMES = list(CASES)


@pytest.fixture
def gpu(device) -> torch.device:
    if device.type != "cuda":
        pytest.skip("needs a GPU")
    return device


def step(case, inputs, backend):
    loss = case.loss(inputs, backend, reduction="mean")
    return loss, *torch.autograd.grad(loss, list(inputs.values()))


@pytest.mark.parametrize("name", NAMES)
def test_cuda_graph(name, backend, gpu):
    """A step can be captured once and replayed on other data, as training loops do."""
    case = CASES[name]
    inputs = case.draw(70, 40, torch.float32, gpu)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(case, inputs, backend)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(case, inputs, backend)
    other = case.draw(70, 40, torch.float32, gpu, seed=1)
    with torch.no_grad():
        for x, y in zip(inputs.values(), other.values(), strict=True):
            x.copy_(y)
    graph.replay()
    for x, y in zip(captured, step(case, other, backend), strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("name", NAMES)
def test_no_synchronisation(name, backend, gpu):
    case = CASES[name]
    inputs = case.draw(70, 40, torch.float32, gpu)
    step(case, inputs, backend)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(case, inputs, backend)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", NAMES)
def test_the_current_stream(name, backend, gpu):
    """A loss reads its inputs only after a busy stream has written them."""
    case = CASES[name]
    inputs = case.draw(70, 40, torch.float32, gpu)
    late = {key: torch.zeros_like(x) + (x.dim() == 0) for key, x in inputs.items()}
    expected = step(case, inputs, backend)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        for key, x in inputs.items():
            late[key].copy_(x.detach())
        found = step(case, {key: x.requires_grad_() for key, x in late.items()}, backend)
    side.synchronize()
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y)
