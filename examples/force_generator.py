"""One-step generators are trained with the contrastive force.

A generator turns noise into samples in one step, without an adversary and without diffusion. Each
batch of generated points is the negatives, and a batch of data is the positives. The loss moves
every sample along the force on it. There are three data sets: two moons, a checkerboard, and
scikit-learn's 8 x 8 digits, whose ten classes are ten groups in one call.

Two copies of each generator start from the same weights and see the same noise and data. Only the
function that computes the loss differs: the fused one in float32, and the dense eager one in
float64. In float32 the eager distances, ``|x|^2 + |y|^2 - 2 x y``, would lose three digits.

The example reports the energy distance of the samples to held-out data over the training, beside
that of data to data, and how far the two copies differ. It draws the samples beside the data. All
this takes two to six minutes on two cores; ``--steps 200 --compared 5`` takes half a minute.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from fused_contrastive import contrastive_force_loss
from fused_contrastive.backends import dispatch
from fused_contrastive.reference import force as force_reference


def eager_loss(data: torch.Tensor, samples: torch.Tensor, **options) -> torch.Tensor:
    return force_reference.contrastive_force_loss(data.double(), samples.double(), **options)


LOSSES = {"eager": eager_loss, "fused": contrastive_force_loss}
OPTIONS = {
    "temperatures": (0.05, 0.1),
    "mask_self": "softmax",
    "normalizer": "force_rms",
    "reduction": "mean",
}
SHOWN = (0.02, 0.1, 1.0)
"""Samples are drawn after these shares of the training."""


def moons(n: int, generator: torch.Generator) -> torch.Tensor:
    """Returns two half circles with noise, ``[1, n, 2]``."""
    angle = math.pi * torch.rand(n, generator=generator)
    upper = torch.rand(n, generator=generator) < 0.5
    x = torch.where(upper, angle.cos(), 1 - angle.cos()) - 0.5
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin()) - 0.25
    return (torch.stack([x, y], 1) + 0.06 * torch.randn(n, 2, generator=generator)).unsqueeze(0)


def checkerboard(n: int, generator: torch.Generator) -> torch.Tensor:
    """Returns points ``[1, n, 2]`` that are uniform on every other square of 4 x 4."""
    square = torch.randint(0, 8, (n,), generator=generator)
    row = square // 2
    corner = torch.stack([2 * (square % 2) + row % 2, row], 1)
    return ((torch.rand(n, 2, generator=generator) + corner) / 2 - 1).unsqueeze(0)


def digits(seed: int = 0) -> tuple[Callable, Callable]:
    """Returns samplers of training and of held-out images, ``[10, n, 64]`` in [0, 1].

    Each class is a group.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    held_out = torch.rand(len(labels), generator=torch.Generator().manual_seed(seed)) < 0.25

    def sampler(chosen):
        classes = [images[(labels == k) & chosen] for k in range(10)]

        def sample(n, generator):
            picks = [torch.randint(0, len(x), (n,), generator=generator) for x in classes]
            return torch.stack([x[pick] for x, pick in zip(classes, picks, strict=True)])

        return sample

    return sampler(~held_out), sampler(held_out)


class Task(NamedTuple):
    """A task is a data set and the sizes of its generator."""

    # The first two are samplers of training groups and of held-out groups, each [G, n, D].
    data: Callable
    held_out: Callable
    groups: int
    # Each group has this number of points.
    points: int
    # The noise has this number of dimensions.
    noise: int
    D: int
    # Each layer has this width.
    width: int


class Generator(nn.Module):
    """A generator turns noise ``[G, n, noise]`` into samples ``[G, n, D]``.

    Each group adds an input of its own. Images are in [0, 1].
    """

    def __init__(self, task: Task):
        super().__init__()
        self.group = nn.Parameter(torch.randn(task.groups, 1, task.width))
        layers = [nn.Linear(task.noise, task.width)]
        for _ in range(2):
            layers += [nn.SiLU(), nn.Linear(task.width, task.width)]
        self.first = layers[0]
        self.rest = nn.Sequential(*layers[1:], nn.SiLU(), nn.Linear(task.width, task.D))
        if task.D > 2:
            self.rest.append(nn.Sigmoid())

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        return self.rest(self.first(noise) + self.group)


class Run:
    """This is one generator in training."""

    def __init__(self, loss: Callable, model: Generator):
        self.loss, self.model, self.optimizer = loss, model, torch.optim.Adam(model.parameters())
        self.losses: list[float] = []

    def step(self, noise: torch.Tensor, data: torch.Tensor, rate: float) -> torch.Tensor:
        """Takes one step and returns the samples it was made from."""
        self.optimizer.param_groups[0]["lr"] = rate
        samples = self.model(noise)
        loss = self.loss(data, samples, **OPTIONS)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.item())
        return samples.detach()


def energy_distance(x: torch.Tensor, y: torch.Tensor) -> float:
    """Returns the mean over groups of the energy distance of two samples ``[G, n, D]``."""
    return float((2 * torch.cdist(x, y) - torch.cdist(x, x) - torch.cdist(y, y)).mean())


