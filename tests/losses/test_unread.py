"""Rows of weight 0 and columns that are removed are not read, whatever they hold."""

import math

import pytest
import torch

import fused_contrastive as fc

N, D, OUT = 7, 5, 3
"""The row or column OUT of N does not count."""

KEPT = [i for i in range(N) if i != OUT]


def rows(*shape, seed, device):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device)


def spoiled(x, dim, bad):
    """x, whose entry OUT along `dim` is bad."""
    x = x.clone()
    x.select(dim, OUT)[..., 0] = bad
    return x


def zero_weight(device):
    weights = torch.ones(N, dtype=torch.float64, device=device)
    weights[OUT] = 0
    return weights


def removed(n, device, at=OUT):
    bias = torch.zeros(n, dtype=torch.float64, device=device)
    bias[at] = -math.inf
    return bias


def gradients(loss, tensors):
    return torch.autograd.grad(loss, [x for x in tensors if x.requires_grad])


def check(loss, tensors, expected, theirs, left_out):
    """Compare a loss and its gradients with those without the row or column that is left out."""
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-11)
    found, wanted = gradients(loss, tensors), gradients(expected, theirs)
    for x, y, dim in zip(found, wanted, left_out, strict=True):
        if dim is not None:
            assert (x.select(dim, OUT) == 0).all()
        if x.shape != y.shape:
            x = x.index_select(dim, torch.tensor(KEPT, device=x.device))
        torch.testing.assert_close(x, y, rtol=1e-8, atol=1e-10)


ONE_WAY = {
    "info_nce": lambda a, b, t, **o: fc.info_nce_loss(a, b, None, t, **o),
    "info_nce-smooth": lambda a, b, t, **o: fc.info_nce_loss(
        a, b, None, t, label_smoothing=0.1, **o
    ),
    "queue": lambda a, b, t, **o: fc.info_nce_loss(a, b, b.detach() - 1, t, **o),
    "n_pairs": lambda a, b, t, **o: fc.n_pairs_loss(a, b / t, normalize=False, **o),
    "siglip": lambda a, b, t, **o: fc.siglip_loss(a, b, 1 / t, -1.0, **o),
    "ranking": lambda a, b, t, **o: fc.multiple_negatives_ranking_loss(a, b, None, t, **o),
    "cpc": lambda a, b, t, **o: fc.cpc_loss(a[None], (b / t)[None], **o)[0],
}


@pytest.mark.parametrize("bad", (math.nan, math.inf, 1e300))
@pytest.mark.parametrize("name", ONE_WAY)
def test_a_row_of_weight_0(name, bad, backend, device):
    """Its loss and gradient are 0, and those of the others are as without it."""
    loss = ONE_WAY[name]
    a, b = (rows(N, D, seed=i, device=device) for i in range(2))
    t = torch.tensor(0.7, dtype=torch.float64, device=device)
    ours = [spoiled(a, 0, bad).requires_grad_(), b.clone().requires_grad_()]
    ours.append(t.clone().requires_grad_())
    found = loss(*ours, weights=zero_weight(device), backend=backend)
    theirs = [x.clone().requires_grad_() for x in (a, b, t)]
    terms = loss(*theirs, reduction="none", backend=backend).flatten()[KEPT]
    expected = terms.sum() / len(KEPT)
    check(found, ours, expected, theirs, (0, None, None))


@pytest.mark.parametrize("bad", (math.nan, math.inf))
@pytest.mark.parametrize("mode", ("unpaired", "paired", "in_batch"))
def test_a_removed_negative(mode, bad, backend, device):
    """A bias of -inf removes a negative, also from every product of the backward pass."""
    a, b = (rows(4, D, seed=i, device=device) for i in range(2))
    shape, dim = ((4, N, D), 1) if mode == "paired" else ((N, D), 0)
    c = rows(*shape, seed=2, device=device)
    options = {"temperature": 0.7, "negative_mode": mode, "backend": backend}
    ours = [a.clone().requires_grad_(), b.clone().requires_grad_()]
    ours.append(spoiled(c, dim, bad).requires_grad_())
    own = 1 if mode == "paired" else 4
    bias = removed(own + N, device, own + OUT)
    bias = bias.expand(4, -1) if mode == "paired" else bias
    found = fc.info_nce_loss(*ours, bias=bias, **options)
    theirs = [a.clone().requires_grad_(), b.clone().requires_grad_()]
    kept = c.index_select(dim, torch.tensor(KEPT, device=device))
    theirs.append(kept.requires_grad_())
    expected = fc.info_nce_loss(*theirs, **options)
    check(found, ours, expected, theirs, (None, None, dim))


