"""The tests of the CUDA backend use these calls and fixtures.

They run on a GPU with ``--device cuda``, and else by the host shim.
"""

from __future__ import annotations

import math
import sys

import cuda_host
import pytest
import torch
from conftest import skip_unless_served
from torch.utils._python_dispatch import TorchDispatchMode

from fused_contrastive.backends import cuda
from fused_contrastive.backends.cuda import force as cuda_force
from fused_contrastive.backends.cuda import sigmoid as cuda_sigmoid
from fused_contrastive.backends.cuda import similarity as cuda_similarity
from fused_contrastive.backends.panels import _panel
from fused_contrastive.backends.tiled import operands
from fused_contrastive.backends.tiled import sigmoid as tiled_sigmoid
from fused_contrastive.backends.tiled import similarity as tiled_similarity
from fused_contrastive.ops._codec import call_flat
from support import native_calls as contract

ALLOCATING = (cuda_force, cuda_sigmoid, cuda_similarity)
ALLOCATING += (operands, tiled_sigmoid, tiled_similarity, _panel)
FENCED = tuple(module.__name__ for module in ALLOCATING)


def move(tensors, device):
    return tuple(x if x is None else x.to(device) for x in tensors)


class Call(contract.Call):
    """This is `contract.Call` on the CUDA backend. Tensors come from the CPU and go back to it."""

    device = torch.device("cpu")

    def forward(self, inputs=None):
        inputs = move(self.inputs if inputs is None else inputs, Call.device)
        flags = (self.columns, self.extrema, self.weighted)
        outputs = call_flat(
            cuda, "similarity_forward", (*inputs, *self.options, *flags, self.dtype)
        )
        return move(outputs, "cpu")

    def backward(self, outputs, needs=(True, True, True, True), inputs=None, upstream=None):
        inputs = self.inputs if inputs is None else inputs
        rows, cols, pos, _, _, _, *prepared = outputs
        upstream = self.upstream() if upstream is None else upstream
        needs = (
            needs[0],
            needs[1] and inputs[1] is not None,
            needs[2],
            needs[3] and inputs[3] is not None,
        )
        tensors = move((*upstream, *inputs, rows, cols, pos, *prepared), Call.device)
        arguments = (*tensors, *self.options, self.dtype, *needs)
        return move(call_flat(cuda, "similarity_backward", arguments), "cpu")


@pytest.fixture(scope="session")
def operators(device):
    """Give the operators of the built library on a GPU, and else those of the shim."""
    if device.type == "cuda":
        skip_unless_served("cuda", device)
        return cuda.LIBRARIES["cuda"]
    if cuda_host.compiler() is None:
        pytest.skip("the host shim needs a C++ compiler")
    return cuda_host.load().operators


class Fence:
    """The fence fills the backend's allocations with NaN and puts margins around them.

    The margins must stay as they were.
    """

    MARGIN = 64

    def __init__(self):
        self.buffers = []

    def allocate(self, original, shape, **options):
        shape = torch.Size(shape if not isinstance(shape, int) else (shape,))
        buffer = original(shape.numel() + 2 * self.MARGIN, **options).fill_(math.nan)
        self.buffers.append(buffer)
        return buffer[self.MARGIN : self.MARGIN + shape.numel()].view(shape)

    def check(self):
        for buffer in self.buffers:
            assert buffer[: self.MARGIN].isnan().all() and buffer[-self.MARGIN :].isnan().all(), (
                "written out of bounds"
            )


@pytest.fixture(autouse=True)
def backend(operators, device, monkeypatch):
    """Let the operators serve the device's tensors.

    Every output and workspace is poisoned and fenced.
    """
    fence = Fence()
    empty, new_empty = torch.empty, torch.Tensor.new_empty

    def called_from_backend():
        return sys._getframe(2).f_globals.get("__name__") in FENCED

    def fenced_empty(*shape, **options):
        if not called_from_backend():
            return empty(*shape, **options)
        return fence.allocate(empty, shape[0] if len(shape) == 1 else shape, **options)

    def fenced_new_empty(self, *shape, **options):
        if not called_from_backend():
            return new_empty(self, *shape, **options)
        dtype = options.get("dtype", self.dtype)
        return fence.allocate(
            empty, shape[0] if len(shape) == 1 else shape, dtype=dtype, device=self.device
        )

    monkeypatch.setattr(torch, "empty", fenced_empty)
    monkeypatch.setattr(torch.Tensor, "new_empty", fenced_new_empty)
    monkeypatch.setitem(cuda.LIBRARIES, device.type, operators)
    monkeypatch.setattr(Call, "device", device)
    yield
    fence.check()


class Launches(TorchDispatchMode):
    """This mode records, in order, the names of the operators that do work on the device."""

    def __init__(self, names):
        super().__init__()
        self.names = names

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        poison = name == "fill_" and args[1] != args[1]
        out = func(*args, **(kwargs or {}))
        # Below autograd a conversion arrives here as one operator.
        if name == "to" and out is not args[0]:
            self.names.append("_to_copy")
        elif not (
            func.is_view or name in ("empty", "new_empty", "empty_like", "_unsafe_view") or poison
        ):
            self.names.append(name)
        return out
