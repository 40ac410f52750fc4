"""Gradient caching: a training step on a batch whose activations do not fit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .._torch_internals import tree_flatten, tree_map, tree_unflatten


def cached_step(
    encoders, inputs, loss_fn: Callable, *, chunk_size: int | Sequence[int], scaler=None
):
    """Run a loss over encoded inputs forward and backward, a chunk of activations at a time.

    The loss is ``loss_fn(*(encoder(x) for encoder, x in zip(encoders, inputs)))``. This is
    GradCache (Gao et al. 2021, arXiv:2101.06983). The inputs are encoded chunk by chunk without a
    graph. The loss of all embeddings and its gradients with respect to them are computed once. Then
    every chunk is encoded again, with its graph, and the cached gradients go backward through it.
    The gradients are those of the whole batch, for one more forward pass of the encoders.

    >>> import torch
    >>> from fused_contrastive import ClipLoss, cached_step, nt_xent_loss
    >>> encoder = torch.nn.Linear(6, 4)
    >>> x1, x2 = torch.randn(8, 6), torch.randn(8, 6)
    >>> loss = cached_step(encoder, (x1, x2), nt_xent_loss, chunk_size=2)
    >>> encoder.weight.grad.shape
    torch.Size([4, 6])

    With one encoder and one chunk size per input, and a loss that learns its temperature:

    >>> encoders = encoder, torch.nn.Linear(3, 4)
    >>> criterion = ClipLoss(14.0, learnable=True)
    >>> loss = cached_step(encoders, (x1, torch.randn(8, 3)), criterion, chunk_size=(2, 8))

    Gradients are added to ``.grad`` of the encoders' parameters, of what `loss_fn` learns (a
    temperature, a head) and of inputs that are leaves with ``requires_grad``. Random numbers of
    torch's default generators (dropout) repeat in the second encoding. Buffers of encoders that are
    modules change once per chunk, in the order of the inputs. What depends on the other rows of the
    batch, as BatchNorm's statistics do, sees only a chunk. A compiled encoder must draw the same
    random numbers with and without a graph. Call the function inside the autocast context.

    An encoder may be, or hold, a DistributedDataParallel module, or another with ``no_sync``. Its
    gradients are then reduced once, in the backward pass of its last chunk. Such a module that a
    plain function calls is not seen, and reduces the gradients of every chunk. Parameters of
    `loss_fn` are reduced only if it is such a module itself.

    Args:
        encoders: a callable, for all inputs, or a tuple or list with one per input. A module is run
            only once if none of its parameters, nor its input, requires a gradient.
        inputs: a tensor ``[n, ...]`` or mapping, or a tuple or list of inputs. A mapping is passed
            to its encoder as keyword arguments. A tuple or list inside `inputs` is passed as
            positional ones. Tensors in them, also nested, are cut into chunks of rows. 0-d tensors
            and other values go to every chunk.
        loss_fn: a function of what the encoders return for whole inputs. These are tensors ``[n,
            ...]`` with one row per row of the input, or nested tuples, lists and dictionaries of
            such. It returns the loss, 0-d, or a tuple with the loss first.
        chunk_size: the rows of a chunk, or one number for each input. The last chunk may be
            shorter.
        scaler: a ``torch.amp.GradScaler``; the gradients are then those of the scaled loss.

    Returns:
        What `loss_fn` returned, detached. Where nothing needs a gradient, as under no_grad, this is
        all that happens.

    Raises:
        ValueError, TypeError: an argument is wrong; the error names it.
    """
    streams = _streams(encoders, inputs, chunk_size)
    buffers = _buffers([stream.encoder for stream in streams if stream.trained])
    # Whether the next forward pass of DistributedDataParallel sends the buffers of rank 0.
    broadcasts = [
        (m, m.require_forward_param_sync)
        for m in set().union(*(stream.synchronizing for stream in streams))
        if hasattr(m, "require_forward_param_sync")
    ]
    with torch.no_grad():
        embeddings = [stream.embed() for stream in streams]
        for module, name, buffer, value in buffers:
            module._buffers[name] = buffer.copy_(value)
    for module, broadcast in broadcasts:
        module.require_forward_param_sync = broadcast
    outputs = loss_fn(*embeddings)
    loss = outputs[0] if isinstance(outputs, tuple) else outputs
    if not isinstance(loss, torch.Tensor) or loss.dim():
        found = (
            f"shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
        )
        raise ValueError(
            f"loss_fn must return a 0-d tensor, or a tuple with one first, got {found}"
        )
    if not loss.requires_grad:
        # Nothing is trained, as under no_grad in an evaluation.
        return tree_map(lambda x: x.detach() if isinstance(x, torch.Tensor) else x, outputs)
    (loss if scaler is None else scaler.scale(loss)).backward()
    outputs, loss = (
        tree_map(lambda x: x.detach() if isinstance(x, torch.Tensor) else x, outputs),
        None,
    )
    gradients = [[x.grad for x in tree_flatten(e)[0]] for e in embeddings]
    del embeddings
    jobs = [
        (s, g, i)
        for s, g in zip(streams, gradients, strict=True)
        if s.trained
        for i in range(len(s.starts))
    ]
    last = {
        m: job
        for job, (s, g, _) in enumerate(jobs)
        if any(x is not None for x in g)
        for m in s.synchronizing
    }
    for job, (stream, gradient, index) in enumerate(jobs):
        with contextlib.ExitStack() as stack:
            for module in stream.synchronizing:
                if last.get(module) != job:
                    stack.enter_context(module.no_sync())
            stream.backward(index, gradient)
    return outputs


class _Stream:
    """One input, cut into chunks, and its encoder."""

    def __init__(self, number: int, encoder, x, size: int):
        if not callable(encoder):
            raise TypeError(f"encoders[{number}] must be callable, got {type(encoder).__name__}")
        self.number, self.encoder, self.size = number, encoder, size
        self.leaves, self.spec = tree_flatten(dict(x) if isinstance(x, Mapping) else x)
        batched = [leaf for leaf in self.leaves if _is_batched(leaf)]
        if not batched:
            raise TypeError(
                f"inputs[{number}] must be or hold a tensor with a batch dimension, "
                f"got {type(x).__name__}"
            )
        rows = sorted({len(leaf) for leaf in batched})
        if len(rows) > 1:
            raise ValueError(f"inputs[{number}] must hold tensors of equally many rows, got {rows}")
        tensors = [leaf for leaf in self.leaves if isinstance(leaf, torch.Tensor)]
        if any(t.requires_grad and not t.is_leaf for t in tensors):
            raise ValueError(
                f"inputs[{number}] must be detached: "
                "its graph cannot be gone through chunk by chunk"
            )
        self.rows = rows[0]
        self.starts = range(0, max(self.rows, 1), size)
        if isinstance(encoder, nn.Module):
            tensors += encoder.parameters()
        self.trained = not isinstance(encoder, nn.Module) or any(t.requires_grad for t in tensors)
        devices = {t.device for t in tensors}
        self.devices = sorted((d for d in devices if d.type not in ("cpu", "meta")), key=str)
        self.synchronizing = (
            set(_synchronizing(encoder)) if isinstance(encoder, nn.Module) else set()
        )
        self.states: list = []

    def encode(self, index: int) -> tuple[list, object]:
        """What the encoder returns for a chunk, flattened."""
        start = self.starts[index]
        stop = min(start + self.size, self.rows)
        x = tree_unflatten(
            [leaf[start:stop] if _is_batched(leaf) else leaf for leaf in self.leaves], self.spec
        )
        if isinstance(x, dict):
            out = self.encoder(**x)
        else:
            out = self.encoder(*x) if isinstance(x, (tuple, list)) else self.encoder(x)
        leaves, spec = tree_flatten(out)
        for leaf in leaves:
            if not _is_batched(leaf) or len(leaf) != stop - start:
                found = (
                    f"shape {tuple(leaf.shape)}"
                    if isinstance(leaf, torch.Tensor)
                    else type(leaf).__name__
                )
                raise ValueError(
                    f"encoders[{self.number}] must return tensors with one row per row "
                    f"of its input ({stop - start}), got {found}"
                )
        return leaves, spec

    def embed(self):
        """The embeddings of the whole input, without a graph: leaves that receive gradients."""
        chunks: list[list[torch.Tensor]] = []
        spec: Any = None
        for index in range(len(self.starts)):
            self.states.append(_random_states(self.devices))
            leaves, spec = self.encode(index)
            chunks.append(leaves)
        whole = [
            torch.cat(parts) if len(parts) > 1 else parts[0].detach()
            for parts in map(list, zip(*chunks, strict=True))
        ]
        return tree_unflatten(
            [x.requires_grad_(self.trained and x.is_floating_point()) for x in whole], spec
        )

    def backward(self, index: int, gradients: list) -> None:
        """Encode a chunk again, with its graph and the same random numbers, and go backward."""
        with _replayed(self.states[index], self.devices):
            leaves, _ = self.encode(index)
        rows = slice(self.starts[index], self.starts[index] + self.size)
        pairs = [
            (x, g[rows])
            for x, g in zip(leaves, gradients, strict=True)
            if g is not None and x.requires_grad
        ]
        if pairs:
            outputs, upstream = zip(*pairs, strict=True)
            torch.autograd.backward(outputs, upstream)


def _is_batched(x) -> bool:
    return isinstance(x, torch.Tensor) and x.dim() > 0


def _streams(encoders, inputs, chunk_size) -> list[_Stream]:
    inputs = list(inputs) if isinstance(inputs, (tuple, list)) else [inputs]
    several = isinstance(encoders, (tuple, list, nn.ModuleList))
    encoders = list(encoders) if several else [encoders] * len(inputs)
    if len(encoders) != len(inputs) or not inputs:
        raise ValueError(
            "encoders must be one callable or one per input, "
            f"got {len(encoders)} for {len(inputs)} inputs"
        )
    sizes = (
        list(chunk_size) if isinstance(chunk_size, (tuple, list)) else [chunk_size] * len(inputs)
    )
    if len(sizes) != len(inputs):
        raise ValueError(
            "chunk_size must be one number or one per input, "
            f"got {len(sizes)} for {len(inputs)} inputs"
        )
    for size in sizes:
        if isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(f"chunk_size must be an integer, got {type(size).__name__}")
        if size < 1:
            raise ValueError(f"chunk_size must be positive, got {size}")
    return [
        _Stream(*arguments)
        for arguments in zip(range(len(inputs)), encoders, inputs, sizes, strict=True)
    ]


def _buffers(encoders) -> list:
    """``(module, name, buffer, its value now)`` of every buffer of the modules among `encoders`."""
    modules = {
        m: None for encoder in encoders if isinstance(encoder, nn.Module) for m in encoder.modules()
    }
    return [
        (m, name, b, b.clone()) for m in modules for name, b in m._buffers.items() if b is not None
    ]


def _synchronizing(module: nn.Module) -> Iterator[Any]:
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
