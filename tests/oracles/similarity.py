"""This is the float64 oracle of the similarity family.

It has explicit formulas in NumPy for values and gradients, row by row. Nothing here comes from the
package.

Similarities are ``s[i, j] = scale * <a_i, b_j> + bias_j``. Each row of a loss gives its value and
its derivative by every similarity. `Pairs.gradients` carries those derivatives to the embeddings,
the scale and the bias. The rows are written so that nothing cancels when training has converged.
The derivative at the positive is minus the sum of the others, never ``p - 1``.
"""

from __future__ import annotations

import numpy as np


def array(x) -> np.ndarray:
    """Return a tensor, array or number as float64, exactly."""
    return np.asarray(
        x.detach().cpu().double().numpy() if hasattr(x, "detach") else x, dtype=np.float64
    )


def candidate_matrix(
    kind, M, N, self_offset=None, pair_stride=None, key_a=None, key_b=None
) -> np.ndarray:
    """Return ``[M, N]`` booleans from the definition of each kind.

    If `self_offset` is None, there is no self.
    """
    key_a, key_b = (None if key is None else key.tolist() for key in (key_a, key_b))

    def is_candidate(i, j):
        is_self = self_offset is not None and j == i + self_offset
        if kind == "all":
            return True
        if kind == "not_self":
            return not is_self
        if kind == "not_pair":
            return (j - i - (self_offset or 0)) % pair_stride != 0
        if kind == "other_key":
            return key_b[j] != key_a[i]
        assert kind == "same_key"
        return key_b[j] == key_a[i] and not is_self

    return np.array([[is_candidate(i, j) for j in range(N)] for i in range(M)], dtype=bool).reshape(
        M, N
    )


def log_sum_exp(values: np.ndarray) -> float:
    """Return the log of the sum of exp(values). It is -inf over nothing or over -inf only."""
    top = values.max(initial=-np.inf)
    return top if np.isneginf(top) else top + np.log(np.exp(values - top).sum())


def softmax(values: np.ndarray) -> np.ndarray:
    """Return the softmax, or zeros where every value is -inf."""
    top = values.max(initial=-np.inf)
    if np.isneginf(top):
        return np.zeros_like(values)
    e = np.exp(values - top)
    return e / e.sum()


