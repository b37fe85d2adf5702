// The one-pass row kernel, written once over a `Simd` type that each instruction set supplies:
//   using Vec; static constexpr int width
//   splat(float), add, sub, mul, fma, max(a, b) [b where either is NaN], sum(Vec), top(Vec) [maximum]
//   load(const float* | Half* | Bfloat* p, Group& x): the 4 * width elements at p, in any order
//   Powers<exact>(scale)(x, coarse, fine): 2^(x * scale) = coarse * fine. Above the range of fp32 the power is NaN or
//     larger than any limit here, of either sign; NaN stays NaN. Below `floor` it may be anything, but if `first` is
//     Mode::plain it is 0, or NaN.
//   floor: an exponent whose power is 0 or negligible
//   first: the simplest way of adding up that it can go
//
// Included once per instruction set, so everything here has internal linkage (see common.h).
#pragma once

#include <cstdint>
#include <cstring>

#include "../include/exp2.h"
#include "elements.h"
#include "kernels.h"

namespace stepopsd::cpu {
namespace {

constexpr int kGroup = 4;   // vectors that walk through the arithmetic side by side
constexpr int kAdds = 32;   // terms that one lane of one sum adds up in fp32 before double takes over
constexpr int kSeed = 512;  // elements that give the first reference
// Scaled logits around which no shift is needed: the sum is at least 2^-32, and what underflows does not count.
constexpr float kUnshiftedFrom = -32.0f, kUnshiftedUpTo = 64.0f;
constexpr float kOverflow = 0x1p100f;   // a block whose sum is above it needs a shift
constexpr float kRedoAbove = 65536.0f;  // with a shift: up to here y - shift is at most 16, and so its ulp small

// What is added up, with y = x * scale:
//   plain    2^y as it is; a block with -inf comes out as NaN
//   floored  the same with the exponents raised to `floor`
//   shifted  2^((x - reference) * scale), also raised: for logits of any magnitude
enum class Mode { plain, floored, shifted };

template <class Simd>
struct Group {
  typename Simd::Vec vec[kGroup];

  typename Simd::Vec& operator[](int v) { return vec[v]; }
  const typename Simd::Vec& operator[](int v) const { return vec[v]; }

  float sum() const { return Simd::sum(Simd::add(Simd::add(vec[0], vec[1]), Simd::add(vec[2], vec[3]))); }
};

struct BlockSums {
  float sum;
  float weighted;  // every power times x - reference; if shifted, times its exponent

  bool within(float limit) const { return sum >= 0 && sum <= limit; }  // and no NaN
};

// `n` is a multiple of the elements in a group, so that a tail never needs a second code path.
template <class Simd, Mode kMode, bool kEntropy, class T>
inline BlockSums sum_block(const T* p, int64_t n, float reference, float scale) {
  constexpr bool kShifted = kMode == Mode::shifted;
  const auto origin = Simd::splat(reference), factor = Simd::splat(scale);
  const auto floor = Simd::splat(kShifted ? Simd::floor : Simd::floor / scale);
  const typename Simd::template Powers<sizeof(T) == 4> powers(kShifted ? 1.0f : scale);
  Group<Simd> x, coarse, fine, sum, weighted;
  for (int v = 0; v < kGroup; ++v) sum[v] = weighted[v] = Simd::splat(0);
  for (int64_t i = 0; i < n; i += kGroup * Simd::width) {
    Simd::load(p + i, x);
    for (int v = 0; v < kGroup; ++v) {
      if constexpr (kShifted) x[v] = Simd::mul(Simd::sub(x[v], origin), factor);
      if constexpr (kMode != Mode::plain) x[v] = Simd::max(floor, x[v]);
    }
    powers(x, coarse, fine);
    for (int v = 0; v < kGroup; ++v) sum[v] = Simd::fma(fine[v], coarse[v], sum[v]);
    if constexpr (kEntropy) {
      for (int v = 0; v < kGroup; ++v) {
        const auto distance = kShifted ? x[v] : Simd::sub(x[v], origin);
        weighted[v] = Simd::fma(fine[v], Simd::mul(coarse[v], distance), weighted[v]);
      }
    }
  }
  return {sum.sum(), kEntropy ? weighted.sum() : 0.0f};
}

// NaN elements may be passed over: they reach the sum.
template <class Simd, class T>
inline float block_max(const T* p, int64_t n) {
  auto top = Simd::splat(-__builtin_inff());
  Group<Simd> x;
  for (int64_t i = 0; i < n; i += kGroup * Simd::width) {
    Simd::load(p + i, x);
    top = Simd::max(Simd::max(x[0], x[1]), Simd::max(Simd::max(x[2], x[3]), top));
  }
  return Simd::top(top);
}

// The running sums of one piece of a row. The reference is the maximum of its first elements. Where that is no extreme
// number nothing is shifted, until a block's sum overflows. With a shift, the reference moves when a block's sum shows
// that it was far too low. Either way that block is summed again, from L1.
template <class Simd, bool kEntropy>
struct OnlineRow {
  float scale;
  float reference = 0;
  bool empty = true;  // no logit above -inf yet
  Mode mode = Mode::shifted;
  RowStats stats{};

