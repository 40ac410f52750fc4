"""The CUDA kernels of the force family agree with the panels in float64.

The panels (panels/force.py) implement the contract in torch. The kernels run on a GPU with
``--device cuda``. Otherwise the host shim (cuda_host) executes them on the CPU.
"""

from __future__ import annotations

import math
from dataclasses import replace

import cuda_host
import pytest
import torch
from support.cuda_calls import Call, Launches, backend, move, operators  # noqa: F401
from support.force_contract import (
    CASES,
    DRIFT,
    DTYPES,
    TOLERANCE,
    Force,
    check,
    choose,
    close,
    way,  # noqa: F401
)

import fused_contrastive
from fused_contrastive.backends import cuda
from fused_contrastive.backends.cuda import force as cuda_force
from fused_contrastive.backends.panels import force as force_panels
from fused_contrastive.backends.tiled import plan as tiling
from fused_contrastive.dtypes import accumulation_dtype
from fused_contrastive.losses import drift


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_forward(case, dtype, way):
    check(replace(CASES[case], dtype=dtype))


@pytest.mark.parametrize(
    "sizes",
    [
        (1, 1, 1, 1),
        (2, 3, 1, 1),
        (2, 2, 1, 2),
        (5, 1, 1, 3),
        (63, 16, 63, 63),
        (64, 17, 1, 64),
        (65, 15, 64, 64),
        (66, 33, 2, 65),
    ],
    ids=str,
)
@pytest.mark.parametrize("columns", [False, True])
def test_sizes(sizes, columns, way):
    """Forces are right for a point alone, one row, no positive, and a tile and one point more."""
    P, D, rows, negatives = sizes
    for G in (1, 3):
        for options in ({}, {"mask": True}, {"separate": True}):
            # More points fit into shared memory in float32.
            dtype = torch.float32 if "separate" in options else torch.float64
            check(
                Force(
                    G,
                    P,
                    D,
                    2,
                    rows,
                    negatives,
                    1.0,
                    options=options | {"all_rows": not columns},
                    dtype=dtype,
                )
            )
    if not columns:
        check(Force(1, P, D, 2, rows, negatives, options={"rms": True}))


@pytest.mark.parametrize("K", [1, 2, 3, 4, 5, 6, 7, 8, 9, 33])
def test_temperatures(K, way):
    """Temperatures of any sign are right, and so are more of them than are held at a time."""
    for dtype in (torch.float64, torch.float32):
        for options in ({"rms": True}, {"separate": True, "all_rows": False}):
            check(Force(1, 50, 5, K, 9, 20, 2.0, options=options, dtype=dtype))
    call = Force(1, 20, 5, K, 9, 12, 2.0)
    x, inverse, *rest = call.inputs
    check(call, inputs=(x, inverse * (-1.0) ** torch.arange(K), *rest))


@pytest.mark.parametrize("way", ["rows", "parts"])
def test_many_columns(way, monkeypatch):
    choose(monkeypatch, way)
    check(Force(1, 330, 7, 2, 70, 200, options={"rms": True}))
    check(Force(1, 330, 7, 2, 129, 130, 1.0, weight=True, options=DRIFT))
    # These give parts of several tiles, which begin on either side.
    for blocks in (9, 18, 30):
        monkeypatch.setattr(cuda_force, "BLOCKS", blocks)
        check(Force(1, 330, 7, 2, 129, 130, 1.0, weight=True, options=DRIFT))