TWO_WAYS = {
    "nt_xent": lambda a, b, **o: fc.nt_xent_loss(a, b, 0.7, **o),
    "nt_xent-options": lambda a, b, **o: fc.nt_xent_loss(a, b, 0.7, hardness=0.5, margin=0.1, **o),
    "clip": lambda a, b, **o: fc.clip_loss(a, b, 2.0, **o),
    "symmetric": lambda a, b, **o: fc.info_nce_loss(a, b, None, 0.7, symmetric=True, **o),
}


@pytest.mark.parametrize("bad", (math.nan, math.inf))
@pytest.mark.parametrize("name", TWO_WAYS)
def test_padding(name, bad, backend, device):
    """A pair of weight 0 that the bias removes is as if it were not there."""
    loss = TWO_WAYS[name]
    a, b = (rows(N, D, seed=i, device=device) for i in range(2))
    ours = [spoiled(x, 0, bad).requires_grad_() for x in (a, b)]
    given = {"weights": zero_weight(device), "bias": removed(N, device)}
    found = loss(*ours, **given, backend=backend)
    theirs = [x[KEPT].clone().requires_grad_() for x in (a, b)]
    check(found, ours, loss(*theirs, backend=backend), theirs, (0, 0))


@pytest.mark.parametrize("one_set", (True, False))
def test_a_removed_column_of_the_primitive(one_set, backend, device):
    a, b = (rows(n, D, seed=n, device=device) for n in (N, N))
    b = a if one_set else b
    options = {"scale": 1.5, "backend": backend}
    x = a.clone().requires_grad_()
    found = fc.similarity_logsumexp(
        x, spoiled(b, 0, math.nan), bias=removed(N, device), **options
    ).sum()
    y = a.clone().requires_grad_()
    check(found, [x], fc.similarity_logsumexp(y, b[KEPT], **options).sum(), [y], (None,))
    if one_set:
        # The removed column is a row as well, and its loss is NaN.
        whole = fc.similarity_logsumexp(spoiled(a, 0, math.nan), bias=removed(N, device), **options)
        assert whole.isnan().nonzero().flatten().tolist() == [OUT]


WITHOUT_CANDIDATE = {
    "paired": lambda a, b, **o: fc.info_nce_loss(
        a,
        b,
        a.detach().unsqueeze(1).expand(-1, 2, -1),
        negative_mode="paired",
        bias=removed(N, a.device).unsqueeze(1).expand(-1, 3),
        **o,
    ),
    "nt_xent": lambda a, b, **o: fc.nt_xent_loss(a, b, bias=removed(N, a.device), **keyed(a), **o),
    "clip": lambda a, b, **o: fc.clip_loss(a, b, 2.0, bias=removed(N, a.device), **keyed(a), **o),
    "n_pairs": lambda a, b, **o: fc.n_pairs_loss(a, b, bias=removed(N, a.device), **keyed(a), **o),
}


def keyed(a):
    """Keys that leave a row nothing but its positive."""
    return {"keys": torch.zeros(len(a), dtype=torch.int64, device=a.device)}


@pytest.mark.parametrize("name", WITHOUT_CANDIDATE)
def test_a_row_without_candidate(name, backend, device):
    """With weight 0 it changes nothing, although its loss would be NaN."""
    a, b = (rows(N, D, seed=i, device=device).requires_grad_() for i in range(2))
    found = WITHOUT_CANDIDATE[name](a, b, weights=zero_weight(device), backend=backend)
    assert found.isfinite()
    assert all(x.isfinite().all() for x in gradients(found, (a, b)))
    alone = WITHOUT_CANDIDATE[name](a, b, reduction="none", backend=backend)
    assert alone.flatten()[OUT].isnan()


def test_an_infinite_bias(backend, device):
    """The log-sum-exp of a row with such a candidate is infinite, also of the column itself."""
    a, b = rows(N, D, seed=0, device=device), rows(4, D, seed=1, device=device)
    bias = torch.tensor([0.0, math.inf, 0.0, -math.inf], dtype=torch.float64, device=device)
    found = fc.similarity_logsumexp(a, b, bias=bias, return_columns=True, backend=backend)
    plain = fc.similarity_logsumexp(a, b, return_columns=True, backend=backend)[1]
    assert (found[0] == math.inf).all()
    torch.testing.assert_close(found[1], plain + bias, rtol=1e-9, atol=1e-9)


