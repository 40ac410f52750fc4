"""The cases of ``python -m bench digest`` are every loss with its options, by public names only.

The list knows nothing of the tests and nothing of the package's inside. So it runs unchanged on any
revision that has the public functions. A loss that has no row here is called once, with the inputs
that `bench.losses` measures it with. Its module is called with the same inputs.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

import fused_contrastive as fc

from . import losses as measured
from .digest_inputs import (
    EVEN,
    LARGE,
    ONE,
    RAGGED,
    Draw,
    Size,
    bias,
    both_biases,
    column_bias,
    column_keys,
    distilled,
    guide,
    half_size,
    keys,
    labels,
    learnt,
    learnt_force,
    learnt_logits,
    learnt_sigmoid_logits,
    logits,
    more_columns,
    one,
    own_bias,
    own_negatives,
    pair_weights,
    permutation,
    point_weights,
    points,
    queue,
    queue_bias,
    queue_keys,
    sigmoid_logits,
    steps,
    strided,
    three_sets,
    three_views,
    two,
    views,
    weights,
)


class Loss(NamedTuple):
    """A loss has a function, its inputs, and the options to try.

    The first options are the plain ones.
    """

    call: Callable
    inputs: Callable[[Draw], list]
    options: tuple[dict, ...]
    reductions: tuple[str, ...] = ("none", "mean", "sum")


SHARED = (
    {"keys": keys},
    {"weights": weights},
    {"keys": keys, "weights": weights, "metrics": True},
)
SOFTMAX = (
    {},
    {"metrics": True},
    *SHARED,
    {"bias": bias},
    {"label_smoothing": 0.2},
    {"margin": 0.1},
    {"keys": keys, "bias": bias, "label_smoothing": 0.1, "margin": 0.05, "weights": weights},
)
HARD = ({"hardness": 0.7}, {"hardness": 0.7, "keys": keys, "metrics": True})
DEBIASED = ({"tau_plus": 0.1}, {"tau_plus": 0.1, "bias": bias})
TEMPERATURE = (
    {"temperature": learnt},
    {"temperature": 0.07},
    {"temperature": -0.4},
    {"temperature": 0.2, "normalize": False},
    {"temperature": learnt, "normalize": False},
)
QUEUE = {"negative_keys": queue}
OWN = {"negative_keys": own_negatives, "negative_mode": "paired"}
BESIDE = {"negative_keys": queue, "negative_mode": "in_batch"}
ALL_DIRECTIONS = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
BOTH = ("query_to_doc", "doc_to_query")
COLUMNS = {"b": more_columns}
FORCE = (
    {},
    {"mask_self": "softmax"},
    {"normalizer": "force_rms"},
    {"affinity_floor": 1e-6},
)
LOSSES = {
    "nt_xent": Loss(fc.nt_xent_loss, two, (*SOFTMAX, *HARD, *DEBIASED, *TEMPERATURE)),
    "nt_xent, strided": Loss(fc.nt_xent_loss, strided, ({}, {"bias": bias})),
    "info_nce": Loss(
        fc.info_nce_loss,
        two,
        (
            *SOFTMAX,
            *HARD,
            *DEBIASED,
            *TEMPERATURE,
            {"symmetric": True},
            {"symmetric": True, "temperature": learnt, "bias": bias, "keys": keys},
            {"symmetric": True, "label_smoothing": 0.1, "weights": weights, "metrics": True},
            QUEUE,
            {**QUEUE, "temperature": learnt, "metrics": True},
            {**QUEUE, "bias": queue_bias, "weights": weights},
            {**QUEUE, "keys": queue_keys, "label_smoothing": 0.1},
            {**QUEUE, "hardness": 0.5, "margin": 0.1},
            {**QUEUE, "tau_plus": 0.1},
            BESIDE,
            {**BESIDE, "temperature": learnt, "keys": queue_keys, "bias": queue_bias},
            {**BESIDE, "hardness": 0.5, "metrics": True},
            OWN,
            {**OWN, "temperature": learnt, "bias": own_bias},
            {**OWN, "tau_plus": 0.1, "weights": weights},
            {**OWN, "label_smoothing": 0.1, "metrics": True, "normalize": False},
        ),
    ),
    "clip": Loss(
        fc.clip_loss, logits, (*SOFTMAX, *HARD, {"logit_bias": 0.5}, {"bias": both_biases})
    ),
    "clip, learnt": Loss(fc.clip_loss, learnt_logits, ({}, {"bias": both_biases}, *SHARED)),
    "siglip": Loss(fc.siglip_loss, sigmoid_logits, ({}, {"metrics": True}, *SHARED)),
    "siglip, learnt": Loss(fc.siglip_loss, learnt_sigmoid_logits, ({}, {"keys": keys})),
    "n_pairs": Loss(
        fc.n_pairs_loss,
        two,
        (*SOFTMAX, {"normalize": False}, {"target": permutation}),
    ),
    "cpc": Loss(
        fc.cpc_loss,
        steps,
        ({}, {"keys": keys}, {"weights": weights}, {"keys": keys, "weights": weights}),
    ),
    "sup_con": Loss(
        fc.sup_con_loss,
        one,
        (
            {"labels": labels},
            {"labels": labels, "metrics": True},
            {"labels": labels, "weights": weights, "temperature": learnt},
            {"labels": labels, "skip_unmatched": True},
            {"labels": labels, "positives": "in"},
            {"labels": labels, "positives": "in", "skip_unmatched": True, "temperature": learnt},
            {"labels": labels, "positives": "pairs"},
            {"labels": labels, "positives": "pairs", "weights": weights, "metrics": True},
            {"labels": labels, "positives": "pairs", "temperature": learnt, "normalize": False},
            {"positive_weights": pair_weights, "temperature": learnt},
        ),
    ),
    "sup_con, two views": Loss(
        fc.sup_con_loss,
        views,
        (
            {},
            {"metrics": True, "temperature": learnt},
            {"labels": labels},
            {"labels": labels, "contrast_mode": "one"},
            {"positives": "in"},
            {"positives": "pairs"},
        ),
    ),
    "sup_con, three views": Loss(
        fc.sup_con_loss,
        three_views,
        (
            {},
            {"positives": "in", "weights": weights},
            {"positives": "pairs"},
            {"labels": labels, "positives": "pairs", "contrast_mode": "one"},
            {"contrast_mode": "one", "temperature": learnt},
        ),
    ),
    "dcl": Loss(fc.dcl_loss, two, ({}, {"metrics": True}, *SHARED, *TEMPERATURE)),
    "dclw": Loss(fc.dclw_loss, two, ({}, {"sigma": 0.3}, *SHARED, *TEMPERATURE[:2])),
    "ranking": Loss(
        fc.multiple_negatives_ranking_loss,
        two,
        (
            {},
            {"metrics": True, "temperature": learnt},
            *SHARED,
            {"negative_keys": own_negatives},
            {"negative_keys": own_negatives, "hardness": 0.5, "hardness_mode": "hard_negatives"},
            {"directions": ALL_DIRECTIONS},
            {"directions": ALL_DIRECTIONS, "negative_keys": own_negatives, "temperature": learnt},
            {"directions": ALL_DIRECTIONS, "keys": keys, "hardness": 0.5, "metrics": True},
            {"directions": BOTH, "partition": "per_direction", "weights": weights},
            {"normalize": False, "directions": BOTH},
        ),
    ),
    "guided_info_nce": Loss(
        fc.guided_info_nce_loss,
        two,
        (
            {},
            {"temperature": learnt, "margin": 0.1, "margin_strategy": "relative"},
            {"guide_query": guide, "guide_positive_key": guide, "weights": weights},
            {"negative_keys": queue, "contrast_queries": False, "contrast_positives": False},
        ),
    ),
    "distill_clip": Loss(fc.distill_clip_loss, distilled, ({}, {"weights": weights})),
    "correlation": Loss(fc.correlation_loss, two, ({}, {"lamb": 0.1, "scale_loss": 1.0}), ()),
    "barlow_twins": Loss(fc.barlow_twins_loss, two, ({}, {"lamb": 0.1}), ()),
    "contrastive_force": Loss(fc.contrastive_force, learnt_force, FORCE, ()),
    "contrastive_force_loss": Loss(
        fc.contrastive_force_loss,
        points,
        (
            *FORCE,
            {"normalizer": None, "temperatures": (0.5, 2.0)},
            {"scale": 3.0},
            {"scale": learnt},
            {"detach_scale": True},
        ),
    ),
    "drift": Loss(
        fc.drift_loss,
        three_sets,
        ({}, {"weight_gen": point_weights}, {"temperatures": (0.1,)}),
        (),
    ),
    "drift_field": Loss(fc.drift_field, points, ({}, {"temperature": 0.5}), ()),
    "similarity_logsumexp": Loss(
        fc.similarity_logsumexp,
        one,
        (
            {},
            {"scale": learnt, "candidates": "not_self"},
            {"candidates": "not_pair", "pair_stride": half_size, "normalize": True},
            {"candidates": "same_key", "key_a": keys, "return_columns": True},
            {"candidates": "other_key", "key_a": keys, "scale": learnt},
            {"bias": bias, "normalize": True, "scale": 3.0},
            COLUMNS,
            {**COLUMNS, "bias": column_bias, "scale": learnt, "return_columns": True},
            {**COLUMNS, "candidates": "not_self", "self_offset": 4, "normalize": True},
            {**COLUMNS, "candidates": "other_key", "key_a": keys, "key_b": column_keys},
            {**COLUMNS, "candidates": "same_key", "key_a": keys, "key_b": column_keys},
        ),
        (),
    ),
}
MODULES = {
    "NTXentLoss": (lambda: fc.NTXentLoss(0.2, learnable=True), two),
    "InfoNCELoss": (lambda: fc.InfoNCELoss(0.2, learnable=True, symmetric=True), two),
    "ClipLoss": (lambda: fc.ClipLoss(7.0, learnable=True), two),
    "SigLipLoss": (lambda: fc.SigLipLoss(7.0, -3.0, learnable=True), two),
    "NPairsLoss": (fc.NPairsLoss, two),
    "CPCLoss": (fc.CPCLoss, steps),
    "SupConLoss": (lambda: fc.SupConLoss(0.2, learnable=True), views),
    "DCLLoss": (lambda: fc.DCLLoss(0.2, learnable=True), two),
    "DCLWLoss": (fc.DCLWLoss, two),
    "MultipleNegativesRankingLoss": (fc.MultipleNegativesRankingLoss, two),
    "DistillClipLoss": (fc.DistillClipLoss, distilled),
    "GuidedInfoNCELoss": (fc.GuidedInfoNCELoss, two),
    "CorrelationLoss": (fc.CorrelationLoss, two),
    "BarlowTwinsLoss": (fc.BarlowTwinsLoss, two),
    "ContrastiveForceLoss": (fc.ContrastiveForceLoss, points),
    "DriftLoss": (fc.DriftLoss, three_sets),
}


def plain(name: str) -> Loss:
    """The row of a loss without options, on the inputs that `bench.losses` draws for it.

    Raises KeyError where that has no row of the name without ``_loss``.
    """
    label = name.removesuffix("_loss")
    row, function = measured.LOSSES[label], getattr(fc, name)

    def inputs(draw: Draw) -> list[torch.Tensor]:
        size = measured.Size(2 * draw.size.B, draw.size.K if row.takes_k else 0, draw.size.D)
        seed = draw.generator.initial_seed()
        return measured.make_inputs(label, size, draw.dtype, torch.device("cpu"), seed)

    inputs.__name__ = label
    call = functools.wraps(function)(lambda *tensors, **options: row.call(*tensors, **options))
    reductions = Loss._field_defaults["reductions"]
    has_reduction = "reduction" in inspect.signature(function).parameters
    return Loss(call, inputs, ({},), reductions if has_reduction else ())


def function_of(module: str) -> str:
    """The function that a module's docstring names: "x" of "Module form of `x`"."""
    return re.match(r"Module form of `(\w+)`", inspect.getdoc(getattr(fc, module)))[1]


