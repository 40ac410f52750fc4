"""The force family is right at its edges.

The edges are degenerate sets, odd inputs, errors, torch's own tools, many panels, threads and
memory.
"""

import subprocess
import sys
import textwrap

import pytest
import torch
from conftest import is_interpreted
from oracles.force import array
from support.force_cases import (
    draw,
    error,
    exact_distances,  # noqa: F401
    oracle_force,
    upstream_of,
)

import fused_contrastive as fc
from fused_contrastive.backends.panels import _force_field


def train(function, positive, negative, **options):
    """Return the value and gradients of a loss or force, with random upstream gradients."""
    inputs = [x.detach().requires_grad_() for x in (positive, negative)]
    out = function(*inputs, **options)
    gradients = torch.autograd.grad(out, inputs, upstream_of(out.shape).to(out), allow_unused=True)
    return [out.detach(), *gradients]


@pytest.mark.parametrize("normalizer", (None, "dist_affinity_rms", "force_rms"))
@pytest.mark.parametrize("mask_self", ("sum", "softmax"))
def test_all_points_equal(mask_self, normalizer, any_backend, device):
    """Where all points are equal, the force and the loss are 0, whatever the point.

    No gradient passes through them.
    """
    for dtype in (torch.float64, torch.float32):
        x = torch.tensor([0.1, -1e3, 7.0], dtype=dtype, device=device)
        positive, negative = x.expand(2, 5, 3).clone(), x.expand(2, 4, 3).clone()
        options = {"mask_self": mask_self, "normalizer": normalizer, "backend": any_backend}
        force = fc.contrastive_force(positive, negative, 0.5, **options)
        # Eager's sums round, so that its force need not be exactly 0.
        if any_backend == "eager":
            assert torch.isfinite(force).all()
            continue
        assert (force == 0).all()
        for value in train(fc.contrastive_force_loss, positive, negative, **options):
            assert (value == 0).all()
        assert all(
            torch.isfinite(v).all()
            for v in train(fc.contrastive_force, positive, negative, temperature=0.5, **options)
        )


@pytest.mark.parametrize(
    "shapes",
    [((0, 3), (4, 3)), ((4, 3), (0, 3)), ((0, 5, 3), (0, 4, 3)), ((4, 0), (3, 0))],
    ids=str,
)
def test_empty(shapes, any_backend, device):
    positive, negative = (torch.randn(shape, device=device, requires_grad=True) for shape in shapes)
    force = fc.contrastive_force(positive, negative, 0.5, backend=any_backend)
    assert force.shape == negative.shape and (force == 0).all()
    loss = fc.contrastive_force_loss(positive, negative, backend=any_backend)
    assert loss.shape == negative.shape and (loss == 0).all()
    loss.sum().backward()
    mean = fc.contrastive_force_loss(positive, negative, reduction="mean", backend=any_backend)
    assert mean.isnan() if negative.numel() == 0 else mean == 0
    assert fc.drift_field(negative, positive, backend=any_backend).shape == negative.shape
    temperature = torch.tensor(0.5, device=device, requires_grad=True)
    fc.contrastive_force(positive, negative, temperature, backend=any_backend).sum().backward()
    assert temperature.grad == 0


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 5, 0)], ids=str)
def test_empty_drift(shape, any_backend, device):
    """The drift loss of empty sets is NaN, because it is a mean over nothing."""
    gen = torch.randn(shape, device=device, requires_grad=True)
    loss, info = fc.drift_loss(gen, gen.detach(), backend=any_backend)
    assert loss.shape == shape[:1] and loss.isnan().all()
    assert set(info) == {"scale", "loss_0.02", "loss_0.05", "loss_0.2"} and all(
        x.isnan() for x in info.values()
    )
    loss.sum().backward()


@pytest.mark.parametrize("mask_self", ("sum", "softmax"))
def test_a_point_that_equals_one_of_either_side(mask_self, backend, device):
    """A point that equals one of either side feels the force of the others alone.

    Its affinities to these two exceed all others by more than float32 holds.
    """
    negative = torch.zeros(2, 8, device=device)
    positive = torch.zeros(2, 8, device=device)
    positive[1, 0] = 1.0
    for options in ({}, {"temperatures": (0.02,), "normalizer": "force_rms"}):
        loss = fc.contrastive_force_loss(
            positive, negative, mask_self=mask_self, backend=backend, **options
        )
        exact = fc.contrastive_force_loss(
            positive.double(), negative.double(), mask_self=mask_self, backend="eager", **options
        )
        torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-6)
    for distance in (0.5, 1.0, 3.0):
        positive[1, 0] = distance
        force = fc.contrastive_force(
            positive, negative, 0.01, mask_self=mask_self, normalizer="force_rms", backend=backend
        )
        assert abs(float(force[0, 0]) - 8**0.5) < 1e-4


def test_one_negative_feels_nothing(any_backend, device):
    """A single negative feels no force, because there is no other negative to weigh.

    The condition k != j leaves none.
    """
    positive, negative = draw((2, 5, 1, 3), device=device)
    assert (fc.contrastive_force(positive, negative, 0.5, backend=any_backend) == 0).all()


