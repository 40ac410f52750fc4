"""SimCLR learns scikit-learn's digits, once with the eager NT-Xent loss and once with the fused.

SimCLR is from Chen et al. 2020, arXiv:2002.05709. 1797 real images of 8 x 8 pixels ship with
scikit-learn, so that nothing is downloaded. Two copies of one network start from the same weights
and see the same augmented views. Only the function that computes the loss differs. The whole
training set is one batch, and larger batches hold several augmented pairs of each image.

The example reports how far the two loss curves part, and time and memory of the loss. It also
reports what the features are worth to a nearest-neighbour classifier, the only user of the labels.
The result is printed and drawn into one picture. Under torchrun `simclr_ranks` runs instead.
"""

from __future__ import annotations

import argparse
import copy
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from simclr_figure import draw
from torch import nn

from fused_contrastive import nt_xent_loss, reference
from fused_contrastive.backends import dispatch

LOSSES = {"eager": reference.nt_xent_loss, "fused": nt_xent_loss}
WIDTH = 64
"""The embeddings that the loss sees have this number of columns D."""
LEARNING_RATE = 5e-3
DRAWS = 5
"""Each test image has this number of perturbed copies."""
EAGER_LIMIT = 6 << 30
"""Batches whose eager loss needs more bytes than this are trained with the fused loss only."""


def digits(seed: int, device: torch.device):
    """Returns ``(train, train labels, test, test labels)`` of a stratified split.

    There are 1437 and 360 images ``[B, 1, 8, 8]`` in [0, 1].
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    train, test, y_train, y_test = train_test_split(
        images, labels, test_size=360, stratify=labels, random_state=seed
    )
    train, test = (
        torch.tensor(x, dtype=torch.float32, device=device).view(-1, 1, 8, 8) / 16
        for x in (train, test)
    )
    return train, y_train, test, y_test


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Returns a random view of each image ``[B, 1, 8, 8]``.

    It is shifted by 1 pixel, turned by 20 degrees and scaled by 15 % at most. It has a 2 x 2 hole,
    another brightness, and noise.
    """
    B, device = len(images), images.device

    def uniform(low, high):
        return torch.empty(B, device=device).uniform_(low, high, generator=generator)

    angle, scale = uniform(-math.pi / 9, math.pi / 9), uniform(0.85, 1.15)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    affine = torch.stack([cos, -sin, uniform(-0.25, 0.25), sin, cos, uniform(-0.25, 0.25)], 1).view(
        B, 2, 3
    )
    views = F.grid_sample(
        images, F.affine_grid(affine, images.shape, align_corners=False), align_corners=False
    )
    y, x = (torch.randint(0, 7, (B, 1), generator=generator, device=device) for _ in range(2))
    pixel = torch.arange(8, device=device)
    rows, columns = (pixel >= y) & (pixel < y + 2), (pixel >= x) & (pixel < x + 2)
    views = views.masked_fill(rows[:, None, :, None] & columns[:, None, None, :], 0.0)
    noise = torch.randn(views.shape, generator=generator, device=device)
    return (uniform(0.7, 1.3).view(B, 1, 1, 1) * views + 0.05 * noise).clamp(0, 1)


def network(seed: int) -> nn.ModuleDict:
    """Returns a small convolutional encoder and the projection head.

    The encoder has 128 features, and the head has WIDTH columns.
    """

    def block(inputs, outputs, stride):
        convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        return convolution, nn.BatchNorm2d(outputs), nn.GELU()

    torch.manual_seed(seed)
    encoder = nn.Sequential(
        *block(1, 16, 1),
        *block(16, 32, 2),
        *block(32, 64, 2),
        nn.Flatten(),
        nn.Linear(256, 128, bias=False),
        nn.BatchNorm1d(128),
        nn.GELU(),
    )
    head = nn.Sequential(
        nn.Linear(128, 128, bias=False), nn.BatchNorm1d(128), nn.GELU(), nn.Linear(128, WIDTH)
    )
    return nn.ModuleDict({"encoder": encoder, "head": head})


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@dataclass
class Run:
    """This is one network in training, with what each step gave."""

    loss_function: Callable
    model: nn.ModuleDict
    optimizer: torch.optim.Optimizer
    losses: list[float] = field(default_factory=list)
    loss_seconds: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)

    def step(self, views: torch.Tensor, temperature: float) -> None:
        """Takes one step on ``views [2B, 1, 8, 8]``.

        Rows i and B + i are views of one image.
        """
        start = clock(views.device)
        self.optimizer.zero_grad()
        z = self.model["head"](self.model["encoder"](views))
        embedded = clock(views.device)
        # This hook runs once the gradient of z is complete. By then the loss has run forward and
        # backward, and nothing else has.
        z.register_hook(lambda _: self.loss_seconds.append(clock(views.device) - embedded))
        z1, z2 = z.chunk(2)
        loss = self.loss_function(z1, z2, temperature)
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.item())
        self.step_seconds.append(clock(views.device) - start)


