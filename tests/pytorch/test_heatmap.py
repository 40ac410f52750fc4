"""The heat map shows the right values, and block means beyond 256 rows.

It never makes an N x N matrix.
"""

import warnings

import pytest
import torch
from oracles import similarity as oracle

import fused_contrastive as fc
from fused_contrastive.tools.heatmap import similarity_blocks


def test_values():
    x1, x2 = torch.randn(5, 4), torch.randn(7, 4)
    expected = oracle.Pairs(x1, x2, normalize=True).dots
    torch.testing.assert_close(similarity_blocks(x1, x2), torch.from_numpy(expected).float())


def test_blocks_are_means_of_similarities():
    """A cell is the mean over its block of the full matrix, also for ragged blocks."""
    x1, x2 = torch.randn(10, 3, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    full = torch.from_numpy(oracle.Pairs(x1, x2, normalize=True).dots)
    rows, columns = (torch.arange(n).tensor_split(4) for n in (10, 7))
    expected = torch.stack([torch.stack([full[i][:, j].mean() for j in columns]) for i in rows])
    torch.testing.assert_close(similarity_blocks(x1, x2, cells=4), expected)


def test_many_rows():
    """The heat map takes 200 000 rows, whose matrix would take 160 GB."""
    x = torch.randn(200_000, 2)
    assert similarity_blocks(x, x).shape == (256, 256)


@pytest.mark.parametrize(("n", "texts"), ((3, 9), (40, 0)))
def test_figure(n, texts, tmp_path, device):
    """Small matrices show their values, and the axes say what they are."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    x = torch.randn(n, 4, device=device, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = fc.similarity_heatmap(x, x.detach() + 0.1)
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("x2", "x1")
    assert "cosine similarity" in axes.get_title() and len(axes.texts) == texts
    if texts:
        expected = oracle.Pairs(x, x.detach() + 0.1, normalize=True).dots
        assert [t.get_text() for t in axes.texts] == [f"{v:.2f}" for v in expected.ravel()]
    figure.savefig(tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 1000


def test_given_axes(tmp_path):
    """The picture goes into the given axes, and leaves the others of their figure alone."""
    figures = pytest.importorskip("matplotlib.figure", reason="matplotlib is not installed")
    figure = figures.Figure()
    left, right = figure.subplots(1, 2)
    x = torch.randn(5, 4)
    assert fc.similarity_heatmap(x, x + 1, ax=right) is figure
    assert right.get_title() == "cosine similarity" and len(right.images) == 1
    assert not left.images and not left.get_title()
    figure.savefig(tmp_path / "map.png")
    with pytest.raises(TypeError, match="ax must be matplotlib axes or None, got Figure"):
        fc.similarity_heatmap(x, x + 1, ax=figure)


def test_block_means_are_named(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    title = fc.similarity_heatmap(torch.randn(300, 3), torch.randn(20, 3)).axes[0].get_title()
    assert "256 x 20" in title


@pytest.mark.parametrize(
    ("x1", "x2", "error", "message"),
    (
        (torch.randn(3), torch.randn(3, 2), ValueError, "x1 must have 2 dimensions"),
        (torch.randn(3, 2), torch.randn(3, 4), ValueError, "x2 must have 2 columns"),
        (torch.randn(0, 2), torch.randn(3, 2), ValueError, "x1 must not be empty"),
        (torch.ones(3, 2).long(), torch.randn(3, 2), TypeError, "x1 must be a floating-point"),
        (torch.randn(3, 2), torch.randn(3, 2).double(), TypeError, "x2 must have the dtype of x1"),
    ),
)
def test_wrong_inputs(x1, x2, error, message):
    with pytest.raises(error, match=message):
        fc.similarity_heatmap(x1, x2)


def test_without_matplotlib(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="matplotlib"):
        fc.similarity_heatmap(torch.randn(3, 2), torch.randn(3, 2))
