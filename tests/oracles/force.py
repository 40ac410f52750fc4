"""This is the oracle of the force family, in NumPy.

It follows the formulas of the sources, group by group and row by row. Nothing here comes from the
package. Numbers are long doubles where the platform has them, so that no affinity underflows.

Gradients of the losses have closed forms, since everything but the scaled negatives is a constant.
"""

from __future__ import annotations

import numpy as np

WIDE = np.longdouble


def array(x) -> np.ndarray:
    """Return a tensor, array or number as an array, exactly."""
    return np.asarray(x.detach().cpu().double().numpy() if hasattr(x, "detach") else x, dtype=WIDE)


def distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.stack([np.sqrt(((row - y) ** 2).sum(1)) for row in x])


def softmaxes(s: np.ndarray) -> np.ndarray:
    """Return the product of the softmax of the rows and that of the columns.

    A row or column of -inf has a softmax of 0.
    """

    def softmax(s, axis):
        top = s.max(axis, keepdims=True)
        e = np.exp(s - np.where(np.isneginf(top), 0, top))
        return e / np.where(e.sum(axis, keepdims=True) == 0, 1, e.sum(axis, keepdims=True))

    return softmax(s, 1) * softmax(s, 0)


def force(
    positive, negative, temperature, mask_self="sum", normalizer=None, affinity_floor=0.0
) -> np.ndarray:
    """Return `[M, D]` of one group: the double sum over positives i and negatives k != j."""
    M, points = len(negative), np.concatenate([negative, positive])
    d = distances(points, points)
    s = -d / WIDE(temperature)
    if mask_self == "softmax":
        np.fill_diagonal(s, -np.inf)
    product = softmaxes(s)
    if affinity_floor:
        product = np.maximum(product, WIDE(affinity_floor))
    A = np.sqrt(product)
    total = np.zeros_like(negative)
    # A few points are summed as the formula is written.
    if M < 10:
        for j in range(M):
            for k in range(M):
                if k != j:
                    total[j] += A[j, k] * (A[j, M:, None] * (positive - negative[k])).sum(0)
    # This leaves out self pairs, whose distance is 0.
    np.fill_diagonal(A, 0)
    # The sums over i and k are taken as seen from j. Otherwise, equal points would leave nothing of
    # the others' digits.
    if M >= 10:
        for j in range(M):
            near, far = A[j, :M, None], A[j, M:, None]
            total[j] = near.sum() * (far * (positive - negative[j])).sum(0)
            total[j] -= far.sum() * (near * (negative - negative[j])).sum(0)
    if normalizer == "dist_affinity_rms":
        total = over(total, np.sqrt(((d * A) ** 2).mean()))
    if normalizer == "force_rms":
        total = over(total, np.sqrt((total**2).mean()))
    return total


def over(x, y):
    return x / y if y != 0 else np.zeros_like(x)


def force_loss(
    positive,
    negative,
    temperatures,
    upstream,
    *,
    normalizer="dist_affinity_rms",
    scale=None,
    detach_scale=False,
    **options,
) -> dict[str, np.ndarray]:
    """Return the loss `[M, D]` of one group and its gradients.

    The gradients are those of positive, negative and a given scale.
    """
    M, points = len(negative), np.concatenate([negative, positive])
    d = distances(points, points)
    s = d.mean() if scale is None else WIDE(scale)
    if s == 0:
        s = WIDE(1)
    F = sum(
        force(positive / s, negative / s, t, normalizer=normalizer, **options) for t in temperatures
    )
    pull = -2 * upstream * F / s
    dscale = -(pull * negative).sum() / s
    dx = np.zeros_like(points)
    dx[:M] += pull
    if scale is None and not detach_scale:
        for i, x in enumerate(points):
            direction = np.where(
                d[i][:, None] > 0, (x - points) / np.where(d[i] > 0, d[i], 1)[:, None], 0
            )
            dx[i] += dscale * 2 * direction.sum(0) / len(points) ** 2
    return {"loss": F**2, "positive": dx[M:], "negative": dx[:M], "scale": dscale}


def drift(gen, positive, negative, weights, temperatures, upstream) -> dict[str, np.ndarray]:
    """Compute the published training code for all groups.

    It returns the loss `[G]`, the gradient of gen, the scale and the mean squares.
    """
    G, n, S = gen.shape
    sets = [gen, positive] if negative is None else [gen, negative, positive]
    columns, w = np.concatenate(sets, 1), np.concatenate(weights, 1)
    d = np.stack(
        [np.maximum(distances(x, y), WIDE(1e-4)) for x, y in zip(gen, columns, strict=True)]
    )
    scale = (d * w[:, None]).mean() / w.mean()
    s_in = max(scale / np.sqrt(WIDE(S)), WIDE(1e-3))
    near = columns.shape[1] - positive.shape[1]
    total, squares = np.zeros_like(gen), []
    for t in temperatures:
        F = np.zeros_like(gen)
        for g in range(G):
            s = -(
                d[g] / max(scale, WIDE(1e-3)) + 100 * np.eye(n, columns.shape[1], dtype=WIDE)
            ) / WIDE(t)
            A = np.sqrt(np.maximum(softmaxes(s), WIDE(1e-6))) * w[g]
            y = columns[g] / s_in
            F[g] = A[:, :near].sum(1, keepdims=True) * (A[:, near:] @ y[near:])
            F[g] -= A[:, near:].sum(1, keepdims=True) * (A[:, :near] @ y[:near])
        squares.append((F**2).mean())
        total += F / np.sqrt(max(squares[-1], WIDE(1e-8)))
    gradient = -2 * total * upstream[:, None, None] / (n * S * s_in)
    return {
        "loss": (total**2).mean((1, 2)),
        "gen": gradient,
        "scale": scale,
        "squares": np.array(squares),
    }


def drift_field(gen, positive, temperature) -> np.ndarray:
    """Compute the published toy notebook for one group."""
    n, columns = len(gen), np.concatenate([gen, positive])
    d = distances(gen, columns)
    d[np.arange(n), np.arange(n)] = 1e6
    kernel = np.exp(-d / WIDE(temperature))
    A = kernel / np.sqrt(
        np.maximum(kernel.sum(1, keepdims=True) * kernel.sum(0, keepdims=True), WIDE(1e-12))
    )
    near, far = A[:, :n], A[:, n:]
    return near.sum(1, keepdims=True) * (far @ positive) - far.sum(1, keepdims=True) * (near @ gen)
