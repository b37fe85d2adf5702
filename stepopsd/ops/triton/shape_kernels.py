"""The kernel behind ``shape_rows``: token weights, step budget and statistics in one launch.

Work items are trajectories and, after them, blocks of tokens in no step; program p takes items p, p + G, ... and
leaves one record of statistics. The last program to finish merges the records in program order.
"""

# Kernel parameters have no Python types.
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from stepopsd.ops.triton.shape_records import merge, merge_records, store_record, sum_two

LOG2E = tl.constexpr(1.4426950408889634)
INF = tl.constexpr(float("inf"))
EDGE = tl.constexpr(1e-6)  # distance below which a value counts as clipped
EPS = tl.constexpr(1e-6)
LEAST, MOST = tl.constexpr(0.5), tl.constexpr(2.0)  # range of a step's factor

# Sizes, options and alignments change from call to call: none of them may trigger a compilation.
RUN_TIME = ("student", "teacher", "advantages", "active", "order", "step_starts", "trajectory_starts", "counts",
            "planes", "values", "tokens", "low", "high", "mix")  # fmt: skip


@triton.jit
def token_weight(advantage, student, teacher, low, high, EXPONENTIAL: tl.constexpr):
    """Delta and the clipped weight f(sign(A) * delta); NaN in delta or A gives a weight of NaN."""
    delta = teacher - student
    # sign(A) * delta, but 0 * inf is 0 here; advantage * 0 lets a NaN advantage through.
    neutral = tl.where(delta != delta, delta, advantage * 0.0)
    signed = tl.where(advantage > 0.0, delta, tl.where(advantage < 0.0, -delta, neutral))
    if EXPONENTIAL:  # noqa: SIM108
        weight = tl.exp2(signed * LOG2E)
    else:
        weight = 2.0 / (1.0 + tl.exp2(-signed * LOG2E))
    return delta, tl.where(weight < low, low, tl.where(weight > high, high, weight))


@triton.jit
def blend(advantage, weight, mix):
    """A * (1 + mix * (w - 1)); at mix = 0 the advantage bit for bit, also beside a weight of NaN."""
    return tl.where(mix == 0.0, advantage, advantage * tl.fma(weight - 1.0, mix, 1.0))


@triton.jit
def step_means(values, step_starts, start, last, STEPS: tl.constexpr, TOKENS: tl.constexpr):
    """Of STEPS steps from ``start`` on: first places, lengths, whether they are live, and mean |value|."""
    step = start + tl.arange(0, STEPS)
    mine = step < last
    begin = tl.load(step_starts + step, mask=mine, other=0)
    length = tl.load(step_starts + step + 1, mask=mine, other=0) - begin
    total = tl.zeros((STEPS, TOKENS), tl.float64)
    count = tl.zeros((STEPS, TOKENS), tl.int32)
    for offset in tl.range(0, tl.max(length, axis=0), TOKENS, loop_unroll_factor=4):
        place = offset + tl.arange(0, TOKENS)[None, :]
        x = tl.abs(tl.load(values + (begin[:, None] + place), mask=place < length[:, None], other=INF))
        total += tl.where(x < INF, x, 0.0).to(tl.float64)
        count += (x < INF).to(tl.int32)
    counted = tl.sum(count, axis=1)
    return begin, length, counted > 0, tl.sum(total, axis=1) / tl.maximum(counted, 1).to(tl.float64)


@triton.jit
def step_budget(values, step_starts, first, last, STEPS: tl.constexpr, TOKENS: tl.constexpr):
    """Mean of the live steps' means, or 0 with fewer than two live steps; and the number of live steps."""
    total, live_steps = tl.zeros((STEPS,), tl.float64), tl.zeros((STEPS,), tl.float64)
    for start in tl.range(first, last, STEPS):
        _, _, live, mean = step_means(values, step_starts, start, last, STEPS, TOKENS)
        total += tl.where(live, mean, 0.0)
        live_steps += live.to(tl.float64)
    total, live_steps = sum_two(total, live_steps)
    return tl.where(live_steps >= 2.0, total / tl.maximum(live_steps, 1.0), 0.0), live_steps


