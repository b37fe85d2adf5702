"""The Triton kernels: one program per row for the pair, one block of rows for ready log-probs."""

# Kernel parameters have no Python types.
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from stepopsd.ops.triton.math import BOTTOM, fold_range, row_statistics, shape_advantage

# Strides, sizes and hyper-parameters change from call to call: none of them may trigger a compilation.
RUN_TIME = ("rows", "inner", "vocab", "student_base", "teacher_base", "student_outer", "student_inner",
            "teacher_outer", "teacher_inner")  # fmt: skip


@triton.jit(do_not_specialize=RUN_TIME)
def pair_kernel(
    student, teacher, ids, advantages, active, out,
    rows, inner, vocab, student_base, teacher_base, student_outer, student_inner, teacher_outer, teacher_inner,
    scale, low, high, mix,
    THREADS: tl.constexpr, STUDENT_VEC: tl.constexpr, TEACHER_VEC: tl.constexpr,
    STUDENT_SHIFTED: tl.constexpr, TEACHER_SHIFTED: tl.constexpr,
    EXPONENTIAL: tl.constexpr, ENTROPY: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Shape the advantage of one row of (outer, inner) rows from its student and teacher logits."""
    STEP: tl.constexpr = THREADS * 8
    row = tl.program_id(0).to(tl.int64)
    advantage = tl.load(advantages + row)
    out += row
    if tl.load(active + row) != 0:
        outer = row // inner
        nested = row % inner
        student_offset = outer * student_outer + nested * student_inner
        teacher_offset = outer * teacher_outer + nested * teacher_inner
        student_shift = ((student_base + student_offset) % STUDENT_VEC).to(tl.int32)
        teacher_shift = ((teacher_base + teacher_offset) % TEACHER_VEC).to(tl.int32)
        student_row = tl.multiple_of(student + (student_offset - student_shift), 16)
        teacher_row = tl.multiple_of(teacher + (teacher_offset - teacher_shift), 16)

        student_peak = tl.full((THREADS,), BOTTOM, tl.float32)
        teacher_peak = tl.full((THREADS,), BOTTOM, tl.float32)
        student_total = tl.zeros((THREADS, STUDENT_VEC), tl.float32)
        teacher_total = tl.zeros((THREADS, TEACHER_VEC), tl.float32)
        student_moment = tl.zeros((THREADS, STUDENT_VEC), tl.float32)
        teacher_moment = tl.zeros((THREADS, TEACHER_VEC), tl.float32)

        # At least one logit is left for the edge, so the block after a whole tile always belongs to the row.
        whole = (vocab - 1) // STEP * STEP
        for start in tl.range(0, whole, STEP, loop_unroll_factor=UNROLL):
            student_peak, student_total, student_moment = fold_range(
                student_row, start, student_shift, vocab, student_peak, student_total, student_moment, scale,
                STEP, THREADS, STUDENT_VEC, STUDENT_SHIFTED, False, ENTROPY)  # fmt: skip
            teacher_peak, teacher_total, teacher_moment = fold_range(
                teacher_row, start, teacher_shift, vocab, teacher_peak, teacher_total, teacher_moment, scale,
                STEP, THREADS, TEACHER_VEC, TEACHER_SHIFTED, False, ENTROPY)  # fmt: skip
        student_peak, student_total, student_moment = fold_range(
            student_row, whole, student_shift, vocab, student_peak, student_total, student_moment, scale,
            STEP, THREADS, STUDENT_VEC, STUDENT_SHIFTED, True, ENTROPY)  # fmt: skip
        teacher_peak, teacher_total, teacher_moment = fold_range(
            teacher_row, whole, teacher_shift, vocab, teacher_peak, teacher_total, teacher_moment, scale,
            STEP, THREADS, TEACHER_VEC, TEACHER_SHIFTED, True, ENTROPY)  # fmt: skip

        column = tl.load(ids + row)
        in_range = (column >= 0) & (column < vocab)
        student_logprob, student_entropy = row_statistics(
            student_row, column, in_range, student_shift, student_peak, student_total, student_moment, scale,
            STUDENT_VEC, ENTROPY)  # fmt: skip
        teacher_logprob, teacher_entropy = row_statistics(
            teacher_row, column, in_range, teacher_shift, teacher_peak, teacher_total, teacher_moment, scale,
            TEACHER_VEC, ENTROPY)  # fmt: skip
        shaped, weight, delta = shape_advantage(
            advantage, student_logprob, teacher_logprob, low, high, mix, EXPONENTIAL)  # fmt: skip
        tl.store(out, shaped)
        tl.store(out + rows.to(tl.int64), weight)
        tl.store(out + 2 * rows.to(tl.int64), delta)
        tl.store(out + 3 * rows.to(tl.int64), student_logprob)
        tl.store(out + 4 * rows.to(tl.int64), teacher_logprob)
        tl.store(out + 5 * rows.to(tl.int64), student_entropy)
        tl.store(out + 6 * rows.to(tl.int64), teacher_entropy)
    else:
        tl.store(out, advantage)
        tl.store(out + rows.to(tl.int64), 1.0)
        for plane in tl.static_range(2, 7):
            tl.store(out + plane * rows.to(tl.int64), 0.0)


@triton.jit(do_not_specialize=("rows",))
def epilogue_kernel(student_logprobs, teacher_logprobs, advantages, active, out, rows, low, high, mix,
                    EXPONENTIAL: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Shape a block of advantages from ready log-probs."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    live = tl.load(active + row, mask=inside, other=0) != 0
    advantage = tl.load(advantages + row, mask=inside, other=0.0)
    student_logprob = tl.load(student_logprobs + row, mask=live, other=0.0)
    teacher_logprob = tl.load(teacher_logprobs + row, mask=live, other=0.0)
    shaped, weight, delta = shape_advantage(
        advantage, student_logprob, teacher_logprob, low, high, mix, EXPONENTIAL)  # fmt: skip
    tl.store(out + row, tl.where(live, shaped, advantage), mask=inside)
    tl.store(out + rows.to(tl.int64) + row, tl.where(live, weight, 1.0), mask=inside)
    tl.store(out + 2 * rows.to(tl.int64) + row, tl.where(live, delta, 0.0), mask=inside)
