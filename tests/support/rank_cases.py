"""The losses of cases.py over the ranks of a group, and what one process makes of the same rows."""

from __future__ import annotations

import functools
import inspect
import itertools

import torch
import torch.distributed as dist

import fused_contrastive
from support import cases

LAYOUTS = {
    1: ((7,),),
    2: ((4, 4), (5, 2), (6, 0), (1, 3)),
    3: ((3, 3, 3), (4, 1, 2), (0, 5, 1)),
    4: ((2, 2, 2, 2), (3, 1, 0, 4)),
}
"""The rows of each rank: even, uneven, a rank with one row and a rank with none."""

STRATEGIES = ("gather", "ring")
REDUCTIONS = ("none", "mean", "sum")

LATER = ()
LATER_OPTIONS = ()


def takes_ranks(function: str) -> bool:
    """Whether a public function takes a group and a strategy."""
    parameters = inspect.signature(getattr(fused_contrastive, function)).parameters
    return {"group", "strategy"} <= parameters.keys()


def is_later(case: cases.Case) -> bool:
    """Whether ranks are expected to fail this case for now."""
    options = any(case.options.get(name) for name in LATER_OPTIONS)
    return options or (case.function in LATER and not takes_ranks(case.function))


def own_negatives(case: cases.Case) -> bool:
    """Whether the negatives beside the pairs belong to a rank, as other rows do."""
    return case.options.get("negative_mode") == "in_batch"


def split(n: int, sizes: tuple[int, ...]) -> list[torch.Tensor]:
    """Consecutive places, as many for each rank as `sizes` says."""
    return list(torch.arange(n).split(sizes))


def places(case: cases.Case, name: str, x: torch.Tensor, sizes) -> tuple[int, list[torch.Tensor]]:
    """The dimension along which ranks share an argument, and what each rank has of it.

    What all ranks have alike is all there for each of them.
    """
    n, world = sum(sizes), len(sizes)
    everything = [torch.arange(x.shape[0])] * world if x.dim() else [torch.arange(1)] * world
    if x.dim() == 0:
        return 0, everything
    if case.function == "cpc_loss" and x.dim() == 3:
        return 1, split(n, sizes)
    paired = case.options.get("negative_mode") == "paired"
    shared = case.function == "info_nce_loss" and not paired
    if shared and name == "negative_keys":
        return 0, list(everything[0].tensor_split(world)) if own_negatives(case) else everything
    if shared and name in ("keys", "bias") and x.shape[0] > n:
        more = torch.arange(n, x.shape[0])
        more = more.tensor_split(world) if own_negatives(case) else [more] * world
        return 0, [torch.cat(pair) for pair in zip(split(n, sizes), more, strict=True)]
    return 0, split(n, sizes)


def draw(case: cases.Case, sizes, dtype=torch.float64, seed=0, d=5) -> tuple[dict, dict]:
    """The differentiable arguments of all ranks together, and the tensors among the others."""
    n = sum(sizes)
    inputs = {name: x.detach() for name, x in case.draw(n, d, dtype, seed=seed).items()}
    constants = {} if case.constants is None else dict(case.constants(n))
    first = next(iter(inputs.values()))
    for name, x in constants.items():
        if x.is_floating_point() and x.dim():
            constants[name] = x.to(first.dtype)
    if case.target is not None:
        # A rank finds its positives among its own rows.
        starts = itertools.accumulate(sizes, initial=0)
        own = [case.target(size) + start for size, start in zip(sizes, starts, strict=False)]
        constants["target"] = torch.cat(own)
    return inputs, constants


def share(case, named: dict, sizes, rank: int) -> dict:
    """What one rank has of the arguments of all ranks together."""
    found = {}
    for name, x in named.items():
        dim, index = places(case, name, x, sizes)
        found[name] = x.index_select(dim, index[rank]) if x.dim() else x.clone()
        if name == "target":
            found[name] = found[name] - sum(sizes[:rank])
    return found


def call(case, inputs, constants, **more):
    """The loss, and its metrics or None."""
    function = getattr(fused_contrastive, case.function)
    out = function(**inputs, **constants, **case.options, **more)
    if not isinstance(out, tuple):
        return out, None
    return out if isinstance(out[1], dict) else (out[0], {"accuracy": out[1]})


def rows(case, x: torch.Tensor, sizes, rank: int) -> torch.Tensor:
    """The losses of a rank's rows, among the losses of all rows."""
    n, own = sum(sizes), split(sum(sizes), sizes)[rank]
    if case.function == "cpc_loss":
        return x[:, own]
    if x.shape[0] == 2 * n and n:
        return x.view(2, n).index_select(1, own).flatten()
    return x.index_select(0, own)


