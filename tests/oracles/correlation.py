"""This is the oracle of the correlation losses and their gradients.

It has explicit formulas in NumPy's longest floats. Nothing here comes from the package.
"""

from __future__ import annotations

import numpy as np

LONG = np.longdouble


def standardize(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return columns with mean 0 over the rows and variance next to 1, and the factors."""
    z = z - z.mean(0)
    factor = 1 / np.sqrt((z * z).mean(0) + LONG("1e-5"))
    return z * factor, factor


def standardize_backward(x: np.ndarray, factor: np.ndarray, flow: np.ndarray) -> np.ndarray:
    return factor * (flow - flow.mean(0) - x * (flow * x).mean(0))


def correlation(shards, lamb, scale_loss, g, samples):
    """Return ``(loss, gradients [(dz1, dz2), ...])``, the gradients times g.

    The loss is that of c, the mean of the correlation matrices of the shards ``[(z1, z2), ...]``.
    """
    W = len(shards)
    parts, c = [], 0
    for z1, z2 in shards:
        columns = [np.asarray(z, dtype=LONG) for z in (z1, z2)]
        columns = [z.T if samples else z for z in columns]
        N = len(z1)
        (a, factor_a), (b, factor_b) = (standardize(z) for z in columns)
        parts.append((a, b, factor_a, factor_b, N))
        c = c + a.T @ b / N / W
    off = np.where(np.eye(len(c), dtype=bool), 0, c)
    gap = np.diagonal(c) - 1
    loss = LONG(scale_loss) * ((gap**2).sum() + LONG(lamb) * (off**2).sum())
    dc = LONG(g) * LONG(scale_loss) * 2 * (np.diag(gap) + LONG(lamb) * off)
    gradients = []
    for a, b, factor_a, factor_b, N in parts:
        flows = (
            standardize_backward(a, factor_a, b @ dc.T / N / W),
            standardize_backward(b, factor_b, a @ dc / N / W),
        )
        gradients.append(tuple(flow.T if samples else flow for flow in flows))
    return loss, gradients
