"""The kernel behind ``oar_rows``: a row's logarithms, their extremes and quantile, two tiers, the sum back to L.

A row is read from memory once. The passes after that find its logarithms in the cache, in the memory of the result.
"""

# Kernel parameters have no Python types.
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

INF = tl.constexpr(float("inf"))
NAN = tl.constexpr(float("nan"))
TINY = tl.constexpr(1e-8)
LN2 = tl.constexpr(0.6931471805599453)
LARGEST = tl.constexpr(3.4028234663852886e38)
FIELD, TWO_FIELDS = tl.constexpr(21), tl.constexpr(42)  # bits of a count, three of which share an int64
LARGEST_COUNT = tl.constexpr((1 << 21) - 1)

RUN_TIME = ("scores", "mask", "weights", "width", "level", "beta", "floor", "min_tokens")


@triton.jit
def log1p(x):
    """log(1 + x) of finite x >= 0, relative to a few units in the last place also where x is tiny."""
    u = 1.0 + x
    word = u.to(tl.int32, bitcast=True)
    exponent = (word - 0x3F3504F3) >> 23  # u = m * 2^exponent, m in [sqrt(1/2), sqrt(2))
    m = (word - (exponent << 23)).to(tl.float32, bitcast=True)
    f = tl.where(exponent == 0, x, m - 1.0)
    lost = tl.where(exponent == 0, 0.0, (1.0 - (u - x)) / u)  # what rounding took from 1 + x
    s = f / (2.0 + f)
    z = s * s
    tail = tl.fma(z, 2.0 / 11, 2.0 / 9)
    tail = tl.fma(z, tl.fma(z, tl.fma(z, tail, 2.0 / 7), 2.0 / 5), 2.0 / 3) * z
    return tl.fma(exponent.to(tl.float32), LN2, tl.fma(s, tail, 2.0 * s) + lost)


@triton.jit
def logarithms(scores, mask, weights, width, BLOCK: tl.constexpr):
    """Write log(1 + s) over the weights, -1 outside the mask; return count, whether all are finite, and extremes."""
    count = tl.zeros((BLOCK,), tl.int32)
    broken = tl.zeros((BLOCK,), tl.int32)
    low, high = tl.full((BLOCK,), INF, tl.float32), tl.full((BLOCK,), -INF, tl.float32)
    for start in tl.range(0, width, BLOCK):
        place = start + tl.arange(0, BLOCK)
        live = tl.load(mask + place, mask=place < width, other=0) != 0
        s = tl.load(scores + place, mask=live, other=0.0)
        bad = (s != s) | (tl.abs(s) > LARGEST)
        z = log1p(tl.where(bad, 0.0, tl.maximum(s, 0.0)))
        count += live.to(tl.int32)
        broken += bad.to(tl.int32)
        low = tl.minimum(low, tl.where(live, z, INF))
        high = tl.maximum(high, tl.where(live, z, -INF))
        tl.store(weights + place, tl.where(live, z, -1.0), mask=place < width)
    return tl.sum(count, axis=0), tl.sum(broken, axis=0) == 0, tl.min(low, axis=0), tl.max(high, axis=0)


@triton.jit
def counts_below(z, width, first, second, third, BLOCK: tl.constexpr):
    """How many logarithms lie below each of three rising bounds, given as the bits of non-negative floats."""
    counts = tl.zeros((BLOCK,), tl.int64)
    for start in tl.range(0, width, BLOCK):
        place = start + tl.arange(0, BLOCK)
        key = tl.load(z + place, mask=place < width, other=-1.0).to(tl.int32, bitcast=True)
        live = key >= 0  # what is outside the mask is -1, whose sign bit is set
        below = ((key < third) & live).to(tl.int64) << TWO_FIELDS
        below += ((key < second) & live).to(tl.int64) << FIELD
        counts += below + ((key < first) & live).to(tl.int64)
    counts = tl.sum(counts, axis=0)
    return counts & LARGEST_COUNT, (counts >> FIELD) & LARGEST_COUNT, counts >> TWO_FIELDS


