"""The inputs of the cases of ``python -m bench digest`` come from generators of fixed seeds."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Size(NamedTuple):
    """A size is ``B`` rows of each set, ``D`` dimensions, and ``K``.

    ``K`` counts groups, queued keys or hard negatives.
    """

    B: int
    D: int
    K: int

    def __str__(self):
        return f"{self.B}x{self.D}x{self.K}"


RAGGED, EVEN, ONE = Size(37, 19, 3), Size(64, 32, 5), Size(1, 5, 2)
LARGE = Size(611, 70, 2)
"""This size has several tiles and panels in each direction, all of them with a remainder."""


class Draw:
    """This draws the random inputs of one case, all from one generator of a fixed seed."""

    def __init__(self, seed: int, size: Size, dtype: torch.dtype):
        self.generator = torch.Generator().manual_seed(seed)
        self.size, self.dtype = size, dtype

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def embeddings(self, *shape: int) -> torch.Tensor:
        """Draws an input that gets a gradient."""
        return self.normal(*shape).to(self.dtype).requires_grad_()

    def constants(self, *shape: int) -> torch.Tensor:
        return self.normal(*shape).to(self.dtype)

    def near(self, other: torch.Tensor) -> torch.Tensor:
        """Draws an input that gets a gradient and is close to `other`."""
        near = other.detach().double() + 0.5 * self.normal(*other.shape)
        return near.to(self.dtype).requires_grad_()

    def keys(self, *shape: int) -> torch.Tensor:
        return torch.randint(0, 9, shape, generator=self.generator)

    def weights(self, *shape: int) -> torch.Tensor:
        """Draws numbers that are positive, except for some that are 0."""
        drawn = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        return torch.where(drawn < 0.2, 0.0, drawn).to(self.working)

    def bias(self, *shape: int) -> torch.Tensor:
        return self.normal(*shape).to(self.working).requires_grad_()

    def number(self, value: float) -> torch.Tensor:
        """Returns a 0-d tensor that gets a gradient."""
        return torch.tensor(value, dtype=self.working, requires_grad=True)

    @property
    def working(self) -> torch.dtype:
        return torch.float64 if self.dtype == torch.float64 else torch.float32


def two(draw: Draw) -> list[torch.Tensor]:
    first = draw.embeddings(draw.size.B, draw.size.D)
    return [first, draw.near(first)]


def one(draw: Draw) -> list[torch.Tensor]:
    return [draw.embeddings(draw.size.B, draw.size.D)]


def steps(draw: Draw) -> list[torch.Tensor]:
    """Draws ``[K, B, D]`` twice."""
    first = draw.embeddings(draw.size.K, draw.size.B, draw.size.D)
    return [first, draw.near(first)]


def points(draw: Draw) -> list[torch.Tensor]:
    """Draws two sets of points with the same groups and different numbers of points."""
    B, D, K = draw.size
    return [draw.embeddings(K, B + 2, D), draw.embeddings(K, B, D)]


def three_sets(draw: Draw) -> list[torch.Tensor]:
    B, D, K = draw.size
    return [draw.embeddings(K, B, D), draw.constants(K, B + 2, D), draw.constants(K, B // 2 + 1, D)]


def distilled(draw: Draw) -> list:
    B, D, _ = draw.size
    student = two(draw)
    return [*student, 7.0, draw.constants(B, D + 1), draw.constants(B, D + 1), 9.0]


def guide(draw: Draw) -> torch.Tensor:
    return draw.constants(draw.size.B, draw.size.D + 1)


def logits(draw: Draw) -> list:
    return [*two(draw), 5.0]


def sigmoid_logits(draw: Draw) -> list:
    return [*two(draw), 5.0, -4.0]


def learnt_logits(draw: Draw) -> list:
    return [*two(draw), draw.number(5.0)]


def learnt_sigmoid_logits(draw: Draw) -> list:
    return [*two(draw), draw.number(5.0), draw.number(-4.0)]


def learnt_force(draw: Draw) -> list:
    return [*points(draw), draw.number(0.7)]


def views(draw: Draw) -> list[torch.Tensor]:
    return [draw.embeddings(draw.size.B, 2, draw.size.D)]


def three_views(draw: Draw) -> list[torch.Tensor]:
    return [draw.embeddings(draw.size.B, 3, draw.size.D)]


def strided(draw: Draw) -> list[torch.Tensor]:
    """Draws two sets that are neither contiguous nor of unit stride."""
    B, D, _ = draw.size
    return [draw.embeddings(D, B).T, draw.embeddings(B, 2 * D)[:, ::2]]


# The functions from here on draw values of options for each case.
def keys(draw: Draw) -> torch.Tensor:
    return draw.keys(draw.size.B)


def weights(draw: Draw) -> torch.Tensor:
    return draw.weights(draw.size.B)


def bias(draw: Draw) -> torch.Tensor:
    return draw.bias(draw.size.B)


def learnt(draw: Draw) -> torch.Tensor:
    return draw.number(0.3)


def queue(draw: Draw) -> torch.Tensor:
    return draw.embeddings(7 * draw.size.K, draw.size.D)


def own_negatives(draw: Draw) -> torch.Tensor:
    return draw.embeddings(draw.size.B, draw.size.K, draw.size.D)


def queue_bias(draw: Draw) -> torch.Tensor:
    return draw.bias(draw.size.B + 7 * draw.size.K)


def queue_keys(draw: Draw) -> torch.Tensor:
    return draw.keys(draw.size.B + 7 * draw.size.K)


def own_bias(draw: Draw) -> torch.Tensor:
    return draw.bias(draw.size.B, 1 + draw.size.K)


def both_biases(draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
    return draw.bias(draw.size.B), draw.bias(draw.size.B)


def labels(draw: Draw) -> torch.Tensor:
    return draw.keys(draw.size.B)


def pair_weights(draw: Draw) -> torch.Tensor:
    return draw.weights(draw.size.B, draw.size.B)


def point_weights(draw: Draw) -> torch.Tensor:
    return draw.weights(draw.size.K, draw.size.B)


def permutation(draw: Draw) -> torch.Tensor:
    return torch.randperm(draw.size.B, generator=draw.generator)


def more_columns(draw: Draw) -> torch.Tensor:
    return draw.embeddings(draw.size.B + 9, draw.size.D)


def column_bias(draw: Draw) -> torch.Tensor:
    return draw.bias(draw.size.B + 9)


def column_keys(draw: Draw) -> torch.Tensor:
    return draw.keys(draw.size.B + 9)


def half_size(draw: Draw) -> int:
    return max(1, draw.size.B // 2)
