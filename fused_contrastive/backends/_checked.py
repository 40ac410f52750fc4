"""Checks of what an op is given, for a library that reads and writes where it is told to.

Each check returns what the library reads. The errors name the argument, what it must be and what it
is. ops/ has the contracts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..dtypes import accumulation_dtype
from ..problem import KEYED, KINDS, NO_SELF

TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
"""The dtypes of vectors, with the numbers that csrc/cpu/problem.h gives them."""

_KINDS = {kind: number for number, kind in enumerate(KINDS)}
_LARGEST = 2**31
"""The largest offset, stride and positive: differences of indices stay within 64 bits."""


def _listed(names) -> str:
    return ", ".join(str(name).removeprefix("torch.") for name in names)


def _described(x) -> str:
    if not isinstance(x, Tensor):
        return type(x).__name__
    return f"{list(x.shape)} of {x.dtype} on {x.device}"


def tensor(name: str, x: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """x in contiguous memory. It must have this shape and this dtype."""
    if x.shape != shape or x.dtype is not dtype or not x.is_cpu:
        wanted = f"{list(shape)} of {dtype} on the CPU"
        raise ValueError(f"{name} must be {wanted}, got {_described(x)}")
    return x if x.is_contiguous() else x.contiguous()


def points(name: str, x: Tensor, letter: str) -> Tensor:
    """Vectors ``[G, n, D]`` whose elements lie side by side."""
    if x.dim() != 3 or x.dtype not in TYPES or not x.is_cpu or not x.numel():
        wanted = f"[G, {letter}, D], not empty, of {_listed(TYPES)} on the CPU"
        raise ValueError(f"{name} must be {wanted}, got {_described(x)}")
    if x.is_contiguous() or x.stride(2) == 1 or x.shape[2] == 1:
        return x
    return x.contiguous()


def vectors(x: Tensor, hat: int = 0, inverse: int = 0, gradient: int = 0) -> tuple[int, ...]:
    """One set of vectors as the library reads it (``Set`` in csrc/cpu/problem.h)."""
    group_stride, row_stride, _ = x.stride()
    of_x = x.data_ptr(), TYPES[x.dtype], group_stride, row_stride, x.shape[1]
    return *of_x, hat, inverse, gradient


class Pairs(NamedTuple):
    """The checked problem of the similarity and the sigmoid family."""

    sizes: tuple[int, int, int, int]  # G, M, N, D
    dtype: torch.dtype  # of the products' operands
    accumulate: torch.dtype
    a: Tensor  # [G, M, D]
    b: Tensor | None  # [G, N, D]
    keys: tuple[Tensor | None, Tensor | None]  # [G, M] and [G, N]
    arguments: tuple  # what the library reads of the problem, before the vectors


def pairs(operands, candidates: tuple[str, int, int, int], dtype: torch.dtype) -> Pairs:
    """Check ``(a, b, scale, key_a, key_b)`` and ``(kind, offset, stride, positive)``."""
    a, b, scale, key_a, key_b = operands
    kind, offset, stride, positive = candidates
    if dtype not in TYPES:
        raise ValueError(f"dtype must be one of {_listed(TYPES)}, got {dtype}")
    accumulate = accumulation_dtype(dtype)
    a = points("a", a, "M")
    G, M, D = a.shape
    N = M
    if b is not None:
        b = points("b", b, "N")
        N = b.shape[1]
        if b.shape[0] != G or b.shape[2] != D:
            raise ValueError(f"b must be [{G}, N, {D}] as a is, got {_described(b)}")
    elif offset != 0 and offset != NO_SELF:
        raise ValueError(f"offset must be 0 or {NO_SELF} without b, got {offset}")
    if scale.dim() or scale.dtype is not accumulate or not scale.is_cpu:
        raise ValueError(f"scale must be [] of {accumulate} on the CPU, got {_described(scale)}")
    if kind not in _KINDS:
        raise ValueError(f"kind must be one of {_listed(KINDS)}, got {kind!r}")
    if not -_LARGEST <= offset <= _LARGEST:
        raise ValueError(f"offset must be {-_LARGEST} to {_LARGEST}, got {offset}")
    if not 1 <= stride <= _LARGEST:
        raise ValueError(f"stride must be 1 to {_LARGEST}, got {stride}")
    if not -1 <= positive <= _LARGEST:
        raise ValueError(f"positive must be -1 to {_LARGEST}, got {positive}")
    if kind in KEYED or key_a is not None or key_b is not None:
        key_a, key_b = _keys(kind, key_a, key_b, None if b is None else (G, N), (G, M))
    of_candidates = _KINDS[kind], offset, stride, positive
    arguments = (G, D, TYPES[dtype], scale.item(), *of_candidates, b is None)
    sizes, keys = (G, M, N, D), (key_a, key_b)
    return Pairs(sizes, dtype, accumulate, a, b, keys=keys, arguments=arguments)


def _keys(kind, key_a, key_b, columns: tuple[int, int] | None, rows: tuple[int, int]):
    """The keys ``[G, M]`` and ``[G, N]``. With one set there are no columns' keys."""
    keyed = kind in KEYED
    if keyed != (key_a is not None) or (keyed and columns is not None) != (key_b is not None):
        raise ValueError(
            f"key_a and key_b must be given for {_listed(KEYED)} and for no other kind, "
            f"key_b only with b, got kind {kind!r}, key_a {_described(key_a)} "
            f"and key_b {_described(key_b)}"
        )
    key_a = tensor("key_a", key_a, rows, torch.int64) if keyed else None
    if key_b is not None and columns is not None:
        key_b = tensor("key_b", key_b, columns, torch.int64)
    return key_a, key_b