  template <class T>
  inline void start(const T* p, int64_t n) {
    raise_reference(p, n);
    const float y = reference * scale;
    if (empty || !(y >= kUnshiftedFrom && y <= kUnshiftedUpTo)) return;
    mode = Simd::first;
    if (mode != Mode::shifted) stats.shift = 0;
  }

  template <class T>
  inline void add(const T* p, int64_t n) {
    if (mode == Mode::plain && add_unshifted<Mode::plain>(p, n)) return;
    if (mode != Mode::shifted) {
      mode = Mode::floored;
      if (add_unshifted<Mode::floored>(p, n)) return;
      mode = Mode::shifted;
      move_shift(stats, shift());
    }
    add_shifted(p, n);
  }

 private:
  double shift() const { return static_cast<double>(reference) * scale; }

  template <class T>
  inline void raise_reference(const T* p, int64_t n) {
    const float top = block_max<Simd>(p, n);
    if (!(top > (empty ? -__builtin_inff() : reference))) return;
    reference = top;
    empty = false;
    move_shift(stats, shift());
  }

  template <Mode kMode, class T>
  inline bool add_unshifted(const T* p, int64_t n) {
    const BlockSums block = sum_block<Simd, kMode, kEntropy>(p, n, reference, scale);
    if (!block.within(kOverflow)) return false;
    stats.sum += block.sum;
    if constexpr (kEntropy) stats.weighted += static_cast<double>(block.weighted) * scale + shift() * block.sum;
    return true;
  }

  template <class T>
  inline void add_shifted(const T* p, int64_t n) {
    BlockSums block = sum_block<Simd, Mode::shifted, kEntropy>(p, n, reference, scale);
    if (empty || !block.within(kRedoAbove)) {
      raise_reference(p, n);
      block = sum_block<Simd, Mode::shifted, kEntropy>(p, n, reference, scale);
      if (empty && block.sum == block.sum) return;  // nothing but -inf, and it adds nothing
    }
    stats.sum += block.sum;
    stats.weighted += block.weighted;
  }
};

template <class Simd, class T, bool kEntropy>
RowStats row_stats(const void* row, int64_t vocab, float scale) {
  constexpr int kStep = kGroup * Simd::width, kBlock = kAdds * kStep;
  const T* p = static_cast<const T*>(row);
  OnlineRow<Simd, kEntropy> online{scale};
  const int64_t body = vocab - vocab % kStep;
  online.start(p, body < kSeed ? body : kSeed);
  for (int64_t i = 0; i < body; i += kBlock) online.add(p + i, body - i < kBlock ? body - i : kBlock);
  if (body < vocab) {
    T tail[kStep];
    for (int i = 0; i < kStep; ++i) tail[i] = minus_infinity(T{});
    std::memcpy(tail, p + body, (vocab - body) * sizeof(T));
    if (online.mode == Mode::plain) online.mode = Mode::floored;
    online.add(tail, kStep);
  }
  return online.stats;
}

// 2^x of n floats, n a multiple of the elements in a group: for tests of the error bound.
template <class Simd, bool kExact>
void powers_of(const float* x, float* out, int64_t n) {
  const typename Simd::template Powers<kExact> powers(1.0f);
  Group<Simd> in, coarse, fine;
  for (int64_t i = 0; i < n; i += kGroup * Simd::width) {
    Simd::load(x + i, in);
    powers(in, coarse, fine);
    for (int v = 0; v < kGroup; ++v) coarse[v] = Simd::mul(coarse[v], fine[v]);
    std::memcpy(out + i, &coarse, sizeof coarse);
  }
}

// Nothing but loads, of two streams and with the lines asked for early: faster than one stream of plain loads, which stops
// at every page. What comes back depends on all of it but a rest of less than two groups.
template <class Simd>
uint64_t read_all(const void* memory, int64_t bytes) {
  constexpr int64_t kStep = sizeof(Group<Simd>), kAhead = 2048, kLine = 64;
  const char* p = static_cast<const char*>(memory);
  const int64_t half = bytes / (2 * kStep) * kStep;
  Group<Simd> low, high;
  auto top = Simd::splat(0);
  for (int64_t i = 0; i < half; i += kStep) {
    for (int64_t line = 0; line < kStep; line += kLine) {
      __builtin_prefetch(p + i + line + kAhead, 0, 0);
      __builtin_prefetch(p + half + i + line + kAhead, 0, 0);
    }
    std::memcpy(&low, p + i, kStep);
    std::memcpy(&high, p + half + i, kStep);
    for (int v = 0; v < kGroup; ++v) top = Simd::max(Simd::max(low[v], high[v]), top);
  }
  const float result = Simd::top(top);
  uint32_t bits;
  std::memcpy(&bits, &result, sizeof bits);
  return bits;
}

template <class Simd>
constexpr RowKernels kernels_of(const char* isa) {
  return {isa,
          {row_stats<Simd, float, false>, row_stats<Simd, Half, false>, row_stats<Simd, Bfloat, false>},
          {row_stats<Simd, float, true>, row_stats<Simd, Half, true>, row_stats<Simd, Bfloat, true>},
          {powers_of<Simd, true>, powers_of<Simd, false>, powers_of<Simd, false>},
          read_all<Simd>};
}

}  // namespace
}  // namespace stepopsd::cpu
