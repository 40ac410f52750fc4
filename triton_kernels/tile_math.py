"""Device functions that kernels share: tile products, candidate masks, stable scalar functions.

Inside the kernels logits are in base 2: ``s2 = s * log2(e)``, folded into scale and bias. An
exponential is then one ``exp2``. Index arithmetic inside a tile is 32-bit, and whatever is
multiplied by D is 64-bit.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
EPS = tl.constexpr(1e-12)
NEG_INF = tl.constexpr(float("-inf"))


@triton.jit
def row_pointers(
    x,  # [count, D]
    first,  # the first row
    BLOCK: tl.constexpr,
    count,
    D,
):
    """Pointers ``[BLOCK]`` to the rows of x from `first` on. Past the end the last one repeats."""
    rows = tl.minimum(first + tl.arange(0, BLOCK), count - 1)
    return x + rows.to(tl.int64) * D


@triton.jit
def load_rows(
    pointers,  # [BLOCK]
    k,  # the first feature
    D,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    """The rows' features from k on, ``[BLOCK, BLOCK_K]``, with zeros past D."""
    features = k + tl.arange(0, BLOCK_K)
    if EVEN_K:
        return tl.load(pointers[:, None] + features[None, :])
    return tl.load(pointers[:, None] + features[None, :], mask=(features < D)[None, :], other=0.0)


@triton.jit
def multiply(
    x,  # [m, k]
    y,  # [k, n]
    total,  # [m, n]
    PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """``total + x @ y``, which is ``[m, n]``.

    The interpreter would multiply the bits of bfloat16 as integers, and float32 with a rounding
    that depends on the shape of the tile. There the product is in float64.
    """
    if INTERPRET:
        product = tl.dot(
            x.to(tl.float64), y.to(tl.float64), input_precision="ieee", out_dtype=tl.float64
        )
        return total + product.to(total.dtype)
    return tl.dot(x, y, total, input_precision=PRECISION, out_dtype=total.dtype)


@triton.jit
def products(
    a_rows,  # pointers [BLOCK_M]
    b_rows,  # pointers [BLOCK_N]
    D,
    ACC: tl.constexpr,  # the dtype of sums
    PRECISION: tl.constexpr,  # tl.dot's input_precision
    INTERPRET: tl.constexpr,  # whether Triton's interpreter runs this
    EVEN_K: tl.constexpr,  # whether BLOCK_K divides D
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Inner products ``[BLOCK_M, BLOCK_N]`` of the rows behind the pointers."""
    total = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for k in range(0, D, BLOCK_K):
        x = load_rows(a_rows, k, D, BLOCK_K, EVEN_K)
        y = load_rows(b_rows, k, D, BLOCK_K, EVEN_K)
        total = multiply(x, tl.trans(y), total, PRECISION, INTERPRET)
    return total


@triton.jit
def mask_tile(
    x,  # [BLOCK_M, BLOCK_N]
    fill,  # what masked elements become
    i,  # the tile's first row
    j,  # the tile's first column
    key_a,  # [M], or None
    key_b,  # [N], or None
    M,
    N,
    offset,
    stride,
    KIND: tl.constexpr,  # of candidates (problem.py)
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The tile with `fill` outside ``[M, N]`` and where j is no candidate of i (problem.py).

    Most tiles fail the scalar tests and need no mask. A masked diagonal is one comparison of the
    columns with the shifted rows.
    """
    rows = i + tl.arange(0, BLOCK_M)
    columns = j + tl.arange(0, BLOCK_N)
    low = j - (i + BLOCK_M - 1) - offset
    high = j + BLOCK_N - 1 - i - offset
    if KIND == "not_self":
        if (low <= 0) & (high >= 0):
            x = tl.where((rows + offset)[:, None] == columns[None, :], fill, x)
    elif KIND == "not_pair":
        # Division rounds towards zero, which needs an operand that the lift makes positive.
        lift = ((i + BLOCK_M) // stride + 2) * stride
        # This is the last multiple of the stride up to high.
        diagonal = (high + lift) // stride * stride - lift
        if diagonal >= low:
            for d in range(
                (low + lift + stride - 1) // stride * stride - lift, diagonal + 1, stride
            ):
                x = tl.where((rows + (offset + d))[:, None] == columns[None, :], fill, x)
    elif KIND != "all":
        row_keys = tl.load(key_a + rows, mask=rows < M, other=0)
        col_keys = tl.load(key_b + columns, mask=columns < N, other=0)
        if KIND == "same_key":
            x = tl.where(row_keys[:, None] == col_keys[None, :], x, fill)
            x = tl.where((rows + offset)[:, None] == columns[None, :], fill, x)
        else:
            x = tl.where(row_keys[:, None] == col_keys[None, :], fill, x)
    if (i + BLOCK_M > M) | (j + BLOCK_N > N):
        x = tl.where((rows < M)[:, None], x, fill)
        x = tl.where((columns < N)[None, :], x, fill)
    return x


@triton.jit
def round_to(
    x,  # any shape
    DTYPE: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """x in DTYPE, rounded to nearest even, where the interpreter would cut float32 to bfloat16."""
    if INTERPRET and DTYPE == tl.bfloat16 and x.dtype == tl.float32:
        bits = x.to(tl.uint32, bitcast=True)
        nearest = (
            ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000)
            .to(tl.uint32)
            .to(tl.float32, bitcast=True)
        )
        x = tl.where(x == x, nearest, x)
    return x.to(DTYPE)


@triton.jit
def log1p(
    x,  # any shape
):
    """log(1 + x) for x >= 0, accurate relative to itself for small x."""
    u = 1.0 + x
    return tl.where(u == 1.0, x, tl.log(u) * (x / tl.where(u == 1.0, 1.0, u - 1.0)))


@triton.jit
def softplus(
    x,  # any shape
):
    """log(1 + exp(x))."""
    return tl.maximum(x, 0.0) + log1p(tl.exp(-tl.abs(x)))


@triton.jit
def sigmoid(
    x,  # any shape
):
    """1 / (1 + exp(-x)), accurate relative to itself on both sides."""
    small = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, small) / (1.0 + small)


@triton.jit
def finite(
    x,  # any shape
):
    """x, with 0 in place of infinities: the shift of a running sum of exponentials."""
    return tl.where(tl.abs(x) == float("inf"), 0.0, x)


@triton.jit
def fold(
    maximum,  # [BLOCK]
    total,  # [BLOCK]
    tile_maximum,  # [BLOCK]
    tile_total,  # [BLOCK]
):
    """The maximum, and the sum of ``exp2(s - maximum)``, of two disjoint parts."""
    top = tl.maximum(maximum, tile_maximum)
    shift = finite(top)
    return top, total * tl.exp2(maximum - shift) + tile_total * tl.exp2(tile_maximum - shift)