def lse_row(s: np.ndarray, keep: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the log-sum-exp of a row's candidates, and its derivative by every similarity."""
    ds = np.zeros_like(s)
    ds[keep] = softmax(s[keep])
    return log_sum_exp(s[keep]), ds


def cross_entropy_row(s: np.ndarray, target: int, keep: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the cross entropy of one row, and its derivative by every similarity.

    The value is ``-log(exp(s_t) / (exp(s_t) + sum of exp over the kept others))``.
    """
    others = keep.copy()
    others[target] = False
    ds = np.zeros_like(s)
    gap = log_sum_exp(s[others]) - s[target]
    loss = np.log1p(np.exp(gap)) if gap < 0 else gap + np.log1p(np.exp(-gap))
    probability_of_others = 1 / (1 + np.exp(-gap)) if gap > -700 else np.exp(gap)
    ds[others] = probability_of_others * softmax(s[others])
    ds[target] = -probability_of_others
    return loss, ds


class Pairs:
    """The pairs hold the similarities of the rows of a with those of b.

    If b is None, both are rows of a. The chain rule leads back to a, b, scale and bias.
    """

    def __init__(self, a, b=None, scale=1.0, bias=None, normalize=False):
        self.scale, self.normalize = float(scale), normalize
        self.raw = [array(a)] + ([] if b is None else [array(b)])
        self.norms = [np.maximum(np.sqrt((x * x).sum(1)), 1e-12) for x in self.raw]
        units = [
            x / n[:, None] if normalize else x for x, n in zip(self.raw, self.norms, strict=True)
        ]
        self.a, self.b = units[0], units[-1]
        self.dots = self.a @ self.b.T
        self.s = self.scale * self.dots + (0.0 if bias is None else array(bias)[None, :])

    def gradients(self, ds: np.ndarray) -> dict[str, np.ndarray]:
        """Return the gradients ``a``, ``b``, ``scale`` and ``bias``.

        They belong to the derivative `ds` by every similarity. For one set, ``b`` is absent.
        """
        flows = [self.scale * ds @ self.b, self.scale * ds.T @ self.a]
        if len(self.raw) == 1:
            flows = [flows[0] + flows[1]]
        for index, (x, norm) in enumerate(zip(self.raw, self.norms, strict=True)):
            if self.normalize:
                flows[index] = normalize_backward(x, norm, flows[index])
        named = dict(zip(("a", "b"), flows, strict=False))
        return named | {"scale": (ds * self.dots).sum(), "bias": ds.sum(0)}


def normalize_backward(x, norm, flow):
    """Return the gradient of x for the gradient `flow` of ``x / max(|x|, 1e-12)``."""
    out = flow / norm[:, None]
    above = (norm > 1e-12)[:, None]
    unit = x / norm[:, None]
    return np.where(above, out - unit * (unit * out).sum(1, keepdims=True), out)


def logsumexp(pairs: Pairs, keep, g_rows, g_cols=None):
    """Return ``(rows, cols, gradients)`` of the primitive.

    `g_rows` and `g_cols` are upstream gradients.
    """
    ds, rows, cols = np.zeros_like(pairs.s), [], []
    for i, s in enumerate(pairs.s):
        value, d = lse_row(s, keep[i])
        rows.append(value)
        ds[i] += g_rows[i] * d
    for j, s in enumerate(pairs.s.T):
        value, d = lse_row(s, keep[:, j])
        cols.append(value)
        if g_cols is not None:
            ds[:, j] += g_cols[j] * d
    return np.array(rows), np.array(cols), pairs.gradients(ds)


def cross_entropy(pairs: Pairs, target, keep, g, both=False):
    """Return ``(loss [M], gradients)`` of row-wise cross entropy against `target`.

    With `both`, the loss is the mean of rows and columns.
    """
    ds, loss = np.zeros_like(pairs.s), np.zeros(len(pairs.s))
    share = 0.5 if both else 1.0
    for i, s in enumerate(pairs.s):
        value, d = cross_entropy_row(s, target[i], keep[i])
        loss[i] += share * value
        ds[i] += share * g[i] * d
    if both:
        for j, s in enumerate(pairs.s.T):
            value, d = cross_entropy_row(s, target[j], keep[:, j])
            loss[j] += share * value
            ds[:, j] += share * g[j] * d
    return loss, pairs.gradients(ds)


def nt_xent(z1, z2, temperature, g, normalize=True):
    """Return ``(loss [2B], {z1, z2, temperature})``. Trailing dimensions are features."""
    z1, z2, temperature = array(z1), array(z2), float(temperature)
    B = len(z1)
    z = np.concatenate(
        [z1.reshape(B, z1[0].size if B else 0), z2.reshape(B, z2[0].size if B else 0)]
    )
    pairs = Pairs(z, scale=1 / temperature, normalize=normalize)
    partner = [(i + B) % (2 * B) for i in range(2 * B)]
    loss, grads = cross_entropy(pairs, partner, ~np.eye(2 * B, dtype=bool), g)
    return loss, {
        "z1": grads["a"][:B].reshape(z1.shape),
        "z2": grads["a"][B:].reshape(z2.shape),
        "temperature": -grads["scale"] / temperature**2,
    }


def info_nce(
    query,
    positive_key,
    negative_keys,
    temperature,
    g,
    negative_mode="unpaired",
    normalize=True,
    symmetric=False,
):
    """Return ``(loss [N], gradients by argument name)``."""
    temperature, N = float(temperature), len(query)
    if negative_keys is None:
        pairs = Pairs(query, positive_key, 1 / temperature, normalize=normalize)
        loss, grads = cross_entropy(pairs, range(N), np.ones((N, N), dtype=bool), g, both=symmetric)
        named = {
            "query": grads["a"],
            "positive_key": grads["b"],
            "temperature": -grads["scale"] / temperature**2,
        }
        return loss, named
    query, positive_key, negative_keys = array(query), array(positive_key), array(negative_keys)
    loss = np.zeros(N)
    out = {
        name: np.zeros_like(x)
        for name, x in (
            ("query", query),
            ("positive_key", positive_key),
            ("negative_keys", negative_keys),
        )
    }
    out["temperature"] = 0.0
    for i in range(N):
        own = negative_keys[i] if negative_mode == "paired" else negative_keys
        pairs = Pairs(
            query[i : i + 1],
            np.concatenate([positive_key[i : i + 1], own]),
            1 / temperature,
            normalize=normalize,
        )
        value, grads = cross_entropy(
            pairs, [0], np.ones((1, 1 + len(own)), dtype=bool), g[i : i + 1]
        )
        loss[i] = value[0]
        out["query"][i] += grads["a"][0]
        out["positive_key"][i] += grads["b"][0]
        if negative_mode == "paired":
            out["negative_keys"][i] += grads["b"][1:]
        else:
            out["negative_keys"] += grads["b"][1:]
        out["temperature"] -= grads["scale"] / temperature**2
    return loss, out


def clip(image_features, text_features, logit_scale, g):
    """Return ``(loss [N], gradients by argument name)``.

    The loss is the mean of both directions. Nothing is normalised.
    """
    N = len(image_features)
    pairs = Pairs(image_features, text_features, logit_scale)
    loss, grads = cross_entropy(pairs, range(N), np.ones((N, N), dtype=bool), g, both=True)
    return loss, {
        "image_features": grads["a"],
        "text_features": grads["b"],
        "logit_scale": grads["scale"],
    }


def n_pairs(anchors, positives, target, g, normalize=True):
    """Return ``(loss [B], gradients by argument name)``.

    The loss is the cross entropy of each anchor against the positives, by rows only.
    """
    B = len(anchors)
    pairs = Pairs(anchors, positives, normalize=normalize)
    target = range(B) if target is None else [int(t) for t in target]
    loss, grads = cross_entropy(pairs, target, np.ones((B, B), dtype=bool), g)
    return loss, {"anchors": grads["a"], "positives": grads["b"]}


def cpc(predictions, latents, g, keys=None, weights=None):
    """Return ``(loss [K, B], accuracy, gradients)``.

    The loop goes over batch and step. Candidates belong to the same step.
    """
    predictions, latents = array(predictions), array(latents)
    K, B, _ = predictions.shape
    loss, hits = np.zeros((K, B)), 0
    d_predictions, d_latents = np.zeros_like(predictions), np.zeros_like(latents)
    key = np.arange(B) if keys is None else array(keys)
    of_rows = np.ones(B) if weights is None else array(weights)
    for i in range(B):
        for step in range(K):
            scores = latents[step] @ predictions[step, i]
            keep = (key != key[i]) | (np.arange(B) == i)
            loss[step, i], ds = cross_entropy_row(scores, i, keep)
            hits += scores[i] >= scores[keep].max()
            d_predictions[step, i] = of_rows[i] * g[step, i] * (ds @ latents[step])
            d_latents[step] += of_rows[i] * g[step, i] * np.outer(ds, predictions[step, i])
    named = {"predictions": d_predictions, "latents": d_latents}
    if weights is not None:
        named["weights"] = (g * loss).sum(0)
    return of_rows * loss, hits / (K * B), named


def top1(s: np.ndarray, target, keep: np.ndarray) -> float:
    """Return the share of rows whose positive is at least their largest other candidate."""
    hits = 0
    for i, row in enumerate(s):
        others = keep[i].copy()
        others[target[i]] = False
        hits += row[target[i]] >= row[others].max(initial=-np.inf)
    return hits / len(s)
