"""The Triton kernels agree with a dense float64 autograd oracle.

The tiles are so small that a few dozen rows cross several of them.
"""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import replace

import pytest
import torch
from conftest import skip_unless_served
from fused_contrastive.triton_kernels import support as guard
from support.dense import BF16, F16, F32, F64, GRADIENTS, NO_SELF, Call, dense, error, run

from fused_contrastive.autograd import similarity as functions

if guard.missing() is not None:
    pytest.skip(guard.missing(), allow_module_level=True)

from fused_contrastive.triton_kernels import configs, launch, similarity
from fused_contrastive.triton_kernels.configs import Config

from fused_contrastive.backends.tiled import plan
from fused_contrastive.backends.tiled.operands import Operands
from fused_contrastive.problem import Candidates, Forward, LogSumExp

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
TILE = Config(32, 32, 32)


def check(
    call, device, tolerance, spread=1.0, g=None, need=(True, True, True, True), operands=None
):
    skip_unless_served("triton", device, call.dtype)
    operands = call.draw(device, spread) if operands is None else operands
    results, truth = run(call, operands, g, need), dense(call, operands, g)
    compared = set(results) & set(truth)
    assert {"rows", *(("da",) if need[0] else ())} <= compared
    errors = {name: error(results[name], truth[name]) for name in sorted(compared)}
    assert all(value <= tolerance for value in errors.values()), errors
    return results


@contextlib.contextmanager
def small_tiles(device):
    """Use tiles that a few dozen rows cross in the interpreter, and the shipped ones on a GPU."""
    if device.type == "cuda":
        yield
    else:
        with configs.override(pair_reduce=TILE, pair_weight=TILE, fused_rows=TILE):
            yield


ONE_SET = (
    Call(kind="not_pair", stride=25, positive=25),
    Call(kind="not_pair", stride=25, positive=25, normalize=False, scale=0.3),
    Call(kind="not_pair", stride=7),
    Call(kind="not_self", positive=25, extrema=True),
    Call(kind="all"),
    Call(kind="other_key", G=2),
    Call(kind="same_key"),
    Call(kind="same_key", offset=NO_SELF, extrema=True),
    Call(kind="not_pair", stride=25, positive=25, scale=1000.0),
    Call(kind="all", scale=-300.0, extrema=True),
)
TWO_SETS = (
    Call(N=50, kind="not_self", columns=True, positive=0),
    Call(N=50, kind="not_self", offset=3),
    Call(N=50, kind="not_pair", stride=10, offset=3),
    Call(N=50, kind="not_self", bias=True, columns=True),
    Call(N=50, kind="not_self", offset=7, columns=True, positive=7, bias=True, scale=-20.0),
    Call(N=50, kind="not_self", columns=True, positive=0, scale=800.0, bias=True),
    Call(N=67, kind="not_self", offset=11, positive=11, bias=True),
    Call(N=33, columns=True, extrema=True, G=2, M=35),
    Call(N=33, columns=True, extrema=True, bias=True, scale=500.0),
    Call(N=70, kind="other_key", columns=True, bias=True, M=20),
    Call(N=41, kind="same_key", offset=-3),
    Call(N=41, kind="same_key", offset=NO_SELF, columns=True),
    Call(N=64, kind="not_pair", stride=16, offset=-5, columns=True, M=32, D=32),
    Call(N=40, kind="not_self", offset=1000, columns=True),
    Call(N=70, weighted=True, extrema=True),
    Call(N=70, weighted=True, bias=True, kind="same_key", scale=50.0),
)


@pytest.mark.parametrize("call", ONE_SET + TWO_SETS, ids=str)
def test_values_and_gradients(call, device):
    with small_tiles(device):
        check(call, device, 2e-12 if abs(call.scale) < 300 else 2e-11)


@pytest.mark.parametrize(
    ("M", "N", "D"), [(1, 1, 1), (1, 40, 5), (40, 1, 17), (33, 2, 1), (16, 32, 16), (17, 33, 40)]
)
def test_shapes_at_and_off_the_tile_borders(M, N, D, device):
    with small_tiles(device):
        check(Call(M, N, D, columns=True, extrema=True, normalize=D > 1), device, 2e-12)


