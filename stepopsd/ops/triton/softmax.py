"""Device functions of the online softmax in base 2: adding logits to a state, merging states, reading the result.

A state is a peak, the largest logit times the scale log2(e)/temperature; a total, the sum of e = 2^(logit * scale -
peak); and a moment, the sum of e * log2(e).
"""

# Kernel parameters have no Python types.
# mypy: disable-error-code="no-untyped-def, assignment"

import triton
import triton.language as tl

LN2 = tl.constexpr(0.6931471805599453)
# Start of a peak. Finite, so that no difference of two peaks is NaN, and below every logit that counts.
BOTTOM = tl.constexpr(-1e30)
# exp2 of this is 0 in fp32: a factor that keeps 0 * inf out of the moment without changing it.
NEGLIGIBLE = tl.constexpr(-127.0)
# 1.5 * 2^23: adding it rounds to the nearest integer, which is then in the low bits.
ROUNDER = tl.constexpr(12582912.0)
# 2^f on [-1/2, 1/2] as 1 + C1 f + ... + C5 f^5, minimax in the relative error: 4.4e-7, rounding in fp32 included 5e-7.
# A constant term of 1 makes the largest logit of a row count as exactly 1, as the hardware's exp2 does.
C1 = tl.constexpr(0.693142831325531)
C2 = tl.constexpr(0.24022351205348969)
C3 = tl.constexpr(0.05557400360703468)
C4 = tl.constexpr(0.009666282683610916)
C5 = tl.constexpr(0.001112550962716341)


@triton.jit
def exp2_by_polynomial(x):
    """2^x for x in [-126, 0] without the special-function unit; below less than 2^-126, and 0 for -inf and NaN."""
    x = tl.maximum(x, NEGLIGIBLE)
    rounded = x + ROUNDER
    f = x - (rounded - ROUNDER)
    p = tl.fma(tl.fma(tl.fma(tl.fma(tl.fma(f, C5, C4), f, C3), f, C2), f, C1), f, 1.0)
    bits = p.to(tl.int32, bitcast=True) + (rounded.to(tl.int32, bitcast=True) << 23)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def largest(x, NAN_RULE: tl.constexpr):
    """The largest of each thread's values, of a tuple of (THREADS,), in short chains."""
    top = x[0]
    for start in tl.static_range(0, len(x), 8):
        part = x[start]
        for k in tl.static_range(1, 8):
            if start + k < len(x):
                part = tl.maximum(part, x[start + k], propagate_nan=NAN_RULE)
        top = part if start == 0 else tl.maximum(top, part, propagate_nan=NAN_RULE)
    return top


@triton.jit
def add_up(x):
    """Sum of each thread's values, of a tuple of (THREADS,) of length 2^n: neighbours first, then their sums."""
    for _ in tl.static_range(5):
        if len(x) > 1:
            sums = ()
            for k in tl.static_range(0, len(x), 2):
                sums += (x[k] + x[k + 1],)
            x = sums
    return x[0]


@triton.jit
def fold(x, scale, peak, total, moment, POLYNOMIAL: tl.constexpr, ENTROPY: tl.constexpr):
    """Add a tuple of logits (THREADS,) to the threads' states, each (THREADS,), with one change of the peak.

    ``POLYNOMIAL`` of each 8 exponentials are computed without the special-function unit. These hide a NaN, so then the
    peak must show it.
    """
    NAN_RULE: tl.constexpr = tl.PropagateNan.ALL if POLYNOMIAL > 0 else tl.PropagateNan.NONE
    new_peak = tl.maximum(peak, largest(x, NAN_RULE) * scale, propagate_nan=NAN_RULE)
    drop = peak - new_peak
    keep = tl.exp2(drop)
    exponentials = ()
    energy = tl.zeros_like(total)
    for k in tl.static_range(len(x)):
        exponent = tl.fma(x[k], scale, -new_peak)
        e = exp2_by_polynomial(exponent) if k % 8 < POLYNOMIAL else tl.exp2(exponent)
        exponentials += (e,)
        if ENTROPY:
            energy = tl.fma(e, tl.maximum(exponent, NEGLIGIBLE), energy)
    if ENTROPY:
        moment = tl.fma(keep, tl.fma(drop, total, moment), energy)
    total = tl.fma(total, keep, add_up(exponentials))
    return new_peak, total, moment


@triton.jit
def merge_threads(peak, total, moment, ENTROPY: tl.constexpr):
    """The state of the row from those of the threads."""
    top = tl.max(peak, axis=0)
    drop = peak - top
    keep = tl.exp2(drop)
    lowered = tl.fma(drop, total, moment)
    mass = tl.sum(total * keep, axis=0)
    energy = tl.sum(lowered * keep, axis=0) if ENTROPY else mass * 0.0
    return top, mass, energy


@triton.jit
def statistics(logit, scale, peak, total, moment, ENTROPY: tl.constexpr):
    """Log-prob of ``logit``, log-sum-exp and entropy (0 when not asked for), in nats, and log2 of the total."""
    log_total = tl.log2(total)
    # Only -inf: no distribution, but a part of one may have no mass.
    log_whole = tl.where(total > 0.0, log_total, float("nan"))
    logprob = (tl.fma(logit, scale, -peak) - log_whole) * LN2
    logprob = tl.where(logprob > 0.0, 0.0, logprob)
    lse = tl.fma(peak, LN2, log_whole * LN2)
    if ENTROPY:
        entropy = (log_whole - moment / total) * LN2
        entropy = tl.where(entropy < 0.0, 0.0, entropy)
    else:
        entropy = tl.zeros_like(total)
    return logprob, lse, entropy, log_total
