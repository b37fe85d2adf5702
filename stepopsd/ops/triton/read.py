"""Device functions that read logits: groups of neighbouring logits, one group per thread, at any alignment.

A group is what 16 bytes hold, counted from the start of the row. A thread keeps each logit of its groups in a variable
of its own, (THREADS,) for all threads, and tuples of these in the order of the vocabulary.
"""

# Kernel parameters have no Python types.
# mypy: disable-error-code="no-untyped-def, assignment"

import triton
import triton.language as tl

MINUS_INF = tl.constexpr(float("-inf"))
HIGH_HALF = tl.constexpr(-65536)


@triton.jit
def load_words(block, THREADS: tl.constexpr):
    """Load 16 bytes per thread, ``block`` (THREADS, 4), as four (THREADS,) words."""
    words = tl.load(block, eviction_policy="evict_first")
    # Threads hold whole rows, so taking them apart moves no data.
    even, odd = tl.split(tl.reshape(words, (THREADS, 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def read_group(block, SHIFT: tl.constexpr, dtype: tl.constexpr, WIDTH: tl.constexpr, THREADS: tl.constexpr):
    """Read one group per thread: the logits from place ``SHIFT`` of a 16-byte block on, the rest from the next block.

    Both blocks hold logits of the group, so no read leaves the row's memory pages. Each logit takes one operation to
    fp32: bf16 is the upper half of one.

    Returns the logits, and one word made of words beside them. Whoever uses it makes the compiler load both blocks
    whole: of a block of which fewer than three words are wanted it loads no more than these.
    """
    words = load_words(block, THREADS)
    beside = tl.zeros_like(words[0])
    if SHIFT > 0:
        words += load_words(block + 4, THREADS)
        for place in tl.static_range(1, 7):
            if place < SHIFT * 4 // WIDTH or place > (SHIFT + WIDTH - 1) * 4 // WIDTH:
                beside ^= words[place]
    logits = ()
    for place in tl.static_range(SHIFT, SHIFT + WIDTH):
        if WIDTH == 4:
            logits += (words[place].to(tl.float32, bitcast=True),)
        elif dtype == tl.bfloat16:
            bits = words[place // 2] << 16 if place % 2 == 0 else words[place // 2] & HIGH_HALF
            logits += (bits.to(tl.float32, bitcast=True),)
        else:
            bits = words[place // 2] if place % 2 == 0 else words[place // 2] >> 16
            logits += (bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32),)
    return logits, beside


@triton.jit
def read_edge(row, start, stop, WIDTH: tl.constexpr, THREADS: tl.constexpr):
    """Read one group per thread from ``start`` on, logit by logit; -inf from ``stop`` on."""
    first = start + WIDTH * tl.arange(0, THREADS)
    logits = ()
    for place in tl.static_range(WIDTH):
        column = first + place
        logits += (tl.load(row + column, mask=column < stop, other=MINUS_INF).to(tl.float32),)
    return logits
