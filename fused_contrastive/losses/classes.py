"""Rows by class: sizes and sums in O(N D), without reading a label back from the device."""

from __future__ import annotations

import torch


def classes(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``(index, size)`` of integer ``labels [N]``: an index in [0, N) that two rows share when they share the label, and how many do."""
    labels = labels.to(torch.int64).contiguous()
    ordered = labels.sort().values
    first = torch.searchsorted(ordered, labels)
    return first, torch.searchsorted(ordered, labels, right=True) - first


def class_sums(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The sum of ``x [N, D]`` over the rows of each row's class: the same bits in every run, forward and backward."""
    sums = torch.zeros_like(x)
    if x.device.type == "cuda":  # its index_add adds in any order
        return sums.index_put((index,), x, accumulate=True)[index]
    return sums.index_add(0, index, x).index_select(0, index)
