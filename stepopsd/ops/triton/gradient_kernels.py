"""The kernels behind ``gradient_rows`` and ``scale_rows``: each element of a row is read once and written once.

A row is walked in blocks of 16 bytes of the memory that is written, counted from the boundary at or before its first
element. The blocks that belong to the row as a whole are written with one store each. Element by element go the two
that it may share with its neighbours, and the one of the selected token, which alone has a term of its own.
"""

# Kernel parameters have no Python types.
# mypy: disable-error-code="no-untyped-def, assignment"

import triton
import triton.language as tl

from stepopsd.ops.triton.score_kernels import scale_for
from stepopsd.ops.triton.softmax import LN2, NEGLIGIBLE

# Sizes, strides and alignments change from call to call: none of them may trigger a compilation.
SIZES = ("rows", "inner", "vocab", "splits", "chunk")
GRADIENT_RUN_TIME = (*SIZES, "logits", "ids", "active", "temperatures", "normaliser", "coefficients", "out",
                     "logits_outer", "logits_inner", "out_base", "out_outer", "out_inner")  # fmt: skip
SCALE_RUN_TIME = (*SIZES, "values", "factor", "base", "outer_stride", "inner_stride")


@triton.jit
def whole_blocks(block, first, last, left_out, WIDTH: tl.constexpr, BLOCKS: tl.constexpr):
    """Places (BLOCKS, WIDTH) of the blocks from ``block`` on, and which of them lie in [first, last) and are kept."""
    k = block + tl.arange(0, BLOCKS)[:, None]
    return k * WIDTH + tl.arange(0, WIDTH)[None, :], (k >= first) & (k < last) & (k != left_out)


@triton.jit
def single_elements(start, stop, first, last, left_out, shift, vocab, WIDTH: tl.constexpr):
    """Places (4, WIDTH) of a row's first and last block and the one left out, and which of them are to be written.

    These are elements of the row in blocks of [start, stop) that are not written whole.
    """
    part = tl.arange(0, 4)[:, None]
    block = tl.where(part == 0, 0, tl.where(part == 1, last, left_out))
    partial = ((part == 0) & (first > 0)) | ((part == 1) & (last >= first))
    wanted = partial | ((part == 2) & (left_out >= first) & (left_out < last))
    place = block * WIDTH + tl.arange(0, WIDTH)[None, :]
    return place, wanted & (block >= start) & (block < stop) & (place >= shift) & (place < vocab + shift)


@triton.jit
def weigh(logits, scale, peak, log_mass, b, c, ENTROPY: tl.constexpr):
    """The probabilities p of logits, and b + c * log2(p)."""
    # In this order no digit is lost for large logits: the peak takes most of them away in the fma.
    log_p = tl.fma(logits, scale, -peak) - log_mass
    slope = b
    if ENTROPY:
        slope = tl.fma(tl.maximum(log_p, NEGLIGIBLE), c, b)
    return tl.exp2(log_p), slope


@triton.jit
def write_gradient(
    source, target, start, stop, first, last, chosen, shift, vocab, live, scale, peak, log_mass, a, b, c,
    WIDTH: tl.constexpr, MATCHED: tl.constexpr, BLOCKS: tl.constexpr, ENTROPY: tl.constexpr,
):  # fmt: skip
    """Write the blocks [start, stop) of a row, whose selected token is at place ``chosen`` from the boundary on."""
    dtype: tl.constexpr = target.dtype.element_ty
    # Logits that lie differently are read two bytes at a time: then the cache must keep a block until it is used up.
    POLICY: tl.constexpr = "evict_first" if MATCHED else ""
    left_out = chosen // WIDTH
    for block in tl.range(start, tl.minimum(stop, last), BLOCKS):
        place, inside = whole_blocks(block, first, last, left_out, WIDTH, BLOCKS)
        logits = tl.load(source + place, mask=inside & (live != 0), other=0.0, eviction_policy=POLICY).to(tl.float32)
        p, slope = weigh(logits, scale, peak, log_mass, b, c, ENTROPY)
        tl.store(target + place, (p * slope).to(dtype), mask=inside)
    if (start == 0) | (stop > last) | ((left_out >= start) & (left_out < stop)):
        place, inside = single_elements(start, stop, first, last, left_out, shift, vocab, WIDTH)
        logits = tl.load(source + place, mask=inside & (live != 0), other=0.0).to(tl.float32)
        p, slope = weigh(logits, scale, peak, log_mass, b, c, ENTROPY)
        gradient = tl.where(place == chosen, tl.fma(p, slope, a), p * slope)
        tl.store(target + place, gradient.to(dtype), mask=inside)