@pytest.mark.parametrize("dtype", [F32, F16, BF16])
@pytest.mark.parametrize(
    "call",
    [
        Call(kind="not_pair", stride=25, positive=25, scale=10.0),
        Call(N=50, kind="not_self", columns=True, positive=0, bias=True),
        Call(N=60, weighted=True, scale=20.0),
        Call(N=60, weighted=True, D=140, bias=True),
    ],
    ids=str,
)
def test_dtypes(call, dtype, device):
    """Sums are float32 for every dtype of the matrices.

    Values have float32's precision for the same rounded rows. Gradients have the precision of the
    matrix dtype.
    """
    call = replace(call, dtype=dtype)
    with small_tiles(device):
        skip_unless_served("triton", device, dtype)
        operands = call.draw(device)
        results, truth = run(call, operands), dense(call, operands)
    errors = {name: error(results[name], truth[name]) for name in set(results) & set(truth)}
    loose = {"da", "db", "dbias", "dscale", "mean"}
    unit = torch.finfo(dtype).eps
    limits = {name: max(4e-6, unit if name in loose else 0.0) for name in errors}
    limits["dscale"] = max(2e-5, 20 * unit)
    assert all(errors[name] <= limits[name] for name in errors), errors


@pytest.mark.parametrize("scale", [1e4, -1e4, 1000.0, 1e-3])
def test_any_size_of_logits(scale, device):
    """For float32 logits of 1e4, the log-sum-exp has only the error of rounding the logits."""
    for call in (
        Call(kind="not_pair", stride=25, scale=scale),
        Call(N=40, columns=True, extrema=True, scale=scale),
    ):
        call = replace(call, dtype=F32)
        skip_unless_served("triton", device, F32)
        operands = call.draw(device)
        with small_tiles(device):
            results, truth = run(call, operands), dense(call, operands)
        for name in {"rows", "cols", "row_max", "col_max"} & set(results):
            assert (results[name].cpu() - truth[name]).abs().max() <= max(
                4e-7 * abs(scale), 2e-6
            ), name
        assert error(results["da"], truth["da"]) < 1e-2


@pytest.mark.parametrize("temperature", [0.1, 0.02])
@pytest.mark.parametrize("columns", [False, True])
def test_accurate_relative_to_itself_when_converged(temperature, columns, device):
    """Losses and gradients are right to 1e-5 of themselves for views 0.3 sigma apart.

    These are losses down to 1e-16, and gradients that eager loses in float32.
    """
    one = Call(96, D=64, kind="not_pair", stride=48, positive=48, scale=1 / temperature, dtype=F32)
    two = Call(
        64, 64, 64, kind="not_self", positive=0, columns=True, scale=1 / temperature, dtype=F32
    )
    with small_tiles(device):
        call = two if columns else one
        results = check(call, device, 3e-5, spread=0.3, g=torch.ones(1, call.M, device=device))
    if temperature < 0.05:
        assert results["loss"].median() < 1e-9


@pytest.mark.parametrize("dtype", [F32, F16, BF16])
def test_upstream_gradients_of_any_size(dtype, device):
    """Upstream gradients of any size give the right gradients.

    The sizes are 65536, as for loss scaling, and 1e-8. The weights neither overflow nor vanish in
    16 bits.
    """
    call = Call(kind="not_pair", stride=25, positive=25, dtype=dtype)
    skip_unless_served("triton", device, dtype)
    a, *rest = call.draw(device)
    operands = [a.to(F32), *rest]
    for size in (65536.0, 1e-8):
        g = torch.full((1, call.M), size, device=device)
        with small_tiles(device):
            results, truth = run(call, operands, g), dense(call, operands, g)
        assert error(results["da"], truth["da"]) < max(1e-5, torch.finfo(dtype).eps)


PANELLED = (
    Call(100, kind="not_pair", stride=50, positive=50, G=2),
    Call(90, 70, kind="not_self", offset=5, columns=True, bias=True),
    Call(60, 110, kind="same_key", offset=2, columns=True),
    Call(70, 70, kind="not_self", bias=True),
    Call(70, kind="other_key", dtype=F16),
)


