"""This module draws the picture of simclr_digits.py: six panels in one PNG."""

from __future__ import annotations

import statistics
from pathlib import Path

import torch
import torch.nn.functional as F

EAGER, FUSED, INK, GRAY, LIGHT = "#e07b39", "#2563a8", "#2b2f36", "#8b93a1", "#d5d9e0"


def draw(path: Path, runs, accuracy, rows, views, features, labels, device) -> None:
    """Saves the picture.

    `views` is a list of image batches ``[B, 1, 8, 8]``, which are shown below each other. The
    `features` ``[N, D]`` are embedded in the plane.
    """
    import matplotlib
    from matplotlib.figure import Figure

    style = {
        "font.size": 10,
        "axes.edgecolor": GRAY,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(15, 8.6), layout="constrained", facecolor="white")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12, wspace=0.03, hspace=0.04)
        axes = figure.subplots(2, 3)
        steps = len(runs["fused"].losses)
        figure.suptitle(
            f"SimCLR on {rows[0]['N'] // 2:,} handwritten digits, the whole set in each of "
            f"{steps} steps: one network, two ways to compute NT-Xent ({device.type}, float32)",
            fontsize=13,
        )
        loss_curves(axes[0, 0], runs)
        accuracy_bars(axes[0, 1], accuracy)
        image_grid(axes[0, 2], views)
        cost(axes[1, 0], rows, "loss_s", 1e3, "ms", "Time of the loss, forward + backward")
        cost(axes[1, 1], rows, "mb", 1.0, "MB", "Peak memory of the loss")
        projection(axes[1, 2], features, labels)
        figure.savefig(path, dpi=110)


def loss_curves(axes, runs) -> None:
    eager, fused = runs["eager"].losses, runs["fused"].losses
    steps = range(1, len(eager) + 1)
    axes.plot(
        steps, eager, color=EAGER, linewidth=6, alpha=0.45, solid_capstyle="round", label="eager"
    )
    axes.plot(steps, fused, color=FUSED, linewidth=1.8, label="fused")
    axes.set(title="Both losses train alike", xlabel="step", ylabel="NT-Xent")
    axes.legend(frameon=False, loc="lower left")
    inset = axes.inset_axes((0.5, 0.56, 0.48, 0.38))
    difference = [max(abs(a - b), 1e-7) for a, b in zip(eager, fused, strict=True)]
    inset.semilogy(steps, difference, color=INK, linewidth=1.2)
    inset.set(ylim=(5e-8, max(1e-3, 2 * max(difference))))
    inset.set_title("|eager − fused|", fontsize=9, fontweight="normal")
    inset.tick_params(labelsize=8)


def accuracy_bars(axes, accuracy) -> None:
    colors, width = (LIGHT, GRAY, EAGER, FUSED), 0.2
    for k, ((name, values), color) in enumerate(zip(accuracy.items(), colors, strict=True)):
        x = [group + (k - 1.5) * width for group in range(2)]
        axes.bar(x, [100 * value for value in values], width * 0.92, color=color, label=name)
        for position, value in zip(x, values, strict=True):
            axes.text(position, 100 * value + 1, f"{100 * value:.1f}", ha="center", fontsize=9)
    axes.set(
        title="5 nearest neighbours among clean training images",
        ylabel="accuracy, %",
        ylim=(0, 132),
        yticks=range(0, 101, 25),
    )
    easy, task = (
        "test images\n(raw pixels are enough)",
        "perturbed test images\n(the task of SimCLR)",
    )
    axes.set_xticks(range(2), [easy, task])
    axes.legend(frameon=False, loc="upper center", ncols=2)


def image_grid(axes, views) -> None:
    rows = [
        torch.cat([F.pad(image[0].cpu(), (1, 1, 1, 1)) for image in batch], dim=1)
        for batch in views
    ]
    axes.imshow(torch.cat(rows), cmap="gray_r", vmin=0, vmax=1)
    axes.set(title="Test images and two random views of each", xticks=[])
    axes.set_yticks(
        [10 * k + 4.5 for k in range(len(views))],
        ["image", *(f"view {k}" for k in range(1, len(views)))],
    )
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def cost(axes, rows, key, factor, unit, title) -> None:
    """Draws one quantity against the batch size.

    It also shows eager / fused at each size where both ran.
    """
    for name, color in (("eager", EAGER), ("fused", FUSED)):
        points = [
            (row["N"], factor * max(row[f"{name}_{key}"], 1e-9))
            for row in rows
            if f"{name}_{key}" in row
        ]
        axes.loglog(
            *zip(*points, strict=True), "o-", color=color, linewidth=2, markersize=6, label=name
        )
    for row in rows:
        if f"eager_{key}" not in row:
            place = (row["N"], factor * row[f"fused_{key}"])
            style = {"textcoords": "offset points", "ha": "right", "fontsize": 9}
            axes.annotate("fused only", place, (0, 9), **style)
            continue
        eager, fused = row[f"eager_{key}"], max(row[f"fused_{key}"], 1e-9)
        ratio = row["ratio"] if key == "loss_s" else eager / fused
        middle = statistics.geometric_mean([factor * eager, factor * fused])
        axes.vlines(row["N"], factor * fused, factor * eager, color=LIGHT, linewidth=1, zorder=0)
        axes.text(row["N"], middle, f" {ratio:.3g}×", va="center", fontsize=9)
    axes.set(title=f"{title}, {unit}", xlabel="rows N = 2 × augmented pairs")
    axes.set_xticks([row["N"] for row in rows], [f"{row['N']:,}" for row in rows])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axes.margins(x=0.12, y=0.15)
    axes.legend(frameon=False, loc="upper left")


def projection(axes, features, labels) -> None:
    """Draws the t-SNE of the features, coloured by label, with at most 900 points."""
    import matplotlib
    from sklearn.manifold import TSNE

    features, labels = F.normalize(features[:900], dim=1), torch.as_tensor(labels[:900])
    points = torch.from_numpy(TSNE(init="pca", random_state=0).fit_transform(features.numpy()))
    axes.scatter(
        *points.T,
        c=[matplotlib.colormaps["tab10"](int(label)) for label in labels],
        s=9,
        linewidths=0,
    )
    for digit in labels.unique().tolist():
        x, y = points[labels == digit].median(0).values.tolist()
        box = {
            "boxstyle": "circle,pad=0.18",
            "facecolor": "white",
            "edgecolor": "none",
            "alpha": 0.85,
        }
        axes.text(
            x, y, str(digit), ha="center", va="center", fontsize=12, fontweight="bold", bbox=box
        )
    axes.set(title="Fused features of perturbed test images (t-SNE)", xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
