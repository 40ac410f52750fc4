"""Losses and the primitive through the CUDA backend, in float64: values against the dense reference, gradients against finite
differences. On a GPU with ``--device cuda``, else by the host shim."""

from __future__ import annotations

import pytest
import torch
from cuda_calls import Call, backend, operators  # noqa: F401

import fused_contrastive
from fused_contrastive import cuda
from fused_contrastive.checks import float32_precision


def points(*shape, seed=0):
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.to(Call.device).requires_grad_()


def scalar():
    return torch.tensor(0.3, dtype=torch.float64, device=Call.device, requires_grad=True)


LOSSES = {
    "nt_xent": lambda a, b, c, t, **o: fused_contrastive.nt_xent_loss(a, b, t, reduction="none", **o),
    "info_nce": lambda a, b, c, t, **o: fused_contrastive.info_nce_loss(a, b, None, t, reduction="none", **o),
    "symmetric": lambda a, b, c, t, **o: fused_contrastive.info_nce_loss(
        a, b, None, t, symmetric=True, reduction="none", **o
    ),
    "queue": lambda a, b, c, t, **o: fused_contrastive.info_nce_loss(a, b, c, t, reduction="none", **o),
    "clip": lambda a, b, c, t, **o: fused_contrastive.clip_loss(a, b, 1 / t, reduction="none", **o),
    "n_pairs": lambda a, b, c, t, **o: fused_contrastive.n_pairs_loss(a, b, reduction="none", **o),
}


@pytest.mark.parametrize("n", [4, 67])
@pytest.mark.parametrize("loss", LOSSES)
def test_losses(loss, n):
    """The whole path of a loss: values against the dense reference, gradients against finite differences, in float64."""
    a, b, c, t = points(n, 5), points(n, 5, seed=1), points(n + 3, 5, seed=2), scalar()
    function = LOSSES[loss]
    expected = function(a, b, c, t, backend="eager")
    assert torch.allclose(function(a, b, c, t, backend="cuda"), expected, rtol=1e-12, atol=1e-12)
    fast = n > 10
    assert torch.autograd.gradcheck(lambda *x: function(*x, backend="cuda"), (a, b, c, t), fast_mode=fast, atol=1e-6)


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("kind", ["all", "not_self", "not_pair", "other_key", "same_key"])
def test_primitive(kind, columns):
    a, b, bias = points(2, 5, 3), points(2, 6, 3, seed=1), points(6, seed=2)
    keys = {}
    if "key" in kind:
        key_a, key_b = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 1, 2, 0, 1, 2])
        keys = {"key_a": key_a.to(Call.device), "key_b": key_b.to(Call.device)}
    options = {"pair_stride": 3} if kind == "not_pair" else {}

    def function(a, b, scale, bias):
        return fused_contrastive.similarity_logsumexp(
            a,
            b,
            scale=scale,
            bias=bias,
            candidates=kind,
            return_columns=columns,
            normalize=True,
            backend="cuda",
            **keys,
            **options,
        )

    assert torch.autograd.gradcheck(function, (a, b, scalar(), bias), atol=1e-6)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1024.0])
@pytest.mark.parametrize("margin", [10.0, 60.0, 85.0, 90.0, 200.0])
def test_converged_float16(margin, size):
    """Every row's weights vanish, down to below float32's range: so does the gradient, which float16 panels hold relative to them."""
    z = torch.eye(4, 16, dtype=torch.float16, device=Call.device)
    for symmetric in (False, True):
        gradients = {}
        for backend in ("eager", "cuda"):
            a, b = z.clone().requires_grad_(), z.clone().requires_grad_()
            loss = fused_contrastive.info_nce_loss(a, b, None, 1 / margin, symmetric=symmetric, backend=backend)
            gradients[backend] = torch.autograd.grad(loss, (a, b), torch.tensor(size, device=loss.device))
        for expected, found in zip(gradients["eager"], gradients["cuda"], strict=True):
            assert torch.allclose(found, expected, rtol=2e-2, atol=1e-6), (expected, found)


@pytest.fixture
def precision_settings():
    """Both ways to set torch's precision of float32 products, put back at the end."""
    matmul = torch.backends.cuda.matmul
    if not hasattr(matmul, "fp32_precision"):
        pytest.skip("this torch has one setting only")
    before = torch.get_float32_matmul_precision()
    yield matmul
    torch.backends.fp32_precision = "none"
    matmul.fp32_precision = "ieee"
    torch.set_float32_matmul_precision(before)


def test_matrix_precision_is_torchs(precision_settings):
    """By either setting; float32 alone asks for it."""
    x = torch.zeros(2, 2, device=Call.device)
    highest = cuda.float32_products(x)
    assert highest in (cuda.FMA, cuda.TF32X3)
    for setting, expected in (("high", cuda.TF32), ("medium", cuda.TF32), ("highest", highest)):
        torch.set_float32_matmul_precision(setting)
        assert cuda.float32_products(x) == expected
    for setting, expected in (("tf32", cuda.TF32), ("ieee", highest)):
        precision_settings.fp32_precision = setting
        assert cuda.float32_products(x) == expected
        assert float32_precision() == {"tf32": "high", "ieee": "highest"}[setting]
    precision_settings.fp32_precision = "none"
    torch.backends.fp32_precision = "tf32"
    assert cuda.float32_products(x) == cuda.TF32
    a = points(5, 4).detach().float()
    for backend in ("cuda", "panels"):
        assert fused_contrastive.nt_xent_loss(a, a + 1, backend=backend).isfinite()


def test_without_the_library():
    """Where the library is not built, or there is no GPU, the backend says so."""
    if not torch.cuda.is_available():
        assert cuda.status().startswith("unavailable: ")
