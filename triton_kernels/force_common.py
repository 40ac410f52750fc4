"""Device functions of the force kernels: distances from differences, log affinities, products with the coordinates.

Logarithms are kept in base 2 inside the kernels, so that an exponential is one ``exp2``. Comparisons that replace values are written so
that NaN stays NaN. Padding: the transposed points ``[features, LD]`` hold zeros past D and P, so their loads need no mask.
"""

import triton
import triton.language as tl

from .common import LOG2E, NEG_INF, finite, multiply

UNROLLED = tl.constexpr(4)


@triton.jit
def at_least(x, LOW: tl.constexpr):
    """max(x, LOW), NaN where x is."""
    return tl.where(x < LOW, LOW, x)


@triton.jit
def safe_scale(scale):
    """The scale, 1 where it is 0."""
    return tl.where(scale == 0.0, 1.0, scale)


@triton.jit
def tile_distances(
    points, i, j, features, LD, CLIP: tl.constexpr, ACC: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """d ``[BLOCK_M, BLOCK_N]`` of the points i.. to the points j.. of one group, transposed: ``[features, LD]``, features a multiple of
    BLOCK_K. Squares are summed over blocks of BLOCK_K features, then over the blocks."""
    rows = i + tl.arange(0, BLOCK_M)
    columns = j + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for _ in range(0, features, BLOCK_K):
        part = tl.zeros((BLOCK_M, BLOCK_N), ACC)
        for _ in range(0, BLOCK_K, UNROLLED):
            for k in tl.static_range(UNROLLED):
                difference = tl.load(points + k * LD + rows)[:, None] - tl.load(points + k * LD + columns)[None, :]
                part = tl.fma(difference, difference, part)
            points += UNROLLED * LD
        total += part
    if CLIP > 0:
        total = at_least(total, CLIP)
    return tl.sqrt(total)


@triton.jit
def log_affinity(
    d, factor, R, C, itself, inside, SELF: tl.constexpr, FLOOR: tl.constexpr, DENOMINATOR: tl.constexpr,
):  # fmt: skip
    """a in base 2 (force_ops.py) of a tile, -inf outside; `factor`, R ``[BLOCK_M]`` and C ``[BLOCK_N]`` in base 2."""
    product = R[:, None] + C[None, :]
    if DENOMINATOR > NEG_INF:
        product = at_least(product, DENOMINATOR * LOG2E)
    a = tl.fma(d, -factor, product * -0.5)
    if FLOOR > NEG_INF:
        a = at_least(a, FLOOR * LOG2E)
    a = tl.where(itself, SELF * LOG2E, a)
    return tl.where(inside[None, :], a, NEG_INF)


@triton.jit
def log_sum(s, AXIS: tl.constexpr):
    """log2 of the sum of exp2(s) along an axis; -inf over nothing."""
    shift = finite(tl.max(s, AXIS))
    return shift + tl.log2(tl.sum(tl.exp2(s - tl.expand_dims(shift, AXIS)), AXIS))


@triton.jit
def side_sums(a, negative, weight, HAS_WEIGHT: tl.constexpr):
    """Of a tile: E relative to the maximum of its side in the tile, the maxima of both sides and the sums of E."""
    top_negative = tl.max(tl.where(negative[None, :], a, NEG_INF), 1)
    top_positive = tl.max(tl.where(negative[None, :], NEG_INF, a), 1)
    top = tl.where(negative[None, :], finite(top_negative)[:, None], finite(top_positive)[:, None])
    e = tl.exp2(a - top)
    if HAS_WEIGHT:
        e *= weight[None, :]
    sum_negative = tl.sum(tl.where(negative[None, :], e, 0.0), 1)
    sum_positive = tl.sum(tl.where(negative[None, :], 0.0, e), 1)
    return e, top_negative, top_positive, sum_negative, sum_positive


@triton.jit
def square_sums(d, a):
    """(shift, sum): log2 of a row's sum of (d A)^2 is shift + log2(sum). The shift is taken over pairs that are apart."""
    top = tl.max(tl.where(d == 0.0, NEG_INF, a), 1)
    term = tl.where(d == 0.0, 0.0, d * tl.exp2(a - finite(top)[:, None]))
    return 2.0 * top, tl.sum(term * term, 1)


@triton.jit
def slope(d, g):
    """``2 g / d``, 0 where d is 0."""
    return tl.where(d == 0.0, 0.0, 2.0 * g / tl.where(d == 0.0, 1.0, d))


@triton.jit
def centred(x, k, P, D, ACC: tl.constexpr, EVEN_K: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr):
    """``[BLOCK, BLOCK_K]``: features k.. of the P <= BLOCK points x ``[P, D]`` less the first point, less the mean of that; zeros past P."""
    places = tl.arange(0, BLOCK)
    features = k + tl.arange(0, BLOCK_K)
    inside = (places < P)[:, None]
    if EVEN_K:
        y = tl.load(x + places.to(tl.int64)[:, None] * D + features[None, :], mask=inside, other=0.0).to(ACC)
        first = tl.load(x + features).to(ACC)
    else:
        kept = inside & (features < D)[None, :]
        y = tl.load(x + places.to(tl.int64)[:, None] * D + features[None, :], mask=kept, other=0.0).to(ACC)
        first = tl.load(x + features, mask=features < D, other=0.0).to(ACC)
    y = tl.where(inside, y - first[None, :], 0.0)
    mean = tl.sum(y, 0) / P
    return tl.where(inside, y - mean[None, :], 0.0)


@triton.jit
def store_product(
    w, x, out, rows, P, D, ACC: tl.constexpr, EVEN_K: tl.constexpr, PRECISION: tl.constexpr, INTERPRET: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``w @ y`` to the first `rows` rows of out ``[rows, D]``: y the P <= BLOCK_N points x ``[P, D]``, centred."""
    i = tl.arange(0, BLOCK_M)
    for k in range(0, D, BLOCK_K):
        y = centred(x, k, P, D, ACC, EVEN_K, BLOCK_N, BLOCK_K)
        total = multiply(w, y, tl.zeros((BLOCK_M, BLOCK_K), ACC), PRECISION, INTERPRET)
        features = k + tl.arange(0, BLOCK_K)
        kept = (i < rows)[:, None] & (features < D)[None, :]
        tl.store(out + i.to(tl.int64)[:, None] * D + features[None, :], total, mask=kept)


@triton.jit
def add_product(
    w, y, out, i, j, M, P, D, started, ACC: tl.constexpr, EVEN_K: tl.constexpr, PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Adds ``w @ y[j..]`` to rows i.. of out ``[M, D]``, which no other program touches, or sets them from row `started` on; w is 0 past P."""
    rows = i + tl.arange(0, BLOCK_M)
    columns = tl.minimum(j + tl.arange(0, BLOCK_N), P - 1)
    tl.debug_barrier()  # what the previous tile wrote is there
    for k in range(0, D, BLOCK_D):
        features = k + tl.arange(0, BLOCK_D)
        places = columns.to(tl.int64)[:, None] * D + features[None, :]
        if EVEN_K:
            part = tl.load(y + places)
        else:
            part = tl.load(y + places, mask=(features < D)[None, :], other=0.0)
        kept = (rows < M)[:, None] & (features < D)[None, :]
        target = out + rows.to(tl.int64)[:, None] * D + features[None, :]
        product = multiply(w, part, tl.zeros((BLOCK_M, BLOCK_D), ACC), PRECISION, INTERPRET)
        product += tl.load(target, mask=kept & (rows < started)[:, None], other=0.0)
        tl.store(target, product, mask=kept)
