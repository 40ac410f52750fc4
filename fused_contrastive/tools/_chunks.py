"""Inputs in chunks, and their encoding with and without a graph, for gradient caching."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import nn

from .._torch_internals import tree_flatten, tree_unflatten


class Stream:
    """One input, cut into chunks, and its encoder."""

    def __init__(self, number: int, encoder, x, size: int, split: Callable | None):
        if not callable(encoder):
            raise TypeError(f"encoders[{number}] must be callable, got {type(encoder).__name__}")
        self.number, self.encoder = number, encoder
        x = dict(x) if isinstance(x, Mapping) else x
        if split is None:
            self.chunks = Rows(number, x, size)
        else:
            self.chunks = list(split(x, size))
            if not self.chunks:
                raise ValueError(f"split must return at least one chunk of inputs[{number}]")
        tensors = [leaf for leaf in tree_flatten(x)[0] if isinstance(leaf, torch.Tensor)]
        if split is not None:
            tensors += [
                leaf for leaf in tree_flatten(self.chunks)[0] if isinstance(leaf, torch.Tensor)
            ]
        if any(t.requires_grad and not t.is_leaf for t in tensors):
            raise ValueError(
                f"inputs[{number}] must be detached: "
                "its graph cannot be gone through chunk by chunk"
            )
        if isinstance(encoder, nn.Module):
            tensors += encoder.parameters()
        self.trained = not isinstance(encoder, nn.Module) or any(t.requires_grad for t in tensors)
        devices = {t.device for t in tensors}
        self.devices = sorted((d for d in devices if d.type not in ("cpu", "meta")), key=str)
        self.synchronizing = (
            set(_synchronizing(encoder)) if isinstance(encoder, nn.Module) else set()
        )
        self.states, self.places = [], []

    def encode(self, index: int) -> tuple[list, object]:
        """What the encoder returns for a chunk, flattened."""
        x = self.chunks[index]
        if isinstance(x, Mapping):
            out = self.encoder(**x)
        else:
            out = self.encoder(*x) if isinstance(x, (tuple, list)) else self.encoder(x)
        leaves, spec = tree_flatten(out)
        rows = self.chunks.rows_of(index) if isinstance(self.chunks, Rows) else None
        for leaf in leaves:
            if _is_batched(leaf) and rows is None:
                # The chunks of a split have the rows that their first embedding has.
                rows = len(leaf)
            if not _is_batched(leaf) or len(leaf) != rows:
                found = (
                    f"shape {tuple(leaf.shape)}"
                    if isinstance(leaf, torch.Tensor)
                    else type(leaf).__name__
                )
                wanted = "sample" if rows is None else f"row of its input ({rows})"
                raise ValueError(
                    f"encoders[{self.number}] must return tensors with one row per {wanted}, "
                    f"got {found}"
                )
        return leaves, spec

    def embed(self):
        """The embeddings of the whole input, without a graph: leaves that receive gradients."""
        chunks, start = [], 0
        for index in range(len(self.chunks)):
            self.states.append(_random_states(self.devices))
            leaves, spec = self.encode(index)
            chunks.append(leaves)
            stop = start + (len(leaves[0]) if leaves else 0)
            self.places.append(slice(start, stop))
            start = stop
        whole = [
            torch.cat(parts) if len(parts) > 1 else parts[0].detach()
            for parts in zip(*chunks, strict=True)
        ]
        return tree_unflatten(
            [x.requires_grad_(self.trained and x.is_floating_point()) for x in whole], spec
        )

    def backward(self, index: int, gradients: list) -> None:
        """Encode a chunk again, with its graph and the same random numbers, and go backward."""
        with _replayed(self.states[index], self.devices):
            leaves, _ = self.encode(index)
        pairs = [
            (x, g[self.places[index]])
            for x, g in zip(leaves, gradients, strict=True)
            if g is not None and x.requires_grad
        ]
        if pairs:
            torch.autograd.backward(*zip(*pairs, strict=True))


class Rows:
    """The chunks of an input whose tensors have one row per sample."""

    def __init__(self, number: int, x, size: int):
        self.leaves, self.spec = tree_flatten(x)
        batched = [leaf for leaf in self.leaves if _is_batched(leaf)]
        if not batched:
            raise TypeError(
                f"inputs[{number}] must be or hold a tensor with a batch dimension, "
                f"got {type(x).__name__}"
            )
        rows = sorted({len(leaf) for leaf in batched})
        if len(rows) > 1:
            raise ValueError(f"inputs[{number}] must hold tensors of equally many rows, got {rows}")
        self.rows, self.starts = rows[0], range(0, max(rows[0], 1), size)
        self.size = size

    def __len__(self) -> int:
        return len(self.starts)

    def rows_of(self, index: int) -> int:
        return min(self.size, self.rows - self.starts[index])

    def __getitem__(self, index: int):
        start = self.starts[index]
        stop = start + self.rows_of(index)
        return tree_unflatten(
            [leaf[start:stop] if _is_batched(leaf) else leaf for leaf in self.leaves], self.spec
        )


def _is_batched(x) -> bool:
    return isinstance(x, torch.Tensor) and x.dim() > 0


def _synchronizing(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules that synchronise gradients over ranks unless told not to."""
    if hasattr(module, "no_sync"):
        yield module
    else:
        for child in module.children():
            yield from _synchronizing(child)


def _random_states(devices) -> list[torch.Tensor]:
    """The states of the default generators of the CPU and of `devices`."""
    return [
        torch.get_rng_state(),
        *(torch.get_device_module(d).get_rng_state(*_which(d)) for d in devices),
    ]


def _which(device: torch.device) -> tuple:
    # The device type mps is the only one without an index.
    return () if device.type == "mps" else (device,)


def _set_random_states(states, devices) -> None:
    torch.set_rng_state(states[0])
    for device, state in zip(devices, states[1:], strict=True):
        torch.get_device_module(device).set_rng_state(state, *_which(device))


@contextlib.contextmanager
def _replayed(states, devices):
    """A context in which the generators are in these states. Afterwards they are as before."""
    before = _random_states(devices)
    _set_random_states(states, devices)
    try:
        yield
    finally:
        _set_random_states(before, devices)
