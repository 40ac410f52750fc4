"""The losses and the primitive are right through the CUDA backend in float64.

Values are compared with the dense reference, and gradients with finite differences. The kernels run
on a GPU with ``--device cuda``, and else by the host shim.
"""

from __future__ import annotations

import sys
import types

import pytest
import torch
from support.cuda_calls import Call, Launches, backend, operators  # noqa: F401

import fused_contrastive
from fused_contrastive.backends import cuda
from fused_contrastive.backends.cuda import _tiles
from fused_contrastive.dtypes import float32_precision


def points(*shape, seed=0):
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.to(Call.device).requires_grad_()


def scalar():
    return torch.tensor(0.3, dtype=torch.float64, device=Call.device, requires_grad=True)


LOSSES = {
    "nt_xent": lambda a, b, c, t, **o: fused_contrastive.nt_xent_loss(
        a, b, t, reduction="none", **o
    ),
    "info_nce": lambda a, b, c, t, **o: fused_contrastive.info_nce_loss(
        a, b, None, t, reduction="none", **o
    ),
    "symmetric": lambda a, b, c, t, **o: fused_contrastive.info_nce_loss(
        a, b, None, t, symmetric=True, reduction="none", **o
    ),
    "queue": lambda a, b, c, t, **o: fused_contrastive.info_nce_loss(
        a, b, c, t, reduction="none", **o
    ),
    "clip": lambda a, b, c, t, **o: fused_contrastive.clip_loss(a, b, 1 / t, reduction="none", **o),
    "n_pairs": lambda a, b, c, t, **o: fused_contrastive.n_pairs_loss(a, b, reduction="none", **o),
}


@pytest.mark.parametrize("n", [4, 67])
@pytest.mark.parametrize("loss", LOSSES)
def test_losses(loss, n):
    """Each loss is right through the whole path, in float64.

    Values are compared with the dense reference, and gradients with finite differences.
    """
    a, b, c, t = points(n, 5), points(n, 5, seed=1), points(n + 3, 5, seed=2), scalar()
    function = LOSSES[loss]
    expected = function(a, b, c, t, backend="eager")
    assert torch.allclose(function(a, b, c, t, backend="cuda"), expected, rtol=1e-12, atol=1e-12)
    fast = n > 10
    assert torch.autograd.gradcheck(
        lambda *x: function(*x, backend="cuda"), (a, b, c, t), fast_mode=fast, atol=1e-6
    )


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("kind", ["all", "not_self", "not_pair", "other_key", "same_key"])
def test_primitive(kind, columns):
    a, b, bias = points(2, 5, 3), points(2, 6, 3, seed=1), points(6, seed=2)
    keys = {}
    if "key" in kind:
        key_a, key_b = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 1, 2, 0, 1, 2])
        keys = {"key_a": key_a.to(Call.device), "key_b": key_b.to(Call.device)}
    options = {"not_pair": {"pair_stride": 3}, "not_self": {"self_offset": 1}}.get(kind, {})

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
    """The gradient is right where the weights of every row all but vanish.

    The weights fall below float32's range, and the gradient falls with them. Panels in float16 hold
    the gradient relative to the weights.
    """
    z = torch.eye(4, 16, dtype=torch.float16, device=Call.device)
    for symmetric in (False, True):
        gradients = {}
        for name in ("eager", "cuda"):
            a, b = z.clone().requires_grad_(), z.clone().requires_grad_()
            loss = fused_contrastive.info_nce_loss(
                a, b, None, 1 / margin, symmetric=symmetric, backend=name
            )
            gradients[name] = torch.autograd.grad(
                loss, (a, b), torch.tensor(size, device=loss.device)
            )
        for expected, found in zip(gradients["eager"], gradients["cuda"], strict=True):
            assert torch.allclose(found, expected, rtol=2e-2, atol=1e-6), (expected, found)