for _name in fc.__all__:
    if _name.endswith("_loss") and all(x.call.__name__ != _name for x in LOSSES.values()):
        LOSSES[_name.removesuffix("_loss")] = plain(_name)
for _name in fc.__all__:
    if _name.endswith("Loss") and _name not in MODULES:
        MODULES[_name] = (getattr(fc, _name), plain(function_of(_name)).inputs)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
MORE_DTYPES = {**DTYPES, "fp16": torch.float16}


class Case(NamedTuple):
    """A case is one call: ``call(*inputs(draw), **options)``, with values of options drawn, too.

    With `second` the gradients are differentiated once more.
    """

    name: str
    call: Callable
    inputs: Callable[[Draw], list]
    options: dict
    size: Size
    dtype: torch.dtype
    second: bool = False


def written(options: dict) -> str:
    """Returns the options of a case as part of its name."""
    parts = (
        f"{name}={getattr(value, '__name__', value)}" for name, value in sorted(options.items())
    )
    return ", ".join(parts)


def cases(backends: tuple[str, ...]) -> Iterator[Case]:
    """Yields every case, in a fixed order."""
    for label, loss in LOSSES.items():
        for place, options in enumerate(loss.options):
            plain = place == 0
            sizes = (RAGGED, EVEN, ONE, LARGE) if plain else (RAGGED, EVEN)
            for size in sizes:
                for dtype_name, dtype in (MORE_DTYPES if plain else DTYPES).items():
                    reductions = loss.reductions if size != LARGE else loss.reductions[:1]
                    for reduction in reductions or (None,):
                        extra = {} if reduction is None else {"reduction": reduction}
                        for backend in backends:
                            chosen = {**options, **extra, "backend": backend}
                            name = f"{label}({written(chosen)}) {size} {dtype_name}"
                            yield Case(name, loss.call, loss.inputs, chosen, size, dtype)
    for label, (build, inputs) in MODULES.items():
        for dtype_name in ("fp32", "bf16"):
            name = f"{label} {RAGGED} {dtype_name}"
            yield Case(name, Module(build), inputs, {}, RAGGED, DTYPES[dtype_name])
    for label, loss in LOSSES.items():
        for backend in backends:
            chosen = {**loss.options[0], "backend": backend}
            name = f"{label}({written(chosen)}) {RAGGED} fp32, second derivatives"
            yield Case(name, loss.call, loss.inputs, chosen, RAGGED, torch.float32, second=True)


class Module:
    """This wraps a module as a function of its inputs and shows its parameters to the digest."""

    def __init__(self, build: Callable):
        self.build = build

    def __call__(self, *inputs):
        module = self.build()
        self.parameters = list(module.parameters())
        return module(*inputs)
