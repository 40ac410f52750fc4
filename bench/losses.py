"""Each loss that is measured has its inputs, its fused and its dense form, and the flops of both.

Flops count the matrix products of the algorithm alone, two per multiply-add. The streaming form
computes half the tiles for one set, and the logits once more in the backward pass. The dense form
computes two products in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F

import fused_contrastive as fc
from fused_contrastive import reference

from . import force_baseline

PASSES = ("forward", "backward", "full")
DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp64": torch.float64,
}


class Size(NamedTuple):
    """This is the size of a loss.

    ``N`` is the number of rows: of both views together for NT-Xent, of either set for the force.
    ``K`` counts queued keys, prediction steps or groups, and is 0 where the loss has none. ``D`` is
    the number of dimensions.
    """

    N: int
    K: int
    D: int

    def __str__(self):
        return f"{self.N}x{self.K}x{self.D}" if self.K else f"{self.N}x{self.D}"


class Loss(NamedTuple):
    """This is one loss and what is known of it.

    ``embeddings(size)`` are the shapes of the inputs that get a gradient, ``constants(size)`` those
    of the others. ``cells(size)`` is the number of similarities. ``fused`` and ``dense`` are the
    (forward, backward) flops per similarity and dimension. ``sizes`` are measured by default.
    """

    call: Callable
    eager: Callable
    embeddings: Callable[[Size], list[tuple[int, ...]]]
    constants: Callable[[Size], list[tuple[int, ...]]]
    cells: Callable[[Size], int]
    fused: tuple[int, int]
    dense: tuple[int, int]
    sizes: tuple[str, ...]
    takes_k: bool = False


def _two(size: Size):
    return [(size.N, size.D)] * 2


def _none(size: Size):
    return []


def _first(function: Callable) -> Callable:
    """Returns the loss of a function that returns ``(loss, accuracy)``."""
    return lambda *tensors, **options: function(*tensors, **options)[0]


def _square(size: Size) -> int:
    return size.N * size.N


def _labels(z: torch.Tensor) -> torch.Tensor:
    """Returns labels with eight samples of each class."""
    return torch.arange(len(z), device=z.device) % max(2, len(z) // 8)


_symmetric = {"symmetric": True}
_DIRECTIONS = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")

LOSSES = {
    "nt_xent": Loss(
        fc.nt_xent_loss,
        reference.nt_xent_loss,
        lambda s: [(s.N // 2, s.D)] * 2,
        _none,
        _square,
        (1, 3),
        (2, 4),
        sizes=(
            "65536x64",
            "8192x128",
            "8192x256",
            "8192x512",
            "4096x1024",
            "4096x128",
            "2048x128",
            "1024x128",
            "512x128",
            "256x128",
            "128x128",
            "64x128",
        ),
    ),
    "clip": Loss(
        lambda a, b, **o: fc.clip_loss(a, b, 20.0, **o),
        lambda a, b: reference.clip_loss(a, b, 20.0),
        _two,
        _none,
        _square,
        (2, 6),
        (2, 4),
        sizes=("4096x512", "1024x512"),
    ),
    "siglip": Loss(
        lambda a, b, **o: fc.siglip_loss(a, b, 10.0, -10.0, **o),
        lambda a, b: reference.siglip_loss(a, b, 10.0, -10.0),
        _two,
        _none,
        _square,
        (2, 6),
        (2, 4),
        sizes=("8192x256", "1024x512"),
    ),
    "info_nce": Loss(
        fc.info_nce_loss,
        reference.info_nce_loss,
        _two,
        _none,
        _square,
        (2, 6),
        (2, 4),
        sizes=("4096x128", "512x128"),
    ),
    "info_nce_symmetric": Loss(
        partial(fc.info_nce_loss, **_symmetric),
        partial(reference.info_nce_loss, **_symmetric),
        _two,
        _none,
        _square,
        (2, 6),
        (2, 4),
        sizes=("4096x128",),
    ),
    "info_nce_queue": Loss(
        fc.info_nce_loss,
        reference.info_nce_loss,
        _two,
        lambda s: [(s.K, s.D)],
        lambda s: s.N * s.K,
        (4, 0),
        (2, 2),
        sizes=("256x65536x128",),
        takes_k=True,
    ),
    "n_pairs": Loss(
        fc.n_pairs_loss,
        reference.n_pairs_loss,
        _two,
        _none,
        _square,
        (2, 6),
        (2, 4),
        sizes=("2048x128",),
    ),
    "cpc": Loss(
        _first(fc.cpc_loss),
        _first(reference.cpc_loss),
        lambda s: [(s.K, s.N, s.D)] * 2,
        _none,
        lambda s: s.K * s.N * s.N,
        (2, 6),
        (2, 4),
        sizes=("256x12x256",),
        takes_k=True,
    ),
    "sup_con": Loss(
        lambda z, **o: fc.sup_con_loss(z, _labels(z), **o),
        lambda z: reference.sup_con_loss(z, _labels(z)),
        lambda s: [(s.N, s.D)],
        _none,
        _square,
        (3, 9),
        (2, 4),
        sizes=("4096x128",),
    ),
    "dcl": Loss(
        fc.dcl_loss,
        reference.dcl_loss,
        _two,
        _none,
        lambda s: 4 * s.N * s.N,
        (1, 3),
        (2, 4),
        sizes=("2048x128",),
    ),
    "ranking": Loss(
        partial(fc.multiple_negatives_ranking_loss, directions=_DIRECTIONS),
        partial(reference.multiple_negatives_ranking_loss, directions=_DIRECTIONS),
        _two,
        _none,
        _square,
        (4, 12),
        (8, 16),
        sizes=("2048x256",),
    ),
    "distill_clip": Loss(
        lambda a, b, x, y, **o: fc.distill_clip_loss(a, b, 20.0, x, y, 20.0, **o),
        lambda a, b, x, y: reference.distill_clip_loss(a, b, 20.0, x, y, 20.0),
        _two,
        _two,
        _square,
        (22, 6),
        (4, 4),
        sizes=("4096x256",),
    ),
    "guided_info_nce": Loss(
        lambda a, b, x, y, **o: fc.guided_info_nce_loss(
            a, b, temperature=0.05, guide_query=x, guide_positive_key=y, **o
        ),
        lambda a, b, x, y: reference.guided_info_nce_loss(
            a, b, temperature=0.05, guide_query=x, guide_positive_key=y
        ),
        _two,
        _two,
        lambda s: 3 * s.N * s.N,
        (4, 4),
        (4, 4),
        sizes=("4096x256", "8192x256"),
    ),
    "barlow_twins": Loss(
        fc.barlow_twins_loss,
        reference.barlow_twins_loss,
        _two,
        _none,
        lambda s: s.N * s.D,
        (2, 4),
        (2, 4),
        sizes=("2048x1024",),
    ),
    "contrastive_force": Loss(
        partial(
            fc.contrastive_force_loss, temperatures=force_baseline.TEMPERATURES, reduction="mean"
        ),
        force_baseline.contrastive_force_loss,
        lambda s: [(s.K, s.N, s.D)] * 2,
        _none,
        lambda s: s.K * (2 * s.N) ** 2,
        (3, 4),
        (7, 4),
        sizes=("64x256x256", "4096x1x128"),
        takes_k=True,
    ),
}


def flops(loss: str, size: Size, which: str, dense: bool) -> int:
    """Returns the flops of one pass of the fused (or dense) algorithm."""
    forward, backward = LOSSES[loss].dense if dense else LOSSES[loss].fused
    per_cell = {"forward": forward, "backward": backward, "full": forward + backward}[which]
    return per_cell * LOSSES[loss].cells(size) * size.D


def make_inputs(
    loss: str, size: Size, dtype: torch.dtype, device: torch.device, seed: int = 0
) -> list[torch.Tensor]:
    """Returns random unit rows, where those of the second embedding are near those of the first.

    Embeddings require gradients, and constants do not.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors: list[torch.Tensor] = []
    shapes = LOSSES[loss].embeddings(size)
    for shape in shapes + LOSSES[loss].constants(size):
        x = torch.randn(shape, generator=generator)
        if tensors and shape == shapes[0] and len(tensors) < len(shapes):
            x = x + tensors[0]
        tensors.append(F.normalize(x, dim=-1))
    placed = [x.to(device=device, dtype=dtype) for x in tensors]
    return [x.requires_grad_(i < len(shapes)) for i, x in enumerate(placed)]


def parse_size(text: str) -> Size:
    """Reads ``NxD`` or ``NxKxD``. Raises ValueError."""
    parts = [int(part) for part in text.lower().split("x")]
    if len(parts) not in (2, 3) or min(parts) < 1:
        raise ValueError(f"a size is NxD or NxKxD with positive numbers, got {text!r}")
    return Size(parts[0], 0, parts[1]) if len(parts) == 2 else Size(*parts)
