"""The kernels behind ``score_rows``: the loop over a row's logits, and the merge of a row's splits."""

# Kernel parameters have no Python types.
# mypy: disable-error-code="no-untyped-def, assignment"

import triton
import triton.language as tl

from stepopsd.ops.triton.read import read_edge, read_group
from stepopsd.ops.triton.softmax import BOTTOM, fold, merge_threads, statistics

LOG2E = tl.constexpr(1.4426950408889634)
MOST_SPLITS = tl.constexpr(8)
# Sizes, strides and alignments change from call to call: none of them may trigger a compilation.
MERGE_RUN_TIME = ("active", "temperatures", "out", "partial", "tensors", "channels", "rows", "splits")
SCORE_RUN_TIME = (*MERGE_RUN_TIME, "first", "second", "ids", "inner", "vocab", "chunk", "first_base", "first_outer",
                  "first_inner", "second_base", "second_outer", "second_inner")  # fmt: skip


@triton.jit
def sweep(block, trips, scale, peak, total, moment, beside, SHIFT: tl.constexpr, dtype: tl.constexpr,
          WIDTH: tl.constexpr, THREADS: tl.constexpr, GROUPS: tl.constexpr, POLYNOMIAL: tl.constexpr,
          ENTROPY: tl.constexpr):  # fmt: skip
    """Fold ``trips`` times GROUPS groups per thread into the states, from ``block`` on."""
    for _ in tl.range(0, trips):
        logits = ()
        if GROUPS > 1:
            # Words of the last trip alone keep the loads of all trips whole, without an instruction in the loop, unless
            # the compiler unrolls it, as it does with one group.
            beside = tl.zeros_like(beside)
        for group in tl.static_range(GROUPS):
            read, others = read_group(block + group * 4 * THREADS, SHIFT, dtype, WIDTH, THREADS)
            logits += read
            beside ^= others
        peak, total, moment = fold(logits, scale, peak, total, moment, POLYNOMIAL, ENTROPY)
        block += GROUPS * 4 * THREADS
    return peak, total, moment, beside


@triton.jit
def sweep_groups(row, shift, groups, scale, peak, total, moment, WIDTH: tl.constexpr, SHIFTED: tl.constexpr,
                 THREADS: tl.constexpr, GROUPS: tl.constexpr, POLYNOMIAL: tl.constexpr,
                 ENTROPY: tl.constexpr):  # fmt: skip
    """Fold ``groups`` groups per thread into the states, from ``row`` on, which is ``shift`` behind a boundary.

    Which logits a thread adds, and in which order, does not depend on ``shift``; each shift has a copy of the loop, in
    which the places of the logits in the registers are constants.
    """
    dtype: tl.constexpr = row.dtype.element_ty
    # The hint must follow an operation: on a mere argument it would be lost.
    boundary = tl.multiple_of((row - shift).to(tl.pointer_type(tl.int32), bitcast=True), 16)
    block = boundary + (4 * tl.arange(0, THREADS)[:, None] + tl.arange(0, 4)[None, :])
    beside = tl.zeros((THREADS,), tl.int32)
    for s in tl.static_range(WIDTH if SHIFTED else 1):
        if shift == s:
            peak, total, moment, beside = sweep(
                block, groups // GROUPS, scale, peak, total, moment, beside, s, dtype, WIDTH, THREADS, GROUPS,
                POLYNOMIAL, ENTROPY)  # fmt: skip
            if GROUPS > 1:
                rest = block + groups // GROUPS * (GROUPS * 4 * THREADS)
                peak, total, moment, beside = sweep(
                    rest, groups % GROUPS, scale, peak, total, moment, beside, s, dtype, WIDTH, THREADS, 1, POLYNOMIAL,
                    ENTROPY)  # fmt: skip
    return peak, total, moment, beside


@triton.jit
def scale_for(temperature):
    """log2(e) / temperature, rounded as the launcher rounds it for a temperature that all rows share."""
    return tl.div_rn(tl.zeros_like(temperature) + LOG2E, temperature)


@triton.jit
def store_result(out, index, rows, channels, mask, logprob, lse, entropy, peak, log_total):
    """Write the channels of row ``index`` of all tensors' rows to ``out`` (tensors, channels, rows)."""
    rows = rows.to(tl.int64)
    place = out + index + tl.where(index < rows, 0, (channels - 1) * rows)
    tl.store(place, logprob, mask=mask)
    tl.store(place + rows, lse, mask=mask)
    tl.store(place + 2 * rows, entropy, mask=mask)
    if channels > 3:
        tl.store(place + 3 * rows, peak, mask=mask)
        tl.store(place + 4 * rows, log_total, mask=mask)