def test_an_infinite_bias_that_a_key_excludes(backend, device):
    """With label smoothing, too, a row whose key excludes the column does not see it."""
    a, b = (rows(N, D, seed=i, device=device) for i in range(2))
    keys = torch.tensor([0, 0, 1, 2, 3, 4, 5], device=device)
    bias = torch.zeros(N, dtype=torch.float64, device=device)
    options = {"keys": keys, "label_smoothing": 0.1, "reduction": "none", "backend": backend}
    plain = fc.n_pairs_loss(a, b, **options)
    bias[1] = math.inf
    found = fc.n_pairs_loss(a, b, bias=bias, **options)
    torch.testing.assert_close(found[0], plain[0], rtol=1e-9, atol=1e-9)
    assert not found[2:].isfinite().any()


NORMALISED = {
    "nt_xent": lambda a, b, **o: fc.nt_xent_loss(a, b, **o),
    "nt_xent-options": lambda a, b, **o: fc.nt_xent_loss(a, b, margin=0.1, **o),
    "info_nce": lambda a, b, **o: fc.info_nce_loss(a, b, **o),
    "queue": lambda a, b, **o: fc.info_nce_loss(a, b, b.detach(), **o),
    "symmetric": lambda a, b, **o: fc.info_nce_loss(a, b, symmetric=True, **o),
    "n_pairs": lambda a, b, **o: fc.n_pairs_loss(a, b, **o),
    "ranking": lambda a, b, **o: fc.multiple_negatives_ranking_loss(
        a, b, directions=("query_to_doc", "doc_to_query"), **o
    ),
    "dcl": lambda a, b, **o: fc.dcl_loss(a, b, **o),
    "dclw": lambda a, b, **o: fc.dclw_loss(a, b, **o),
    "sup_con": lambda a, b, **o: fc.sup_con_loss(a, torch.arange(N, device=a.device) // 2, **o),
    "primitive": lambda a, b, **o: fc.similarity_logsumexp(a, b, normalize=True, **o).sum(),
}


@pytest.mark.parametrize("name", NORMALISED)
def test_a_float16_row_of_zeros_gets_no_gradient(name, backend, device):
    """Its gradient is that of a direction over 1e-12, which would be infinite in float16."""
    a, b = (rows(N, D, seed=i, device=device).half() for i in range(2))
    a[OUT] = 0
    a, b = a.requires_grad_(), b.requires_grad_()
    found, *_ = torch.autograd.grad(NORMALISED[name](a, b, backend=backend), a)
    assert found.isfinite().all() and (found[OUT] == 0).all() and (found[KEPT] != 0).any(1).all()


def padded(name, device):
    """A loss of padded views, which takes them and further options, and the views."""
    views = [spoiled(rows(N, D, seed=i, device=device), 0, math.nan) for i in range(2)]
    given = {"weights": zero_weight(device), "bias": removed(N, device)}
    return lambda a, b, **options: TWO_WAYS[name](a, b, **given, **options), views


@pytest.mark.parametrize("name", ("nt_xent", "clip", "symmetric"))
def test_second_derivatives_with_padding(name, backend, device):
    loss, (a, b) = padded(name, device)
    a, b = a.requires_grad_(), b.requires_grad_()
    first = torch.autograd.grad(loss(a, b, backend=backend), (a, b), create_graph=True)
    kept = [x[KEPT].detach().clone().requires_grad_() for x in (a, b)]
    expected = torch.autograd.grad(TWO_WAYS[name](*kept, backend=backend), kept, create_graph=True)
    total = sum((x[KEPT] ** 2).sum() for x in first)
    others = sum((x**2).sum() for x in expected)
    for x, y in zip(gradients(total, (a, b)), gradients(others, kept), strict=True):
        assert (x[OUT] == 0).all()
        torch.testing.assert_close(x[KEPT], y, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ("nt_xent", "clip", "symmetric"))
def test_compiling_with_padding(name):
    loss, (a, b) = padded(name, "cpu")
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    results = []
    for function in (loss, compiled):
        views = [x.clone().requires_grad_() for x in (a, b)]
        found = function(*views)
        results.append([found.detach(), *gradients(found, views)])
    for x, y in zip(*results, strict=True):
        assert x.isfinite().all()
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)
