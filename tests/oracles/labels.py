"""This is the oracle of the losses with several positives and of the decoupled losses.

It has explicit formulas in NumPy float64, row by row. Nothing here comes from the package.
"""

from __future__ import annotations

import numpy as np

from oracles.similarity import Pairs, array, log_sum_exp, softmax


def softplus(gap: float) -> tuple[float, float]:
    """Return ``log(1 + exp(gap))`` and its derivative."""
    value = np.log1p(np.exp(gap)) if gap < 0 else gap + np.log1p(np.exp(-gap))
    return value, 1 / (1 + np.exp(-gap)) if gap > -700 else np.exp(gap)


def positives_row(
    s: np.ndarray, weight: np.ndarray, itself: int | None, form: str
) -> tuple[float, np.ndarray]:
    """Return the loss of one row and its derivative by every similarity.

    The positives of the row are the columns of positive weight.
    """
    ds = np.zeros_like(s)
    positive, negative = weight > 0, weight == 0
    if itself is not None:
        positive[itself] = negative[itself] = False
    if not positive.any():
        return (np.inf if form == "in" else 0.0), ds
    lse_neg, share_neg = log_sum_exp(s[negative]), softmax(s[negative])
    if form == "pairs":
        value = 0.0
        for p in np.flatnonzero(positive):
            term, slope = softplus(lse_neg - s[p])
            value += term
            ds[p] -= slope
            ds[negative] += slope * share_neg
        return value, ds
    lse_pos, share_pos = log_sum_exp(s[positive]), softmax(s[positive])
    value, slope = softplus(lse_neg - lse_pos)
    ds[negative] = slope * share_neg
    ds[positive] = -slope * share_pos
    # This adds lse_pos less the mean. For one positive, nothing is left of it.
    if form == "out":
        share = weight[positive] / weight[positive].sum()
        top = s[positive].max()
        value += np.log(np.exp(s[positive] - top).sum()) - (share * (s[positive] - top)).sum()
        ds[positive] += share_pos - share
    return value, ds


def row_weights(samples: int, views: int, labels=None, positive_weights=None) -> np.ndarray:
    """Return the weights ``[N V, N V]`` of rows ``i V + v`` as positives of one another."""
    if positive_weights is not None:
        weight = array(positive_weights)
    else:
        label = np.arange(samples) if labels is None else labels.cpu().numpy()
        weight = (label[:, None] == label[None, :]).astype(np.float64)
    return np.kron(weight, np.ones((views, views)))


