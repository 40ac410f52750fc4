"""Device functions of the force kernels: distances, log affinities, products with the coordinates.

Distances come from differences. Exponents have three digits at cold temperatures, so what precedes
an exponential is rounded as little as it can be. Factors and log-sum-exps come in two parts: their
values, and what the rounding of these lost. Comparisons that replace values are written so that NaN
stays NaN. The transposed points ``[features, LD]`` hold zeros past D and P, so their loads need no
mask.
"""

import triton
import triton.language as tl

from .tile_math import LOG2E, NEG_INF, finite, multiply

UNROLLED = tl.constexpr(4)
"""One step of the distances' loop takes this many features."""

ROOM = tl.constexpr(20.0)
"""The largest exponent of a unit; what exceeds it moves to the level (`unit_and_excess`)."""


@triton.jit
def at_least(
    x,  # any shape
    LOW: tl.constexpr,
):
    """max(x, LOW), and NaN where x is NaN."""
    return tl.where(x < LOW, LOW, x)


@triton.jit
def safe_scale(
    scale,  # any shape
):
    """The scale, or 1 where it is 0."""
    return tl.where(scale == 0.0, 1.0, scale)


@triton.jit
def quartered(
    n,  # places, any shape
    BLOCK_N: tl.constexpr,
):
    """The column of a tile that stands at place n."""
    return n % 4 * (BLOCK_N // 4) + n // 4


@triton.jit
def tile_columns(
    BLOCK_N: tl.constexpr,
):
    """``[BLOCK_N]``: the columns of a tile in the order of `tile_distances`."""
    return quartered(tl.arange(0, BLOCK_N), BLOCK_N)


@triton.jit
def add_square(
    part,  # [BLOCK_M, n]
    x,  # [BLOCK_M]
    y,  # [n]
):
    """``part + (x - y)^2``."""
    difference = x[:, None] - y[None, :]
    return tl.fma(difference, difference, part)


@triton.jit
def tile_distances(
    points,  # [features, LD], transposed
    i,  # first row
    j,  # first column
    features,  # D rounded up to BLOCK_K
    LD,  # P rounded up to BLOCK_N
    CLIP: tl.constexpr,  # lower bound of the squared distance
    ACC: tl.constexpr,  # the dtype of sums
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """d ``[BLOCK_M, BLOCK_N]`` of the points from i on to the points from j on, in one group.

    Squares are summed over blocks of BLOCK_K features, and these sums over the blocks.

    Columns are in the order of `tile_columns`. That order has four quarters, and a thread holds the
    same column of each. So a thread loads a few rows and four columns of a feature, coalesced.
    """
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
def split_factor(
    inverse_temperature,  # []
    scale,  # []
    ACC: tl.constexpr,  # the dtype of sums
):
    """``inverse_temperature / scale`` in two parts: ``[]`` twice."""
    factor = inverse_temperature.to(tl.float64) / scale.to(tl.float64)
    high = factor.to(ACC)
    return high, (factor - high.to(tl.float64)).to(ACC)


@triton.jit
def log_kernel(
    d,  # [BLOCK_M, BLOCK_N]
    high,  # [], the factor
    low,  # [], what its rounding lost
):
    """``-f d``, of the shape of d; the factor f is in two parts."""
    return tl.fma(d, -high, d * -low)


@triton.jit
def log_affinity(
    d,  # [BLOCK_M, BLOCK_N]
    high,  # [], the factor
    low,  # [], what its rounding lost
    R,  # [BLOCK_M]
    R_low,  # [BLOCK_M], what the rounding of R lost
    C,  # [BLOCK_N]
    C_low,  # [BLOCK_N], what the rounding of C lost
    itself,  # [BLOCK_M, BLOCK_N], whether a pair is a self pair
    inside,  # [BLOCK_N], whether a column is a point
    SELF: tl.constexpr,  # a of self pairs
    FLOOR: tl.constexpr,  # lower bound of a
    DENOMINATOR: tl.constexpr,  # lower bound of R + C
):
    """a (ops/force.py) of a tile: ``[BLOCK_M, BLOCK_N]``, and -inf outside.

    The factor, R and C come in two parts.
    """
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
def sum_exp(
    s,  # [BLOCK_M, BLOCK_N]
    AXIS: tl.constexpr,
):
    """``(maximum, sum of exp(s - maximum))`` along an axis."""
    top = tl.max(s, AXIS)
    return top, tl.sum(tl.exp(s - tl.expand_dims(finite(top), AXIS)), AXIS)


@triton.jit
def merge(
    top,  # maximum of one part
    total,  # its sum
    other_top,  # maximum of the other part
    other_total,  # its sum
):
    """``(maximum, sum of exp(. - maximum))`` of two disjoint parts, all of one shape."""
    both = tl.maximum(top, other_top)
    shift = finite(both)
    return both, total * tl.exp(top - shift) + other_total * tl.exp(other_top - shift)


@triton.jit
def log_total(
    top,  # any shape
    total,  # the same shape
):
    """``top + log(total)`` in two parts; -inf over nothing."""
    x = finite(top)
    y = tl.log(total)
    lse = x + y
    added = lse - x
    return lse, tl.where(tl.abs(lse) == float("inf"), 0.0, (x - (lse - added)) + (y - added))


@triton.jit
def unit_and_excess(
    shift_n,  # [BLOCK], of the negative side
    shift_p,  # [BLOCK], of the positive side
    high,  # [], the norm
    low,  # [], what its rounding lost
    ACC: tl.constexpr,  # the dtype of sums
):
    """``(unit, excess)`` of rows, such that weights are ``unit * exp(a - shift + excess)``.

    The unit is ``exp(shift_n + shift_p - norm - excess)``, where the norm is ``high + low``. It is
    0 where the norm is -inf, and accurate for any exponent.

    The excess is 0 unless the shifts are those of equal points whose affinities far exceed all
    others'. Then it keeps the unit finite.
    """
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
def level_of(
    shift,  # [BLOCK]
    excess,  # [BLOCK]
):
    """``shift - excess``, and 1 + what its rounding lost: ``[BLOCK]`` twice."""
    shift = finite(shift)
    level = shift - excess
    return level, 1.0 + ((shift - level) - excess)


@triton.jit
def tops_apart(
    d,  # [BLOCK_M, BLOCK_N]
    a,  # [BLOCK_M, BLOCK_N]
    negative,  # [BLOCK_N], whether a column is negative
):
    """The largest a of each row over the columns that do not equal the row: ``[BLOCK_M]`` twice.

    The first is over negative columns, the second over positive ones.
    """
    a = tl.where(d == 0.0, NEG_INF, a)
    return tl.max(tl.where(negative[None, :], a, NEG_INF), 1), tl.max(
        tl.where(negative[None, :], NEG_INF, a), 1
    )


@triton.jit
def side_sums(
    a,  # [BLOCK_M, BLOCK_N]
    negative,  # [BLOCK_N], whether a column is negative
    weight,  # [BLOCK_N]
    HAS_WEIGHT: tl.constexpr,
):
    """What a tile adds to the sums of E of its rows.

    Returns E ``[BLOCK_M, BLOCK_N]`` relative to the maximum of its side in the tile. Then come the
    maxima of the negative and the positive side, and the sums of E of both: ``[BLOCK_M]`` each.
    """
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
def square_sums(
    d,  # [BLOCK_M, BLOCK_N]
    a,  # [BLOCK_M, BLOCK_N]
):
    """``(shift, sum)``, ``[BLOCK_M]`` each: the log of a row's sum of (d A)^2 is shift + log(sum).

    The shift is taken over pairs that are apart.
    """
    top = tl.max(tl.where(d == 0.0, NEG_INF, a), 1)
    term = tl.where(d == 0.0, 0.0, d * tl.exp(a - finite(top)[:, None]))
    return 2.0 * top, tl.sum(term * term, 1)


@triton.jit
def slope(
    d,  # [BLOCK_M, BLOCK_N]
    g,  # []
):
    """``2 g / d``, 0 where d is 0."""
    return tl.where(d == 0.0, 0.0, 2.0 * g / tl.where(d == 0.0, 1.0, d))


@triton.jit
def add_products(
    w,  # [BLOCK_M, BLOCK_N], in memory
    y,  # [., D], with strides
    start,  # first row of y
    y_row,  # stride of the rows of y
    y_column,  # stride of the features of y
    features,  # [BLOCK_D], those of this step
    kept,  # [1, BLOCK_D], the features that exist
    total,  # [BLOCK_M, BLOCK_D]
    QUARTERED: tl.constexpr,  # whether w's columns are in the order of `tile_distances`
    PRECISION: tl.constexpr,  # tl.dot's input_precision
    INTERPRET: tl.constexpr,  # whether Triton's interpreter runs this
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SLICE: tl.constexpr,  # points of a step of a product
):
    """``total + w @ y[start.., features]``: ``[BLOCK_M, BLOCK_D]``.

    A slice of the columns is multiplied at a time, because all of w would fill the registers.
    """
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
