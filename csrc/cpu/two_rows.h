// Two rows side by side, line by line: one core gets more out of its memory from two streams than from one, as long as
// both go on for many pages. The bits are those of row_stats.
#pragma once

#include "rows.h"

namespace stepopsd::cpu {
namespace {

template <class Simd>
struct TwoSums {
  BlockSums<Simd> first, second;
};

// The plain sums of no more than kAdds steps of each row.
template <class Simd, class T>
inline TwoSums<Simd> sum_two_runs(const Part<Simd, T>& first, const Part<Simd, T>& second, float scale) {
  constexpr int kHalf = kGroup / 2 * Simd::width, kHalves = 2;
  const typename Simd::template Powers<sizeof(T) == 4> powers(scale);
  Group<Simd> x, coarse, fine, sums[kHalves];  // the lower two vectors are of the first row
  for (auto& sum : sums) {
    for (int v = 0; v < kGroup; ++v) sum[v] = Simd::splat(0);
  }
  for (int64_t i = 0; i < first.steps; ++i) {
    for (int half = 0; half < kHalves; ++half) {
      const int64_t at = i * first.kStep + half * kHalf;
      fetch_ahead<kAhead, true>(first.p + at, kHalf * sizeof(T));
      fetch_ahead<kAhead, true>(second.p + at, kHalf * sizeof(T));
      Simd::load(first.p + at, x[0], x[1]);
      Simd::load(second.p + at, x[2], x[3]);
      powers(x, coarse, fine);
      for (int v = 0; v < kGroup; ++v) sums[half][v] = Simd::fma(fine[v], coarse[v], sums[half][v]);
    }
  }
  TwoSums<Simd> two;
  two.first.sum = Group<Simd>{{sums[0][0], sums[0][1], sums[1][0], sums[1][1]}}.sum();
  two.second.sum = Group<Simd>{{sums[0][2], sums[0][3], sums[1][2], sums[1][3]}}.sum();
  return two;
}

template <class Simd, class T>
inline TwoSums<Simd> sum_two_blocks(const Part<Simd, T>& first, const Part<Simd, T>& second, float scale) {
  TwoSums<Simd> two;
  for (int64_t i = 0; i < first.steps; i += kAdds) {
    const auto run = sum_two_runs(first.from(i, kAdds), second.from(i, kAdds), scale);
    two.first.add(run.first);
    two.second.add(run.second);
  }
  return two;
}

template <class Simd, class T>
void two_rows_stats(const void* first, const void* second, int64_t vocab, float scale, RowStats* stats) {
  const auto *p = static_cast<const T*>(first), *q = static_cast<const T*>(second);
  const Part<Simd, T> a{p, vocab / Part<Simd, T>::kStep}, b{q, a.steps};
  const int64_t body = a.steps * a.kStep;
  OnlineRow<Simd, false> one{scale}, other{scale};
  one.start(beginning(a));
  other.start(beginning(b));
  for (int64_t i = 0; i < a.steps; i += kBlock) {
    const auto first_block = a.from(i, kBlock), second_block = b.from(i, kBlock);
    if (one.mode == Mode::plain && other.mode == Mode::plain) {
      const auto sums = sum_two_blocks(first_block, second_block, scale);
      one.add(first_block, sums.first);
      other.add(second_block, sums.second);
    } else {
      one.add(first_block);
      other.add(second_block);
    }
  }
  stats[0] = one.finish(p + body, vocab - body);
  stats[1] = other.finish(q + body, vocab - body);
}

}  // namespace
}  // namespace stepopsd::cpu