def own_logsumexp(case, x: torch.Tensor, sizes, rank: int) -> torch.Tensor:
    """The log-sum-exps of a rank's rows; those of two directions are ``[2, N]``."""
    if x.dim() == 2 and case.function != "sup_con_loss":
        return torch.stack([rows(case, one, sizes, rank) for one in x])
    return rows(case, x, sizes, rank)


def upstream(rank: int) -> float:
    """The gradient that a rank's scalar loss receives; every rank has another one."""
    return 1.0 + rank / 2


def random_upstream(shape, rank: int) -> torch.Tensor:
    """Gradients of losses of rows."""
    generator = torch.Generator().manual_seed(100 + rank)
    return torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5


def on_one_rank(group, name: str, runs, seeds=(0,), d=5) -> list:
    """What a rank computes in each run ``(sizes, strategy, reduction, dtype)``, for each seed."""
    case, rank, found = cases.BY_NAME[name], dist.get_rank(group), []
    for (sizes, strategy, reduction, dtype), seed in itertools.product(runs, seeds):
        inputs, constants = (share(case, x, sizes, rank) for x in draw(case, sizes, dtype, seed, d))
        for x in inputs.values():
            x.requires_grad_()
        more = {"metrics": True} if case.has_metrics and reduction == "mean" else {}
        more |= {"reduction": reduction, "group": group, "strategy": strategy}
        loss, metrics = call(case, inputs, constants, **more)
        g = random_upstream(loss.shape, rank) if loss.dim() else torch.tensor(upstream(rank))
        loss.backward(g.to(loss.dtype))
        gradients = {key: x.grad for key, x in inputs.items()}
        found.append((loss.detach(), metrics, gradients))
    return found


@functools.lru_cache(maxsize=256)
def in_one_process(name: str, sizes, reduction: str, dtype=torch.float64, seed=0, d=5, wide=True):
    """The losses that each rank returns, the metrics, and the gradients for the whole batch.

    Everything is computed in one process. With `wide` the inputs of `dtype` are read in float64.
    """
    case, world = cases.BY_NAME[name], len(sizes)
    inputs, constants = draw(case, sizes, dtype, seed, d)
    if wide:
        inputs = {key: x.double() for key, x in inputs.items()}
        constants = {
            key: x.double() if x.is_floating_point() else x for key, x in constants.items()
        }
    for x in inputs.values():
        x.requires_grad_()
    more = {"metrics": True} if case.has_metrics else {}
    every, _ = call(case, inputs, constants, reduction="none", group=None)
    mean, metrics = call(case, inputs, constants, reduction="mean", group=None, **more)
    parts = [rows(case, every, sizes, rank) for rank in range(world)]
    if reduction == "none":
        returned = parts
        weights = [random_upstream(x.shape, rank).to(x.dtype) for rank, x in enumerate(parts)]
    else:
        # The mean is the sum divided by a count, which depends on the weights.
        share = mean / every.sum() if every.sum() else 0 * mean
        factor = world * (share if reduction == "mean" else 1.0)
        returned = [factor * x.sum() for x in parts]
        weights = [torch.tensor(upstream(rank)) for rank in range(world)]
    total = sum((x * g.to(x.dtype)).sum() for x, g in zip(returned, weights, strict=True))
    # The metrics of a rank's loss are of the whole batch, its loss included.
    if metrics is not None and "accuracy" in metrics and case.has_metrics:
        metrics = metrics | {"loss": mean.detach()}
    keys = list(inputs)
    gradients = torch.autograd.grad(total, list(inputs.values()), allow_unused=True)
    if mean.isnan():
        # The mean over nothing is NaN, with a gradient of 0.
        gradients = [None] * len(keys)
    found = dict(zip(keys, gradients, strict=True))
    return [x.detach() for x in returned], metrics, found


def together(case, results: list[dict], inputs: dict, sizes) -> dict[str, torch.Tensor]:
    """The ranks' gradients as those of the whole batch. What all ranks have alike is added up."""
    found = {}
    for name, x in inputs.items():
        dim, index = places(case, name, x, sizes)
        total = torch.zeros(x.shape if x.dim() else (1,), dtype=torch.float64)
        for rank, gradients in enumerate(results):
            part = gradients[name].double()
            total.index_add_(dim, index[rank], part if x.dim() else part.reshape(1))
        found[name] = total if x.dim() else total[0]
    return found


def plan(name: str, world: int) -> tuple:
    """The runs of a case: each layout with each strategy, and the reductions in turn.

    Every pair of a strategy and a reduction, and of a layout and a reduction, is met by some case.
    """
    offset = list(cases.BY_NAME).index(name) + world
    return tuple(
        (sizes, strategy, REDUCTIONS[(offset + i + j) % 3], torch.float64)
        for i, sizes in enumerate(LAYOUTS[world])
        for j, strategy in enumerate(STRATEGIES)
    )