def column_bias(pairs: Pairs, bias: Tensor | None) -> Tensor | None:
    """The bias ``[G, N]`` of the columns, which needs two sets."""
    if bias is None:
        return None
    if pairs.b is None:
        raise ValueError("bias must be None without b")
    G, _, N, _ = pairs.sizes
    return tensor("bias", bias, (G, N), pairs.accumulate)


def row_bias(pairs: Pairs, bias: Tensor | None, sign: int) -> Tensor | None:
    """The bias ``[G, M]`` of the rows, and the sign of the logits."""
    if sign not in (-1, 1):
        raise ValueError(f"sign must be 1 or -1, got {sign}")
    return None if bias is None else tensor("row_bias", bias, pairs.sizes[:2], pairs.accumulate)


def prepared(pairs: Pairs, normalize: bool, saved) -> tuple[Tensor | None, ...]:
    """What forward has saved as ``(a_hat, b_hat, a_inv, b_inv)``, None for what it has not."""
    G, M, N, D = pairs.sizes
    a_hat, b_hat, a_inv, b_inv = saved
    hats = {"a_hat": (pairs.a, a_hat, M), "b_hat": (pairs.b, b_hat, N)}
    found = [
        tensor(name, hat, (G, n, D), pairs.dtype)
        if x is not None and (normalize or x.dtype is not pairs.dtype)
        else None
        for name, (x, hat, n) in hats.items()
    ]
    two = normalize and pairs.b is not None
    return (
        *found,
        tensor("a_inv", a_inv, (G, M), pairs.accumulate) if normalize else None,
        tensor("b_inv", b_inv, (G, N), pairs.accumulate) if two else None,
    )


class Points(NamedTuple):
    """The checked points of the force family."""

    x: Tensor  # [G, P, D]
    accumulate: torch.dtype
    weight: Tensor | None  # [G, P]
    arguments: tuple  # what the library reads of the points (``Points`` in csrc/cpu/force.h)


def force_points(x: Tensor, weight: Tensor | None, rows: int) -> Points:
    """Check the points, their weights, and how many of them are rows."""
    x = points("x", x, "P")
    G, P, D = x.shape
    accumulate = accumulation_dtype(x.dtype)
    if not 1 <= rows <= P:
        raise ValueError(f"rows must be 1 to {P}, got {rows}")
    weight = None if weight is None else tensor("weight", weight, (G, P), accumulate)
    group_stride, row_stride, _ = x.stride()
    arguments = x.data_ptr(), TYPES[x.dtype], group_stride, row_stride, G, P, D
    return Points(x, accumulate, weight, arguments)
