"""Points drift onto a ring, and the picture shows the arrows along which they move.

The data are a ring. The samples start as a small cloud beside it. `drift_field` gives each sample
the step that takes it towards the data and away from the other samples. A generator is trained with
``mse_loss(samples, (samples + drift_field(samples, data)).detach())``; here the samples take these
steps themselves. The example takes a second.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

from fused_contrastive import drift_field

SHOWN = (0, 3, 8, 100)
"""The arrows are drawn after these numbers of steps."""


def ring(n: int, generator: torch.Generator) -> torch.Tensor:
    """Returns points ``[n, 2]`` around the circle of radius 1."""
    angle = 2 * math.pi * torch.rand(n, generator=generator)
    points = torch.stack([angle.cos(), angle.sin()], 1)
    return points + 0.05 * torch.randn(n, 2, generator=generator)


def draw(path: Path, data: torch.Tensor, shown: dict[int, tuple], temperature: float) -> None:
    """Draws the samples and their drifts after each number of steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.0 * len(shown), 3.55), layout="constrained")
    figure.suptitle(
        f"drift_field(samples, data, temperature={temperature:g}): the data are gray, "
        "the samples blue, and an arrow is a sample's next step"
    )
    for axes, (step, (samples, drift)) in zip(
        figure.subplots(1, len(shown)), shown.items(), strict=True
    ):
        axes.scatter(*data.T, s=3, color="#c3c8d0", linewidths=0)
        axes.scatter(*samples.T, s=7, color="#2563a8", linewidths=0)
        arrows = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.008}
        axes.quiver(*samples.T, *drift.T, color="#e07b39", **arrows)
        length = drift.norm(dim=1).mean()
        axes.set_title(f"after {step} steps: mean step {length:.4f}", fontsize=10)
        axes.set(xlim=(-1.4, 1.4), ylim=(-1.4, 1.4), aspect="equal", xticks=[], yticks=[])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> dict[int, tuple]:
    """Moves the samples, draws them, and returns samples and drifts by the number of steps."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--temperature", type=float, default=0.2, help="in units of distance")
    parser.add_argument("--out", type=Path, default=Path("demo-drift.png"))
    options = parser.parse_args(arguments)
    generator = torch.Generator().manual_seed(0)
    data = ring(500, generator)
    samples = torch.tensor([0.5, 0.0]) + 0.15 * torch.randn(150, 2, generator=generator)
    shown = {}
    for step in range(max(SHOWN) + 1):
        drift = drift_field(samples, data, temperature=options.temperature)
        if step in SHOWN:
            shown[step] = samples, drift
        samples = samples + drift
    draw(options.out, data, shown, options.temperature)
    print(f"picture: {options.out}")
    return shown


if __name__ == "__main__":
    main()
