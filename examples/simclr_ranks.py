"""SimCLR on the ranks of a process group, against one process with the whole batch.

``torchrun --nproc-per-node 2 examples/simclr_digits.py`` runs this file. Each rank encodes its
share of every batch, with the network in DistributedDataParallel and the loss over
``group="world"``. Then rank 0 trains the same network alone, on the same whole batches, and prints
how far the curves part.

Batch normalisation would see a share of the batch on each rank, so both networks have group
normalisation in its place. They differ from those of the demo in that alone.
"""

from __future__ import annotations

import argparse
import math
import time

import torch
import torch.distributed as dist
from simclr_digits import LEARNING_RATE, augment, digits, knn_accuracy, network
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fused_contrastive import nt_xent_loss


def without_batch_norm(model: nn.Module) -> nn.Module:
    """Puts a normalisation of each single image in place of those over the batch."""
    for name, child in model.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            setattr(model, name, nn.GroupNorm(1, child.num_features))
        else:
            without_batch_norm(child)
    return model


def own(batch: torch.Tensor) -> torch.Tensor:
    """Returns this rank's share of the rows of a batch. Shares need not be equal."""
    return batch.tensor_split(dist.get_world_size())[dist.get_rank()]


def train(images: torch.Tensor, options, over_ranks: bool):
    """Trains on the whole batch, or on this rank's share of it.

    Returns the network, the loss of the global batch at each step, and the seconds for a step.
    """
    dtype = torch.float64 if options.double else torch.float32
    model = without_batch_norm(network(options.seed)).to(images.device, dtype)
    net = nn.Sequential(model["encoder"], model["head"])
    if over_ranks:
        net = DistributedDataParallel(net)
    group = "world" if over_ranks else None
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=1e-4)
    generator = torch.Generator(images.device).manual_seed(options.seed)
    losses, start = [], time.perf_counter()
    for step in range(options.epochs):
        # Every rank draws the views of the whole batch, so that they do not depend on the ranks.
        views = [augment(images, generator).to(dtype) for _ in range(2)]
        if over_ranks:
            views = [own(view) for view in views]
        warmup = (step + 1) / min(10, options.epochs)
        cosine = (1 + math.cos(math.pi * step / options.epochs)) / 2
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(warmup, cosine)
        optimizer.zero_grad()
        z1, z2 = net(torch.cat(views)).chunk(2)
        loss, metrics = nt_xent_loss(z1, z2, options.temperature, metrics=True, group=group)
        loss.backward()
        optimizer.step()
        # A rank's own loss is that of its rows. The one to log is that of all.
        losses.append(metrics.get("loss", loss).item())
    return model, losses, (time.perf_counter() - start) / options.epochs


def report(images, options, losses, seconds, model) -> dict:
    """Trains in one process, prints both, and returns the curves and accuracies."""
    alone, curve, seconds_alone = train(images, options, over_ranks=False)
    train_images, y_train, test, y_test = digits(options.seed, images.device)
    y_train = y_train[: len(images)]
    accuracy = [
        knn_accuracy(x.float(), train_images[: len(images)], y_train, [(test, y_test)])[0]
        for x in (alone, model)
    ]
    parts = [abs(x - y) for x, y in zip(curve, losses, strict=True)]
    W = dist.get_world_size()
    print(f"torch {torch.__version__} on {images.device}, {W} ranks: ", end="")
    print(", ".join(f"{len(x)} images" for x in images.tensor_split(W)))
    print(f"\nNT-Xent of the {len(images)} pairs, one process -> {W} ranks")
    for step in sorted({*range(0, len(curve), 10), len(curve) - 1}):
        print(f"step {step + 1:3}   {curve[step]:.6f} -> {losses[step]:.6f}")
    print(f"largest difference of the loss curves: {max(parts[:20]):.1e} ", end="")
    print(f"in the first 20 steps, {max(parts):.1e} in all {len(parts)}")
    print(f"accuracy of 5 nearest neighbours: {accuracy[0]:.1%} -> {accuracy[1]:.1%}")
    print(f"a step: {1e3 * seconds_alone:.0f} ms -> {1e3 * seconds:.0f} ms")
    return {"one": curve, "ranks": losses, "accuracy": accuracy}


def main(arguments: list[str] | None = None) -> dict | None:
    """Trains on the ranks, then on rank 0 alone. Rank 0 prints and returns what was measured."""
    parser = argparse.ArgumentParser(
        description="SimCLR on real images over the ranks of torchrun, and in one process."
    )
    parser.add_argument("--epochs", type=int, default=60, help="steps (default %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=1437, help="default: all %(default)s")
    parser.add_argument("--double", action="store_true", help="train in float64")
    options = parser.parse_args(arguments)
    dist.init_process_group("gloo" if not torch.cuda.is_available() else "nccl")
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", dist.get_node_local_rank())
        torch.cuda.set_device(device)
    images = digits(options.seed, device)[0][: options.images]
    # DistributedDataParallel ends with `train`: it has to end before its process group does.
    model, losses, seconds = train(images, options, over_ranks=True)
    found = None
    if dist.get_rank() == 0:
        found = report(images, options, losses, seconds, model)
    dist.barrier()
    dist.destroy_process_group()
    return found