@pytest.mark.parametrize("P", [127, 128])
def test_largest_groups(P, monkeypatch):
    """Groups of as many float32 points as fit into 99 KiB take the way by groups.

    Larger ones do not.
    """
    choose(monkeypatch, "groups")
    x = torch.zeros(1, P, 4)
    assert cuda_force.by_groups(x) and not cuda_force.by_groups(torch.zeros(1, 300, 4))
    assert cuda_force.by_groups(x.double()[:, :64])
    check(Force(1, P, 5, 2, P // 2, P // 2, dtype=torch.float32, options={"rms": True}))


def test_more_points_than_lanes_hold(monkeypatch):
    """Groups beyond 128 points are right, too."""
    choose(monkeypatch, "groups")
    check(Force(2, 135, 5, 2, 70, 80, dtype=torch.float32))
    check(Force(1, 132, 5, 2, 132, 132, 1.0, dtype=torch.bfloat16, options={"all_rows": False}))
    # Each group has two panels of rows here.
    check(Force(2, 90, 5, 3, 70, 80, 3.0, weight=True, options=DRIFT, dtype=torch.float32))


@pytest.mark.parametrize("case", ["rms", "drift_weighted", "columns_mean"])
def test_panels_of_a_small_workspace(case, monkeypatch):
    choose(monkeypatch, "rows")
    for workspace in (70 * 8 * 5, 70 * 8 * 45, 70 * 8 * 300):
        monkeypatch.setattr(tiling, "WORKSPACE", workspace)
        check(CASES[case])
    call = Force(3, 150, 5, 2, 140, 150, 1.0)
    monkeypatch.setattr(tiling, "WORKSPACE", 150 * 8 * 70)
    check(call)
    x, g = call.inputs[0], torch.tensor([0.5, -2.0, 1.0], dtype=torch.float64)
    gradient = cuda.distance_gradient(*move((g, x), Call.device)).cpu()
    close("dx", gradient, force_panels.distance_gradient(g, x), 1e-10)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weight", [False, True])
def test_distance_sums(dtype, weight, way):
    for G, P, D, rows, clip in (
        (2, 70, 19, 70, 0.0),
        (1, 3, 1, 2, 1.0),
        (3, 130, 40, 65, 1e-8),
        (1, 1, 1, 1, 0.25),
    ):
        call = Force(G, P, D, weight=weight, dtype=dtype)
        x, _, _, w = call.inputs
        x[0, -1] = x[0, 0]
        got = cuda.distance_sums(*move((x, w), Call.device), rows, clip).cpu()
        assert got.dtype == accumulation_dtype(dtype)
        want = force_panels.distance_sums(x.double(), None if w is None else w.double(), rows, clip)
        close("sums", got, want, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_distance_gradient(dtype, way):
    for G, P, D in ((2, 70, 19), (3, 65, 70), (1, 1, 3), (1, 2, 1), (1, 80, 3)):
        x = Force(G, P, D, dtype=dtype).inputs[0]
        x[:, -1] = x[:, 0]
        g = torch.linspace(-1, 2, G).to(accumulation_dtype(dtype))
        got = cuda.distance_gradient(*move((g, x), Call.device)).cpu()
        assert got.dtype == dtype
        want = force_panels.distance_gradient(g.double(), x.double())
        close(
            "dx",
            got,
            want,
            {torch.bfloat16: 4e-3, torch.float16: 5e-4}.get(dtype, TOLERANCE[dtype]),
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_duplicated_points(dtype, way):
    """Duplicated points leave the results right.

    Pairs at distance 0 have the largest affinity and no share in the mean of (d A)^2. That mean is
    far below their affinity.
    """
    call = Force(1, 48, 6, 2, 20, 24, options={"rms": True}, dtype=dtype)
    x, inverse, *rest = call.inputs
    x = torch.cat([x[:, :24], x[:, :24]], 1)
    for factor in (1.0, 30.0, 2000.0):
        log_norm = check(
            call, 1e-10 if dtype == torch.float64 else 3e-4, (x, inverse * factor, *rest)
        )[1]
        assert log_norm.isfinite().all()
    # Nothing takes the exponential of this, because exp(-1000) is 0.
    assert log_norm.max() < -1000


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_points(dtype, way):
    """Equal points have exactly no force and no distance, whatever the options."""
    x = torch.full((2, 40, 7), 1234.567).to(dtype)
    for options in ({"rms": True}, {"separate": True}, {}, {"rms": True, "mask": True}):
        call = Force(2, 40, 7, 2, 20, 20, options=options, dtype=dtype)
        force, log_norm, scale, *_ = check(call, inputs=(x, *call.inputs[1:]))
        assert not force.any() and not scale.any()
        assert not options.get("rms") or (log_norm == -math.inf).all()
    assert not cuda.distance_gradient(*move((torch.ones(2).to(scale.dtype), x), Call.device)).any()
    assert not cuda.distance_sums(x.to(Call.device), None, 40, 0.0).any()


def test_far_from_the_origin(way):
    """Differences are exact however large the coordinates are."""
    for dtype, place in ((torch.float32, 1e4), (torch.bfloat16, 1e3)):
        call = Force(options={"rms": True}, dtype=dtype)
        x, *rest = call.inputs
        check(call, 3e-5, ((x.float() * 30 + place).to(dtype), *rest))


def test_first_point_far_away(way):
    """A first point far away leaves the others free of its rounding errors.

    The kernels take differences of neighbours, or of coordinates less their mean.
    """
    call = Force(1, 70, 19, 2, 30, 45, 1.0, dtype=torch.float32)
    x, *rest = call.inputs
    x[:, 0] += 1e4
    force, want = (f((x, *rest))[0][:, :, 1:] for f in (call.run, call.expected))
    close("force", force, want, 6e-4)


def test_long_sums(way):
    """Sums of squares over many features keep float32's accuracy."""
    x = torch.rand(1, 20, 6000, generator=torch.Generator().manual_seed(1)) + 1
    got = cuda.distance_sums(x.to(Call.device), None, 20, 0.0).cpu()
    assert ((got / force_panels.distance_sums(x.double(), None, 20, 0.0)) - 1).abs().max() < 3e-7
    call = Force(1, 20, 6000, 1, 10, 10, dtype=torch.float32)
    check(call, 2e-5, (x, *call.inputs[1:]))


@pytest.mark.parametrize("where", ["x", "weight", "scale", "inverse"])
def test_not_a_number_in_not_a_number_out(where, way):
    call = Force(
        2, 40, 5, 2, 20, 25, 1.0, weight=True, options={"all_rows": False}, dtype=torch.float32
    )
    inputs = dict(zip(("x", "inverse", "scale", "weight"), call.inputs, strict=True))
    inputs[where] = inputs[where].clone()
    inputs[where].view(-1)[0] = math.nan
    force = call.run(tuple(inputs.values()))[0]
    if where == "inverse":
        assert force.isnan().all()
    else:
        assert force[:, 0].isnan().all() and force[:, 1].isfinite().all()
    if where == "x":
        g = torch.ones(2)
        assert cuda.distance_gradient(*move((g, inputs["x"]), Call.device))[0].isnan().all()
        assert cuda.distance_sums(inputs["x"].to(Call.device), None, 40, 0.0)[0].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_strides(dtype, way):
    """Transposed, expanded and unaligned inputs give the right results."""
    call = replace(CASES["drift_weighted"], dtype=dtype, D=20)
    x, inverse, scale, weight = call.inputs
    transposed = x.transpose(0, 2).contiguous().transpose(0, 2)
    unaligned = torch.empty(x.numel() + 1, dtype=dtype)[1:].view(x.shape).copy_(x)
    wide = torch.stack([weight, weight], -1)[..., 0]
    for other in (transposed, unaligned):
        check(call, inputs=(other, inverse, scale[:1].expand(2), wide))
        got = cuda.distance_sums(*move((other, wide), Call.device), 30, 0.0)
        assert torch.equal(got, cuda.distance_sums(*move((x, weight), Call.device), 30, 0.0))


@pytest.mark.parametrize("case", ["rms_masked_floor", "drift_weighted", "more_rows_than_a_tile"])
def test_the_order_of_threads_does_not_matter(case, way, device):
    """Every order of threads between barriers gives the same bits, so there is no race.

    On a GPU, every run gives the same bits.
    """
    options = cuda_host.load().options if device.type == "cpu" else lambda *options: None
    results = []
    for dtype in (torch.float64, torch.bfloat16):
        call = replace(CASES[case], dtype=dtype)
        x = call.inputs[0].to(Call.device)
        g = torch.ones(2, dtype=accumulation_dtype(dtype), device=Call.device)
        for order in (1, 2, 0):
            options(order, 0, 0)
            results.append(
                (*call.run(), cuda.distance_gradient(g, x), cuda.distance_sums(x, None, 30, 0.0))
            )
        for other in results[1:]:
            pairs = zip(results[0], other, strict=True)
            assert all(a is None or torch.equal(a, b) for a, b in pairs)
        results.clear()


def launches(call):
    names = []
    inputs = move(call.inputs, Call.device)
    with Launches(names):
        cuda.force_forward(call.problem(inputs))
    return names


CENTRED = ["sub", "mean", "sub_"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_launches(dtype, monkeypatch):
    """Each way starts only these operations on the device."""
    choose(monkeypatch, "groups")
    for case in CASES.values():
        assert launches(replace(case, dtype=dtype)) == ["force_group"]
    x, g = (
        CASES["rms"].inputs[0].to(Call.device, dtype),
        torch.ones(2, device=Call.device, dtype=accumulation_dtype(dtype)),
    )
    counted = []
    with Launches(counted):
        cuda.distance_gradient(g, x)
    assert counted == ["force_group_gradient"]
    choose(monkeypatch, "rows")
    converted = ["_to_copy"] if dtype == torch.bfloat16 else []
    mean = ["force_distances", "sum", "div", *(["_to_copy"] if dtype != torch.float64 else [])]
    last = [*converted, *CENTRED, "force_weights", "bmm", "sum", "addcmul_"]
    found = launches(replace(CASES["rms"], dtype=dtype))
    assert found == [*mean, "force_log_sums", "force_affinities", "force_norms", *last]
    found = launches(replace(CASES["drift"], dtype=dtype, G=1))
    assert found == [
        "clone",
        "force_log_sums",
        "force_log_sums",
        "force_affinities",
        "force_norms",
        *last,
    ]
    found = launches(replace(CASES["one_temperature"], dtype=dtype))
    assert found == ["clone", "force_log_sums", "force_affinities", "new_zeros", "zero_", *last]
    choose(monkeypatch, "parts")
    merged = ["force_log_sums", "force_merge", "force_affinities", "force_merge"]
    assert launches(replace(CASES["rms"], dtype=dtype)) == [*mean, *merged, "force_norms", *last]


def test_which_way_is_taken():
    """One block computes a group where there are many groups or there is little work.

    A group that does not fit goes another way.
    """
    assert cuda_force.by_groups(torch.zeros(64, 96, 256))
    assert not cuda_force.by_groups(torch.zeros(1, 120, 1024))
    assert not cuda_force.by_groups(torch.zeros(64, 300, 4))
    assert [cuda_force._splits(blocks, 200) for blocks in (1, 200, 10000)] == [4, 2, 1]


@pytest.mark.parametrize("normalizer", [None, "dist_affinity_rms", "force_rms"])
def test_losses(normalizer, way):
    """The public functions have the values and gradients of the dense reference."""
    generator = torch.Generator().manual_seed(5)
    a, b = (
        torch.randn(2, n, 3, generator=generator, dtype=torch.float64).to(Call.device)
        for n in (5, 4)
    )
    a.requires_grad_(), b.requires_grad_()
    temperatures = (0.3, 0.5)
    loss = fused_contrastive.contrastive_force_loss(
        a, b, temperatures, normalizer=normalizer, backend="cuda"
    )
    want = fused_contrastive.contrastive_force_loss(
        a, b, temperatures, normalizer=normalizer, backend="eager"
    )
    assert torch.allclose(loss, want, rtol=1e-10, atol=1e-12)
    for x, y in zip(*(torch.autograd.grad(out.sum(), (a, b)) for out in (loss, want)), strict=True):
        assert torch.allclose(x, y, rtol=1e-9, atol=1e-11)
    force = fused_contrastive.contrastive_force(a, b, 0.4, normalizer=normalizer, backend="cuda")
    want = fused_contrastive.contrastive_force(a, b, 0.4, normalizer=normalizer, backend="eager")
    assert torch.allclose(force, want, rtol=1e-10, atol=1e-12)
    if normalizer is None:
        c = torch.randn(2, 3, 3, generator=generator, dtype=torch.float64).to(Call.device)
        for name in ("cuda", "eager"):
            loss, info = drift.drift_loss(b, a, c, temperatures=temperatures, backend=name)
            found = (loss, info["scale"], drift.drift_field(b, a, 0.4, backend=name))
            want = found if name == "cuda" else want
        assert all(
            torch.allclose(x, y, rtol=1e-8, atol=1e-10) for x, y in zip(found, want, strict=True)
        )
