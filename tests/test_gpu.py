"""What only a GPU can show: capture in a CUDA graph, no synchronisation, work on the current stream. Skipped elsewhere."""

from __future__ import annotations

import cases
import pytest
import torch

NAMES = [
    case.name for case in cases.LOSSES if case.target is None
]  # the cases copy an index vector to the device in every call


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
    """A step captured once and replayed on other data, as training loops do."""
    case = cases.BY_NAME[name]
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
    case = cases.BY_NAME[name]
    inputs = case.draw(70, 40, torch.float32, gpu)
    step(case, inputs, backend)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(case, inputs, backend)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", NAMES)
def test_the_current_stream(name, backend, gpu):
    """Inputs that a busy stream is about to write are read after it has."""
    case = cases.BY_NAME[name]
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
