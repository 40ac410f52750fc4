"""Gradient caching: a loss, or a training step, of a batch whose activations do not fit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch
from torch import nn

from .._torch_internals import tree_flatten, tree_map
from ._chunks import Stream


def cached_step(
    encoders,
    inputs,
    loss_fn: Callable,
    *,
    chunk_size: int | Sequence[int],
    split: Callable | Sequence[Callable | None] | None = None,
    scaler=None,
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
        split: cuts inputs of another layout, such as packed sequences. It is a function of an input
            and its chunk size, and returns the list of its chunks, each an input itself. There is
            one function for all inputs, or one for each, with None for those cut into rows. The
            encoder returns one row for each sample of a chunk.
        scaler: a ``torch.amp.GradScaler``; the gradients are then those of the scaled loss.

    See `cached_forward` for trainers that call the backward pass themselves.

    Returns:
        What `loss_fn` returned, detached. Where nothing needs a gradient, as under no_grad, this is
        all that happens.

    Raises:
        ValueError, TypeError: an argument is wrong; the error names it.
    """
    cache = _Cache(_streams(encoders, inputs, chunk_size, split), loss_fn)
    outputs = cache.detached()
    if cache.loss.requires_grad:
        cache.backward(cache.loss if scaler is None else scaler.scale(cache.loss))
    return outputs


def cached_forward(
    encoders,
    inputs,
    loss_fn: Callable,
    *,
    chunk_size: int | Sequence[int],
    split: Callable | Sequence[Callable | None] | None = None,
):
    """The loss of `cached_step`, whose own backward pass encodes the chunks again.

    It is what a trainer wants that calls ``loss.backward()`` itself: the Trainer of transformers,
    Lightning, accelerate, loops with a GradScaler, with gradient accumulation, or with other losses
    added to this one.

    >>> import torch
    >>> from fused_contrastive import cached_forward, nt_xent_loss
    >>> encoder = torch.nn.Linear(6, 4)
    >>> x1, x2 = torch.randn(8, 6), torch.randn(8, 6)
    >>> loss = cached_forward(encoder, (x1, x2), nt_xent_loss, chunk_size=2)
    >>> (loss / 4).backward()
    >>> encoder.weight.grad.shape
    torch.Size([4, 6])

    The gradients, times what comes from upstream, are added to ``.grad`` in the backward pass, as
    `cached_step` describes. torch.autograd.grad of the loss does not see them, and there is one
    backward pass. It encodes under the autocast and with the random numbers of the first encoding.
    Buffers change in the backward pass.

    Args:
        encoders, inputs, loss_fn, chunk_size, split: tensors ``[n, ...]`` and the rest as for
            `cached_step`.

    Returns:
        What `loss_fn` returned, detached, with a loss that has a backward pass. Where nothing needs
        a gradient, as under no_grad in an evaluation, the loss has none either.

    Raises:
        ValueError, TypeError: an argument is wrong; the error names it.
    """
    cache = _Cache(_streams(encoders, inputs, chunk_size, split), loss_fn)
    outputs = cache.detached()
    if not cache.loss.requires_grad:
        return outputs
    loss = cache.loss.detach().requires_grad_()
    loss.register_hook(cache.hook())
    return (loss, *outputs[1:]) if isinstance(outputs, tuple) else loss


class _Cache:
    """The loss of embeddings without a graph, and how its gradients reach the encoders."""

    def __init__(self, streams: list[Stream], loss_fn: Callable):
        self.streams = streams
        buffers = _buffers([stream.encoder for stream in streams if stream.trained])
        # Whether the next forward pass of DistributedDataParallel sends the buffers of rank 0.
        broadcasts = [
            (m, m.require_forward_param_sync)
            for m in set().union(*(stream.synchronizing for stream in streams))
            if hasattr(m, "require_forward_param_sync")
        ]
        with torch.no_grad():
            self.embeddings = [stream.embed() for stream in streams]
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer.copy_(value)
        for module, broadcast in broadcasts:
            module.require_forward_param_sync = broadcast
        self.outputs = loss_fn(*self.embeddings)
        loss = self.outputs[0] if isinstance(self.outputs, tuple) else self.outputs
        if not isinstance(loss, torch.Tensor) or loss.dim():
            found = (
                f"shape {tuple(loss.shape)}"
                if isinstance(loss, torch.Tensor)
                else type(loss).__name__
            )
            raise ValueError(
                f"loss_fn must return a 0-d tensor, or a tuple with one first, got {found}"
            )
        self.loss = loss

    def detached(self):
        """What `loss_fn` returned, without graphs."""
        return tree_map(lambda x: x.detach() if isinstance(x, torch.Tensor) else x, self.outputs)

    def hook(self) -> Callable:
        """A hook of the loss that goes backward, in the autocast of the present call."""
        types = {"cpu", *(d.type for stream in self.streams for d in stream.devices)}
        cache = torch.is_autocast_cache_enabled()
        states = [
            (t, torch.get_autocast_dtype(t), torch.is_autocast_enabled(t), cache)
            for t in sorted(types)
            if torch.amp.is_autocast_available(t)
        ]

        def backward(g: torch.Tensor) -> None:
            if self.loss is None:
                raise RuntimeError(
                    "cached_forward has one backward pass, which was done already: "
                    "add up losses before it, or call cached_forward again"
                )
            with contextlib.ExitStack() as stack:
                stack.enter_context(torch.enable_grad())
                for state in states:
                    stack.enter_context(torch.autocast(*state))
                self.backward(self.loss, g.detach())

        return backward

    def backward(self, loss: torch.Tensor, g: torch.Tensor | None = None) -> None:
        """Go backward from `loss`, for the gradient g of it, through the encoders."""
        loss.backward(g)
        gradients = [[x.grad for x in tree_flatten(e)[0]] for e in self.embeddings]
        self.embeddings = self.outputs = self.loss = loss = None
        jobs = [
            (s, gradient, i)
            for s, gradient in zip(self.streams, gradients, strict=True)
            if s.trained
            for i in range(len(s.chunks))
        ]
        last = {
            m: job
            for job, (s, gradient, _) in enumerate(jobs)
            if any(x is not None for x in gradient)
            for m in s.synchronizing
        }
        for job, (stream, gradient, index) in enumerate(jobs):
            with contextlib.ExitStack() as stack:
                for module in stream.synchronizing:
                    if last.get(module) != job:
                        stack.enter_context(module.no_sync())
                stream.backward(index, gradient)


def _streams(encoders, inputs, chunk_size, split) -> list[Stream]:
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
    splits = list(split) if isinstance(split, (tuple, list)) else [split] * len(inputs)
    if len(splits) != len(inputs):
        raise ValueError(
            "split must be one function or one per input, "
            f"got {len(splits)} for {len(inputs)} inputs"
        )
    for function in splits:
        if function is not None and not callable(function):
            raise TypeError(f"split must be callable or None, got {type(function).__name__}")
    return [
        Stream(*arguments)
        for arguments in zip(range(len(inputs)), encoders, inputs, sizes, splits, strict=True)
    ]


def _buffers(encoders) -> list:
    """``(module, name, buffer, its value now)`` of every buffer of the modules among `encoders`."""
    modules = {
        m: None for encoder in encoders if isinstance(encoder, nn.Module) for m in encoder.modules()
    }
    return [
        (m, name, b, b.clone()) for m in modules for name, b in m._buffers.items() if b is not None
    ]
