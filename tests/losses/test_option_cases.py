"""Losses with options are rows of a matrix of tests.

Its columns are errors, gradcheck, few rows, metrics and memory. Another test shows that defaults
cost nothing.
"""

import numpy as np
import pytest
import torch
from conftest import skip_unless_served
from oracles import similarity as oracle
from support import cases
from support.cases import WITH_OPTIONS
from support.yardstick import (
    MORE_SEEDS,
    SEEDS,
    assert_within_yardstick,
    size,
    small_size,
)
from torch.utils._python_dispatch import TorchDispatchMode

DTYPES = (torch.float64, torch.float32, torch.bfloat16)
WITH_ANY = [c for c in cases.BY_NAME.values() if c in cases.OPTIONS or c.name in WITH_OPTIONS]
FEW = ("nt_xent-keys", "info_nce-bias", "info_nce-hardness", "distill-weights")
"""The interpreter and the host shim run these cases."""


@pytest.mark.interpreter(case=FEW, dtype=(torch.float32,))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", cases.OPTIONS, ids=lambda c: c.name)
def test_error(case, dtype, backend, device):
    """The median error of loss and gradients is at most eager's."""
    skip_unless_served(backend, device, dtype)
    n, d = size(backend)
    ours, eager = (
        [cases.loss_errors(case.name, name, n, d, dtype, device, seed) for seed in SEEDS]
        for name in (backend, "reference")
    )
    assert_within_yardstick(ours, eager, dtype)


@pytest.mark.interpreter(case=())
@pytest.mark.everyday(keep=lambda p: (p["temperature"] == 1e-2) == (p["backend"] == "cpu"))
@pytest.mark.parametrize("temperature", (0.05, 1e-2))
@pytest.mark.parametrize("case", cases.OPTIONS, ids=lambda c: c.name)
def test_error_when_converged(case, temperature, backend, device):
    """Errors are at most eager's where the positive takes nearly all of the softmax.

    The views are 0.3 standard deviations apart, in float32.
    """
    n, d = small_size(backend)
    settings = {"spread": 0.3, "temperature": temperature}
    ours, eager = (
        [
            cases.loss_errors(case.name, label, n, d, torch.float32, device, seed, **settings)
            for seed in MORE_SEEDS
        ]
        for label in (backend, "reference")
    )
    assert_within_yardstick(ours, eager, torch.float32)


@pytest.mark.interpreter(case=())
@pytest.mark.parametrize(
    "case", [c for c in cases.OPTIONS if not c.constant_parts], ids=lambda c: c.name
)
def test_gradcheck(case, any_backend, device):
    """gradcheck accepts every element of every argument, weights and biases included.

    The cases whose gradient is not the loss's own are left out.
    """
    skip_unless_served(any_backend, device, torch.float64)
    inputs = case.draw(6, 3, device=device)
    names = list(inputs)

    def loss(*values):
        return case.loss(dict(zip(names, values, strict=True)), any_backend)

    assert torch.autograd.gradcheck(loss, tuple(inputs.values()), eps=1e-6, atol=1e-6, rtol=1e-5)


@pytest.mark.interpreter(case=())
@pytest.mark.parametrize("n", (1, 2))
@pytest.mark.parametrize("case", cases.OPTIONS, ids=lambda c: c.name)
def test_small(case, n, any_backend, device):
    """Losses and gradients are the oracle's for one row, and for two with equal keys.

    Often such rows have no negative at all.
    """
    inputs = case.draw(n, 3, device=device)
    loss = case.loss(inputs, any_backend)
    expected, truth = case.truth(inputs, np.ones(tuple(loss.shape)))
    np.testing.assert_allclose(oracle.array(loss), expected, rtol=1e-9, atol=1e-12)
    loss.sum().backward()
    for name, x in inputs.items():
        np.testing.assert_allclose(
            oracle.array(x.grad), truth[name], rtol=1e-9, atol=1e-12, err_msg=name
        )


@pytest.mark.interpreter(case=())
@pytest.mark.parametrize("case", WITH_ANY, ids=lambda c: c.name)
def test_metrics(case, backend, device):
    """Accuracy and mean similarity are those of the dense logits, weighted as the loss is."""
    if not case.has_metrics:
        pytest.skip("this loss has no metrics")
    inputs = case.draw(40, 6, device=device, spread=0.7)
    loss, found = case.loss(inputs, backend, metrics=True, reduction="mean")
    expected_loss, expected = case.loss(inputs, "reference", metrics=True, reduction="mean")
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(found, expected)
    assert 0 < found["accuracy"] < 1, "the case must have hits and misses"
    assert not any(x.requires_grad for x in found.values())


class Largest(TorchDispatchMode):
    """This mode notes the largest tensor that a torch operation outside our own ops returns."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor):
                self.size = max(self.size, x.numel())
        return out


@pytest.mark.parametrize("case", WITH_ANY, ids=lambda c: c.name)
def test_memory(case):
    """No tensor around the kernels has more than O(N D) elements."""
    n, d = 300, 4
    inputs = case.draw(n, d, torch.float32)
    linear = max(x.numel() for x in inputs.values())
    with Largest() as largest:
        case.loss(inputs, "panels").sum().backward()
    assert largest.size <= max(8 * linear, 40 * n), (largest.size, linear)
    assert linear < n * n / 3


@pytest.mark.parametrize(
    "name", ("nt_xent", "info_nce", "info_nce-symmetric", "info_nce-queue", "clip", "n_pairs")
)
@pytest.mark.parametrize("options", ({}, {"keys": torch.arange(8) // 2}), ids=("plain", "keys"))
def test_one_op_each_way(name, options):
    """A loss without options, or with keys among a batch, runs only a forward and a backward op."""
    if options and name == "info_nce-queue":
        options = {"keys": torch.arange(8 + 8 // 2 + 1)}
    case, counts = cases.BY_NAME[name], []

    class Ops(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "fused_contrastive":
                counts.append(func._schema.name.partition("::")[2])
            return func(*args, **(kwargs or {}))

    inputs = case.draw(8, 4, torch.float32)
    with Ops():
        case.loss(inputs, "panels", **options).sum().backward()
    assert counts == ["similarity_forward", "similarity_backward"]
