"""The losses are right at the corners of what they accept.

The corners are strides, sizes of one and none, zero and equal rows, -inf biases, NaN and inf.
"""

import math

import numpy as np
import pytest
import torch
from conftest import is_interpreted, skip_unless_served
from oracles import similarity as oracle
from support import cases, uses

import fused_contrastive as fc
from fused_contrastive import reference

NAMES = [case.name for case in cases.LOSSES]
EMBEDDINGS = ("temperature", "logit_scale")


def gradients(case, inputs, backend, reduction="none"):
    """Return the loss and the gradients by name, with an upstream gradient of one."""
    loss = case.loss(inputs, backend, reduction=reduction)
    return loss, dict(zip(inputs, torch.autograd.grad(loss.sum(), inputs.values()), strict=True))


def assert_same_as_oracle(case, inputs, backend, rtol=1e-9):
    loss, grads = gradients(case, inputs, backend)
    expected, truth = case.truth(inputs, np.ones(tuple(loss.shape)))
    np.testing.assert_allclose(oracle.array(loss), expected, rtol=rtol, atol=rtol)
    for name, grad in grads.items():
        np.testing.assert_allclose(
            oracle.array(grad), truth[name], rtol=rtol, atol=rtol, err_msg=name
        )


def reshaped(x, how):
    """Return the values of x, or of one row of it, behind other strides."""
    if how == "transposed":
        return x.detach().transpose(0, -1).contiguous().transpose(0, -1)
    if how == "sliced":
        wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1] + 1), float("nan"))
        wide[..., 1::2] = x.detach()
        return wide[..., 1::2]
    if how == "offset":
        longer = x.new_full((x.shape[0] + 3, *x.shape[1:]), float("nan"))
        longer[3:] = x.detach()
        return longer[3:]
    assert how == "expanded"
    return x.detach()[:1].expand_as(x)


@pytest.mark.interpreter(case=("nt_xent", "info_nce-queue"), dtype=(torch.float32,))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("how", ("transposed", "sliced", "offset", "expanded"))
@pytest.mark.parametrize("name", NAMES)
def test_strides(name, how, dtype, backend, device):
    """Inputs of any strides give the same numbers and gradients as contiguous copies.

    Upstream gradients may have any strides too.
    """
    case, n, d = cases.BY_NAME[name], 6, 5
    inputs = case.draw(n, d, dtype, device)
    strided = {
        k: x if x.dim() == 0 else reshaped(x, how).requires_grad_() for k, x in inputs.items()
    }
    plain = {k: x.detach().contiguous().requires_grad_() for k, x in strided.items()}
    assert any(not x.is_contiguous() for x in strided.values()) or how == "offset"
    loss, expected = case.loss(strided, backend), case.loss(plain, backend)
    torch.testing.assert_close(loss, expected)
    upstream = torch.randn(*loss.shape, 2, device=device).select(-1, 0)
    loss.backward(upstream)
    expected.backward(upstream.contiguous())
    for k in inputs:
        torch.testing.assert_close(strided[k].grad, plain[k].grad)
    # The sum gives the loss an expanded upstream gradient.
    torch.autograd.backward(case.loss(plain, backend).sum())


@pytest.mark.parametrize("d", (1, 2, 5))
@pytest.mark.parametrize("n", (1, 2))
@pytest.mark.parametrize("name", NAMES)
def test_small(name, n, d, any_backend, device):
    """Losses and gradients are the oracle's for one row, one dimension, one candidate or none."""
    case = cases.BY_NAME[name]
    assert_same_as_oracle(case, case.draw(n, d, device=device), any_backend)


@pytest.mark.parametrize("name", NAMES)
def test_no_features(name, any_backend, device):
    """Without features (D = 0) every similarity is 0."""
    case = cases.BY_NAME[name]
    assert_same_as_oracle(case, case.draw(3, 0, device=device), any_backend)


@pytest.mark.parametrize("name", NAMES)
def test_empty_batch(name, any_backend, device):
    """An empty batch has no losses, a sum of 0, a mean of NaN and a working backward pass."""
    case = cases.BY_NAME[name]
    for reduction, expected in (("none", None), ("sum", 0.0), ("mean", math.nan)):
        inputs = case.draw(0, 4, torch.float32, device)
        loss = case.loss(inputs, any_backend, reduction=reduction)
        if expected is None:
            assert loss.numel() == 0 and loss.shape == case.loss(inputs, "reference").shape
        else:
            torch.testing.assert_close(loss.cpu(), torch.tensor(expected), equal_nan=True)
        loss.sum().backward()
        for name, x in inputs.items():
            assert x.grad is not None and x.grad.shape == x.shape, name


