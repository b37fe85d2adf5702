// The one-pass row kernel, written once over a `Simd` type that each instruction set supplies:
//   using Vec; static constexpr int width
//   splat(float), add, sub, mul, fma, max(a, b) [b where either is NaN], top(Vec) [maximum]
//   within(Vec, limit): whether all lanes are in [0, limit], and so none is NaN
//   Sums: adds up vectors, lane by lane or pairwise, in double; total() is their sum
//   read(const float*): a vector
//   load(const float* | Half* | Bfloat* p, a, b): the elements of two vectors, in any order
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
constexpr int kAdds = 16;   // terms that one lane of one sum adds up in fp32
constexpr int kBlock = 64;  // steps, and so kBlock / kAdds such sums in each lane, before double takes over
constexpr int kSeed = 512;  // elements that give the first reference
constexpr int kAhead = 256;  // bytes between a line that is scored and the one that is asked for
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

  typename Simd::Vec sum() const { return Simd::add(Simd::add(vec[0], vec[1]), Simd::add(vec[2], vec[3])); }
};

// Elements of `steps` groups, one after the other.
template <class Simd, class T>
struct Part {
  static constexpr int kStep = kGroup * Simd::width;
  const T* p;
  int64_t steps;

  Part from(int64_t step, int64_t most) const { return {p + step * kStep, steps - step < most ? steps - step : most}; }
};

// Powers of a block added up lane by lane.
template <class Simd>
struct BlockSums {
  typename Simd::Vec sum = Simd::splat(0);
  typename Simd::Vec weighted = Simd::splat(0);  // every power times x - reference; if shifted, times its exponent

  void add(const BlockSums& other) {
    sum = Simd::add(sum, other.sum);
    weighted = Simd::add(weighted, other.weighted);
  }
};

template <class Simd, class T>
inline void load_group(const T* p, Group<Simd>& x) {
  for (int v = 0; v < kGroup; v += 2) Simd::load(p + v * Simd::width, x[v], x[v + 1]);
}

// Asks for lines kDistance bytes behind those which are read now; kAgain: whether they are read more than once.
template <int kDistance, bool kAgain>
inline void fetch_ahead(const void* p, int bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(p) + kDistance;
  for (int at = 0; at + 64 <= bytes; at += 64) {
    __builtin_prefetch(reinterpret_cast<const void*>(begin + at), 0, kAgain ? 3 : 0);
  }
}

