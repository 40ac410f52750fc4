"""This is the float64 oracle of the options of the losses with one positive.

It computes rows by explicit formulas in NumPy. Nothing here comes from the package.
"""

from __future__ import annotations

import math

import numpy as np

from oracles.similarity import Pairs, array, log_sum_exp, softmax


def row(c, scale, target, keep, bias, label_smoothing=0.0, margin=0.0, hardness=0.0, tau_plus=0.0):
    """Return ``(loss, derivative by every logit, by scale)`` of one row of similarities c.

    `hardness` is a number, or one for each column.

    The derivative by a logit is also that by ``bias_j`` and by ``scale c_j``. `hardness` times c is
    no part of the latter.
    """
    hardness = np.broadcast_to(hardness, c.shape)
    logits = (scale + hardness) * c + bias
    others = keep & (np.arange(len(c)) != target) & ~np.isneginf(bias)
    n = int(others.sum())
    plain = scale * c[target] + bias[target]
    pos = plain - scale * margin
    lse, d_lse = log_sum_exp(logits[others]), softmax(logits[others])
    d_plain = d_scale = 0.0
    if tau_plus and n:
        top = max(lse, plain)
        left = math.exp(lse - top) - tau_plus * n * math.exp(plain - top)
        if left / (1 - tau_plus) > n * math.exp(-abs(scale) - top):
            d_lse, d_plain = (
                d_lse * math.exp(lse - top) / left,
                -tau_plus * n * math.exp(plain - top) / left,
            )
            lse = top + math.log(left / (1 - tau_plus))
        else:
            lse, d_lse, d_scale = math.log(n) - abs(scale), 0 * d_lse, -math.copysign(1, scale)
    gap = lse - pos
    loss = np.log1p(np.exp(gap)) if gap < 0 else gap + np.log1p(np.exp(-gap))
    q = 1 / (1 + np.exp(-gap)) if gap > -700 else np.exp(gap)
    d_pos, d_logits = -q + label_smoothing * n / (n + 1), np.zeros_like(c)
    d_logits[others] = q * d_lse - label_smoothing / (n + 1)
    loss += label_smoothing * (n * pos - logits[others].sum()) / (n + 1)
    d_scale = (
        q * d_scale + (d_logits * c).sum() + d_pos * (c[target] - margin) + q * d_plain * c[target]
    )
    d_logits[target] = d_pos + q * d_plain
    return loss, d_logits, d_scale


def rows(c, scale, target, keep, g, bias=None, hardness=0.0, **options):
    """Return ``(losses, derivatives by logits, by scale)`` of all rows.

    The upstream gradients are `g`. The bias and `hardness` are those of the columns, or of each
    row's columns.
    """
    bias = np.broadcast_to(np.zeros(c.shape[1]) if bias is None else bias, c.shape)
    hardness = np.broadcast_to(hardness, c.shape)
    losses, d_logits, d_scale = np.zeros(len(c)), np.zeros(c.shape), 0.0
    for i in range(len(c)):
        losses[i], d, ds = row(
            c[i], scale, target[i], keep[i], bias[i], hardness=hardness[i], **options
        )
        d_logits[i], d_scale = g[i] * d, d_scale + g[i] * ds
    return losses, d_logits, d_scale


def weighted(losses, weights, g):
    """Return ``(w l, upstream gradient of l, gradient of w)``."""
    if weights is None:
        return losses, g, {}
    return weights * losses, weights * g, {"weights": g * losses}


def different(rows, columns):
    """Return booleans that tell where the column's key is not the row's."""
    return np.array([[i != j for j in columns] for i in rows], dtype=bool).reshape(
        len(rows), len(columns)
    )


def optional(x):
    return None if x is None else array(x)


def nt_xent(z1, z2, temperature, g, normalize=True, keys=None, weights=None, bias=None, **options):
    """Return ``(loss [2B], gradients by argument name)``."""
    z1, z2, temperature, bias, weights = (
        array(z1),
        array(z2),
        float(temperature),
        optional(bias),
        optional(weights),
    )
    B = len(z1)
    pairs = Pairs(np.concatenate([z1, z2]), scale=1 / temperature, normalize=normalize)
    keys = np.tile(range(B) if keys is None else keys.tolist(), 2)
    tiled = [None if x is None else np.tile(x, 2) for x in (weights, bias)]
    upstream = g if weights is None else g * tiled[0]
    target = [(i + B) % (2 * B) for i in range(2 * B)]
    losses, d, d_scale = rows(
        pairs.dots, 1 / temperature, target, different(keys, keys), upstream, tiled[1], **options
    )
    losses, _, named = weighted(losses, tiled[0], g)
    named = {name: x[:B] + x[B:] for name, x in named.items()}
    if bias is not None:
        named["bias"] = d.sum(0)[:B] + d.sum(0)[B:]
    flow = pairs.gradients(d)["a"]
    return losses, named | {
        "z1": flow[:B],
        "z2": flow[B:],
        "temperature": -d_scale / temperature**2,
    }


