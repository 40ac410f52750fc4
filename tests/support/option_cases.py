"""These rows of the test matrix (cases.py) are losses with options."""

from __future__ import annotations

import math

import torch
from oracles import options as options_oracle


def vectors(inputs, weights=None, bias=None):
    """Add differentiable weights in (0.5, 1.5) and biases around 0 to `inputs`.

    `weights` and `bias` give their shapes for n rows.
    """

    def drawn(n, d, spread, t, generator):
        named = inputs(n, d, spread, t, generator)
        if weights is not None:
            named["weights"] = 0.5 + torch.rand(
                weights(n), generator=generator, dtype=torch.float64
            )
        if bias is not None:
            named["bias"] = torch.randn(bias(n), generator=generator, dtype=torch.float64)
        return named

    return drawn


def keys(shape):
    """Draw integer keys of the given shape for n rows, some of them equal."""

    def drawn(n):
        place = torch.arange(math.prod(shape(n))).reshape(shape(n))
        return {"keys": (place * place + 3 * place) % max(1, n)}

    return drawn


def negatives(inputs, count, shared=False):
    """Add differentiable negatives to `inputs`: `count` for each row, or for all rows together."""

    def drawn(n, d, spread, t, generator):
        shape = (count, d) if shared else (n, count, d)
        named = inputs(n, d, spread, t, generator)
        return named | {
            "negative_keys": torch.randn(shape, generator=generator, dtype=torch.float64)
        }

    return drawn


def teacher(n):
    """Return features of another width for both sets, exact in every dtype, and their scale."""
    place = torch.arange(5 * n).reshape(n, 5)
    first = (place * place + 3 * place) % 11 - 5
    second = first + (place * place + place) % 7 - 3
    return {
        "teacher_image_features": first.double() / 8,
        "teacher_text_features": second.double() / 8,
        "teacher_logit_scale": torch.tensor(3.0, dtype=torch.float64),
    }


def rows(n):
    return (n,)


def both(n):
    return (n + 7,)


def candidates(n):
    return (n, 1 + 6)


SMOOTH = {"label_smoothing": 0.1}
ALL_DIRECTIONS = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")


