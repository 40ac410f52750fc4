"""The Triton gate compiles the kernels that these calls launch.

The calls are forward and backward passes on tensors without storage. Dimensions are those of the
contracts in ``fused_contrastive/ops``. Each family has a class of scenarios, a list of them, and
the calls that one scenario makes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

# This import registers the ops.
import fused_contrastive  # noqa: F401


@dataclass(frozen=True)
class Similarity:
    """A scenario is one forward and backward pass of the similarity family.

    Without `N` there is one set.
    """

    name: str
    dtype: str
    M: int
    D: int
    N: int | None = None
    G: int = 1
    kind: str = "not_pair"
    bias: bool = False
    normalize: bool = True
    columns: bool = False
    weighted: bool = False
    paired: bool = True
    precision: str = "highest"


@dataclass(frozen=True)
class Sigmoid:
    """A scenario is one forward and backward pass of the sigmoid family.

    Without `N` there is one set.
    """

    name: str
    dtype: str
    M: int
    D: int
    N: int | None = None
    G: int = 1
    kind: str = "not_self"
    sign: int = 1
    normalize: bool = False
    extrema: bool = False
    precision: str = "highest"


@dataclass(frozen=True)
class Force:
    """A scenario is one call of each op of the force family.

    Half of its P points are rows.
    """

    name: str
    dtype: str
    P: int
    D: int
    G: int = 1
    K: int = 5
    kind: str = "loss"
    precision: str = "highest"


SIMILARITY = (
    Similarity("nt_xent", "bfloat16", 8192, 64),
    Similarity("nt_xent", "bfloat16", 8192, 128),
    Similarity("nt_xent", "bfloat16", 65536, 512),
    Similarity("nt_xent", "float16", 8192, 512),
    Similarity("nt_xent, ragged", "bfloat16", 1000, 100),
    Similarity("nt_xent", "float32", 8192, 512),
    Similarity("nt_xent, tf32", "float32", 8192, 512, precision="high"),
    Similarity("nt_xent", "float64", 2048, 512),
    Similarity("clip", "bfloat16", 8192, 512, 8192, kind="not_self", normalize=False, columns=True),
    Similarity("clip, bias", "float32", 8192, 512, 8192, kind="not_self", bias=True, columns=True),
    Similarity(
        "keys, bias",
        "bfloat16",
        4096,
        512,
        8192,
        kind="same_key",
        bias=True,
        columns=True,
        paired=False,
    ),
    Similarity("keys", "bfloat16", 8192, 64, kind="other_key", paired=False),
    Similarity("queue", "bfloat16", 1024, 64, 65536, kind="all", weighted=True, paired=False),
    Similarity(
        "queue", "bfloat16", 1024, 128, 65536, kind="all", bias=True, weighted=True, paired=False
    ),
    Similarity("queue", "bfloat16", 1024, 512, 65536, kind="all", weighted=True, paired=False),
    Similarity("queue, learnt", "bfloat16", 1024, 64, 65536, kind="all", paired=False),
    Similarity("queue, learnt", "bfloat16", 1024, 128, 65536, kind="all", bias=True, paired=False),
    Similarity("paired negatives", "bfloat16", 1, 128, 256, 1024, kind="all", paired=False),
    Similarity("paired negatives", "float32", 1, 128, 256, 1024, kind="all", paired=False),
)
SIGMOID = (
    Sigmoid("siglip", "bfloat16", 8192, 64, 8192),
    Sigmoid("siglip", "bfloat16", 8192, 128, 8192),
    Sigmoid("siglip", "bfloat16", 32768, 512, 32768),
    Sigmoid("siglip, metrics", "bfloat16", 8192, 512, 8192, extrema=True),
    Sigmoid("siglip", "float16", 8192, 512, 8192),
    Sigmoid("siglip, ragged", "bfloat16", 1000, 100, 1000),
    Sigmoid("siglip", "float32", 8192, 512, 8192),
    Sigmoid("siglip, tf32", "float32", 8192, 512, 8192, precision="high"),
    Sigmoid("siglip", "float64", 2048, 512, 2048),
    Sigmoid("pairs", "bfloat16", 8192, 64, kind="same_key", sign=-1, normalize=True),
    Sigmoid("pairs", "bfloat16", 8192, 512, kind="same_key", sign=-1, normalize=True),
    Sigmoid("pairs", "float32", 8192, 512, kind="same_key", sign=-1, normalize=True),
    Sigmoid("negatives of another rank", "bfloat16", 8192, 512, 8192, kind="all"),
    Sigmoid("groups of few rows", "bfloat16", 8, 128, 256, 1024, kind="all"),
    Sigmoid("groups of few rows", "float32", 8, 128, 256, 1024, kind="all"),
)
FORCE = (
    *(Force("force loss", "float32", P, 256, 256) for P in (16, 32, 64, 128)),
    Force("force loss", "bfloat16", 128, 256, 256),
    Force("force loss, tf32", "float32", 128, 256, 256, precision="high"),
    Force("force loss, ragged", "float32", 100, 70, 256),
    Force("force loss", "float32", 256, 256, 64),
    Force("force loss", "float64", 64, 64, 16),
    Force("force loss", "float64", 128, 64, 16),
    Force("force loss", "float32", 4096, 128),
    Force("force loss, tf32", "float32", 4096, 128, precision="high"),
    Force("force loss, ragged", "float32", 1000, 100),
    Force("force loss", "float64", 2048, 64),
    Force("force of each temperature", "float32", 128, 256, 256, kind="each"),
    Force("force of each temperature", "float32", 4096, 256, kind="each"),
    Force("force", "float32", 128, 256, 256, K=1, kind="force"),
    Force("force", "float32", 4096, 256, K=1, kind="force"),
    Force("drift", "float32", 100, 768, 64, K=3, kind="drift"),
    Force("drift", "float32", 1024, 768, 4, K=3, kind="drift"),
    Force("drift field", "float32", 4096, 2, K=1, kind="field"),
)
SCENARIOS = (*SIMILARITY, *FORCE, *SIGMOID)
FORCE_PRODUCTS = {
    "force_group": "scratch",
    "distance_group": "scratch",
    "force_rows": "points",
    "distance_pull": "points",
}
"""These kernels multiply weights with coordinates. The named argument has the type of both."""


def call(name: str, *arguments):
    """Calls the registered op `name` as it runs on a device, with the Triton backend.

    An op on meta tensors would be answered by its fake implementation. Redispatched as a CPU call,
    it reaches the backend through the package's own code. It does not matter what the functions
    between them are called.
    """
    op = getattr(torch.ops.fused_contrastive, name).default
    real = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    return op.redispatch(real, *arguments, "triton")


def meta(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def operands(s: Similarity | Sigmoid, additive) -> tuple:
    """Returns the op's first six arguments.

    They are a, b, scale, `additive` (a bias), and the keys of both sets.
    """
    dtype, N = getattr(torch, s.dtype), s.N or s.M
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    a = meta(s.G, s.M, s.D, dtype=dtype)
    b = None if s.N is None else meta(s.G, N, s.D, dtype=dtype)
    key_a = meta(s.G, s.M, dtype=torch.int64)
    key_b = None if b is None else meta(s.G, N, dtype=torch.int64)
    bias = None if additive is None else meta(s.G, additive, dtype=accumulate)
    return a, b, meta(dtype=accumulate), bias, key_a, key_b


def run_similarity(s: Similarity) -> None:
    """Runs forward and backward of a similarity scenario."""
    dtype = getattr(torch, s.dtype)
    given = operands(s, (s.N or s.M) if s.bias else None)
    positive = (0 if s.N else s.M // 2) if s.paired else -1
    candidates = (s.kind, 0, max(1, s.M // 2), positive)
    flags = (s.normalize, s.columns, False, s.weighted)
    found = call("similarity_forward", *given, *candidates, *flags, dtype)
    rows, cols, pos, loss, _, _, *prepared = found
    g_rows = loss if s.paired else rows[0]
    g_cols = cols[0] if s.columns and not s.paired else cols.new_empty(0)
    two_sided = s.N is not None and not s.weighted
    need = (True, two_sided, True, s.bias and not s.weighted)
    saved = (rows, cols, pos, *prepared)
    options = (*candidates, s.normalize, dtype)
    call("similarity_backward", g_rows, g_cols, *given, *saved, *options, *need)


def run_sigmoid(s: Sigmoid) -> None:
    """Runs forward and backward of a sigmoid scenario, where not_self has a positive."""
    dtype = getattr(torch, s.dtype)
    given = operands(s, s.M)
    positive = 0 if s.kind == "not_self" else -1
    candidates = (s.kind, 0, 1, positive, s.sign, s.normalize)
    rows, pos, _, *prepared = call("sigmoid_forward", *given, *candidates, s.extrema, dtype)
    need = (True, s.N is not None, True, True)
    call("sigmoid_backward", rows, *given, pos, *prepared, *candidates, dtype, *need)


def run_force(s: Force) -> None:
    """Makes the calls of the package's functions of this kind. Half of the points are rows."""
    accumulate = torch.float64 if s.dtype == "float64" else torch.float32
    x = meta(s.G, s.P, s.D, dtype=getattr(torch, s.dtype))
    inverse, scale = meta(s.K, dtype=accumulate), meta(s.G, dtype=accumulate)
    rows, none, floor = s.P // 2, -math.inf, math.log(1e-6) / 2
    if s.kind == "drift":
        weight = meta(s.G, s.P, dtype=accumulate)
        call("distance_sums", x, weight, rows, 1e-8)
        options = (False, True, floor, floor, none, 1e-8, False, True)
        call("force_forward", x, inverse, scale, weight, rows, rows, *options)
    elif s.kind == "field":
        options = (False, True, none, none, math.log(1e-12), 0.0, False, False)
        call("force_forward", x, inverse, scale, None, rows, rows, *options)
    else:
        given = scale if s.kind == "force" else None
        options = (True, False, none, none, none, 0.0, s.kind != "each", s.kind == "each")
        call("force_forward", x, inverse, given, None, rows, rows, *options)
        call("distance_gradient", scale, x)


def run(scenario: Similarity | Sigmoid | Force) -> None:
    """Makes the calls of one scenario."""
    runs = {Similarity: run_similarity, Sigmoid: run_sigmoid, Force: run_force}
    runs[type(scenario)](scenario)