@triton.jit(do_not_specialize=GRADIENT_RUN_TIME)
def gradient_kernel(
    logits, ids, active, temperatures, temperature, normaliser, coefficients, out,
    rows, inner, vocab, splits, chunk,
    logits_outer: tl.int64, logits_inner: tl.int64, out_base: tl.int64, out_outer: tl.int64, out_inner: tl.int64,
    WIDTH: tl.constexpr, MATCHED: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Write ``chunk`` blocks of one row; rows are (outer, inner)."""
    program = tl.program_id(0)
    split, row = program % splits, program // splits
    outer, nested = (row // inner).to(tl.int64), (row % inner).to(tl.int64)
    plane = rows.to(tl.int64)
    live = tl.load(active + row) != 0
    a = tl.load(coefficients + row, mask=live, other=0.0)
    b = tl.load(coefficients + plane + row, mask=live, other=0.0)
    c = tl.load(coefficients + 2 * plane + row, mask=live, other=0.0)
    # A number: the interpreter cannot spread a truth value of floats over a block.
    live = tl.where((a != 0.0) | (b != 0.0) | (c != 0.0), 1, 0)
    column = tl.load(ids + row, mask=live != 0, other=0)
    peak = tl.load(normaliser + row, mask=live != 0, other=0.0)
    log_mass = tl.load(normaliser + plane + row, mask=live != 0, other=0.0)
    divisor = tl.full((), temperature, tl.float32)
    if temperatures is not None:
        divisor = tl.load(temperatures + row, mask=live != 0, other=1.0)
    scale = scale_for(divisor)
    known = (column >= 0) & (column < vocab)
    a, b, c = tl.div_rn(a, divisor), tl.div_rn(b, divisor), tl.div_rn(c * LN2, divisor)
    # Rows without a gradient have p = 1 here, and get 1 * 0, not -0.
    b = tl.where(live != 0, tl.where(known, b, float("nan")), 0.0)

    offset = outer * out_outer + nested * out_inner
    shift = ((out_base + offset) & (WIDTH - 1)).to(tl.int32)
    chosen = column.to(tl.int32) + shift  # any place will do where the row is NaN or 0
    source = logits + (outer * logits_outer + nested * logits_inner - shift)
    if MATCHED:
        source = tl.multiple_of(source, 16)
    target = tl.multiple_of(out + (offset - shift), 16)
    start, first, last = split * chunk, (shift + WIDTH - 1) // WIDTH, (vocab + shift) // WIDTH
    if c == 0.0:
        write_gradient(
            source, target, start, start + chunk, first, last, chosen, shift, vocab, live, scale, peak, log_mass,
            a, b, c, WIDTH, MATCHED, BLOCKS, ENTROPY=False)  # fmt: skip
    else:
        write_gradient(
            source, target, start, start + chunk, first, last, chosen, shift, vocab, live, scale, peak, log_mass,
            a, b, c, WIDTH, MATCHED, BLOCKS, ENTROPY=True)  # fmt: skip


@triton.jit(do_not_specialize=SCALE_RUN_TIME)
def scale_kernel(
    values, factor, rows, inner, vocab, splits, chunk,
    base: tl.int64, outer_stride: tl.int64, inner_stride: tl.int64,
    WIDTH: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Multiply every so many-th chunk of all rows, unless the factor is 1; rows are (outer, inner)."""
    dtype: tl.constexpr = values.dtype.element_ty
    factor = tl.load(factor).to(tl.float32)
    if factor != 1.0:
        for unit in tl.range(tl.program_id(0), rows * splits, tl.num_programs(0)):
            split, row = unit % splits, unit // splits
            offset = (row // inner).to(tl.int64) * outer_stride + (row % inner).to(tl.int64) * inner_stride
            shift = ((base + offset) & (WIDTH - 1)).to(tl.int32)
            target = tl.multiple_of(values + (offset - shift), 16)
            start, first, last = split * chunk, (shift + WIDTH - 1) // WIDTH, (vocab + shift) // WIDTH
            stop = start + chunk
            for block in tl.range(start, tl.minimum(stop, last), BLOCKS):
                place, inside = whole_blocks(block, first, last, -1, WIDTH, BLOCKS)
                x = tl.load(target + place, mask=inside, eviction_policy="evict_first").to(tl.float32)
                tl.store(target + place, (x * factor).to(dtype), mask=inside)
            if (start == 0) | (stop > last):
                place, inside = single_elements(start, stop, first, last, -1, shift, vocab, WIDTH)
                x = tl.load(target + place, mask=inside).to(tl.float32)
                tl.store(target + place, (x * factor).to(dtype), mask=inside)