@pytest.mark.parametrize("mode", ("unpaired", "paired"))
def test_no_negatives(mode, any_backend, device):
    """Without negatives (K = 0) the positive is alone, and the loss and every gradient are 0."""
    shape = (3, 0, 4) if mode == "paired" else (0, 4)
    query, key = (torch.randn(3, 4, device=device, requires_grad=True) for _ in range(2))
    negatives = torch.randn(shape, device=device, requires_grad=True)
    loss = fc.info_nce_loss(
        query, key, negatives, negative_mode=mode, reduction="none", backend=any_backend
    )
    loss.sum().backward()
    for x in (loss, query.grad, key.grad):
        assert (x == 0).all()
    assert negatives.grad.shape == shape


def test_one_row_with_queue(any_backend, device):
    case = cases.BY_NAME["info_nce-queue"]
    inputs = case.draw(1, 6, device=device)
    inputs["negative_keys"] = (
        torch.randn(70 if any_backend != "triton" else 20, 6, dtype=torch.float64)
        .to(device)
        .requires_grad_()
    )
    assert_same_as_oracle(case, inputs, any_backend)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("which", ("zero", "tiny", "duplicate", "all_equal"))
def test_degenerate_rows(name, which, any_backend, device):
    """Zero rows, equal rows and rows under the norm floor are as in the oracle.

    The gradient of rows under the floor is G / 1e-12, as in F.normalize. All rows may be equal too.
    """
    case = cases.BY_NAME[name]
    inputs = case.draw(5, 4, device=device)
    with torch.no_grad():
        for x in inputs.values():
            if x.dim() < 2:
                continue
            rows = x.flatten(0, -2)
            if which == "zero":
                rows[1] = 0
            elif which == "tiny":
                rows[1] *= 1e-13
            elif which == "duplicate":
                rows[2:4] = rows[0]
            else:
                rows[:] = rows[0].clone()
    assert_same_as_oracle(case, inputs, any_backend, rtol=1e-8)


def test_zero_rows_in_half_precision(backend, device):
    """Zero rows give finite losses.

    The norm floor is 1e-12 in float32, and not 0 in float16.
    """
    for dtype in cases.HALF:
        z = torch.randn(6, 4, device=device, dtype=dtype)
        z[2] = 0
        assert fc.nt_xent_loss(z, z.clone(), backend=backend, reduction="none").isfinite().all()


@pytest.mark.parametrize("columns", (False, True))
@pytest.mark.parametrize(
    "use", [u for u in uses.USES if u.kind in ("other_key", "same_key", "not_pair")], ids=str
)
def test_rows_without_candidates(use, columns, any_backend, device):
    """An empty candidate set has lse = -inf and gradient 0, whatever its upstream gradient.

    The other rows are the same as without it.
    """
    use = uses.Use(
        use.kind, use.one_set, columns, use.self_offset, use.bias, use.normalize, use.lead
    )
    named = use.draw(6, 5, 3, device=device)
    if use.kind == "other_key":
        named["key_a"][..., 3:] = 0
        named["key_b" if "key_b" in named else "key_a"][..., :] = 0
    elif use.kind == "same_key":
        named["key_a"][..., 2] = 77
    else:
        # A single row is its own pair.
        named = use.draw(1, 1, 3, device=device)
    out = use.apply(named, any_backend)
    rows, cols, grads = use.truth(named, *(np.ones(tuple(o.shape)) for o in out))
    assert np.isneginf(rows).any()
    torch.autograd.backward(out, [torch.ones_like(o) for o in out])
    for x, truth in zip(out, (rows, cols), strict=False):
        np.testing.assert_allclose(oracle.array(x), truth, rtol=1e-9)
    for name, truth in grads.items():
        np.testing.assert_allclose(
            oracle.array(named[name].grad), truth, rtol=1e-8, atol=1e-12, err_msg=name
        )