@pytest.mark.parametrize("call", PANELLED, ids=str)
def test_several_panels(call, device, monkeypatch):
    monkeypatch.setattr(plan, "WORKSPACE", 40 * 40 * torch.finfo(call.dtype).bits // 8)
    skip_unless_served("triton", device, call.dtype)
    with small_tiles(device), launch.recording() as launches:
        check(call, device, 2e-12 if call.dtype == F64 else 2e-3)
    assert sum(started.kernel.__name__ == "pair_weight" for started in launches) >= 3 * call.G


@pytest.mark.parametrize("super_rows", [32, 64, 96])
@pytest.mark.parametrize("scale", [5.0, 500.0])
def test_super_tiles_of_several_tiles(super_rows, scale, device, monkeypatch):
    unit = max(configs.select("pair_reduce", configs.architecture(device), F64, 24).block_n, 32)
    monkeypatch.setattr(
        plan,
        "super_tile",
        lambda *_: super_rows * (1 if device.type == "cpu" else unit // 32),
    )
    with small_tiles(device):
        check(
            Call(131, kind="not_pair", stride=60, positive=7, scale=scale, extrema=scale > 100),
            device,
            2e-11,
        )
        check(Call(70, 131, columns=True, scale=scale), device, 2e-11)


def test_fused_rows_in_float64_over_several_splits(device):
    """The arithmetic of fused_rows is right in float64, with more columns than one split.

    The kernel itself serves elements of 16 bits.
    """
    call = Call(40, 90, weighted=True, bias=True, kind="not_self", offset=4, scale=40.0)
    skip_unless_served("triton", device, F64)
    a, b, scale, bias, _, _ = call.draw(device)
    truth = dense(replace(call, normalize=False, extrema=True), (a, b, scale, bias, None, None))
    rows, row_max, mean = (
        torch.full(s, float("nan"), dtype=F64, device=device)
        for s in ((2, 1, 40), (1, 40), (1, 40, 24))
    )
    with configs.override(fused_rows=Config(32, 32, 32, 8, 1)):
        operands = Operands(a, b, scale, bias, Candidates("not_self", 4))
        found = Forward(LogSumExp(rows), None, None, None, row_max, None, None, mean)
        similarity.finish_weighted(*similarity.fused_rows(operands), found)
    for name, value in {"rows": rows[0], "row_max": row_max, "mean": mean}.items():
        assert error(value, truth[name]) < 1e-12


def test_mean_spares_the_backward_pass(device):
    """With the weighted mean in hand, the gradient of the rows needs no tile.

    This holds where the columns are fixed.
    """
    call = Call(30, 70, weighted=True)
    skip_unless_served("triton", device, F64)
    with small_tiles(device), launch.recording() as launches:
        check(call, device, 2e-12, need=(True, False, True, False))
    backward = [started.kernel.__name__ for started in launches]
    assert (
        backward[-1] == "finish_backward"
        and "prepare_backward" not in backward[backward.index("finish_forward") + 3 :]
    )


@pytest.mark.parametrize(
    "need",
    list(itertools.product((False, True), repeat=4)),
    ids=lambda n: "".join("FT"[x] for x in n),
)
def test_only_what_is_needed(need, device):
    """Any subset of the gradients can be asked for. Each is the same as among all of them."""
    call = Call(30, 30, D=8, kind="not_self", positive=0, columns=True, bias=True)
    skip_unless_served("triton", device, F64)
    operands = call.draw(device)
    everything, some = run(call, operands), run(call, operands, need=need)
    assert {name for name in GRADIENTS if name in some} == {
        name for name, n in zip(GRADIENTS, need, strict=True) if n
    }
    for name in GRADIENTS:
        if name in some:
            torch.testing.assert_close(some[name], everything[name], rtol=1e-12, atol=1e-14)


def test_rows_without_candidates(device):
    call = Call(40, 40, kind="same_key", offset=NO_SELF, columns=True, extrema=True)
    a, b, scale, bias, key_a, key_b = call.draw(device)
    key_a[:, :9], key_b[:, 20:] = 100, 200
    with small_tiles(device):
        results = check(call, device, 2e-12, operands=[a, b, scale, bias, key_a, key_b])
    assert (results["rows"][:, :9] == float("-inf")).all() and (
        results["cols"][:, 20:] == float("-inf")
    ).all()
    assert (results["da"][:, :9] == 0).all() and (results["db"][:, 20:] == 0).all()


def test_a_positive_alone_costs_nothing(device):
    """Without any negatives, the loss and the gradient are 0."""
    call = Call(2, kind="not_pair", stride=1, positive=1)
    skip_unless_served("triton", device, F64)
    results = run(call, call.draw(device))
    assert (
        (results["rows"] == float("-inf")).all()
        and (results["loss"] == 0).all()
        and (results["da"] == 0).all()
    )


def test_zero_and_duplicate_rows(device):
    call = Call(40, kind="not_pair", stride=20, positive=20)
    operands = call.draw(device)
    operands[0][:, 3], operands[0][:, 5] = 0, operands[0][:, 4]
    with small_tiles(device):
        results = run(call, operands)
    truth = dense(call, operands)
    ordinary = [i for i in range(40) if i != 3]
    assert error(results["da"][:, ordinary], truth["da"][:, ordinary]) < 1e-12
    assert error(results["loss"], truth["loss"]) < 1e-12
    assert results["da"][:, 3].isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_bad_numbers_in_bad_numbers_out(bad, normalize, scale, device):
    call = Call(
        40, kind="not_pair", stride=20, positive=20, normalize=normalize, scale=scale, dtype=F32
    )
    skip_unless_served("triton", device, F32)
    operands = call.draw(device)
    operands[0][0, 7, 3] = bad
    with small_tiles(device):
        results = run(call, operands)
    assert not results["loss"].isfinite().all(1).any() and not results["rows"].isfinite().all()
    assert results["loss"][0, [7, 27]].isnan().all()
    assert results["da"].isnan().any()


def test_infinite_positive_is_nan(device):
    call = Call(20, 20, kind="not_self", positive=0, bias=True)
    skip_unless_served("triton", device, F64)
    operands = call.draw(device)
    operands[3][0, 4] = float("-inf")
    results = run(call, operands)
    assert results["loss"][0].isnan().nonzero().flatten().tolist() == [4]
    assert results["da"][0, 4].isnan().all()


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_same_bits_every_time(dtype, device):
    call = Call(130, kind="not_pair", stride=65, positive=65, dtype=dtype)
    skip_unless_served("triton", device, dtype)
    operands = call.draw(device)
    with small_tiles(device):
        first, second = run(call, operands), run(call, operands)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_any_strides(device):
    call = Call(40, 40, kind="not_self", positive=0, columns=True, bias=True, G=2)
    skip_unless_served("triton", device, F64)
    operands = call.draw(device)
    strided = [
        x if x is None or not x.dim() else x.transpose(0, -1).contiguous().transpose(0, -1)
        for x in operands
    ]
    assert not strided[0].is_contiguous()
    one, other = run(call, operands), run(call, strided)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_gradcheck(device):
    skip_unless_served("triton", device, F64)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(6, 3, generator=generator, dtype=F64).to(device).requires_grad_()
    y = torch.randn(5, 3, generator=generator, dtype=F64).to(device).requires_grad_()
    bias = torch.randn(5, generator=generator, dtype=F64).to(device).requires_grad_()
    scale = torch.tensor(3.0, dtype=F64, device=device, requires_grad=True)

    def paired(z, scale):
        return functions.similarity(
            z, None, scale, kind="not_pair", stride=3, positive=3, normalize=True, backend="triton"
        ).loss

    def both(z, y, bias, scale):
        return functions.similarity(z, y, scale, bias=bias, columns=True, backend="triton")[:2]

    assert torch.autograd.gradcheck(paired, (z, scale), fast_mode=True)
    assert torch.autograd.gradcheck(both, (z, y, bias, scale), fast_mode=True)