def two_sets(
    a,
    b,
    scale,
    g,
    normalize,
    both=False,
    target=None,
    keys=None,
    weights=None,
    bias=None,
    **options,
):
    """Return ``(losses, gradients a, b, scale, weights, bias)`` of rows of a against rows of b.

    The bias is that of the columns. With `both` it is that of either set.
    """
    M, N, scale, bias, weights = len(a), len(b), float(scale), optional(bias), optional(weights)
    pairs = Pairs(a, b, scale, normalize=normalize)
    target = list(range(M)) if target is None else [int(t) for t in target]
    keys = list(range(N)) if keys is None else keys.tolist()
    upstream = (g if weights is None else g * weights) * (0.5 if both else 1.0)
    keep = different([keys[t] for t in target], keys)
    losses, d, d_scale = rows(pairs.dots, scale, target, keep, upstream, bias, **options)
    d_bias = d.sum(0)
    if both:
        back, d_back, ds_back = rows(pairs.dots.T, scale, target, keep.T, upstream, bias, **options)
        losses, d, d_scale, d_bias = (
            (losses + back) / 2,
            d + d_back.T,
            d_scale + ds_back,
            d_bias + d_back.sum(0),
        )
    losses, _, named = weighted(losses, weights, g)
    named |= {} if bias is None else {"bias": d_bias}
    flows = pairs.gradients(d)
    return losses, named | {"a": flows["a"], "b": flows["b"], "scale": d_scale}


def renamed(result, a, b, scale=None, temperature=None):
    losses, named = result
    found = {a: named.pop("a"), b: named.pop("b")}
    d_scale = named.pop("scale")
    if scale:
        found[scale] = d_scale
    if temperature is not None:
        found["temperature"] = -d_scale / temperature**2
    return losses, found | named


def info_nce(
    query,
    positive_key,
    temperature,
    g,
    negative_keys=None,
    negative_mode="unpaired",
    normalize=True,
    symmetric=False,
    keys=None,
    weights=None,
    bias=None,
    **options,
):
    """Return ``(loss [N], gradients by argument name)``."""
    temperature, N = float(temperature), len(query)
    if negative_keys is None or negative_mode == "in_batch":
        columns = (
            array(positive_key)
            if negative_keys is None
            else np.concatenate([array(positive_key), array(negative_keys)])
        )
        found = two_sets(
            query,
            columns,
            1 / temperature,
            g,
            normalize,
            both=symmetric,
            keys=keys,
            weights=weights,
            bias=bias,
            **options,
        )
        losses, named = renamed(found, "query", "positive_key", temperature=temperature)
        if negative_keys is not None:
            named["negative_keys"] = named["positive_key"][N:]
            named["positive_key"] = named["positive_key"][:N]
        return losses, named
    paired = negative_mode == "paired"
    query, positive_key, negative_keys, bias, weights = (
        optional(x) for x in (query, positive_key, negative_keys, bias, weights)
    )
    losses = np.zeros(N)
    given = {
        "query": query,
        "positive_key": positive_key,
        "negative_keys": negative_keys,
        "bias": bias,
        "weights": weights,
    }
    out = {name: np.zeros_like(x) for name, x in given.items() if x is not None} | {
        "temperature": 0.0
    }
    for i in range(N):
        place = np.s_[i] if paired else np.r_[i, N : N + len(negative_keys)]
        own = negative_keys[i] if paired else negative_keys
        pairs = Pairs(
            query[i : i + 1],
            np.concatenate([positive_key[i : i + 1], own]),
            1 / temperature,
            normalize=normalize,
        )
        mine = None if keys is None else keys.numpy()[place].tolist()
        keep = np.ones((1, 1 + len(own)), dtype=bool) if keys is None else different(mine[:1], mine)
        w = 1.0 if weights is None else weights[i]
        loss, d, d_scale = rows(
            pairs.dots,
            1 / temperature,
            [0],
            keep,
            [g[i] * w],
            None if bias is None else bias[place],
            **options,
        )
        losses[i] = w * loss[0]
        flows = pairs.gradients(d)
        out["query"][i] = flows["a"][0]
        out["positive_key"][i] = flows["b"][0]
        out["negative_keys"][i if paired else slice(None)] += flows["b"][1:]
        out["temperature"] -= d_scale / temperature**2
        if bias is not None:
            out["bias"][place] += d[0]
        if weights is not None:
            out["weights"][i] = g[i] * loss[0]
    return losses, out


def clip(image_features, text_features, logit_scale, g, **options):
    """Return ``(loss [N], gradients by argument name)``. A bias is that of the pairs."""
    found = two_sets(image_features, text_features, logit_scale, g, False, both=True, **options)
    return renamed(found, "image_features", "text_features", "logit_scale")


