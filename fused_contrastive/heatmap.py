"""Pictures of similarities, without the N x N matrix."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from . import checks


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


def similarity_heatmap(x1: torch.Tensor, x2: torch.Tensor):
    """A matplotlib figure of the cosine similarities of ``x1 [M, D]`` (rows) and ``x2 [N, D]``.

    With up to 16 x 16 values, each is written into its cell. Beyond 256 rows or columns the cells
    are averages of blocks, so that no N x N matrix is formed.

    >>> import torch
    >>> from fused_contrastive import similarity_heatmap
    >>> figure = similarity_heatmap(torch.randn(4, 8), torch.randn(6, 8))
    >>> figure.axes[0].get_title()
    'cosine similarity'

    Args:
        x1: ``[M, D]``.
        x2: ``[N, D]``.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError, TypeError: an argument is wrong; the error names it.
    """
    values = similarity_blocks(x1, x2).cpu().numpy()
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "similarity_heatmap draws with matplotlib, which is not installed"
        ) from error
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(
        values, vmin=-1.0, vmax=1.0, cmap="coolwarm", extent=(0, len(x2), len(x1), 0), aspect="auto"
    )
    if max(values.shape) <= 16:
        for i, row in enumerate(values.tolist()):
            for j, value in enumerate(row):
                axes.text(j + 0.5, i + 0.5, f"{value:.2f}", ha="center", va="center", fontsize=8)
    block = (
        ""
        if values.shape == (len(x1), len(x2))
        else f" (means of blocks, {values.shape[0]} x {values.shape[1]})"
    )
    axes.set(xlabel="x2", ylabel="x1", title=f"cosine similarity{block}")
    figure.colorbar(image, ax=axes)
    return figure