@triton.jit
def scale_steps(shaped, values, order, step_starts, first, last, budget, planes, tokens, STEPS: tl.constexpr,
                TOKENS: tl.constexpr):  # fmt: skip
    """Write shaped and scale of the tokens in steps [first, last); return clamped steps, lowest and highest factor."""
    clamped = tl.zeros((STEPS,), tl.float64)
    lowest = tl.full((STEPS,), INF, tl.float32)
    highest = tl.full((STEPS,), -INF, tl.float32)
    for start in tl.range(first, last, STEPS):
        begin, length, live, mean = step_means(values, step_starts, start, last, STEPS, TOKENS)
        factor = tl.minimum(tl.maximum(budget / (mean + EPS), LEAST), MOST)
        factor = tl.where(live, tl.where(budget > 0.0, factor, 1.0), 1.0).to(tl.float32)
        clamped += (live & ((factor <= LEAST + EDGE) | (factor >= MOST - EDGE))).to(tl.float64)
        lowest = tl.minimum(lowest, tl.where(live, factor, INF))
        highest = tl.maximum(highest, tl.where(live, factor, -INF))
        for offset in tl.range(0, tl.max(length, axis=0), TOKENS):
            place = offset + tl.arange(0, TOKENS)[None, :]
            inside = place < length[:, None]
            token = tl.load(order + (begin[:, None] + place), mask=inside, other=0)
            x = tl.load(shaped + (begin[:, None] + place), mask=inside, other=0.0)
            scale = tl.broadcast_to(factor[:, None], (STEPS, TOKENS))
            tl.store(planes + token, x * scale, mask=inside)
            tl.store(planes + (3 * tokens + token), scale, mask=inside)
    return tl.sum(clamped, axis=0), tl.min(lowest, axis=0), tl.max(highest, axis=0)


@triton.jit
def shape_block(student, teacher, advantages, active, order, planes, values, tokens, in_steps, start, end, low, high,
                mix, EXPONENTIAL: tl.constexpr, BUDGET: tl.constexpr, RATIO: tl.constexpr,
                BLOCK: tl.constexpr):  # fmt: skip
    """Shape the tokens at the places from ``start`` to ``end``, at most BLOCK; those in steps up to the step's factor.

    Returns delta, weight, and which tokens are active.
    """
    place = start + tl.arange(0, BLOCK)
    inside = place < end
    token = place
    if BUDGET:
        token = tl.load(order + place, mask=inside, other=0)
    live = tl.load(active + token, mask=inside, other=0) != 0
    advantage = tl.load(advantages + token, mask=inside, other=0.0)
    s = tl.load(student + token, mask=live, other=0.0)
    t = tl.load(teacher + token, mask=live, other=0.0)
    delta, weight = token_weight(advantage, s, t, low, high, EXPONENTIAL)
    shaped = tl.where(live, blend(advantage, weight, mix), advantage)
    tl.store(planes + (tokens + token), tl.where(live, weight, 1.0), mask=inside)
    tl.store(planes + (2 * tokens + token), tl.where(live, delta, 0.0), mask=inside)
    if BUDGET:
        tl.store(values + place, shaped, mask=inside & (place < in_steps))
        if RATIO:
            tl.store(values + (tokens + place), tl.fma(weight - 1.0, mix, 1.0), mask=inside & (place < in_steps))
        inside = inside & (place >= in_steps)
    tl.store(planes + token, shaped, mask=inside)
    tl.store(planes + (3 * tokens + token), tl.full((BLOCK,), 1.0, tl.float32), mask=inside)
    return delta, weight, live


