"""Device functions that the kernels share: reading a row, the online softmax, the shaping epilogue."""

# Kernel parameters have no Python types.
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
NAN = tl.constexpr(float("nan"))
MINUS_INF = tl.constexpr(float("-inf"))
# Start of the running maximum. Finite, so that no difference of two maxima is NaN or infinite, and below every logit
# that counts.
BOTTOM = tl.constexpr(-1e30)
# exp2 of this is 0 in fp32: a factor that keeps 0 * inf out of the entropy without changing it.
NEGLIGIBLE = tl.constexpr(-200.0)


@triton.jit
def read_tile(row, start, shift, vocab, THREADS: tl.constexpr, VEC: tl.constexpr, SHIFTED: tl.constexpr,
              EDGE: tl.constexpr):  # fmt: skip
    """Read THREADS groups of VEC neighbouring logits, one group per thread, in whole 16-byte blocks.

    ``row`` is the last 16-byte boundary at or before the row and ``shift`` the elements between the two. A group is
    the upper part of one block and the lower part of the next, kept in the slots where they lie: a group rotated by
    ``shift``. So which elements a thread sees never depends on the alignment of the row.
    """
    slot = tl.arange(0, VEC)[None, :]
    group = start + VEC * tl.arange(0, THREADS)[:, None]
    blocks = row + (group + slot)
    if EDGE:
        # A block is read when it holds at least one logit of this row, so no read leaves the row's memory pages.
        x = tl.load(blocks, mask=(group < vocab + shift) & (slot >= 0), other=0.0, eviction_policy="evict_first")
    else:
        x = tl.load(blocks, eviction_policy="evict_first")
    if SHIFTED:
        if EDGE:
            second = (group + VEC < vocab + shift) & (slot >= 0)
            following = tl.load(blocks + VEC, mask=second, other=0.0, eviction_policy="evict_first")
        else:
            following = tl.load(blocks + VEC, eviction_policy="evict_first")
        x = tl.where(slot >= shift, x, following)
    x = x.to(tl.float32)
    if EDGE:
        x = tl.where(group + (slot + VEC - shift) % VEC < vocab, x, MINUS_INF)
    return x


@triton.jit
def fold(x, peak, total, moment, scale, ENTROPY: tl.constexpr):
    """Add a tile to the online softmax in base 2: one maximum per thread, one sum per thread and slot.

    ``peak`` (THREADS,) is max(x) * scale, ``total`` (THREADS, VEC) the sum of e = 2^(x * scale - peak) and ``moment``
    (THREADS, VEC) the sum of e * log2(e). Sums per slot make the result independent of the rotation in `read_tile`.
    """
    new_peak = tl.maximum(peak, tl.max(x, axis=1) * scale)
    exponent = tl.fma(x, scale, -new_peak[:, None])
    e = tl.exp2(exponent)
    drop = peak - new_peak
    keep = tl.exp2(drop)[:, None]
    if ENTROPY:
        lowered = tl.fma(drop[:, None], total, moment)
        moment = tl.fma(e, tl.maximum(exponent, NEGLIGIBLE), keep * lowered)
    total = tl.fma(total, keep, e)
    return new_peak, total, moment


@triton.jit
def fold_range(row, start, shift, vocab, peak, total, moment, scale, STEP: tl.constexpr, THREADS: tl.constexpr,
               VEC: tl.constexpr, SHIFTED: tl.constexpr, EDGE: tl.constexpr, ENTROPY: tl.constexpr):  # fmt: skip
    """Fold the STEP logits from ``start`` on, in as many tiles as the width of the dtype asks for."""
    for tile in tl.static_range(STEP // (THREADS * VEC)):
        x = read_tile(row, start + tile * THREADS * VEC, shift, vocab, THREADS, VEC, SHIFTED, EDGE)
        peak, total, moment = fold(x, peak, total, moment, scale, ENTROPY)
    return peak, total, moment


@triton.jit
def sum_slots(x, shift, VEC: tl.constexpr):
    """Add the slots of each thread in the order of the vocabulary, whatever the rotation."""
    position = (tl.arange(0, VEC)[None, :] + VEC - shift) % VEC
    result = tl.sum(tl.where(position == 0, x, 0.0), axis=1)
    for k in tl.static_range(1, VEC):
        result += tl.sum(tl.where(position == k, x, 0.0), axis=1)
    return result


@triton.jit
def row_statistics(row, column, in_range, shift, peak, total, moment, scale, VEC: tl.constexpr,
                   ENTROPY: tl.constexpr):  # fmt: skip
    """Merge the threads; return log-prob of ``column`` and entropy, both in nats (entropy 0 when not asked for)."""
    top = tl.max(peak, axis=0)
    drop = peak - top
    keep = tl.exp2(drop)
    total = sum_slots(total, shift, VEC)
    mass = tl.sum(total * keep, axis=0)
    log_mass = tl.log2(mass)
    logit = tl.load(row + (shift + column), mask=in_range, other=NAN).to(tl.float32)
    logprob = (tl.fma(logit, scale, -top) - log_mass) * LN2
    logprob = tl.where(logprob > 0.0, 0.0, logprob)
    entropy = logprob * 0.0
    if ENTROPY:
        lowered = tl.fma(drop, total, sum_slots(moment, shift, VEC))
        entropy = (log_mass - tl.sum(lowered * keep, axis=0) / mass) * LN2
        entropy = tl.where(entropy < 0.0, 0.0, entropy)
    return logprob, entropy


@triton.jit
def shape_advantage(advantage, student_logprob, teacher_logprob, low, high, mix, EXPONENTIAL: tl.constexpr):
    """The epilogue: delta, the clipped sign-aware weight, and the blended advantage. NaN stays NaN throughout."""
    delta = teacher_logprob - student_logprob
    # sign(A) * delta, but 0 * inf is 0 here; advantage * 0 lets a NaN advantage through.
    neutral = tl.where(delta != delta, delta, advantage * 0.0)
    signed = tl.where(advantage > 0.0, delta, tl.where(advantage < 0.0, -delta, neutral))
    if EXPONENTIAL:  # noqa: SIM108
        weight = tl.exp2(signed * LOG2E)
    else:
        weight = 2.0 / (1.0 + tl.exp2(-signed * LOG2E))
    weight = tl.where(weight < low, low, tl.where(weight > high, high, weight))
    shaped = advantage * tl.fma(weight - 1.0, mix, 1.0)
    return shaped, weight, delta
