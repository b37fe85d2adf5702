"""The kernel behind ``future_rows``: a reverse scan of log-ratios, its clipped exponential, z-scores and their gate."""

# Kernel parameters have no Python types.
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

INF = tl.constexpr(float("inf"))
LOG2E = tl.constexpr(1.4426950408889634)

RUN_TIME = (
    "logprobs", "old_logprobs", "mask", "entropies", "future", "scores", "width", "gamma", "log_clamp", "drop_above",
    "low", "log_low", "high", "log_high", "branch_low", "log_branch_low", "branch_high", "log_branch_high", "std_eps",
)  # fmt: skip


@triton.jit
def then(a_late, b_late, a_early, b_early):
    """Two steps of F_t = b_t + a_t F_{t+1} as one; the later token's comes first in a reverse scan."""
    return a_early * a_late, b_early + a_early * b_late


@triton.jit
def clipped_exp(x, low, log_low, high, log_high):
    """exp(x) in [low, high], the very bounds where the clip holds, 1 at 0; NaN stays NaN."""
    y = tl.exp2(x * LOG2E)
    return tl.where(x <= log_low, low, tl.where(x >= log_high, high, y))


@triton.jit
def scan_row(logprobs, old_logprobs, mask, sums, future, width, gamma, log_clamp, drop_above, low, log_low, high,
             log_high, VALID_DECAY: tl.constexpr, SCORED: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Write the future values and, with SCORED, the sums that they come from; blocks from the last to the first."""
    carry = tl.zeros((), tl.float32)
    blocks = tl.cdiv(width, BLOCK)
    for index in tl.range(0, blocks):
        lane = tl.arange(0, BLOCK)
        place = (blocks - 1 - index) * BLOCK + lane
        live = tl.load(mask + place, mask=place < width, other=0) != 0
        gap = tl.load(logprobs + place, mask=live, other=0.0) - tl.load(old_logprobs + place, mask=live, other=0.0)
        # Written out, as NaN must stay NaN.
        x = tl.where(gap < -log_clamp, -log_clamp, tl.where(gap > log_clamp, log_clamp, gap))
        x = tl.where(gap > drop_above, 0.0, x)
        a = tl.full((BLOCK,), 1.0, tl.float32) * gamma
        if VALID_DECAY:
            a = tl.where(live, a, 1.0)
        a, total = tl.associative_scan((a, x), 0, then, reverse=True)
        # NaN * 0 would reach past the row's end; the carry is NaN only where a token of the row was.
        total += a * carry
        carry = tl.sum(tl.where(lane == 0, total, 0.0), axis=0)
        tl.store(future + place, tl.where(live, clipped_exp(total, low, log_low, high, log_high), 1.0),
                 mask=place < width)  # fmt: skip
        if SCORED:
            tl.store(sums + place, total, mask=place < width)


@triton.jit
def read_block(sums, entropies, mask, start, width, low, log_low, high, log_high, BLOCK: tl.constexpr):
    """Places of a block, which of them count, their clipped ratios and their entropies, in float64."""
    place = start + tl.arange(0, BLOCK)
    live = tl.load(mask + place, mask=place < width, other=0) != 0
    total = tl.load(sums + place, mask=live, other=0.0)
    entropy = tl.load(entropies + place, mask=live, other=0.0)
    ratio = clipped_exp(total, low, log_low, high, log_high)
    return place, live, ratio.to(tl.float64), entropy.to(tl.float64)


@triton.jit
def means(sums, entropies, mask, width, low, log_low, high, log_high, BLOCK: tl.constexpr):
    """Number of tokens that count, at least 1, and the means of their ratios and entropies."""
    count = tl.zeros((BLOCK,), tl.int32)
    ratios, of_entropy = tl.zeros((BLOCK,), tl.float64), tl.zeros((BLOCK,), tl.float64)
    for start in tl.range(0, width, BLOCK):
        _, live, ratio, entropy = read_block(
            sums, entropies, mask, start, width, low, log_low, high, log_high, BLOCK)  # fmt: skip
        count += live.to(tl.int32)
        ratios += tl.where(live, ratio, 0.0)
        of_entropy += tl.where(live, entropy, 0.0)
    tokens = tl.maximum(tl.sum(count, axis=0), 1).to(tl.float64)
    return tokens, tl.sum(ratios, axis=0) / tokens, tl.sum(of_entropy, axis=0) / tokens


@triton.jit
def deviations(sums, entropies, mask, width, tokens, ratio_mean, entropy_mean, low, log_low, high, log_high,
               BLOCK: tl.constexpr):  # fmt: skip
    """Population standard deviations of ratios and entropies."""
    ratios, of_entropy = tl.zeros((BLOCK,), tl.float64), tl.zeros((BLOCK,), tl.float64)
    for start in tl.range(0, width, BLOCK):
        _, live, ratio, entropy = read_block(
            sums, entropies, mask, start, width, low, log_low, high, log_high, BLOCK)  # fmt: skip
        ratios += tl.where(live, (ratio - ratio_mean) * (ratio - ratio_mean), 0.0)
        of_entropy += tl.where(live, (entropy - entropy_mean) * (entropy - entropy_mean), 0.0)
    return tl.sqrt(tl.sum(ratios, axis=0) / tokens), tl.sqrt(tl.sum(of_entropy, axis=0) / tokens)


@triton.jit
def score_row(sums, entropies, mask, width, low, log_low, high, log_high, std_eps, GATE: tl.constexpr,
              BLOCK: tl.constexpr):  # fmt: skip
    """Write the branching scores over the sums that they are made of."""
    tokens, ratio_mean, entropy_mean = means(
        sums, entropies, mask, width, low, log_low, high, log_high, BLOCK)  # fmt: skip
    ratio_std, entropy_std = deviations(
        sums, entropies, mask, width, tokens, ratio_mean, entropy_mean, low, log_low, high, log_high,
        BLOCK)  # fmt: skip
    degenerate, flat = ratio_std <= std_eps, entropy_std <= std_eps
    tl.debug_barrier()  # all of the row has been read before the first score is written over it
    for start in tl.range(0, width, BLOCK):
        place, live, ratio, entropy = read_block(
            sums, entropies, mask, start, width, low, log_low, high, log_high, BLOCK)  # fmt: skip
        of_ratio = tl.where(degenerate, 1.0, (ratio - ratio_mean) / tl.where(degenerate, 1.0, ratio_std))
        of_entropy = tl.where(flat, 0.0, (entropy - entropy_mean) / tl.where(flat, 1.0, entropy_std))
        score = of_ratio * of_entropy
        candidate = live
        if GATE:
            both = (of_ratio > 0.0) & (of_entropy > 0.0)
            candidate = tl.where(degenerate, live, live & (both | (score != score)))
        tl.store(sums + place, tl.where(candidate, score, -INF).to(tl.float32), mask=place < width)


@triton.jit(do_not_specialize=RUN_TIME)
def future_kernel(logprobs, old_logprobs, mask, entropies, future, scores, width, gamma, log_clamp, drop_above, low,
                  log_low, high, log_high, branch_low, log_branch_low, branch_high, log_branch_high, std_eps,
                  VALID_DECAY: tl.constexpr, SCORED: tl.constexpr, GATE: tl.constexpr,
                  BLOCK: tl.constexpr):  # fmt: skip
    """The row that the program is named after; the memory of the scores holds the sums in between."""
    offset = tl.program_id(0).to(tl.int64) * width
    mask += offset
    sums = None
    if SCORED:
        sums = scores + offset
    scan_row(logprobs + offset, old_logprobs + offset, mask, sums, future + offset, width, gamma, log_clamp,
             drop_above, low, log_low, high, log_high, VALID_DECAY, SCORED, BLOCK)  # fmt: skip
    if SCORED:
        tl.debug_barrier()  # the sums may be read by other threads than wrote them
        score_row(sums, entropies + offset, mask, width, branch_low, log_branch_low, branch_high, log_branch_high,
                  std_eps, GATE, BLOCK)  # fmt: skip