def option_cases(two_views):
    """Return arguments of `Case` as ``(standard, more)``.

    The first are for the whole matrix, and the second for test_options.py.
    """
    views, nce = two_views("z1", "z2"), two_views("query", "positive_key")
    clip = two_views("image_features", "text_features", "logit_scale", unit=True)
    n_pairs = two_views("anchors", "positives", temperature="")
    paired = {"negative_mode": "paired"}
    ranked = negatives(nce, 3)

    def row(name, function, inputs, oracle, options, constants=None, target=None):
        return {
            "name": name,
            "function": function,
            "inputs": inputs,
            "oracle": oracle,
            "options": options,
            "constants": constants,
            "target": target,
        }

    def ranking(name, options, constants=None, inputs=ranked):
        function = "multiple_negatives_ranking_loss"
        return row(f"ranking-{name}", function, inputs, options_oracle.ranking, options, constants)

    def info_nce(name, inputs, options, constants=None):
        return row(
            f"info_nce-{name}", "info_nce_loss", inputs, options_oracle.info_nce, options, constants
        )

    def nt_xent(name, inputs, options, constants=None):
        return row(
            f"nt_xent-{name}", "nt_xent_loss", inputs, options_oracle.nt_xent, options, constants
        )

    standard = (
        nt_xent("options", vectors(views, rows, rows), SMOOTH | {"margin": 0.1}, keys(rows)),
        info_nce(
            "options",
            vectors(nce, rows),
            SMOOTH | {"symmetric": True, "margin": 0.1, "tau_plus": 0.05},
            keys(rows),
        ),
        info_nce(
            "paired-options",
            vectors(negatives(nce, 6), rows, candidates),
            SMOOTH | paired,
            keys(candidates),
        ),
        row(
            "n_pairs-options",
            "n_pairs_loss",
            vectors(n_pairs, rows, rows),
            options_oracle.n_pairs,
            SMOOTH | {"margin": 0.1},
            keys(rows),
            lambda n: (torch.arange(n) * 2 + 1) % max(n, 1),
        ),
        ranking("all", {"directions": ALL_DIRECTIONS}),
        row("distill", "distill_clip_loss", clip, options_oracle.distill, {}, teacher),
    )
    more = (
        nt_xent("keys", views, {}, keys(rows)),
        nt_xent("weights", vectors(views, rows), {}),
        nt_xent("bias", vectors(views, None, rows), {}),
        nt_xent("tau_plus", views, {"tau_plus": 0.1}),
        nt_xent("tau_plus-large", views, {"tau_plus": 0.6}),
        nt_xent(
            "hardness",
            vectors(views, rows, rows),
            SMOOTH | {"margin": 0.1, "hardness": 2.0},
            keys(rows),
        ),
        nt_xent(
            "tau_plus-all",
            vectors(views, rows, rows),
            SMOOTH | {"margin": 0.1, "tau_plus": 0.05},
            keys(rows),
        ),
        info_nce("keys", nce, {"symmetric": True}, keys(rows)),
        info_nce("smooth", nce, SMOOTH),
        info_nce(
            "hardness",
            vectors(nce, rows),
            SMOOTH | {"symmetric": True, "hardness": 2.0},
            keys(rows),
        ),
        info_nce("bias", vectors(nce, rows, rows), {"symmetric": True}),
        info_nce("in_batch", negatives(nce, 7, True), {"negative_mode": "in_batch"}),
        info_nce(
            "in_batch-options",
            vectors(negatives(nce, 7, True), rows, both),
            SMOOTH | {"negative_mode": "in_batch", "margin": 0.1, "hardness": 2.0},
            keys(both),
        ),
        info_nce(
            "queue-options",
            vectors(negatives(nce, 7, True), rows, both),
            SMOOTH | {"margin": 0.1},
            keys(both),
        ),
        info_nce("queue-hardness", negatives(nce, 7, True), {"hardness": 2.0}),
        info_nce(
            "paired-tau_plus",
            vectors(negatives(nce, 6), None, candidates),
            paired | {"tau_plus": 0.05},
        ),
        row("clip-keys", "clip_loss", clip, options_oracle.clip, {}, keys(rows)),
        row(
            "clip-options",
            "clip_loss",
            vectors(clip, rows, rows),
            options_oracle.clip,
            SMOOTH | {"margin": 0.1, "hardness": 2.0},
            keys(rows),
        ),
        row(
            "n_pairs-keys",
            "n_pairs_loss",
            vectors(n_pairs, None, rows),
            options_oracle.n_pairs,
            SMOOTH,
            keys(rows),
        ),
        ranking("pairs", {}, keys(rows), nce),
        ranking("hard", {}),
        ranking(
            "hard-keys",
            {"hardness": 3.0, "hardness_mode": "hard_negatives"},
            keys(rows),
            vectors(ranked, rows),
        ),
        ranking("hardness", {"hardness": 3.0}),
        ranking(
            "symmetric",
            {"directions": ("query_to_doc", "doc_to_query"), "partition": "per_direction"},
        ),
        ranking(
            "symmetric-hardness",
            {
                "directions": ("query_to_doc", "doc_to_query"),
                "partition": "per_direction",
                "hardness": 3.0,
            },
            keys(rows),
        ),
        ranking(
            "all-hardness",
            {"directions": ALL_DIRECTIONS, "hardness": 3.0, "hardness_mode": "in_batch_negatives"},
        ),
        ranking("joint", {"directions": ALL_DIRECTIONS}, keys(rows)),
        ranking("joint-pairs", {"directions": ALL_DIRECTIONS}, None, nce),
        row(
            "distill-weights",
            "distill_clip_loss",
            vectors(clip, rows),
            options_oracle.distill,
            {},
            teacher,
        ),
    )
    return standard, more