def test_bias_of_minus_infinity(any_backend, device):
    """A bias of -inf removes its column.

    Values and gradients are those of the shorter problem. With all columns removed they are -inf
    and 0.
    """
    a, b = (torch.randn(n, 3, dtype=torch.float64, device=device) for n in (5, 6))
    bias = torch.tensor(
        [0.3, -math.inf, 0.1, -0.2, -math.inf, 0.0], dtype=torch.float64, device=device
    )
    keep = bias.isfinite()
    outs = []
    for columns, offsets in ((b, bias), (b[keep], bias[keep])):
        leaves = [x.clone().requires_grad_() for x in (a, columns, offsets)]
        rows = fc.similarity_logsumexp(*leaves[:2], bias=leaves[2], backend=any_backend)
        rows.square().sum().backward()
        outs.append((rows.detach(), *(x.grad for x in leaves)))
    (rows, da, db, dbias), (rows_short, da_short, db_short, dbias_short) = outs
    for x, y in (
        (rows, rows_short),
        (da, da_short),
        (db[keep], db_short),
        (dbias[keep], dbias_short),
    ):
        torch.testing.assert_close(x, y)
    assert (db[~keep] == 0).all() and (dbias[~keep] == 0).all()
    leaves = [x.clone().requires_grad_() for x in (a, b, torch.full_like(bias, -math.inf))]
    rows, cols = fc.similarity_logsumexp(
        *leaves[:2], bias=leaves[2], return_columns=True, backend=any_backend
    )
    (rows.exp().sum() + cols.exp().sum()).backward()
    assert rows.isneginf().all() and cols.isneginf().all()
    assert all((x.grad == 0).all() for x in leaves)


BAD = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