def n_pairs(anchors, positives, g, normalize=True, **options):
    """Return ``(loss [B], gradients by argument name)``."""
    return renamed(
        two_sets(anchors, positives, 1.0, g, normalize, **options), "anchors", "positives"
    )


def ranking(
    query,
    positive_key,
    temperature,
    g,
    negative_keys=None,
    directions=("query_to_doc",),
    partition="joint",
    normalize=True,
    keys=None,
    weights=None,
    hardness=0.0,
    hardness_mode="all_negatives",
):
    """Return ``(loss [N], gradients by argument name)``.

    Each direction's similarities come from explicit pairs. The directions are joined or averaged.
    """
    query, positive_key, temperature, N = (
        array(query),
        array(positive_key),
        float(temperature),
        len(query),
    )
    negatives = np.zeros((N, 0, query.shape[1])) if negative_keys is None else array(negative_keys)
    H, scale, weights = negatives.shape[1], 1 / temperature, optional(weights)
    docs = np.concatenate([positive_key, *(negatives[:, h] for h in range(H))])
    keys = list(range(N)) if keys is None else keys.tolist()
    owner = np.tile(np.arange(N), 1 + H)
    other = different(keys, np.tile(keys, 1 + H))
    mine = np.arange(N)[:, None] == owner[None, :]
    hard = mine & (np.arange(len(docs)) >= N)[None, :]
    harder = {
        "all_negatives": np.ones_like(hard),
        "in_batch_negatives": ~mine,
        "hard_negatives": hard,
    }[hardness_mode]
    tables = {"query_to_doc": (query, docs, other | mine, hardness * harder)}
    if "query_to_query" in directions:
        tables["query_to_query"] = (query, query, other[:, :N], 0.0)
    if "doc_to_query" in directions:
        tables["doc_to_query"] = (positive_key, query, other[:, :N] | np.eye(N, dtype=bool), 0.0)
    if "doc_to_doc" in directions:
        tables["doc_to_doc"] = (positive_key, docs, other, 0.0)
    pairs = {name: Pairs(a, b, scale, normalize=normalize) for name, (a, b, _, _) in tables.items()}
    groups = [[name] for name in tables] if partition == "per_direction" else [list(tables)]
    losses, d_scale, flows = np.zeros(N), 0.0, {"query": 0.0, "docs": 0.0}
    for group in groups:
        c = np.concatenate([pairs[name].dots for name in group], 1)
        keep = np.concatenate([tables[name][2] for name in group], 1)
        strength = np.concatenate(
            [np.broadcast_to(tables[name][3], pairs[name].dots.shape) for name in group], 1
        )
        upstream = (g if weights is None else g * weights) / len(groups)
        loss, d, ds = rows(c, scale, range(N), keep, upstream, hardness=strength)
        losses, d_scale = losses + loss / len(groups), d_scale + ds
        for name in group:
            width = pairs[name].dots.shape[1]
            (part, d), named = (d[:, :width], d[:, width:]), ("query", "docs")
            found = pairs[name].gradients(part)
            first, last = name.split("_to_")
            for role, flow in ((first, found["a"]), (last, found["b"])):
                role = named[role == "doc"]
                size = N if role == "query" else len(docs)
                flows[role] = flows[role] + np.pad(flow, ((0, size - len(flow)), (0, 0)))
    losses, _, named = weighted(losses, weights, g)
    d_docs = flows["docs"]
    named |= {
        "query": flows["query"],
        "positive_key": d_docs[:N],
        "temperature": -d_scale / temperature**2,
    }
    if negative_keys is not None:
        named["negative_keys"] = d_docs[N:].reshape(H, N, -1).transpose(1, 0, 2)
    return losses, named


def distill(
    image_features,
    text_features,
    logit_scale,
    teacher_image_features,
    teacher_text_features,
    teacher_logit_scale,
    g,
    weights=None,
):
    """Return ``(loss [N], gradients of the student's arguments)``.

    The targets are soft, in both directions.
    """
    pairs, weights = Pairs(image_features, text_features, logit_scale), optional(weights)
    teacher = (
        float(teacher_logit_scale) * array(teacher_image_features) @ array(teacher_text_features).T
    )
    N = len(teacher)
    losses, d = np.zeros(N), np.zeros((N, N))
    upstream = (g if weights is None else g * weights) / 2
    for s, t, ds in ((pairs.s, teacher, d), (pairs.s.T, teacher.T, d.T)):
        for i in range(N):
            p = softmax(t[i])
            losses[i] += (p * (log_sum_exp(s[i]) - s[i])).sum() / 2
            ds[i] += upstream[i] * (softmax(s[i]) - p)
    losses, _, named = weighted(losses, weights, g)
    flows = pairs.gradients(d)
    return losses, named | {
        "image_features": flows["a"],
        "text_features": flows["b"],
        "logit_scale": flows["scale"],
    }
