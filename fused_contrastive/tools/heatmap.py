"""Pictures of similarities, without the N x N matrix."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from .. import checks


def similarity_blocks(x1: torch.Tensor, x2: torch.Tensor, cells: int = 256) -> torch.Tensor:
    """Cosine similarities of ``x1 [M, D]`` and ``x2 [N, D]``, averaged over blocks.

    There are at most ``[cells, cells]`` of them.

    The mean of a block of dot products is the dot product of the blocks' means, so no larger matrix
    is formed.
    """
    checks.embeddings("x1", x1, dim=2)
    checks.embeddings("x2", x2, dim=2, like=("x1", x1))
    if x1.shape[1] != x2.shape[1]:
        raise ValueError(f"x2 must have {x1.shape[1]} columns like x1, got shape {tuple(x2.shape)}")
    for name, x in (("x1", x1), ("x2", x2)):
        if x.numel() == 0:
            raise ValueError(f"{name} must not be empty, got shape {tuple(x.shape)}")
    means = []
    for x in (x1, x2):
        x = F.normalize(x.detach() if x.dtype == torch.float64 else x.detach().float(), dim=1)
        means.append(torch.stack([block.mean(0) for block in x.tensor_split(min(cells, len(x)))]))
    return means[0] @ means[1].T


def similarity_heatmap(x1: torch.Tensor, x2: torch.Tensor, *, ax: Any = None) -> Any:
    """Draw the cosine similarities of ``x1 [M, D]`` (rows) and ``x2 [N, D]`` with matplotlib.

    With up to 16 x 16 values, each is written into its cell. Beyond 256 rows or columns the cells
    are averages of blocks, so that no N x N matrix is formed.

    >>> import torch
    >>> from fused_contrastive import similarity_heatmap
    >>> figure = similarity_heatmap(torch.randn(4, 8), torch.randn(6, 8))
    >>> figure.axes[0].get_title()
    'cosine similarity'

    ``figure.savefig("similarities.png")`` writes the picture to a file. With axes of pyplot,
    ``plt.show()`` shows it, and several pictures can stand side by side:

    >>> import matplotlib.pyplot as plt
    >>> _, (left, right) = plt.subplots(1, 2)
    >>> figure = similarity_heatmap(torch.randn(4, 8), torch.randn(6, 8), ax=left)

    Args:
        x1: ``[M, D]``.
        x2: ``[N, D]``.
        ax: matplotlib axes to draw into. The colour bar takes a part of their room. None makes a
            new figure, which pyplot does not know.

    Returns:
        The matplotlib figure that holds the picture.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError, TypeError: an argument is wrong; the error names it.
    """
    values = similarity_blocks(x1, x2).tolist()
    shape = (len(values), len(values[0]))
    if ax is None:
        ax = _new_axes()
    elif not hasattr(ax, "imshow"):
        raise TypeError(f"ax must be matplotlib axes or None, got {type(ax).__name__}")
    extent = (0, len(x2), len(x1), 0)
    image = ax.imshow(values, vmin=-1.0, vmax=1.0, cmap="coolwarm", extent=extent, aspect="auto")
    if max(shape) <= 16:
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                ax.text(j + 0.5, i + 0.5, f"{value:.2f}", ha="center", va="center", fontsize=8)
    block = "" if shape == (len(x1), len(x2)) else f" (means of blocks, {shape[0]} x {shape[1]})"
    ax.set(xlabel="x2", ylabel="x1", title=f"cosine similarity{block}")
    ax.figure.colorbar(image, ax=ax)
    return ax.figure


def _new_axes():
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "similarity_heatmap draws with matplotlib, which is not installed: "
            "pip install matplotlib"
        ) from error
    return Figure(figsize=(6, 5), layout="constrained").subplots()