def sup_con(
    features,
    temperature,
    g,
    labels=None,
    positives="out",
    positive_weights=None,
    contrast_mode="all",
    normalize=True,
    queue=None,
    queue_labels=None,
    ignore_index=None,
    weights=None,
):
    """Return ``(loss [N] or [N, V], gradients by argument name)``."""
    features, temperature = array(features), float(array(temperature))
    samples, views = features.shape[0], features.shape[1] if features.ndim == 3 else 1
    rows = features.reshape(samples * views, features.shape[-1])
    columns = rows if queue is None else np.concatenate([rows, array(queue)])
    pairs = Pairs(rows, columns, scale=1 / temperature, normalize=normalize)
    weight = row_weights(samples, views, labels, positive_weights)
    key = np.repeat(np.arange(samples) if labels is None else labels.cpu().numpy(), views)
    if queue is not None:
        of_queue = queue_labels.cpu().numpy()
        weight = np.concatenate([weight, key[:, None] == of_queue], 1)
        key = np.concatenate([key, of_queue])
    keep = np.ones(len(key), bool) if ignore_index is None else key != ignore_index
    anchors = range(samples * views) if contrast_mode == "all" else range(0, samples * views, views)
    upstream, loss, ds = np.ravel(g), np.zeros(len(anchors)), np.zeros_like(pairs.s)
    of_rows = np.ones(samples) if weights is None else array(weights)
    of_rows = np.repeat(of_rows, len(anchors) // max(samples, 1))
    for k, row in enumerate(anchors):
        if keep[row]:
            itself = int(keep[:row].sum())
            loss[k], d = positives_row(pairs.s[row, keep], weight[row, keep], itself, positives)
            ds[row, keep] = upstream[k] * of_rows[k] * d
    grads = pairs.gradients(ds)
    named = {
        "features": (grads["a"] + grads["b"][: len(rows)]).reshape(features.shape),
        "temperature": -grads["scale"] / temperature**2,
    }
    if queue is not None:
        named["queue"] = grads["b"][len(rows) :]
    if weights is not None:
        named["weights"] = (upstream * loss).reshape(samples, -1).sum(1)
    return (of_rows * loss).reshape(np.shape(g)), named


def two_sets(a, b, scale, g, labels, ignore_index=None, normalize=True, weights=None, both=False):
    """Return ``(loss [N], gradients a, b, scale and weights)``, where equal labels are positives.

    `labels` are those of the pairs. With `both` the loss is the mean of both directions.
    """
    pairs = Pairs(array(a), array(b), scale=float(scale), normalize=normalize)
    key = labels.cpu().numpy()
    wanted = np.ones(len(key), bool) if ignore_index is None else key != ignore_index
    of_rows = np.ones(len(key)) if weights is None else array(weights)
    loss, ds = np.zeros(len(key)), np.zeros_like(pairs.s)
    for s, found in ((pairs.s, ds), (pairs.s.T, ds.T))[: 1 + both]:
        for i in np.flatnonzero(wanted):
            same = (key[wanted] == key[i]).astype(np.float64)
            value, d = positives_row(s[i, wanted], same, None, "out")
            loss[i] += value / (1 + both)
            found[i, wanted] += g[i] * of_rows[i] * d / (1 + both)
    grads = pairs.gradients(ds)
    named = {"a": grads["a"], "b": grads["b"], "scale": grads["scale"]}
    return of_rows * loss, named | ({} if weights is None else {"weights": g * loss})


def info_nce(query, positive_key, temperature, g, symmetric=False, **options):
    """Return ``(loss [N], gradients by argument name)`` with labels."""
    temperature = float(array(temperature))
    loss, named = two_sets(query, positive_key, 1 / temperature, g, both=symmetric, **options)
    named["temperature"] = -named.pop("scale") / temperature**2
    return loss, named | {"query": named.pop("a"), "positive_key": named.pop("b")}


def clip(image_features, text_features, logit_scale, g, **options):
    """Return ``(loss [N], gradients by argument name)`` with labels."""
    sets = image_features, text_features
    loss, named = two_sets(*sets, logit_scale, g, normalize=False, both=True, **options)
    named |= {"image_features": named.pop("a"), "text_features": named.pop("b")}
    return loss, named | {"logit_scale": named.pop("scale")}


def dcl(z1, z2, temperature, g, sigma=None, normalize=True, keys=None, weights=None):
    """Return ``(loss [2B], {z1, z2, temperature, weights})``. With `sigma` it is DCLW."""
    z1, z2, temperature = array(z1), array(z2), float(array(temperature))
    B = len(z1)
    pairs = Pairs(np.concatenate([z1, z2]), scale=1 / temperature, normalize=normalize)
    loss, ds = np.zeros(2 * B), np.zeros_like(pairs.s)
    weight = np.ones(B)
    if sigma is not None:
        weight = 2 - B * softmax(np.diagonal(pairs.dots[:B, B:]) / sigma)
    key = np.tile(np.arange(B) if keys is None else array(keys), 2)
    of_rows = np.ones(2 * B) if weights is None else np.tile(array(weights), 2)
    for i in range(2 * B):
        partner = (i + B) % (2 * B)
        others = key != key[i]
        loss[i] = log_sum_exp(pairs.s[i, others]) - weight[i % B] * pairs.s[i, partner]
        ds[i, partner] = -weight[i % B] * g[i] * of_rows[i]
        ds[i, others] = g[i] * of_rows[i] * softmax(pairs.s[i, others])
    grads = pairs.gradients(ds)
    named = {
        "z1": grads["a"][:B],
        "z2": grads["a"][B:],
        "temperature": -grads["scale"] / temperature**2,
    }
    if weights is not None:
        named["weights"] = (g * loss)[:B] + (g * loss)[B:]
    return of_rows * loss, named


def metrics(
    features, labels, temperature, contrast_mode="all", normalize=True
) -> tuple[float, float]:
    """Return two metrics: a share of the rows, and a mean over all pairs.

    The first counts the rows whose largest other similarity is a positive's, among the rows with
    positives. The second is the mean similarity of all pairs of positives.
    """
    features = array(features)
    samples, views = features.shape[0], features.shape[1] if features.ndim == 3 else 1
    scale = 1.0 if normalize else 1 / float(array(temperature))
    pairs = Pairs(
        features.reshape(samples * views, features.shape[-1]), scale=scale, normalize=normalize
    )
    weight, found, hits = row_weights(samples, views, labels), [], []
    for row in range(0, samples * views, 1 if contrast_mode == "all" else views):
        other = np.arange(samples * views) != row
        positive = other & (weight[row] > 0)
        if positive.any():
            hits.append(pairs.s[row, positive].max() >= pairs.s[row, other].max())
            found.extend(pairs.s[row, positive])
    return float(np.mean(hits)), float(np.mean(found))