FORWARD = ["prepare", "pair_reduce", "finish_forward"]
BACKWARD = ["terms", "pair_weight", "bmm", "finish_backward"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("learnable", [False, True])
def test_launches_of_nt_xent(learnable, dtype, monkeypatch):
    """One step of the mean loss starts only these operations on the device."""
    found = {"similarity_forward": [], "similarity_backward": []}

    def counted(original, names):
        def call(*arguments):
            with Launches(names):
                return original(*arguments)

        return call

    for name, names in found.items():
        monkeypatch.setattr(cuda, name, counted(getattr(cuda, name), names))
    a, b = (points(20, 8, seed=seed).detach().to(dtype).requires_grad_() for seed in range(2))
    t = torch.tensor(0.3, dtype=dtype, device=a.device, requires_grad=learnable)
    fused_contrastive.nt_xent_loss(a, b, t, backend="cuda").backward()
    assert found["similarity_forward"] == FORWARD
    scale = ["sum", "_to_copy"] if dtype == torch.float32 else ["sum"]
    assert found["similarity_backward"] == BACKWARD + (scale if learnable else [])


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_of_one_element(loss):
    """An upstream gradient of one shared element gives the same gradients as one for each row.

    The upstream gradient of a mean is one element for all rows. Other reductions give each row its
    own.
    """
    inputs = points(9, 5), points(9, 5, seed=1), points(4, 5, seed=2), scalar()
    gradients = []
    for upstream in (
        torch.tensor(0.7).double().to(Call.device).expand,
        lambda *shape: torch.full(shape, 0.7).double(),
    ):
        total = LOSSES[loss](*inputs, backend="cuda")
        upstream = upstream(*total.shape).to(total.device)
        gradients.append(torch.autograd.grad(total, inputs, upstream, allow_unused=True))
    for x, y in zip(*gradients, strict=True):
        assert x is y or torch.allclose(x, y, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("driver", "runtime", "refused"),
    [
        (0, 13000, False),
        (12080, 13000, True),
        (13000, 13020, False),
        (14010, 13000, False),
        (13020, 12080, False),
    ],
)
def test_the_driver_must_know_the_runtime(driver, runtime, refused):
    reason = cuda.driver_refusal(driver, runtime)
    assert (reason is not None) == refused
    if refused:
        assert "driver serves CUDA 12.8" in reason and "built with CUDA 13.0" in reason


def test_a_library_that_cannot_run_here_is_not_used(monkeypatch):
    monkeypatch.setattr(cuda, "LIBRARIES", {})
    for library, reason in (
        (
            types.SimpleNamespace(versions=lambda: (12080, 13000)),
            "the NVIDIA driver serves CUDA 12.8",
        ),
        (types.SimpleNamespace(), "older than this package"),
        (None, "not built"),
    ):
        monkeypatch.setitem(sys.modules, "fused_contrastive._C_cuda", library)
        assert reason in cuda._load.__wrapped__() and not cuda.LIBRARIES


def test_more_blocks_than_a_launch_takes():
    """More blocks than a launch takes raise an error. Their number is not cut to 32 bits."""
    x = torch.zeros(1, device=Call.device).expand(1 << 30, 65, 1)
    none = x.new_empty(0)
    with pytest.raises(RuntimeError, match="2\\^31 - 1 blocks"):
        cuda.LIBRARIES[Call.device.type].prepare(
            x, None, None, none, none, none, none, none, none, True
        )


@pytest.fixture
def precision_settings():
    """Give both ways to set torch's precision of float32 products, and reset them at the end."""
    matmul = torch.backends.cuda.matmul
    if not hasattr(matmul, "fp32_precision"):
        pytest.skip("this torch has one setting only")
    before = torch.get_float32_matmul_precision()
    yield matmul
    torch.backends.fp32_precision = "none"
    matmul.fp32_precision = "ieee"
    torch.set_float32_matmul_precision(before)


def test_matrix_precision_is_torchs(precision_settings):
    """The precision of float32 products follows either of torch's two settings.

    Only float32 asks for it.
    """
    x = torch.zeros(2, 2, device=Call.device)
    highest = _tiles.float32_products(x)
    assert highest in (_tiles.FMA, _tiles.TF32X3)
    for setting, expected in (("high", _tiles.TF32), ("medium", _tiles.TF32), ("highest", highest)):
        torch.set_float32_matmul_precision(setting)
        assert _tiles.float32_products(x) == expected
    for setting, expected in (("tf32", _tiles.TF32), ("ieee", highest)):
        precision_settings.fp32_precision = setting
        assert _tiles.float32_products(x) == expected
        assert float32_precision() == {"tf32": "high", "ieee": "highest"}[setting]
    precision_settings.fp32_precision = "none"
    torch.backends.fp32_precision = "tf32"
    assert _tiles.float32_products(x) == _tiles.TF32
    a = points(5, 4).detach().float()
    for name in ("cuda", "panels"):
        assert fused_contrastive.nt_xent_loss(a, a + 1, backend=name).isfinite()


def test_without_the_library():
    """Where the library is not built, or there is no GPU, the backend says so."""
    if not torch.cuda.is_available():
        assert cuda.status().startswith("unavailable: ")
