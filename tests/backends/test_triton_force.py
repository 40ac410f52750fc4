"""The Triton kernels of the force family agree with the panels in float64.

This holds for small groups and for tiles alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from conftest import skip_unless_served
from fused_contrastive.triton_kernels import support as guard

import fused_contrastive as fc
from fused_contrastive.backends.panels import force as force_panels
from fused_contrastive.problem import ForceProblem

if guard.missing() is not None:
    pytest.skip(guard.missing(), allow_module_level=True)

from fused_contrastive.triton_kernels import force, force_passes, launch

from fused_contrastive import triton_kernels

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
NONE, FLOOR = -math.inf, math.log(1e-6) / 2
F32, F64 = torch.float32, torch.float64
NAMES = ("force", "log_norm", "scale", "lse_rows", "lse_cols", "shift", "sums")
TEMPERATURES = (0.3, 0.05, 1.0, 0.1, 0.02)


@dataclass(frozen=True)
class Call:
    """This is one call of force_forward.

    The sizes are off every border of a tile, unless they say otherwise.
    """

    G: int = 1
    P: int = 35
    D: int = 3
    K: int = 2
    rows: int = 19
    negatives: int = 19
    scale: bool = True
    weight: bool = False
    all_rows: bool = True
    mask: bool = False
    self_logit: float = NONE
    floor: float = NONE
    denominator: float = NONE
    clip: float = 0.0
    rms: bool = False
    separate: bool = False
    spread: float = 1.0

    def __str__(self):
        changed = [f"{k}={v:.3g}" for k, v in vars(self).items() if v != getattr(Call, k)]
        return "-".join(changed) or "plain"

    def draw(self, device, dtype=F64):
        generator = torch.Generator().manual_seed(1)
        x = (
            torch.randn(self.G, self.P, self.D, generator=generator, dtype=F64)
            .mul(self.spread)
            .to(device, dtype)
        )
        accumulate = F64 if dtype == F64 else F32
        weight = torch.randn(self.G, self.P, generator=generator, dtype=F64).to(device, accumulate)
        inverse = 1 / torch.tensor(TEMPERATURES[: self.K], dtype=accumulate, device=device)
        scale = torch.rand(self.G, generator=generator, dtype=F64).add(0.7).to(device, accumulate)
        return x, inverse, scale if self.scale else None, weight if self.weight else None

    def problem(self, x, inverse_temperatures, scale, weight):
        """Return the call on tensors as `draw` returns them."""
        names = "rows negatives all_rows mask self_logit floor denominator clip rms separate"
        options = {name: getattr(self, name) for name in names.split()}
        return ForceProblem(x, inverse_temperatures, scale, weight, **options)


DRIFT = Call(
    rows=11,
    negatives=23,
    all_rows=False,
    mask=True,
    self_logit=FLOOR,
    floor=FLOOR,
    clip=1e-8,
    separate=True,
    weight=True,
)
CALLS = (
    Call(G=2, D=6),
    Call(G=2, scale=False, rms=True, K=5),
    Call(mask=True, rms=True, floor=-3.0, spread=0.1),
    Call(mask=True, separate=True, K=3),
    Call(scale=False, rms=True, rows=35, negatives=35),
    Call(rms=True, P=65, D=18, K=1, rows=1, negatives=64),
    DRIFT,
    replace(DRIFT, weight=False, K=1, G=2, separate=False, rows=23),
    replace(DRIFT, rows=1, K=3, D=17),
    Call(
        rows=16,
        negatives=16,
        all_rows=False,
        mask=True,
        denominator=math.log(1e-12),
        K=1,
        P=64,
        D=16,
    ),
    Call(rows=20, negatives=20, P=33, all_rows=False, denominator=-2.0, weight=True, clip=0.3),
    Call(P=1, rows=1, negatives=1, mask=True, G=3, D=1),
    Call(P=2, rows=1, negatives=1, mask=True, rms=True),
    Call(P=2, rows=1, negatives=1, all_rows=False, mask=True, self_logit=FLOOR, separate=True),
)


@pytest.fixture(params=["group", "tiles"])
def regime(request, monkeypatch):
    """Choose one of the two ways of computing. Each serves any size."""
    monkeypatch.setattr(force, "is_small", lambda x: request.param == "group")
    return request.param


def truth(call, operands):
    wide = (x if x is None else x.to(F64) for x in operands)
    return force_panels.force_forward(call.problem(*wide))


def compare(found, expected, tolerance):
    for name, ours, theirs in zip(NAMES, found, expected, strict=True):
        assert (ours is None) == (theirs is None), name
        if ours is None:
            continue
        assert ours.shape == theirs.shape, name
        assert not ours.isnan().any() or theirs.isnan().any(), name
        size = theirs[theirs.isfinite()].abs().max().item() if theirs.isfinite().any() else 0.0
        torch.testing.assert_close(
            ours.to(F64),
            theirs,
            rtol=tolerance,
            atol=tolerance * (size if name in ("force", "sums") else 1 + size),
        )


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_forward(call, regime, device):
    skip_unless_served("triton", device, F64)
    operands = call.draw(device)
    compare(triton_kernels.force_forward(call.problem(*operands)), truth(call, operands), 1e-10)


@pytest.mark.parametrize("dtype", [F32, torch.bfloat16])
@pytest.mark.parametrize("call", [CALLS[1], DRIFT], ids=["loss", "drift"])
def test_dtypes(call, dtype, regime, device):
    """Sums are float32, whatever dtype the coordinates are rounded to."""
    skip_unless_served("triton", device, dtype)
    call = replace(call, K=2)
    operands = call.draw(device, dtype)
    found = triton_kernels.force_forward(call.problem(*operands))
    assert all(x.dtype == F32 for x in found if x is not None)
    compare(found, truth(call, operands), 3e-5)


def test_far_from_the_origin(regime, device):
    """Distances and forces are right 1e4 standard deviations away from the origin.

    The reference takes the same rounded points.
    """
    skip_unless_served("triton", device, F32)
    call = Call(scale=False, rms=True)
    x, *rest = call.draw(device, F32)
    operands = (x + 1e4, *rest)
    compare(triton_kernels.force_forward(call.problem(*operands)), truth(call, operands), 3e-5)


@pytest.mark.parametrize("mask", [False, True])
def test_duplicates_and_cold_temperatures(mask, regime, device):
    """Duplicated points at cold temperatures leave the results right.

    Pairs at distance 0 have affinities that are e^200 times those of other pairs. The mean of (d
    A)^2 is made of those other pairs.
    """
    skip_unless_served("triton", device, F32)
    call = Call(scale=False, rms=True, mask=mask, K=1, D=16)
    x, inverse, scale, weight = call.draw(device, F32)
    x[:, 18:34] = x[:, :16]
    x[:, 34] = x[:, 16]
    operands = x, inverse * 150, scale, weight
    found, expected = triton_kernels.force_forward(call.problem(*operands)), truth(call, operands)
    assert found[1].isfinite().all() and found[1].max() < -100
    assert not expected[0].any() or found[0].any()
    for name, ours, theirs in zip(NAMES, found, expected, strict=True):
        if theirs is None:
            continue
        size = theirs.abs().max() + (0 if name in ("force", "sums") else 1)
        assert ((ours.to(F64) - theirs).abs() <= 2e-4 * size).all(), name


@pytest.mark.parametrize(
    "options", [{"rms": True}, {"separate": True}, {"separate": True, "mask": True}], ids=str
)
def test_points_equal_to_both_sides(options, regime, device):
    """Each row's force is right where every row equals points of either side.

    All other points are 70 temperatures away or more.
    """
    skip_unless_served("triton", device, F32)
    call = Call(K=1, D=16, **options)
    x, inverse, scale, _ = call.draw(device, F32)
    x = x[:, torch.arange(call.P) % 4].contiguous()
    x[:, -1] = 0.0
    distances = torch.cdist(x[0], x[0], compute_mode="donot_use_mm_for_euclid_dist")
    inverse = inverse.new_tensor([70 / distances[distances > 0].min()])
    operands = x, inverse, torch.ones_like(scale), None
    found, expected = triton_kernels.force_forward(call.problem(*operands)), truth(call, operands)
    assert (found[1] - expected[1]).abs() < 1e-4
    size = expected[0].abs().amax(-1, keepdim=True)
    assert (size > 1e-25).sum() > 8 and (
        (found[0].to(F64) - expected[0]).abs() <= 2e-4 * size + 1e-36
    ).all()


@pytest.mark.parametrize("separate", [False, True])
def test_equal_points(separate, regime, device):
    skip_unless_served("triton", device, F32)
    call = Call(scale=False, rms=not separate, separate=separate)
    x, *rest = call.draw(device, F32)
    found = triton_kernels.force_forward(call.problem(torch.full_like(x, 1.3), *rest))
    assert (found[2] == 0).all() and (found[0] == 0).all()
    assert separate or (found[1] == NONE).all()


@pytest.mark.parametrize("call", [CALLS[1], CALLS[2], DRIFT], ids=["loss", "floor", "drift"])
def test_bad_numbers_in_bad_numbers_out(call, regime, device):
    skip_unless_served("triton", device, F32)
    call = replace(call, G=2)
    x, *rest = call.draw(device, F32)
    x[0, 3, 2] = math.nan
    found = triton_kernels.force_forward(call.problem(x, *rest))
    assert found[0][:, 0].isnan().all() and not found[0][:, 1].isnan().any()


def test_any_strides_and_inputs_unchanged(regime, device):
    skip_unless_served("triton", device, F64)
    operands = DRIFT.draw(device)
    strided = [x.transpose(0, -1).contiguous().transpose(0, -1) for x in operands]
    copies = [x.clone() for x in strided]
    one, other = (triton_kernels.force_forward(DRIFT.problem(*o)) for o in (operands, strided))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(strided, copies, strict=True))
    storages = {x.untyped_storage().data_ptr() for x in (*other, *strided) if x.numel()}
    assert len(storages) == sum(x.numel() > 0 for x in other) + len(strided)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize(("G", "P", "D", "rows"), [(2, 35, 5, 19), (1, 32, 16, 32), (3, 1, 1, 1)])
def test_distances(G, P, D, rows, dtype, regime, device):
    skip_unless_served("triton", device, dtype)
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(G, P, D, generator=generator, dtype=F64) + 1e3).to(device, dtype)
    weight = torch.randn(G, P, generator=generator, dtype=F64).to(device, dtype)
    g = torch.randn(G, generator=generator, dtype=F64).to(device, dtype)
    if P > 20:
        x[:, 20] = x[:, 3]
    tolerance = 1e-4 if dtype == F32 else 1e-10
    close = {"rtol": tolerance, "atol": tolerance * P}
    for w, clip in ((None, 0.0), (weight, 0.3)):
        expected = force_panels.distance_sums(
            x.to(F64), None if w is None else w.to(F64), rows, clip
        )
        torch.testing.assert_close(
            triton_kernels.distance_sums(x, w, rows, clip).to(F64), expected, **close
        )
    expected = force_panels.distance_gradient(g.to(F64), x.to(F64))
    found = triton_kernels.distance_gradient(g, x)
    assert found.dtype == dtype
    torch.testing.assert_close(found.to(F64), expected, **close)


def test_one_launch_for_small_groups(device):
    """The forward op of the loss is one kernel for all groups, and its gradient is another."""
    skip_unless_served("triton", device, F32)
    negative, positive = (torch.randn(3, 9, 4, device=device, requires_grad=True) for _ in range(2))
    with launch.recording() as launches:
        fc.contrastive_force_loss(positive, negative, backend="triton").sum().backward()
    assert [(started.kernel.__name__, started.programs) for started in launches] == [
        ("force_group", 3),
        ("distance_group", 3),
    ]


def test_same_bits_every_time(regime, device):
    skip_unless_served("triton", device, F32)
    call = replace(CALLS[1], K=1, G=1)
    operands = call.draw(device, F32)
    one, other = (triton_kernels.force_forward(call.problem(*operands)) for _ in range(2))
    pairs = zip(one, other, strict=True)
    assert all(a is None or torch.equal(a, b) for a, b in pairs)


def test_splits_of_the_columns(device, monkeypatch):
    """The columns may have one split, two, or one for each tile, where the last is smaller."""
    skip_unless_served("triton", device, F64)
    monkeypatch.setattr(force, "is_small", lambda x: False)
    for options in ({"rms": True}, {"rms": False, "separate": True}):
        call = replace(CALLS[1], P=40, K=1, G=1, **options)
        operands = call.draw(device)
        for programs in (1, 6, 10**6):
            monkeypatch.setattr(force_passes, "PROGRAMS", programs)
            compare(
                triton_kernels.force_forward(call.problem(*operands)), truth(call, operands), 1e-10
            )