def train(name: str, task: Task, steps: int, compared: int, seed: int) -> dict:
    """Trains with the fused loss for `steps` steps, and with the eager one for `compared` steps."""
    torch.manual_seed(seed)
    model, generator = Generator(task), torch.Generator().manual_seed(seed)
    runs = {key: Run(loss, copy.deepcopy(model)) for key, loss in LOSSES.items()}
    parted, shown = 0.0, {}

    def noise(n):
        return torch.randn(task.groups, n, task.noise, generator=generator)

    for step in range(1, steps + 1):
        z, data = noise(task.points), task.data(task.points, generator)
        rate = 1e-3 * (1 + math.cos(math.pi * step / steps))
        samples = runs["fused"].step(z, data, rate)
        if step <= compared:
            parted = max(parted, float((runs["eager"].step(z, data, rate) - samples).abs().max()))
        if step in [max(1, int(share * steps)) for share in SHOWN]:
            with torch.no_grad():
                shown[step] = runs["fused"].model(noise(100 if task.D > 2 else 2000))
        progress(name, step, steps, f"loss {runs['fused'].losses[-1]:.3f}")
    # A set for each of the groups, as large as a group's part of the samples.
    held_out = [task.held_out(shown[steps].shape[1], generator) for _ in range(2)]
    return {
        "runs": runs,
        "parted": parted,
        "shown": shown,
        "data": held_out[0],
        "distances": {step: energy_distance(x, held_out[0]) for step, x in shown.items()},
        "floor": energy_distance(held_out[1], held_out[0]),
    }


def progress(label: str, done: int, total: int, status: str = "") -> None:
    """Draws a bar on a terminal, and elsewhere only its last state."""
    if done == total or sys.stdout.isatty():
        bar = "#" * (30 * done // total)
        print(
            f"\r{label:13} [{bar:.<30}] {done}/{total}  {status}",
            end="\n" if done == total else "",
            flush=True,
        )


def picture(x: torch.Tensor) -> torch.Tensor:
    """Returns ten classes ``[10, n, 64]`` as one image: a row for each class, gaps of a pixel."""
    tiles = F.pad(x[:, :10].reshape(10, 10, 8, 8), (1, 0, 1, 0), value=0.25)
    image = tiles.permute(0, 2, 1, 3).reshape(90, 90)
    return F.pad(image, (0, 1, 0, 1), value=0.25)


LIMITS = {"moons": (1.8, 1.15), "checkerboard": (1.25, 1.25), "digits": (1.0, 1.0)}
"""Half the width and the height of what is drawn. For images only their ratio counts."""


def draw(path: Path, results: dict, steps: int) -> None:
    """Draws a row for each data set: samples over the training, then the data."""
    from matplotlib.figure import Figure

    columns = len(SHOWN) + 1
    heights = [LIMITS[name][1] / LIMITS[name][0] for name in results]
    size = (2.9 * columns, sum(2.85 * h + 0.24 for h in heights) + 0.65)
    figure = Figure(figsize=size, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.04, h_pad=0.03, wspace=0.01, hspace=0.01)
    figure.suptitle(
        f"One-step generators trained for {steps} steps with the contrastive force.\n"
        "The numbers are energy distances of the samples to held-out data.",
        fontsize=12,
    )
    axes = figure.subplots(len(results), columns, squeeze=False, height_ratios=heights)
    for row, (name, result) in zip(axes, results.items(), strict=True):
        panels = [
            (f"{name}, step {step}: {result['distances'][step]:.4f}", x, "#2563a8")
            for step, x in result["shown"].items()
        ]
        panels.append((f"data: {result['floor']:.4f} to other data", result["data"], "#8b93a1"))
        for place, (title, x, color) in zip(row, panels, strict=True):
            if x.shape[2] > 2:
                place.imshow(picture(x), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
                place.set(aspect="equal")
            else:
                width, height = LIMITS[name]
                place.scatter(*x[0].T, s=1.5, color=color, linewidths=0)
                place.set(xlim=(-width, width), ylim=(-height, height), aspect="equal")
            place.set(xticks=[], yticks=[])
            place.set_title(title, fontsize=10)
    figure.savefig(path, dpi=110)


def report(results: dict, compared: int) -> None:
    """Prints a table of the distances, and one of the differences of the two losses."""
    print("\nenergy distance of the samples to held-out data (0: the same distribution)")
    for k, (name, result) in enumerate(results.items()):
        if k == 0:
            titles = [f"step {step}" for step in result["distances"]]
            print(" " * 13 + "".join(f"{title:>12}" for title in [*titles, "other data"]))
        values = [*result["distances"].values(), result["floor"]]
        print(f"{name:13}" + "".join(f"{value:12.4f}" for value in values))
    print(f"\nlargest difference of a coordinate between the two copies, first {compared} steps")
    for name, result in results.items():
        print(f"{name:13}{result['parted']:12.1e}")


def main(arguments: list[str] | None = None) -> dict:
    """Trains, prints, draws, and returns what was measured."""
    parser = argparse.ArgumentParser(
        description="One-step generators trained with the contrastive force, eager and fused."
    )
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument(
        "--compared",
        type=int,
        default=50,
        help="steps in which the eager loss trains beside the fused one",
    )
    parser.add_argument("--only", nargs="*", choices=("moons", "checkerboard", "digits"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("demo-force.png"))
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    backend = dispatch.select(None, torch.device("cpu"), torch.float32)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, fused backend: {backend}")
    seen, unseen = digits(options.seed)
    tasks = {
        "moons": Task(moons, moons, 1, 512, 6, 2, 256),
        "checkerboard": Task(checkerboard, checkerboard, 1, 512, 6, 2, 256),
        "digits": Task(seen, unseen, 10, 64, 16, 64, 256),
    }
    results = {
        name: train(name, task, options.steps, options.compared, options.seed)
        for name, task in tasks.items()
        if not options.only or name in options.only
    }
    report(results, options.compared)
    draw(options.out, results, options.steps)
    print(f"\npicture: {options.out}; {time.perf_counter() - start:.0f} s in all")
    return results


if __name__ == "__main__":
    main()