@triton.jit(do_not_specialize=RUN_TIME)
def shape_kernel(
    student, teacher, advantages, active, order, step_starts, trajectory_starts, counts, planes, statistics,
    values, records, arrived, tokens, low, high, mix,
    EXPONENTIAL: tl.constexpr, BUDGET: tl.constexpr, RATIO: tl.constexpr, STEPS: tl.constexpr, TOKENS: tl.constexpr,
    BLOCK: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Everything of one call. ``arrived`` must be 0 at the start.

    ``values`` is scratch by place in ``order``: the shaped advantage without the step's factor, and with RATIO also
    its ratio to the advantage.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    tokens = tokens.to(tl.int64)
    trajectories, in_steps = tokens * 0, tokens * 0
    if BUDGET:
        trajectories, in_steps = tl.load(counts + 1), tl.load(step_starts + tokens)

    steps, clamped = tl.zeros((), tl.float64), tl.zeros((), tl.float64)
    lowest, highest = tl.full((), INF, tl.float32), tl.full((), -INF, tl.float32)
    count, skipped = tl.zeros((BLOCK,), tl.int32), tl.zeros((BLOCK,), tl.int32)
    at_low, at_high = tl.zeros((BLOCK,), tl.int32), tl.zeros((BLOCK,), tl.int32)
    first_delta, first_weight = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    delta_sum, delta_squares = tl.zeros((BLOCK,), tl.float64), tl.zeros((BLOCK,), tl.float64)
    weight_sum, weight_squares = tl.zeros((BLOCK,), tl.float64), tl.zeros((BLOCK,), tl.float64)
    delta_abs = tl.zeros((BLOCK,), tl.float64)
    delta_min, delta_max = tl.full((BLOCK,), INF, tl.float32), tl.full((BLOCK,), -INF, tl.float32)
    weight_min, weight_max = tl.full((BLOCK,), INF, tl.float32), tl.full((BLOCK,), -INF, tl.float32)
    for item in tl.range(program, trajectories + tl.cdiv(tokens - in_steps, BLOCK), programs):
        begin = in_steps + (item - trajectories) * BLOCK
        end = tl.minimum(begin + BLOCK, tokens)
        if BUDGET:
            mine = item < trajectories
            first = tl.load(trajectory_starts + item, mask=mine, other=0)
            last = tl.load(trajectory_starts + item + 1, mask=mine, other=0)
            begin = tl.where(mine, tl.load(step_starts + first, mask=mine, other=0), begin)
            end = tl.where(mine, tl.load(step_starts + last, mask=mine, other=0), end)

        for start in tl.range(begin, end, BLOCK):
            delta, weight, live = shape_block(
                student, teacher, advantages, active, order, planes, values, tokens, in_steps, start, end, low, high,
                mix, EXPONENTIAL, BUDGET, RATIO, BLOCK)  # fmt: skip
            counted = live & (tl.abs(delta) < INF) & (weight == weight)
            first_delta = tl.where(counted & (count == 0), delta, first_delta)
            first_weight = tl.where(counted & (count == 0), weight, first_weight)
            count += counted.to(tl.int32)
            skipped += (live & (counted == 0)).to(tl.int32)
            at_low += (counted & (weight <= low + EDGE)).to(tl.int32)
            at_high += (counted & (weight >= high - EDGE)).to(tl.int32)
            delta_abs += tl.where(counted, tl.abs(delta), 0.0).to(tl.float64)
            delta_min = tl.minimum(delta_min, tl.where(counted, delta, INF))
            delta_max = tl.maximum(delta_max, tl.where(counted, delta, -INF))
            weight_min = tl.minimum(weight_min, tl.where(counted, weight, INF))
            weight_max = tl.maximum(weight_max, tl.where(counted, weight, -INF))
            # A value that is not counted lies at distance 0.
            distance = tl.where(counted, delta, first_delta).to(tl.float64) - first_delta.to(tl.float64)
            delta_sum += distance
            delta_squares += distance * distance
            distance = tl.where(counted, weight, first_weight).to(tl.float64) - first_weight.to(tl.float64)
            weight_sum += distance
            weight_squares += distance * distance

        if BUDGET:  # noqa: SIM102
            if item < trajectories:
                tl.debug_barrier()  # the values are read by other threads than wrote them
                magnitudes = values
                if RATIO:
                    magnitudes = values + tokens
                budget, live_steps = step_budget(magnitudes, step_starts, first, last, STEPS, TOKENS)
                edges, least, most = scale_steps(
                    values, magnitudes, order, step_starts, first, last, budget, planes, tokens,
                    STEPS, TOKENS)  # fmt: skip
                steps, clamped = steps + live_steps, clamped + edges
                lowest, highest = tl.minimum(lowest, least), tl.maximum(highest, most)

    (total, missing, delta, delta_scatter, delta_low, delta_high, delta_size, weight, weight_scatter, weight_low,
     weight_high, low_total, high_total) = merge(
        count.to(tl.float64), skipped.to(tl.float64), first_delta.to(tl.float64), delta_sum, delta_squares, delta_min,
        delta_max, delta_abs, first_weight.to(tl.float64), weight_sum, weight_squares, weight_min, weight_max,
        at_low.to(tl.float64), at_high.to(tl.float64))  # fmt: skip
    store_record(
        records + program, programs, total, missing, delta, delta_scatter, delta_low, delta_high, delta_size, weight,
        weight_scatter, weight_low, weight_high, low_total, high_total, steps, lowest, highest, clamped)  # fmt: skip
    tl.debug_barrier()  # the whole record is written before it is announced
    if tl.atomic_add(arrived, 1, sem="acq_rel") == programs - 1:
        merge_records(records, programs, statistics, LANES)
