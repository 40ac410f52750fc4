"""Device functions of the force kernels: distances from differences, log affinities, products with the coordinates.

Exponents have three digits at cold temperatures, so what precedes an exponential is rounded as little as it can be: factors and
log-sum-exps come in two parts, their values and what the rounding of these lost. Comparisons that replace values are written so that
NaN stays NaN. Padding: the transposed points ``[features, LD]`` hold zeros past D and P, so their loads need no mask.
"""

import triton
import triton.language as tl

from .tile_math import LOG2E, NEG_INF, finite, multiply

UNROLLED = tl.constexpr(4)
ROOM = tl.constexpr(20.0)


@triton.jit
def at_least(x, LOW: tl.constexpr):
    """max(x, LOW), NaN where x is."""
    return tl.where(x < LOW, LOW, x)


@triton.jit
def safe_scale(scale):
    """The scale, 1 where it is 0."""
    return tl.where(scale == 0.0, 1.0, scale)


@triton.jit
def quartered(n, BLOCK_N: tl.constexpr):
    """The column of a tile that stands at place n."""
    return n % 4 * (BLOCK_N // 4) + n // 4


@triton.jit
def tile_columns(BLOCK_N: tl.constexpr):
    """``[BLOCK_N]``: the columns of a tile in the order of `tile_distances`."""
    return quartered(tl.arange(0, BLOCK_N), BLOCK_N)


@triton.jit
def add_square(part, x, y):
    difference = x[:, None] - y[None, :]
    return tl.fma(difference, difference, part)


@triton.jit
def tile_distances(
    points, i, j, features, LD, CLIP: tl.constexpr, ACC: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """d ``[BLOCK_M, BLOCK_N]`` of the points i.. to the points j.. of one group, transposed: ``[features, LD]``, features a multiple of
    BLOCK_K. Squares are summed over blocks of BLOCK_K features, then over the blocks.

    Columns are in the order of `tile_columns`: four quarters, a thread holding the same column of each, so that what it loads of a feature
    is few rows and four columns, coalesced."""
    QUARTER: tl.constexpr = BLOCK_N // 4
    rows = i + tl.arange(0, BLOCK_M)
    columns = j + tl.arange(0, QUARTER)
    zero = tl.zeros((BLOCK_M, QUARTER), ACC)
    t0, t1, t2, t3 = zero, zero, zero, zero
    for _ in range(0, features, BLOCK_K):
        p0, p1, p2, p3 = zero, zero, zero, zero
        for _ in range(0, BLOCK_K, UNROLLED):
            for k in tl.static_range(UNROLLED):
                x = tl.load(points + k * LD + rows)
                p0 = add_square(p0, x, tl.load(points + k * LD + columns))
                p1 = add_square(p1, x, tl.load(points + k * LD + columns + QUARTER))
                p2 = add_square(p2, x, tl.load(points + k * LD + columns + 2 * QUARTER))
                p3 = add_square(p3, x, tl.load(points + k * LD + columns + 3 * QUARTER))
            points += UNROLLED * LD
        t0, t1, t2, t3 = t0 + p0, t1 + p1, t2 + p2, t3 + p3
    total = tl.interleave(tl.interleave(t0, t2), tl.interleave(t1, t3))
    if CLIP > 0:
        total = at_least(total, CLIP)
    return tl.sqrt(total)


@triton.jit
def split_factor(inverse_temperature, scale, ACC: tl.constexpr):
    """``inverse_temperature / scale`` in two parts."""
    factor = inverse_temperature.to(tl.float64) / scale.to(tl.float64)
    high = factor.to(ACC)
    return high, (factor - high.to(tl.float64)).to(ACC)


@triton.jit
def log_kernel(d, high, low):
    """``-f d``, the factor in two parts."""
    return tl.fma(d, -high, d * -low)


@triton.jit
def log_affinity(
    d, high, low, R, R_low, C, C_low, itself, inside,
    SELF: tl.constexpr, FLOOR: tl.constexpr, DENOMINATOR: tl.constexpr,
):  # fmt: skip
    """a (force_ops.py) of a tile, -inf outside; the factor, R ``[BLOCK_M]`` and C ``[BLOCK_N]`` in two parts."""
    a = log_kernel(d, high, low)
    if DENOMINATOR > NEG_INF:
        a -= 0.5 * at_least(R[:, None] + C[None, :], DENOMINATOR)
    else:
        a = a - 0.5 * R[:, None] - 0.5 * C[None, :] - 0.5 * (R_low[:, None] + C_low[None, :])
    if FLOOR > NEG_INF:
        a = at_least(a, FLOOR)
    a = tl.where(itself, SELF, a)
    return tl.where(inside[None, :], a, NEG_INF)


@triton.jit
def sum_exp(s, AXIS: tl.constexpr):
    """(maximum, sum of exp(s - maximum)) along an axis."""
    top = tl.max(s, AXIS)
    return top, tl.sum(tl.exp(s - tl.expand_dims(finite(top), AXIS)), AXIS)


@triton.jit
def merge(top, total, other_top, other_total):
    """(maximum, sum of exp(. - maximum)) of two disjoint parts."""
    both = tl.maximum(top, other_top)
    shift = finite(both)
    return both, total * tl.exp(top - shift) + other_total * tl.exp(other_top - shift)


@triton.jit
def log_total(top, total):
    """``top + log(total)`` in two parts; -inf over nothing."""
    x = finite(top)
    y = tl.log(total)
    lse = x + y
    added = lse - x
    return lse, tl.where(tl.abs(lse) == float("inf"), 0.0, (x - (lse - added)) + (y - added))


@triton.jit
def unit_and_excess(shift_n, shift_p, high, low, ACC: tl.constexpr):
    """(unit, excess) of rows: weights are ``unit * exp(a - shift + excess)``. The unit is ``exp(shift_n + shift_p - norm - excess)``, the
    norm ``high + low``, 0 where it is -inf, and accurate for any exponent; the excess is 0 unless the shifts are those of equal points whose
    affinities far exceed all others': the unit stays finite."""
    exponent = (
        shift_n.to(tl.float64)
        + shift_p.to(tl.float64)
        - finite(high).to(tl.float64)
        - low.to(tl.float64)
    )
    excess = tl.where(exponent > ROOM, exponent - ROOM, 0.0).to(ACC)
    exponent = (exponent - excess.to(tl.float64)) * LOG2E
    exponent = tl.where(exponent < -20000.0, -20000.0, exponent)
    whole = tl.floor(exponent)
    unit = tl.exp2((exponent - whole).to(ACC)) * tl.exp2(whole.to(ACC))
    return tl.where(high == NEG_INF, 0.0, unit), excess


@triton.jit
def level_of(shift, excess):
    """``shift - excess``, and 1 + what its rounding lost."""
    shift = finite(shift)
    level = shift - excess
    return level, 1.0 + ((shift - level) - excess)


@triton.jit
def tops_apart(d, a, negative):
    """Largest a of a row's negative and positive columns that do not equal the row."""
    a = tl.where(d == 0.0, NEG_INF, a)
    return tl.max(tl.where(negative[None, :], a, NEG_INF), 1), tl.max(
        tl.where(negative[None, :], NEG_INF, a), 1
    )


@triton.jit
def side_sums(a, negative, weight, HAS_WEIGHT: tl.constexpr):
    """Of a tile: E relative to the maximum of its side in the tile, the maxima of both sides and the sums of E."""
    top_negative = tl.max(tl.where(negative[None, :], a, NEG_INF), 1)
    top_positive = tl.max(tl.where(negative[None, :], NEG_INF, a), 1)
    top = tl.where(negative[None, :], finite(top_negative)[:, None], finite(top_positive)[:, None])
    e = tl.exp(a - top)
    if HAS_WEIGHT:
        e *= weight[None, :]
    sum_negative = tl.sum(tl.where(negative[None, :], e, 0.0), 1)
    sum_positive = tl.sum(tl.where(negative[None, :], 0.0, e), 1)
    return e, top_negative, top_positive, sum_negative, sum_positive


@triton.jit
def square_sums(d, a):
    """(shift, sum): log of a row's sum of (d A)^2 is shift + log(sum). The shift is taken over pairs that are apart."""
    top = tl.max(tl.where(d == 0.0, NEG_INF, a), 1)
    term = tl.where(d == 0.0, 0.0, d * tl.exp(a - finite(top)[:, None]))
    return 2.0 * top, tl.sum(term * term, 1)


@triton.jit
def slope(d, g):
    """``2 g / d``, 0 where d is 0."""
    return tl.where(d == 0.0, 0.0, 2.0 * g / tl.where(d == 0.0, 1.0, d))


@triton.jit
def add_products(
    w, y, start, y_row, y_column, features, kept, total, QUARTERED: tl.constexpr, PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, SLICE: tl.constexpr,
):  # fmt: skip
    """``total + w @ y[start.., features]``: w ``[BLOCK_M, BLOCK_N]`` in memory, y ``[., D]`` from row `start` on, with strides, its
    features where `kept`.

    A slice of the columns at a time: w would fill the registers. QUARTERED: w's columns are in the order of `tile_distances`."""
    i = tl.arange(0, BLOCK_M)
    for first in range(0, BLOCK_N, SLICE):
        columns = first + tl.arange(0, SLICE)
        left = tl.load(w + i[:, None] * BLOCK_N + columns[None, :])
        if QUARTERED:
            columns = quartered(columns, BLOCK_N)
        places = (start + columns).to(tl.int64)[:, None] * y_row + features.to(tl.int64)[
            None, :
        ] * y_column
        right = tl.load(y + places, mask=kept, other=0.0)
        total = multiply(left, right, total, PRECISION, INTERPRET)
    return total