def test_strides_and_leading_dimensions(backend, device):
    positive, negative = (x.detach() for x in draw((6, 7, 5, 4), device=device))
    expected = train(fc.contrastive_force_loss, positive, negative, backend=backend)
    odd = [
        torch.empty(x.shape[::-1], dtype=x.dtype, device=device).permute(2, 1, 0).copy_(x)
        for x in (positive, negative)
    ]
    for x, y in zip(train(fc.contrastive_force_loss, *odd, backend=backend), expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-13)
    nested = [x.view(2, 3, *x.shape[1:]) for x in (positive, negative)]
    for x, y in zip(
        train(fc.contrastive_force_loss, *nested, backend=backend), expected, strict=True
    ):
        torch.testing.assert_close(x, y.view_as(x), rtol=1e-12, atol=1e-13)
    single = train(fc.contrastive_force_loss, positive[2], negative[2], backend=backend)
    torch.testing.assert_close(single[0], expected[0][2], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("bad", (float("nan"), float("inf")))
def test_not_finite_in_not_finite_out(bad, any_backend, device):
    """NaN or infinity makes the force NaN in the group that holds it, and only there."""
    positive, negative = (x.detach() for x in draw((2, 6, 5, 3), device=device))
    positive[0, 2, 1] = bad
    for normalizer in (None, "dist_affinity_rms", "force_rms"):
        out = fc.contrastive_force(
            positive, negative, 0.5, normalizer=normalizer, backend=any_backend
        )
        assert torch.isfinite(out[1]).all()
        assert out[0].isnan().any()


def test_far_apart_groups_do_not_mix(backend, device):
    """Groups with coordinates up to 1e18 and of 1e-12 do not change each other's loss.

    float32 still holds the squares of 1e18.
    """
    positive, negative = (x.detach().float() for x in draw((2, 6, 5, 3), device=device))
    for x in (positive, negative):
        x[0] *= 1e18
        x[1] *= 1e-12
    loss = fc.contrastive_force_loss(positive, negative, (0.2, 0.5), backend=backend)
    scaled = fc.contrastive_force_loss(
        torch.stack([positive[0] / 1e18, positive[1] * 1e12]),
        torch.stack([negative[0] / 1e18, negative[1] * 1e12]),
        (0.2, 0.5),
        backend=backend,
    )
    torch.testing.assert_close(loss, scaled, rtol=1e-3, atol=1e-6)


def test_panels_of_any_size(device, monkeypatch):
    results = []
    positive, negative = draw((3, 11, 8, 4), device=device)
    for panel in (1 << 19, 400, 60, 7):
        monkeypatch.setattr(_force_field, "PANEL", panel)
        values = train(fc.contrastive_force_loss, positive, negative, backend="panels")
        values += train(
            fc.contrastive_force,
            positive,
            negative,
            temperature=0.7,
            normalizer="dist_affinity_rms",
            backend="panels",
        )
        loss, info = fc.drift_loss(negative, positive, backend="panels")
        results.append([*values, loss.detach(), *info.values()])
    for other in results[1:]:
        for x, y in zip(other, results[0], strict=True):
            torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12)


def test_threads_do_not_change_the_bits(device):
    if device.type != "cpu":
        pytest.skip("threads are the CPU's")
    for size in ((1, 300, 211, 20), (7, 40, 33, 12)):
        positive, negative = (x.detach().float() for x in draw(size))
        results, threads = [], torch.get_num_threads()
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(train(fc.contrastive_force_loss, positive, negative))
        torch.set_num_threads(threads)
        for other in results[1:]:
            assert all(torch.equal(x, y) for x, y in zip(other, results[0], strict=True))


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_half_precision_and_autocast(dtype, backend, device):
    positive, negative = (x.detach() for x in draw((2, 6, 5, 3), dtype=dtype, device=device))
    wide = fc.contrastive_force_loss(positive.float(), negative.float(), backend=backend)
    loss = fc.contrastive_force_loss(positive, negative, backend=backend)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, wide, rtol=1e-5, atol=1e-7)
    force = fc.contrastive_force(positive, negative, 0.5, backend=backend)
    assert force.dtype == dtype
    # Under autocast the loss computes in float32 all the same.
    with torch.autocast(device.type, dtype=dtype):
        mixed = fc.contrastive_force_loss(positive.float(), negative, backend=backend)
    torch.testing.assert_close(mixed, wide, rtol=1e-5, atol=1e-7)