def train(images, names, steps: int, copies: int, temperature: float, seed: int) -> dict[str, Run]:
    """Trains one network for each loss of `names`, side by side.

    Each step has ``N = 2 * copies * len(images)`` rows.
    """
    initial, runs = network(seed).to(images.device), {}
    for name in names:
        model = copy.deepcopy(initial)
        runs[name] = Run(
            LOSSES[name], model, torch.optim.AdamW(model.parameters(), weight_decay=1e-4)
        )
    generator = torch.Generator(images.device).manual_seed(seed)
    batch = images.repeat(copies, 1, 1, 1)
    for step in range(steps):
        views = torch.cat([augment(batch, generator), augment(batch, generator)])
        warmup, cosine = (step + 1) / min(10, steps), (1 + math.cos(math.pi * step / steps)) / 2
        for run in runs.values():
            run.optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(warmup, cosine)
            run.step(views, temperature)
        progress(
            f"N = {len(views):6,}",
            step + 1,
            steps,
            ", ".join(f"{k} {r.losses[-1]:.4f}" for k, r in runs.items()),
        )
    return runs


def progress(label: str, done: int, total: int, status: str = "") -> None:
    """Draws a bar on a terminal, and elsewhere only its last state."""
    if done == total or sys.stdout.isatty():
        bar = "#" * (30 * done // total)
        print(
            f"\r{label} [{bar:.<30}] {done}/{total}  {status}",
            end="\n" if done == total else "",
            flush=True,
        )


def features(model: nn.ModuleDict | None, images: torch.Tensor) -> torch.Tensor:
    """Returns the encoder's features of the images, before the projection head.

    Without a model they are the pixels.
    """
    if model is None:
        return images.flatten(1).cpu()
    model.eval()
    with torch.no_grad():
        return model["encoder"](images).cpu()


def knn_accuracy(model, train, y_train, tests) -> list[float]:
    """Returns the accuracy of 5 nearest neighbours, for each ``(images, labels)`` of `tests`.

    Neighbours are unperturbed training images, by cosine similarity.
    """
    from sklearn.neighbors import KNeighborsClassifier

    classifier = KNeighborsClassifier(5, metric="cosine").fit(features(model, train), y_train)
    return [classifier.score(features(model, images), labels) for images, labels in tests]


def peak_memory(device: str) -> float:
    """Returns the peak memory in bytes.

    On CUDA it is that of the allocator, else that of this process's resident set. The resident set
    is known on Linux alone. Elsewhere the result is NaN.
    """
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next(
        (1024.0 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), math.nan
    )


def loss_memory(name: str, N: int, temperature: float, device: str) -> float:
    """Returns the peak bytes of the loss alone, forward and backward, without its inputs.

    It must run in a fresh process.
    """

    def growth(rows):
        z1, z2 = (
            torch.randn(rows // 2, WIDTH, device=device, requires_grad=True) for _ in range(2)
        )
        before = peak_memory(device)
        LOSSES[name](z1, z2, temperature).backward()
        return peak_memory(device) - before

    growth(256)
    return growth(N)


def measure_memory(jobs: list[tuple[str, int]], temperature: float, device: torch.device) -> dict:
    """Returns ``{(name, N): bytes}``, each measured in a process of its own."""
    memory = {}
    with multiprocessing.get_context("spawn").Pool(2, maxtasksperchild=1) as pool:
        pending = [pool.apply_async(loss_memory, (*job, temperature, device.type)) for job in jobs]
        for job, result in zip(jobs, pending, strict=True):
            memory[job] = result.get()
            progress("memory    ", len(memory), len(jobs))
    return memory


def table(larger: dict[int, dict[str, Run]], memory: dict) -> list[dict]:
    """Returns one row per batch size, with medians over the steps after the first.

    `ratio` is the median of each step's eager / fused loss time.
    """
    rows = []
    for N, runs in larger.items():
        row = {"N": N, "matrix_mb": 4 * N**2 / 1e6}
        for name, run in runs.items():
            row[f"{name}_loss_s"] = statistics.median(run.loss_seconds[1:])
            row[f"{name}_step_s"] = statistics.median(run.step_seconds[1:])
            row[f"{name}_mb"] = memory[name, N] / 1e6
        if "eager" in runs:
            pairs = zip(runs["eager"].loss_seconds[1:], runs["fused"].loss_seconds[1:], strict=True)
            row["ratio"] = statistics.median(eager / fused for eager, fused in pairs)
            row["difference"] = largest_difference(runs)
        rows.append(row)
    return rows


def largest_difference(runs: dict[str, Run], steps: int | None = None) -> float:
    curves = zip(runs["eager"].losses[:steps], runs["fused"].losses[:steps], strict=True)
    return max(abs(eager - fused) for eager, fused in curves)


def report(runs: dict[str, Run], accuracy: dict, rows: list[dict], measure: str) -> None:
    steps = len(runs["fused"].losses)
    eager, fused = runs["eager"].losses, runs["fused"].losses
    print(f"\nNT-Xent, eager -> fused: step 1 {eager[0]:.4f} -> {fused[0]:.4f}, ", end="")
    print(f"step {steps} {eager[-1]:.4f} -> {fused[-1]:.4f}")
    print(f"largest difference of the loss curves: {largest_difference(runs, 20):.1e} ", end="")
    print(f"in the first 20 steps, {largest_difference(runs):.1e} in all {steps}")
    print("\naccuracy of 5 nearest neighbours among the unperturbed training images")
    print("(the task is the perturbed images; raw pixels are enough for the others)")
    print(f"{'':24}{'test images':>12}{'perturbed test images':>24}")
    for name, (clean, perturbed) in accuracy.items():
        print(f"{name:24}{clean:12.1%}{perturbed:24.1%}")
    print("\nmedian time of a step and of its loss (forward + backward), ", end="")
    print(f"peak memory of the loss alone ({measure})")
    print(f"{'':>8}{'loss, ms':^28}{'whole step, ms':^20}{'memory, MB':^20}", end="")
    print(f"{'N x N matrix':>14}{'largest':>12}")
    print(f"{'N':>8}{'eager':>10}{'fused':>9}{'ratio':>9}", end="")
    print(f"{'eager':>11}{'fused':>9}" * 2 + f"{'MB':>14}{'difference':>12}")
    for row in rows:

        def cell(key, width, factor=1.0, form=".0f", row=row):
            return f"{row[key] * factor:{width}{form}}" if key in row else f"{'-':>{width}}"

        cells = [
            cell("eager_loss_s", 10, 1e3),
            cell("fused_loss_s", 9, 1e3),
            cell("ratio", 9, form=".1f"),
            cell("eager_step_s", 11, 1e3),
            cell("fused_step_s", 9, 1e3),
            cell("eager_mb", 11),
            cell("fused_mb", 9, form=".1f"),
            cell("matrix_mb", 14),
            cell("difference", 12, form=".1e"),
        ]
        print(f"{row['N']:8,}" + "".join(cells))


def main(arguments: list[str] | None = None) -> dict:
    """Trains, measures, prints, draws, and returns what was measured."""
    parser = argparse.ArgumentParser(
        description="SimCLR on real images with the eager and the fused NT-Xent loss."
    )
    parser.add_argument(
        "--epochs",
        type=int,
        default=60,
        help="steps, the whole training set each (default %(default)s)",
    )
    parser.add_argument("--temperature", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--images", type=int, default=1437, help="training images to use (default: all %(default)s)"
    )
    parser.add_argument(
        "--copies",
        type=int,
        nargs="*",
        default=[2, 4, 8],
        help="augmented pairs of each image in larger batches",
    )
    parser.add_argument("--out", type=Path, default=Path("demo-simclr.png"))
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    start = time.perf_counter()
    backend = dispatch.select(None, device, torch.float32)
    print(f"torch {torch.__version__} on {device}, {torch.get_num_threads()} threads, ", end="")
    print(f"fused backend: {backend}")

    train_images, y_train, test, y_test = digits(options.seed, device)
    train_images, y_train = train_images[: options.images], y_train[: options.images]
    generator = torch.Generator(device).manual_seed(options.seed + 1)
    perturbed = augment(test.repeat(DRAWS, 1, 1, 1), generator)

    settings = {"temperature": options.temperature, "seed": options.seed}
    runs = train(train_images, LOSSES, options.epochs, 1, **settings)
    batches = {2 * len(train_images): runs}
    for copies in options.copies:
        N = 2 * copies * len(train_images)
        names = [name for name in LOSSES if name == "fused" or 6 * 4 * N**2 < EAGER_LIMIT]
        batches[N] = train(train_images, names, 4, copies, **settings)
    jobs = [(name, N) for N, trained in batches.items() for name in trained]
    rows = table(batches, measure_memory(jobs, options.temperature, device))

    models = {"raw pixels": None, "untrained encoder": network(options.seed).to(device)}
    models |= {f"SimCLR, {name}": run.model for name, run in runs.items()}
    tests = [(test, y_test), (perturbed, list(y_test) * DRAWS)]
    accuracy = {
        name: knn_accuracy(model, train_images, y_train, tests) for name, model in models.items()
    }
    measure = (
        "allocator's peak"
        if device.type == "cuda"
        else "growth of the peak resident set of a fresh process"
    )
    report(runs, accuracy, rows, measure)
    views = [augment(test[:10], generator) for _ in range(2)]
    draw(
        options.out,
        runs=runs,
        accuracy=accuracy,
        rows=rows,
        views=[test[:10], *views],
        features=features(runs["fused"].model, perturbed),
        labels=tests[1][1],
        device=device,
    )
    print(f"\npicture: {options.out}; {time.perf_counter() - start:.0f} s in all")
    return {"runs": runs, "accuracy": accuracy, "rows": rows}


if __name__ == "__main__":
    if torch.distributed.is_torchelastic_launched():
        import simclr_ranks

        main = simclr_ranks.main
    main()
