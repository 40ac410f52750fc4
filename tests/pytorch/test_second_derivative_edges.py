"""Second derivatives are right for few rows, zero rows and rows without candidates."""

import pytest
import torch
from conftest import is_interpreted
from support.derivatives import clip, derivatives, edge_inputs, nt_xent

import fused_contrastive as fc
from fused_contrastive import reference

EDGES = (
    "one row",
    "two rows",
    "cold",
    "hot",
    "repelling",
    "below the norm floor",
    "short row",
    "equal rows",
    "strides",
)


@pytest.mark.parametrize("loss", (nt_xent, clip))
@pytest.mark.parametrize("name", EDGES)
def test_edges(name, loss, backend, device):
    if is_interpreted(backend) and loss is clip:
        pytest.skip("one loss in the interpreter and the host shim")
    leaves = edge_inputs(name, device)
    expected = derivatives(loss("reference"), leaves)
    for x, y in zip(derivatives(loss(backend), leaves), expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-8, atol=1e-10 * max(1.0, y.abs().max().item()))


def test_a_zero_row(backend, device):
    """Second derivatives at a zero row are finite, where eager gives NaN.

    Eager differentiates the norm twice at 0. Here the row is divided by a constant.
    """
    leaves = edge_inputs("", device)
    with torch.no_grad():
        leaves[0][2] = 0
    found, eager = derivatives(nt_xent(backend), leaves), derivatives(nt_xent("reference"), leaves)
    assert all(x.isfinite().all() for x in found) and not eager[1].isfinite().all()
    for x, y in zip(found, eager, strict=True):
        finite = y.isfinite()
        torch.testing.assert_close(x[finite], y[finite], rtol=1e-8, atol=1e-10)


def test_columns_without_weight_and_rows_without_candidates(backend, device):
    """Second derivatives of columns without weight and of rows without candidates are 0.

    A bias of -inf takes the weight of a column, and keys that nobody shares leave a row without
    candidates. All other derivatives are those of eager.
    """
    a, b = (
        torch.randn(6, 4, dtype=torch.float64, device=device, requires_grad=True) for _ in range(2)
    )
    scale = torch.tensor(0.7, dtype=torch.float64, device=device, requires_grad=True)
    bias = torch.randn(6, dtype=torch.float64, device=device)
    bias[2] = float("-inf")
    keys = {"key_a": torch.tensor([0, 1, 2, 3, 4, 5], device=device)}
    keys |= {"key_b": torch.tensor([0, 1, 1, 1, 9, 9], device=device), "candidates": "same_key"}
    for options, leaves in (({}, [a, b, scale, bias.requires_grad_()]), (keys, [a, b, scale])):
        results = []
        for function, more in (
            (fc.similarity_logsumexp, {"backend": backend}),
            (reference.similarity_logsumexp, {}),
        ):

            def rows_and_columns(
                a, b, scale, bias=None, function=function, more=more, options=options
            ):
                return function(
                    a, b, scale=scale, bias=bias, return_columns=True, **options, **more
                )

            results.append(derivatives(rows_and_columns, leaves))
        for x, y in zip(*results, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-8, atol=1e-10)