def test_second_derivatives_raise(backend, device):
    positive, negative = draw((1, 4, 3, 2), device=device)
    scale = torch.tensor(1.5, dtype=torch.float64, device=device, requires_grad=True)
    for out, x in (
        (fc.contrastive_force(positive, negative, 0.5, backend=backend), negative),
        (fc.contrastive_force_loss(positive, negative, backend=backend), negative),
        (
            fc.contrastive_force_loss(positive, negative, (0.5,), scale=scale, backend=backend),
            scale,
        ),
        (fc.drift_loss(negative, positive, backend=backend)[0], negative),
    ):
        (gradient,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        with pytest.raises(NotImplementedError, match="second derivatives"):
            gradient.sum().backward()


@pytest.mark.no_poison
def test_opcheck(backend, device):
    if backend == "triton" and is_interpreted(backend):
        pytest.skip("opcheck cannot trace an interpreted Triton kernel")
    x = torch.randn(2, 9, 3, device=device)
    inverse, none = torch.tensor([2.0, 5.0], device=device), float("-inf")
    ops = torch.ops.fused_contrastive
    for rms, separate, scale in ((True, False, None), (False, True, torch.ones(2, device=device))):
        forward = (
            x,
            inverse,
            scale,
            None,
            4,
            4,
            True,
            False,
            none,
            none,
            none,
            0.0,
            rms,
            separate,
            backend,
        )
        torch.library.opcheck(ops.force_forward.default, forward)
    forward = (
        x,
        inverse[:1],
        torch.ones(2, device=device),
        None,
        4,
        4,
        True,
        False,
        none,
        none,
        none,
        0.0,
        True,
        False,
        backend,
    )
    force, log_norm, _, lse, _, shift, sums = ops.force_forward(*forward)
    backward = (
        torch.randn_like(force),
        x,
        inverse[:1],
        log_norm,
        lse,
        shift,
        sums,
        4,
        False,
        none,
        True,
        backend,
    )
    torch.library.opcheck(ops.force_backward.default, backward)
    torch.library.opcheck(
        ops.distance_sums.default, (x, torch.rand(2, 9, device=device), 4, 1e-8, backend)
    )
    torch.library.opcheck(ops.distance_gradient.default, (torch.rand(2, device=device), x, backend))


@pytest.mark.no_poison
@pytest.mark.everyday(keep=lambda p: p["mode"] == "aot_eager")
@pytest.mark.parametrize("mode", ("aot_eager", "inductor"))
def test_compile(mode, backend, device):
    """A compiled loss is one graph, forward and backward, and gives the same numbers.

    Inductor gets the same graphs as aot_eager, but takes far longer.
    """
    if mode == "inductor" and backend != "cpu":
        pytest.skip("inductor sees the same graph, whatever the backend")
    if backend == "triton" and is_interpreted(backend):
        pytest.skip("Dynamo cannot trace an interpreted Triton kernel")
    torch.compiler.reset()
    positive, negative = (x.detach().float() for x in draw((2, 6, 5, 3), device=device))
    for function, options in (
        (fc.contrastive_force_loss, {"reduction": "mean"}),
        (fc.contrastive_force, {"temperature": 0.5, "normalizer": "force_rms"}),
        (lambda p, n, backend: fc.drift_loss(n, p, backend=backend)[0], {}),
    ):
        compiled = torch.compile(function, fullgraph=True, backend=mode)
        values = [
            train(f, positive, negative, backend=backend, **options) for f in (function, compiled)
        ]
        for x, y in zip(*values, strict=True):
            assert (x is None) == (y is None)
            if x is not None:
                torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)
    torch.compiler.reset()


def test_memory_of_a_large_set():
    """A set of N = M = 4096 and D = 128 takes less than 100 MB beyond the inputs.

    This counts forward and backward. The (N + M)^2 distances alone are 268 MB.
    """
    from bench import memory

    reason = memory.unsupported()
    if reason is not None:
        pytest.skip(f"resident memory cannot be measured: {reason}")
    script = """
        import torch
        import fused_contrastive as fc
        from bench import memory
        def run(n):
            x, y = (torch.randn(n, 128, requires_grad=True) for _ in range(2))
            memory.trim()
            before = memory.resident("VmRSS")
            memory.reset_peak()
            fc.contrastive_force_loss(x, y, reduction="mean").backward()
            return memory.resident("VmHWM") - before
        run(256)
        print(run(4096))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 100e6, f"{int(done.stdout) / 1e6:.0f} MB"


def test_finite_where_eager_is_not(backend, device):
    """The force and its gradients are finite and accurate where eager's are not.

    Self pairs in the softmax leave no affinity whose square float32 could hold.
    """
    positive, negative = draw((1, 16, 16, 64), "normal", torch.float32, device)
    temperature = float(torch.cdist(positive.detach(), negative.detach()).mean()) / 100
    options = {"normalizer": "dist_affinity_rms"}
    eager = fc.contrastive_force(positive, negative, temperature, backend="eager", **options)
    assert not torch.isfinite(eager).all()
    force = fc.contrastive_force(positive, negative, temperature, backend=backend, **options)
    upstream = upstream_of(force.shape).to(force)
    gradients = torch.autograd.grad(force, (positive, negative), upstream)
    wide = [x.detach().double().requires_grad_() for x in (positive, negative)]
    exact = fc.contrastive_force(*wide, temperature, backend="panels", **options)
    assert error(force, oracle_force(positive, negative, temperature, **options)) < 1e-4
    for ours, expected in zip(
        gradients, torch.autograd.grad(exact, wide, upstream.double()), strict=True
    ):
        assert error(ours, array(expected)) < 1e-4