// A part of no more than kAdds steps.
template <class Simd, Mode kMode, bool kEntropy, class T>
inline BlockSums<Simd> sum_run(const Part<Simd, T>& part, float reference, float scale) {
  constexpr bool kShifted = kMode == Mode::shifted;
  const auto origin = Simd::splat(reference), factor = Simd::splat(scale);
  const auto floor = Simd::splat(kShifted ? Simd::floor : Simd::floor / scale);
  const typename Simd::template Powers<sizeof(T) == 4> powers(kShifted ? 1.0f : scale);
  Group<Simd> x, coarse, fine, sum, weighted;
  for (int v = 0; v < kGroup; ++v) sum[v] = weighted[v] = Simd::splat(0);
  for (int64_t i = 0; i < part.steps; ++i) {
    const T* p = part.p + i * part.kStep;
    fetch_ahead<kAhead, true>(p, part.kStep * sizeof(T));
    load_group(p, x);
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
  return {sum.sum(), weighted.sum()};
}

template <class Simd, Mode kMode, bool kEntropy, class T>
inline BlockSums<Simd> sum_block(const Part<Simd, T>& part, float reference, float scale) {
  BlockSums<Simd> block;
  for (int64_t i = 0; i < part.steps; i += kAdds) {
    block.add(sum_run<Simd, kMode, kEntropy>(part.from(i, kAdds), reference, scale));
  }
  return block;
}

// NaN elements may be passed over: they reach the sum.
template <class Simd, class T>
inline float block_max(const Part<Simd, T>& part) {
  auto top = Simd::splat(-__builtin_inff());
  Group<Simd> x;
  for (int64_t i = 0; i < part.steps; ++i) {
    load_group(part.p + i * part.kStep, x);
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
  typename Simd::Sums sum{}, weighted{};  // of blocks that `stats` does not hold yet

  template <class T>
  inline void start(const Part<Simd, T>& part) {
    raise_reference(part);
    const float y = reference * scale;
    if (empty || !(y >= kUnshiftedFrom && y <= kUnshiftedUpTo)) return;
    mode = Simd::first;
    if (mode != Mode::shifted) stats.shift = 0;
  }

  template <class T>
  inline void add(const Part<Simd, T>& part) {
    if (mode == Mode::plain) return add(part, sum_block<Simd, Mode::plain, kEntropy>(part, reference, scale));
    add_again(part);
  }

  // A block with its plain sums.
  template <class T>
  inline void add(const Part<Simd, T>& part, const BlockSums<Simd>& plain) {
    if (Simd::within(plain.sum, kOverflow)) return take(plain);
    mode = Mode::floored;
    add_again(part);
  }

  // The last elements, fewer than a step has.
  template <class T>
  inline RowStats finish(const T* rest, int64_t count) {
    if (count > 0) {
      T tail[Part<Simd, T>::kStep];
      for (T& x : tail) x = minus_infinity(T{});
      std::memcpy(tail, rest, count * sizeof(T));
      if (mode == Mode::plain) mode = Mode::floored;
      add_again(Part<Simd, T>{tail, 1});
    }
    settle();
    return stats;
  }

 private:
  double shift() const { return static_cast<double>(reference) * scale; }

  // Before the reference moves: the sums are around the old one.
  inline void settle() {
    const double added = sum.total();
    stats.sum += added;
    if constexpr (kEntropy) {
      const double distances = weighted.total();
      stats.weighted += mode == Mode::shifted ? distances : distances * scale + shift() * added;
    }
    sum = weighted = {};
  }

  template <class T>
  inline void raise_reference(const Part<Simd, T>& part) {
    const float top = block_max(part);
    if (!(top > (empty ? -__builtin_inff() : reference))) return;
    settle();
    reference = top;
    empty = false;
    move_shift(stats, shift());
  }

  inline void take(const BlockSums<Simd>& block) {
    sum.add(block.sum);
    if constexpr (kEntropy) weighted.add(block.weighted);
  }

  template <class T>
  inline void add_again(const Part<Simd, T>& part) {
    if (mode == Mode::floored) {
      const auto block = sum_block<Simd, Mode::floored, kEntropy>(part, reference, scale);
      if (Simd::within(block.sum, kOverflow)) return take(block);
      settle();
      mode = Mode::shifted;
      move_shift(stats, shift());
    }
    add_shifted(part);
  }

  template <class T>
  inline void add_shifted(const Part<Simd, T>& part) {
    auto block = sum_block<Simd, Mode::shifted, kEntropy>(part, reference, scale);
    if (empty || !Simd::within(block.sum, kRedoAbove)) {
      raise_reference(part);
      block = sum_block<Simd, Mode::shifted, kEntropy>(part, reference, scale);
      if (empty && Simd::within(block.sum, __builtin_inff())) return;  // nothing but -inf, and it adds nothing
    }
    take(block);
  }
};

// The first elements of a row, for OnlineRow::start.
template <class Simd, class T>
inline Part<Simd, T> beginning(const Part<Simd, T>& row) {
  return row.from(0, kSeed / row.kStep);
}

template <class Simd, class T, bool kEntropy>
RowStats row_stats(const void* row, int64_t vocab, float scale) {
  const auto* p = static_cast<const T*>(row);
  const Part<Simd, T> whole{p, vocab / Part<Simd, T>::kStep};
  const int64_t body = whole.steps * whole.kStep;
  OnlineRow<Simd, kEntropy> online{scale};
  online.start(beginning(whole));
  for (int64_t i = 0; i < whole.steps; i += kBlock) online.add(whole.from(i, kBlock));
  return online.finish(p + body, vocab - body);
}

// 2^x of n floats, n a multiple of the elements in a group: for tests of the error bound.
template <class Simd, bool kExact>
void powers_of(const float* x, float* out, int64_t n) {
  const typename Simd::template Powers<kExact> powers(1.0f);
  Group<Simd> in, coarse, fine;
  for (int64_t i = 0; i < n; i += kGroup * Simd::width) {
    std::memcpy(&in, x + i, sizeof in);
    powers(in, coarse, fine);
    for (int v = 0; v < kGroup; ++v) coarse[v] = Simd::mul(coarse[v], fine[v]);
    std::memcpy(out + i, &coarse, sizeof coarse);
  }
}

}  // namespace
}  // namespace stepopsd::cpu