@triton.jit(do_not_specialize=SCORE_RUN_TIME)
def score_kernel(
    first, second, ids, active, temperatures, scale, out, partial,
    tensors, channels, rows, inner, vocab, splits, chunk,
    first_base: tl.int64, first_outer: tl.int64, first_inner: tl.int64,
    second_base: tl.int64, second_outer: tl.int64, second_inner: tl.int64,
    WIDTH: tl.constexpr, SHIFTED: tl.constexpr, THREADS: tl.constexpr, GROUPS: tl.constexpr,
    POLYNOMIAL: tl.constexpr, ENTROPY: tl.constexpr,
):  # fmt: skip
    """Score one split of one row of one tensor; rows are (outer, inner).

    With one split the result goes to ``out`` (tensors, channels, rows). Else the split's state goes to ``partial``
    (4, splits, tensors * rows): peak, total, moment, and the id's logit, which is 0 but in the split where it lies.
    """
    STEP: tl.constexpr = WIDTH * THREADS
    program = tl.program_id(0)
    split, index = program % splits, program // splits
    is_second = index >= rows
    row = index - rows if is_second else index
    index = index.to(tl.int64)
    outer, nested = (row // inner).to(tl.int64), (row % inner).to(tl.int64)
    logits, base, offset = first, first_base, outer * first_outer + nested * first_inner
    if is_second:
        logits, base, offset = second, second_base, outer * second_outer + nested * second_inner
    if tl.load(active + row) != 0:
        column = tl.load(ids + row)
        if temperatures is not None:
            scale = scale_for(tl.load(temperatures + row))
        shift = 0
        if SHIFTED:
            shift = ((base + offset) & (WIDTH - 1)).to(tl.int32)
        logits += offset
        start = split * chunk
        stop = tl.minimum(start + chunk, vocab)
        groups = tl.maximum(stop - start, 0) // STEP
        peak = tl.full((THREADS,), BOTTOM, tl.float32)
        total = tl.zeros((THREADS,), tl.float32)
        moment = tl.zeros((THREADS,), tl.float32)
        peak, total, moment, beside = sweep_groups(
            logits + start, shift, groups, scale, peak, total, moment, WIDTH, SHIFTED, THREADS, GROUPS, POLYNOMIAL,
            ENTROPY)  # fmt: skip
        if SHIFTED and POLYNOMIAL == 0:
            # Never so, but the compiler does not know it and loads what `beside` is made of. That takes registers that
            # the polynomial needs: beside it a load is of what the shift wants of a block.
            total = tl.where(vocab < 0, beside.to(tl.float32, bitcast=True), total)
        logit = tl.load(logits + column, mask=(column >= start) & (column < stop), other=0.0).to(tl.float32)
        logit = tl.where((column >= 0) & (column < vocab), logit, float("nan"))
        start += groups * STEP
        if start < stop:
            edge = read_edge(logits, start, stop, WIDTH, THREADS)
            peak, total, moment = fold(edge, scale, peak, total, moment, POLYNOMIAL, ENTROPY)
        peak, total, moment = merge_threads(peak, total, moment, ENTROPY)
        if splits == 1:
            logprob, lse, entropy, log_total = statistics(logit, scale, peak, total, moment, ENTROPY)
            store_result(out, index, rows, channels, None, logprob, lse, entropy, peak, log_total)
        else:
            plane = tl.num_programs(0).to(tl.int64)
            place = partial + split.to(tl.int64) * (tensors * rows) + index
            tl.store(place, peak)
            tl.store(place + plane, total)
            if ENTROPY:
                tl.store(place + 2 * plane, moment)
            tl.store(place + 3 * plane, logit)
    elif splits == 1:
        store_result(out, index, rows, channels, None, 0.0, 0.0, 0.0, 0.0, 0.0)


@triton.jit(do_not_specialize=MERGE_RUN_TIME)
def merge_kernel(active, temperatures, scale, out, partial, tensors, channels, rows, splits, BLOCK: tl.constexpr,
                 ENTROPY: tl.constexpr):  # fmt: skip
    """Merge the splits of BLOCK rows, of all tensors' rows, in the order of the vocabulary."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    count = tensors * rows.to(tl.int64)
    inside = index < count
    row = index % rows
    live = inside & (tl.load(active + row, mask=inside, other=0) != 0)
    if temperatures is not None:
        scale = scale_for(tl.load(temperatures + row, mask=live, other=1.0))
    peaks, totals, moments = (), (), ()
    top, logit = tl.full((BLOCK,), BOTTOM, tl.float32), tl.zeros((BLOCK,), tl.float32)
    for split in tl.static_range(MOST_SPLITS):
        there = live & (split < splits)
        place = partial + split * count + index
        peak = tl.load(place, mask=there, other=BOTTOM)
        peaks += (peak,)
        totals += (tl.load(place + splits * count, mask=there, other=0.0),)
        if ENTROPY:
            moments += (tl.load(place + 2 * splits * count, mask=there, other=0.0),)
        top = tl.maximum(top, peak)
        logit += tl.load(place + 3 * splits * count, mask=there, other=0.0)
    total, moment = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for split in tl.static_range(MOST_SPLITS):
        drop = peaks[split] - top
        keep = tl.exp2(drop)
        total = tl.fma(totals[split], keep, total)
        if ENTROPY:
            moment = tl.fma(tl.fma(drop, totals[split], moments[split]), keep, moment)
    logprob, lse, entropy, log_total = statistics(logit, scale, top, total, moment, ENTROPY)
    store_result(
        out, index, rows, channels, inside, tl.where(live, logprob, 0.0), tl.where(live, lse, 0.0),
        tl.where(live, entropy, 0.0), tl.where(live, top, 0.0), tl.where(live, log_total, 0.0))  # fmt: skip
