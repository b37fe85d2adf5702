// The one-pass row kernel, written once over a `Simd` type that each instruction set supplies:
//   using Vec; static constexpr int width
//   splat(float), add, sub, mul, fma, max(a, b) [b where either is NaN], sum(Vec), top(Vec) [maximum]
//   load(const float* | Half* | Bfloat* p, stride, Group& x): the elements of a step (see Part), in any order
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
constexpr int kAdds = 16;   // terms that one lane of one sum adds up in fp32 before double takes over
constexpr int kSeed = 512;  // elements that give the first reference
constexpr int kAhead = 512;  // bytes between a line that is read and the one that is asked for
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

// Elements for `steps` groups. A group takes kLoad contiguous elements at each of kLoads places `stride` apart; the
// next group lies `advance` further on.
template <class Simd, class T>
struct Part {
  static constexpr int kLoads = sizeof(T) == 4 ? 4 : 2;
  static constexpr int kStep = kGroup * Simd::width, kLoad = kStep / kLoads;
  const T* p;
  int64_t steps;
  int64_t advance = kStep, stride = kLoad;  // one after the other

  // kLoads streams side by side: one core gets more out of its memory that way.
  static Part streams(const T* p, int64_t steps) { return {p, steps, kLoad, steps * kLoad}; }

  Part from(int64_t step, int64_t most) const {
    return {p + step * advance, steps - step < most ? steps - step : most, advance, stride};
  }
};

struct BlockSums {
  float sum;
  float weighted;  // every power times x - reference; if shifted, times its exponent

  bool within(float limit) const { return sum >= 0 && sum <= limit; }  // and no NaN
};

template <class Simd, class T>
inline void fetch_ahead(const Part<Simd, T>& part, const T* p) {
  if constexpr (Part<Simd, T>::kLoad * sizeof(T) >= 64) {
    for (int i = 0; i < Part<Simd, T>::kLoads; ++i) {
      const auto address = reinterpret_cast<uintptr_t>(p + i * part.stride);
      __builtin_prefetch(reinterpret_cast<const void*>(address + kAhead), 0, 0);
    }
  }
}