@pytest.mark.interpreter(case=("nt_xent-raw", "clip", "info_nce-queue-raw"), bad=("nan", "inf"))
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", NAMES)
def test_nan_and_inf(name, bad, backend, device):
    """Wherever eager's loss or gradients are NaN or infinite, ours are too.

    Nothing crashes, and nothing is silently zeroed.
    """
    case = cases.BY_NAME[name]
    for n in (1, 2, 6):
        plain = case.draw(n, 4, torch.float32, device)
        for victim in plain:
            inputs = {k: x.detach().clone() for k, x in plain.items()}
            inputs[victim].view(-1)[inputs[victim].numel() // 3] = BAD[bad]
            inputs = {k: x.requires_grad_() for k, x in inputs.items()}
            if inputs[victim].dim() == 0 and bad != "nan":
                # An infinite temperature is a number with a limit, not data.
                continue
            ours, eager = gradients(case, inputs, backend), gradients(case, inputs, "reference")
            found = {"loss": (ours[0], eager[0])} | {k: (ours[1][k], eager[1][k]) for k in inputs}
            for key, (x, y) in found.items():
                missing = x.isfinite() & ~y.isfinite()
                assert not missing.any(), (
                    f"{victim}={bad}, n={n}: {key} is {x[missing][:3]}, "
                    f"where eager has {y[missing][:3]}"
                )


@pytest.mark.parametrize("kind", ("all", "not_self", "not_pair", "other_key", "same_key"))
@pytest.mark.parametrize("bad", ("nan", "inf"))
def test_nan_and_inf_in_the_primitive(bad, kind, backend, device):
    """Rows that do not see the bad row keep their values, and those that do are as eager's.

    GPU backends are tested in float64. A float32 product in three tf32 parts is NaN where one
    factor is infinite.
    """
    dtype = torch.float64 if backend in ("triton", "cuda") else torch.float32
    for one_set in (True, False):
        offset = 3 if kind == "not_self" and not one_set else None
        use = uses.Use(kind, one_set, columns=True, self_offset=offset)
        m, n = (
            (19, 19 if one_set else 23) if is_interpreted(backend) else (80, 80 if one_set else 70)
        )
        named = use.draw(m, n, 4, dtype, device)
        with torch.no_grad():
            named["a"][m - 2, 1] = BAD[bad]
        for x, y in zip(use.apply(named, backend), use.apply(named, "reference"), strict=True):
            assert (x.isfinite() == y.isfinite()).all()
            torch.testing.assert_close(x[y.isfinite()], y[y.isfinite()], rtol=1e-5, atol=1e-5)


def test_reference_reduces_an_empty_batch_as_cross_entropy(device):
    """The convention for empty batches that is tested above is torch's own."""
    logits, target = (
        torch.zeros(0, 3, device=device),
        torch.zeros(0, dtype=torch.long, device=device),
    )
    loss = torch.nn.functional.cross_entropy
    assert math.isnan(loss(logits, target)) and loss(logits, target, reduction="sum") == 0
    assert math.isnan(reference.nt_xent_loss(logits, logits))


def test_column_gradients_of_a_repeated_target(any_backend, device):
    """n_pairs_loss takes an index vector that names one positive several times."""
    a, p = (
        torch.randn(6, 3, dtype=torch.float64, device=device, requires_grad=True) for _ in range(2)
    )
    target = torch.tensor([0, 0, 5, 3, 0, 5], device=device)
    loss = fc.n_pairs_loss(a, p, target, reduction="none", backend=any_backend)
    expected, grads = oracle.n_pairs(a, p, target, np.ones(6))
    loss.sum().backward()
    np.testing.assert_allclose(oracle.array(loss), expected, rtol=1e-10)
    np.testing.assert_allclose(oracle.array(a.grad), grads["anchors"], rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(oracle.array(p.grad), grads["positives"], rtol=1e-8, atol=1e-12)


def test_ties_are_hits(backend, device):
    """Every positive is a hit where all embeddings are equal.

    It is at least the largest other candidate, however the sums were ordered.
    """
    v = torch.randn(1, 37, device=device).repeat(40, 1)
    target = torch.arange(40, device=device).flip(0)
    for loss, arguments in (
        (fc.nt_xent_loss, (v, v.clone(), 0.1)),
        (fc.info_nce_loss, (v, v.clone())),
        (fc.info_nce_loss, (v, v.clone(), v[:7].clone())),
        (fc.clip_loss, (v, v.clone(), 1.3)),
        (fc.siglip_loss, (v, v.clone(), 1.3, -0.7)),
        (fc.n_pairs_loss, (v, v.clone(), target)),
    ):
        assert loss(*arguments, metrics=True, backend=backend)[1]["accuracy"] == 1, loss.__name__


@pytest.mark.parametrize(("n", "d"), ((0, 4), (3, 0), (1, 3)))
@pytest.mark.parametrize("name", [case.name for case in cases.LOSSES if case.has_metrics])
def test_metrics_of_corners(name, n, d, backend, device):
    """Metrics of corners are as eager's.

    They are NaN over nothing, and every positive is a hit where nothing can be larger.
    """
    case = cases.BY_NAME[name]
    inputs = case.draw(n, d, torch.float64, device)
    found, expected = (
        case.loss(inputs, label, metrics=True)[1] for label in (backend, "reference")
    )
    torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize("margin", (70, 80, 90))
def test_half_gradients_when_every_row_has_converged(margin, backend, device):
    """float16 gradients are finite for losses down to 1e-39.

    Weights that all but vanish neither overflow relative to the largest nor turn into NaN.
    """
    skip_unless_served(backend, device, torch.float16)
    query = torch.eye(4, 16, device=device).half().requires_grad_()
    loss = fc.info_nce_loss(query, query.detach().clone(), None, 1 / margin, backend=backend)
    loss.sum().backward()
    assert query.grad.isfinite().all()


@pytest.mark.parametrize("margin", (700.0, 715.0, 725.0, 740.0, 760.0))
@pytest.mark.parametrize(
    "loss",
    (lambda a, b, s, **o: fc.nt_xent_loss(a, b, 1 / s, **o), fc.clip_loss),
    ids=("nt_xent", "clip"),
)
def test_gradients_that_are_subnormal(loss, margin, backend, device):
    """Gradients stay tiny where every row has converged as far as float64 goes, and further.

    The number e^-margin is barely a number, and nothing is divided by it.
    """
    for dtype in (torch.float64, torch.float32):
        a, b = (torch.eye(4, dtype=dtype, device=device, requires_grad=True) for _ in range(2))
        for x in torch.autograd.grad(loss(a, b, margin, backend=backend), (a, b)):
            assert x.abs().max() <= margin * math.exp(-margin)


def test_norms_whose_squares_overflow(backend, device):
    """Rows whose squared norms overflow have the right log-sum-exp.

    Their logits have no usable bound, and are summed relative to their maximum.
    """
    a, b = torch.ones(4, 8, device=device), torch.full((5, 8), 1e-19, device=device)
    a[3] = 1e20
    lse = fc.similarity_logsumexp(a, b, backend=backend)
    torch.testing.assert_close(
        lse.cpu(), math.log(5) + torch.tensor([0.0, 0.0, 0.0, 80.0]), rtol=1e-5, atol=1e-5
    )
