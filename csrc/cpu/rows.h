// The one-pass row kernel, written once over a `Simd` type that each instruction set supplies:
//   using Vec; static constexpr int width;
//   splat(float), add, sub, mul, fma, max(a, b) [b where either is NaN], exp2(Vec), sum(Vec), top(Vec) [maximum],
//   load_pair(const float* | Half* | Bfloat* p, Vec& a, Vec& b): the 2 * width elements at p, in any order.
//
// Included once per instruction set, so everything here has internal linkage (see common.h).
#pragma once

#include <cstdint>
#include <cstring>

#include "../include/exp2.h"
#include "kernels.h"

namespace stepopsd::cpu {
namespace {

struct Half { uint16_t bits; };
struct Bfloat { uint16_t bits; };

constexpr int kBlock = 2048;            // elements between two looks at the shift; 8 KiB of fp32 stays in L1
constexpr float kRedoAbove = 65536.0f;  // a block sum up to here keeps |y - shift| <= 16, and so its ulp small
constexpr float kFloor = -256.0f;       // 2^-256 is 0 in fp32; keeps 0 * -inf out of the entropy

constexpr Half minus_infinity(Half) { return {0xfc00}; }
constexpr Bfloat minus_infinity(Bfloat) { return {0xff80}; }
constexpr float minus_infinity(float) { return -__builtin_inff(); }

// 2^f for f in [0, 1], by Estrin's scheme: one multiplication more than Horner's, half its latency.
template <class Simd>
inline typename Simd::Vec power_of_fraction(typename Simd::Vec f) {
  using namespace exp2_poly;
  const auto f2 = Simd::mul(f, f);
  const auto low = Simd::fma(Simd::splat(c1), f, Simd::splat(c0));
  const auto middle = Simd::fma(Simd::splat(c3), f, Simd::splat(c2));
  const auto high = Simd::fma(Simd::splat(c5), f, Simd::splat(c4));
  return Simd::fma(Simd::fma(high, f2, middle), f2, low);
}

template <class Simd>
struct BlockSums {
  typename Simd::Vec sum = Simd::splat(0), weighted = Simd::splat(0);
};

// 2^(y - shift) is formed as 2^((x - reference) * scale): exact near the maximum, whatever its magnitude.
template <class Simd, bool kEntropy>
inline void accumulate(BlockSums<Simd>& acc, typename Simd::Vec x, typename Simd::Vec reference,
                       typename Simd::Vec scale) {
  const auto exponent = Simd::mul(Simd::sub(x, reference), scale);
  const auto power = Simd::exp2(exponent);
  acc.sum = Simd::add(acc.sum, power);
  if constexpr (kEntropy) {
    acc.weighted = Simd::fma(power, Simd::max(Simd::splat(kFloor), exponent), acc.weighted);
  }
}

// `n` is a multiple of 2 * width, so that a tail never needs a second code path.
template <class Simd, bool kEntropy, class T>
inline void sum_block(const T* p, int64_t n, float reference, float scale, float& sum, float& weighted) {
  using Vec = typename Simd::Vec;
  constexpr int kPair = 2 * Simd::width;
  const Vec r = Simd::splat(reference), c = Simd::splat(scale);
  BlockSums<Simd> acc[4];
  int64_t i = 0;
  Vec a, b;
  for (; i + 2 * kPair <= n; i += 2 * kPair) {
    Simd::load_pair(p + i, a, b);
    accumulate<Simd, kEntropy>(acc[0], a, r, c);
    accumulate<Simd, kEntropy>(acc[1], b, r, c);
    Simd::load_pair(p + i + kPair, a, b);
    accumulate<Simd, kEntropy>(acc[2], a, r, c);
    accumulate<Simd, kEntropy>(acc[3], b, r, c);
  }
  if (i < n) {
    Simd::load_pair(p + i, a, b);
    accumulate<Simd, kEntropy>(acc[0], a, r, c);
    accumulate<Simd, kEntropy>(acc[1], b, r, c);
  }
  sum = Simd::sum(Simd::add(Simd::add(acc[0].sum, acc[1].sum), Simd::add(acc[2].sum, acc[3].sum)));
  weighted = Simd::sum(
      Simd::add(Simd::add(acc[0].weighted, acc[1].weighted), Simd::add(acc[2].weighted, acc[3].weighted)));
}

// NaN elements may be passed over: they reach the sum.
template <class Simd, class T>
inline float block_max(const T* p, int64_t n) {
  auto top = Simd::splat(-__builtin_inff());
  typename Simd::Vec a, b;
  for (int64_t i = 0; i < n; i += 2 * Simd::width) {
    Simd::load_pair(p + i, a, b);
    top = Simd::max(a, Simd::max(b, top));
  }
  return Simd::top(top);
}

// The running sums of one row. The reference is the first block's maximum and moves only when a block's sum shows that
// it was far too low; that block is then summed again, from L1.
template <class Simd, bool kEntropy>
struct OnlineRow {
  double scale;
  float reference = 0;
  bool empty = true;  // no logit above -inf yet
  RowStats stats{};

  template <class T>
  inline void add_block(const T* p, int64_t n) {
    float sum = 0, weighted = 0;
    if (!empty) sum_block<Simd, kEntropy>(p, n, reference, static_cast<float>(scale), sum, weighted);
    if (empty || !(sum <= kRedoAbove)) {
      const float top = block_max<Simd>(p, n);
      if (top > (empty ? -__builtin_inff() : reference)) {
        reference = top;
        empty = false;
        move_shift(stats, reference * scale);
      }
      sum_block<Simd, kEntropy>(p, n, reference, static_cast<float>(scale), sum, weighted);
    }
    stats.sum += sum;
    stats.weighted += weighted;
  }
};

template <class Simd, class T, bool kEntropy>
RowStats row_stats(const void* row, int64_t vocab, double scale) {
  constexpr int kPair = 2 * Simd::width;
  const T* p = static_cast<const T*>(row);
  OnlineRow<Simd, kEntropy> online{scale};
  const int64_t body = vocab - vocab % kPair;
  for (int64_t i = 0; i < body; i += kBlock) online.add_block(p + i, body - i < kBlock ? body - i : kBlock);
  if (body < vocab) {
    T tail[kPair];
    for (int i = 0; i < kPair; ++i) tail[i] = minus_infinity(T{});
    std::memcpy(tail, p + body, (vocab - body) * sizeof(T));
    online.add_block(tail, kPair);
  }
  return online.stats;
}

template <class Simd>
constexpr RowKernels kernels_of(const char* isa) {
  return {isa,
          {row_stats<Simd, float, false>, row_stats<Simd, Half, false>, row_stats<Simd, Bfloat, false>},
          {row_stats<Simd, float, true>, row_stats<Simd, Half, true>, row_stats<Simd, Bfloat, true>}};
}

}  // namespace
}  // namespace stepopsd::cpu