template <class Simd, Mode kMode, bool kEntropy, class T>
inline BlockSums sum_block(const Part<Simd, T>& part, float reference, float scale) {
  constexpr bool kShifted = kMode == Mode::shifted;
  const auto origin = Simd::splat(reference), factor = Simd::splat(scale);
  const auto floor = Simd::splat(kShifted ? Simd::floor : Simd::floor / scale);
  const typename Simd::template Powers<sizeof(T) == 4> powers(kShifted ? 1.0f : scale);
  Group<Simd> x, coarse, fine, sum, weighted;
  for (int v = 0; v < kGroup; ++v) sum[v] = weighted[v] = Simd::splat(0);
  for (int64_t i = 0; i < part.steps; ++i) {
    const T* p = part.p + i * part.advance;
    fetch_ahead(part, p);
    Simd::load(p, part.stride, x);
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
inline float block_max(const Part<Simd, T>& part) {
  auto top = Simd::splat(-__builtin_inff());
  Group<Simd> x;
  for (int64_t i = 0; i < part.steps; ++i) {
    Simd::load(part.p + i * part.advance, part.stride, x);
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
  inline void start(const Part<Simd, T>& part) {
    raise_reference(part);
    const float y = reference * scale;
    if (empty || !(y >= kUnshiftedFrom && y <= kUnshiftedUpTo)) return;
    mode = Simd::first;
    if (mode != Mode::shifted) stats.shift = 0;
  }

  template <class T>
  inline void add(const Part<Simd, T>& part) {
    if (mode == Mode::plain && add_unshifted<Mode::plain>(part)) return;
    if (mode != Mode::shifted) {
      mode = Mode::floored;
      if (add_unshifted<Mode::floored>(part)) return;
      mode = Mode::shifted;
      move_shift(stats, shift());
    }
    add_shifted(part);
  }

 private:
  double shift() const { return static_cast<double>(reference) * scale; }

  template <class T>
  inline void raise_reference(const Part<Simd, T>& part) {
    const float top = block_max(part);
    if (!(top > (empty ? -__builtin_inff() : reference))) return;
    reference = top;
    empty = false;
    move_shift(stats, shift());
  }

  template <Mode kMode, class T>
  inline bool add_unshifted(const Part<Simd, T>& part) {
    const BlockSums block = sum_block<Simd, kMode, kEntropy>(part, reference, scale);
    if (!block.within(kOverflow)) return false;
    stats.sum += block.sum;
    if constexpr (kEntropy) stats.weighted += static_cast<double>(block.weighted) * scale + shift() * block.sum;
    return true;
  }

  template <class T>
  inline void add_shifted(const Part<Simd, T>& part) {
    BlockSums block = sum_block<Simd, Mode::shifted, kEntropy>(part, reference, scale);
    if (empty || !block.within(kRedoAbove)) {
      raise_reference(part);
      block = sum_block<Simd, Mode::shifted, kEntropy>(part, reference, scale);
      if (empty && block.sum == block.sum) return;  // nothing but -inf, and it adds nothing
    }
    stats.sum += block.sum;
    stats.weighted += block.weighted;
  }
};

template <class Simd, class T, bool kEntropy>
RowStats row_stats(const void* row, int64_t vocab, float scale) {
  using Part = stepopsd::cpu::Part<Simd, T>;
  const T* p = static_cast<const T*>(row);
  OnlineRow<Simd, kEntropy> online{scale};
  const int64_t steps = vocab / Part::kStep, body = steps * Part::kStep;
  online.start(Part{p, steps < kSeed / Part::kStep ? steps : kSeed / Part::kStep});
  const Part whole = sizeof(T) == 4 ? Part::streams(p, steps) : Part{p, steps};  // 16 bits: memory is not the limit
  for (int64_t i = 0; i < steps; i += kAdds) online.add(whole.from(i, kAdds));
  if (body < vocab) {
    T tail[Part::kStep];
    for (T& x : tail) x = minus_infinity(T{});
    std::memcpy(tail, p + body, (vocab - body) * sizeof(T));
    if (online.mode == Mode::plain) online.mode = Mode::floored;
    online.add(Part{tail, 1});
  }
  return online.stats;
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

// Reads in kStreams streams, asks for lines kBytesAhead early (0: for none), and does nothing else. What comes back
// depends on every byte but a rest of less than a group.
template <class Simd, int kStreams, int kBytesAhead>
uint64_t read_all(const void* memory, int64_t bytes) {
  constexpr int kSets = kStreams > kGroup ? kStreams / kGroup : 1, kStep = kGroup * Simd::width;
  const float* p = static_cast<const float*>(memory);
  const int64_t steps = bytes / (kStep * static_cast<int64_t>(sizeof(float))), rounds = steps / kSets;
  const int64_t stride = kStreams > 1 ? rounds * Simd::width : Simd::width;
  const int64_t advance = kStreams > 1 ? Simd::width : kStep;
  auto top = Simd::splat(0);
  Group<Simd> x;
  const auto add = [&](const float* at, int64_t stride) {
    Simd::load(at, stride, x);
    for (int v = 0; v < kGroup; ++v) top = Simd::max(x[v], top);
  };
  for (int64_t i = 0; i < rounds; ++i) {
    for (int set = 0; set < kSets; ++set) {
      const float* at = p + i * advance + set * kGroup * stride;
      for (int v = 0; kBytesAhead > 0 && v < kGroup; ++v) {
        const auto address = reinterpret_cast<uintptr_t>(at + v * stride);
        __builtin_prefetch(reinterpret_cast<const void*>(address + kBytesAhead), 0, 2);
      }
      add(at, stride);
    }
  }
  for (int64_t i = rounds * kSets; i < steps; ++i) add(p + i * kStep, Simd::width);
  const float result = Simd::top(top);
  uint32_t bits;
  std::memcpy(&bits, &result, sizeof bits);
  return bits;
}

}  // namespace
}  // namespace stepopsd::cpu
