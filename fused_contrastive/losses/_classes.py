"""Rows by class: sizes and sums in O(N D), without reading a label back from the device."""

from __future__ import annotations

import torch


def classes(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``(index, size)`` of sorted integer ``labels [N]``: of each row the first one with its label, and how many have it."""
    first = torch.searchsorted(labels, labels)
    return first, torch.searchsorted(labels, labels, right=True) - first


def class_sums(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The sum of ``x [N, D]`` over the rows of each row's class: the same bits in every run, forward and backward."""
    sums = torch.zeros_like(x)
    if x.device.type == "cuda":  # its index_add adds in any order
        return sums.index_put((index,), x, accumulate=True)[index]
    return sums.index_add(0, index, x).index_select(0, index)