@triton.jit
def order_statistics(z, width, rank, BLOCK: tl.constexpr):
    """The logarithm of the given rank from 0, and the one after it or the same where there is none."""
    # The bits of the value from the highest down: one, and then pairs. The one above is the sign.
    unit = 1 << 30
    one, _, _ = counts_below(z, width, unit, unit, unit, BLOCK)
    found = tl.where(one <= rank, unit, 0)
    for step in tl.range(0, 15):
        unit = 1 << (28 - 2 * step)
        one, two, three = counts_below(z, width, found + unit, found + 2 * unit, found + 3 * unit, BLOCK)
        found += unit * ((one <= rank).to(tl.int32) + (two <= rank).to(tl.int32) + (three <= rank).to(tl.int32))
    value = found.to(tl.float32, bitcast=True)
    upto = tl.zeros((BLOCK,), tl.int32)
    after = tl.full((BLOCK,), INF, tl.float32)
    for start in tl.range(0, width, BLOCK):
        place = start + tl.arange(0, BLOCK)
        x = tl.load(z + place, mask=place < width, other=-1.0)
        upto += ((x >= 0.0) & (x <= value)).to(tl.int32)
        after = tl.minimum(after, tl.where(x > value, x, INF))
    following = tl.min(after, axis=0)
    more = (tl.sum(upto, axis=0) >= rank + 2) | (following == INF)
    return value, tl.where(more, value, following)


@triton.jit
def tiers(z, low, span, cut, beta, floor):
    """The weight of a logarithm before the sum is restored."""
    n = (z - low) / span
    damped = tl.maximum(n / (cut + TINY), floor)
    return tl.where(n < cut, damped, tl.fma(beta, (n - cut) / (1.0 - cut + TINY), 1.0))


@triton.jit(do_not_specialize=RUN_TIME)
def oar_kernel(scores, mask, weights, width, level, beta, floor, min_tokens, ABSOLUTE: tl.constexpr,
               PRESERVE: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Weights of the row that the program is named after."""
    offset = tl.program_id(0).to(tl.int64) * width
    scores, mask, weights = scores + offset, mask + offset, weights + offset
    count, finite, low, high = logarithms(scores, mask, weights, width, BLOCK)
    tl.debug_barrier()  # the logarithms may be read by other threads than wrote them
    span = tl.where(high > low, high - low, 1.0)
    weighed = (count >= min_tokens) & (count > 0)
    cut = level
    if not ABSOLUTE:
        position = (count - 1).to(tl.float64) * level
        below = position.to(tl.int32)
        first, second = order_statistics(weights, width, below, BLOCK)
        fraction = (position - below.to(tl.float64)).to(tl.float32)
        first, second = (first - low) / span, (second - low) / span
        cut = tl.fma(fraction, second - first, first)

    scale = 1.0
    if PRESERVE:
        total = tl.zeros((BLOCK,), tl.float64)
        for start in tl.range(0, width, BLOCK):
            place = start + tl.arange(0, BLOCK)
            z = tl.load(weights + place, mask=place < width, other=-1.0)
            total += tl.where(z >= 0.0, tiers(z, low, span, cut, beta, floor), 0.0).to(tl.float64)
        scale = (count.to(tl.float64) / tl.sum(total, axis=0)).to(tl.float32)
        tl.debug_barrier()  # all of the row has been read before the first weight is written over it
    for start in tl.range(0, width, BLOCK):
        place = start + tl.arange(0, BLOCK)
        z = tl.load(weights + place, mask=place < width, other=-1.0)
        w = tl.where(finite, tiers(z, low, span, cut, beta, floor) * scale, NAN)
        tl.store(weights + place, tl.where((z >= 0.0) & weighed, w, 1.0), mask=place < width)
