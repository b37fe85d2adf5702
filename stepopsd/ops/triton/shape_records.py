"""Statistics of a shaping call as records: vectors reduced to one record, records of all programs to the result.

A record is seventeen float64 numbers in the order of ``results.STATISTICS``, with sums in place of shares and of the
mean |delta|, and sums of squared distances in place of standard deviations. All orders are fixed.
"""

# Kernel parameters have no Python types.
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

INF = tl.constexpr(float("inf"))


@triton.jit
def sum_eight(a, b, c, d, e, f, g, h):
    """Sums of eight vectors in one reduction: threads meet once instead of eight times."""
    left = tl.join(tl.join(a, b), tl.join(c, d))
    right = tl.join(tl.join(e, f), tl.join(g, h))
    left, right = tl.split(tl.sum(tl.join(left, right), axis=0))  # (2, 2): a and b along the first axis
    ab, cd = tl.split(left)
    ef, gh = tl.split(right)
    a, b = tl.split(ab)
    c, d = tl.split(cd)
    e, f = tl.split(ef)
    g, h = tl.split(gh)
    return a, b, c, d, e, f, g, h


@triton.jit
def sum_two(a, b):
    """Sums of two vectors in one reduction."""
    return tl.split(tl.sum(tl.join(a, b), axis=0))


@triton.jit
def min_four(a, b, c, d):
    """Minima of four vectors in one reduction."""
    left, right = tl.split(tl.min(tl.join(tl.join(a, b), tl.join(c, d)), axis=0))
    a, b = tl.split(left)
    c, d = tl.split(right)
    return a, b, c, d


@triton.jit
def merge(count, skipped, delta, delta_sum, delta_squares, delta_min, delta_max, delta_abs, weight, weight_sum,
          weight_squares, weight_min, weight_max, at_low, at_high):  # fmt: skip
    """Merge a vector of parts into one: counts, means, sums of squared distances from the mean, extremes, sums.

    ``delta`` and ``weight`` hold a value of the part's own; sums and sums of squares are of the distances from it, so
    nothing cancels.
    """
    total, skipped, delta_total, delta_abs, weight_total, at_low, at_high, _ = sum_eight(
        count, skipped, count * delta + delta_sum, delta_abs, count * weight + weight_sum, at_low, at_high,
        count)  # fmt: skip
    delta_mean, weight_mean = delta_total / tl.maximum(total, 1.0), weight_total / tl.maximum(total, 1.0)
    delta, weight = delta - delta_mean, weight - weight_mean
    delta_squares, weight_squares = sum_two(
        delta_squares + delta * (2.0 * delta_sum + count * delta),
        weight_squares + weight * (2.0 * weight_sum + count * weight))  # fmt: skip
    delta_min, delta_max, weight_min, weight_max = min_four(delta_min, -delta_max, weight_min, -weight_max)
    return (total, skipped, delta_mean, delta_squares, delta_min, -delta_max, delta_abs, weight_mean, weight_squares,
            weight_min, -weight_max, at_low, at_high)  # fmt: skip


@triton.jit
def store_record(place, stride, x0, x1, x2, x3, x4, x5, x6, x7, x8, x9, x10, x11, x12, x13, x14, x15, x16):
    """Seventeen numbers in the order of the statistics, ``stride`` apart."""
    tl.store(place, x0)
    tl.store(place + stride, x1)
    tl.store(place + 2 * stride, x2)
    tl.store(place + 3 * stride, x3)
    tl.store(place + 4 * stride, x4)
    tl.store(place + 5 * stride, x5)
    tl.store(place + 6 * stride, x6)
    tl.store(place + 7 * stride, x7)
    tl.store(place + 8 * stride, x8)
    tl.store(place + 9 * stride, x9)
    tl.store(place + 10 * stride, x10)
    tl.store(place + 11 * stride, x11)
    tl.store(place + 12 * stride, x12)
    tl.store(place + 13 * stride, x13)
    tl.store(place + 14 * stride, x14)
    tl.store(place + 15 * stride, x15)
    tl.store(place + 16 * stride, x16)


@triton.jit
def load_field(records, field, programs, empty, LANES: tl.constexpr):
    """One field of every program's record, ``empty`` in the lanes that are left."""
    program = tl.arange(0, LANES)
    return tl.load(records + field * programs + program, mask=program < programs, other=empty)


@triton.jit
def merge_records(records, programs, statistics, LANES: tl.constexpr):
    """Write the statistics of the whole call from the records of all programs, in program order."""
    zeros = tl.zeros((LANES,), tl.float64)
    (count, skipped, delta, delta_squares, delta_min, delta_max, delta_abs, weight, weight_squares, weight_min,
     weight_max, at_low, at_high) = merge(
        load_field(records, 0, programs, 0.0, LANES), load_field(records, 1, programs, 0.0, LANES),
        load_field(records, 2, programs, 0.0, LANES), zeros, load_field(records, 3, programs, 0.0, LANES),
        load_field(records, 4, programs, INF, LANES), load_field(records, 5, programs, -INF, LANES),
        load_field(records, 6, programs, 0.0, LANES),
        load_field(records, 7, programs, 0.0, LANES), zeros, load_field(records, 8, programs, 0.0, LANES),
        load_field(records, 9, programs, INF, LANES), load_field(records, 10, programs, -INF, LANES),
        load_field(records, 11, programs, 0.0, LANES), load_field(records, 12, programs, 0.0, LANES))  # fmt: skip
    steps, clamped = sum_two(
        load_field(records, 13, programs, 0.0, LANES), load_field(records, 16, programs, 0.0, LANES))  # fmt: skip
    lowest = tl.min(load_field(records, 14, programs, INF, LANES), axis=0)
    highest = tl.max(load_field(records, 15, programs, -INF, LANES), axis=0)
    tokens = tl.maximum(count, 1.0)
    some, budgeted = count > 0.0, steps > 0.0
    store_record(
        statistics, 1, count, skipped, delta, tl.sqrt(delta_squares / tokens), tl.where(some, delta_min, 0.0),
        tl.where(some, delta_max, 0.0), delta_abs / tokens, weight, tl.sqrt(weight_squares / tokens),
        tl.where(some, weight_min, 0.0), tl.where(some, weight_max, 0.0), at_low / tokens, at_high / tokens, steps,
        tl.where(budgeted, lowest, 1.0), tl.where(budgeted, highest, 1.0), clamped / tl.maximum(steps, 1.0),
    )  # fmt: skip
