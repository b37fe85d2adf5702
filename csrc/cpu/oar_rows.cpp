#include "oar_rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "../include/common.h"
#include "thread_pool.h"

namespace stepopsd::cpu {
namespace {

constexpr float kTiny = 1e-8f;
constexpr int kDigitBits = 11;  // of a float's 31 bits below the sign: exponent and three of the mantissa

template <class To, class From>
STEPOPSD_INLINE To bits_of(From x) {
  To y;
  std::memcpy(&y, &x, sizeof(y));
  return y;
}

// log(1 + x) of finite x >= 0 within 2 units in the last place, relative also where x is tiny; without branches, so
// that compilers make vectors of it.
STEPOPSD_INLINE float log1p_of(float x) {
  const float u = 1.0f + x;
  const int32_t word = bits_of<int32_t>(u);
  const int32_t exponent = (word - 0x3f3504f3) >> 23;  // u = m * 2^exponent, m in [sqrt(1/2), sqrt(2))
  const float m = bits_of<float>(word - exponent * (1 << 23));
  const float f = exponent == 0 ? x : m - 1.0f;
  const float lost = exponent == 0 ? 0.0f : (1.0f - (u - x)) / u;  // what rounding took from 1 + x
  const float s = f / (2.0f + f), z = s * s;
  const float tail = z * (2.0f / 3 + z * (2.0f / 5 + z * (2.0f / 7 + z * (2.0f / 9 + z * (2.0f / 11)))));
  return static_cast<float>(exponent) * 0.693147180559945f + (2.0f * s + s * tail + lost);
}

// The masked tokens of a row, one after another.
struct Row {
  std::vector<int64_t> places;
  std::vector<float> z, few;
  std::vector<int32_t> counts;
  int64_t count = 0;

  explicit Row(int64_t width) : places(width + 1), z(width + 1), counts(1 << kDigitBits) {}
};

// The value of the given rank among `count` floats >= 0, and the one after it, or the same where there is none: a count
// by the upper bits, and a selection among those that share them.
std::pair<float, float> order_statistics(Row& row, int64_t rank) {
  const auto digit = [](float x) { return bits_of<uint32_t>(x) >> (31 - kDigitBits); };
  std::fill(row.counts.begin(), row.counts.end(), 0);
  for (int64_t i = 0; i < row.count; ++i) ++row.counts[digit(row.z[i])];
  uint32_t mine = 0;
  int64_t before = 0;
  while (before + row.counts[mine] <= rank) before += row.counts[mine++];
  row.few.clear();
  for (int64_t i = 0; i < row.count; ++i) {
    if (digit(row.z[i]) == mine) row.few.push_back(row.z[i]);
  }
  const auto nth = row.few.begin() + (rank - before);
  std::nth_element(row.few.begin(), nth, row.few.end());
  if (rank + 1 >= row.count) return {*nth, *nth};
  if (nth + 1 != row.few.end()) return {*nth, *std::min_element(nth + 1, row.few.end())};
  float next = std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < row.count; ++i) next = digit(row.z[i]) > mine && row.z[i] < next ? row.z[i] : next;
  return {*nth, next};
}

// The quantile of n = (z - low) / range, linear between neighbours.
float cut_of(Row& row, double level, float low, float range) {
  const double position = level * static_cast<double>(row.count - 1);
  const int64_t below = static_cast<int64_t>(position);
  const auto [first, second] = order_statistics(row, below);
  const float n = (first - low) / range, step = (second - low) / range - n;
  return n + static_cast<float>(position - static_cast<double>(below)) * step;
}

void weigh(const OarProblem& problem, Row& row, float* weights) {
  const int64_t count = row.count;
  float* z = row.z.data();
  float low = std::numeric_limits<float>::infinity(), high = -low;
  for (int64_t i = 0; i < count; ++i) z[i] = log1p_of(z[i]);
  for (int64_t i = 0; i < count; ++i) {
    low = z[i] < low ? z[i] : low;
    high = z[i] > high ? z[i] : high;
  }
  const float range = high > low ? high - low : 1.0f;
  const float cut = problem.absolute ? static_cast<float>(problem.level) : cut_of(row, problem.level, low, range);
  const float under = cut + kTiny, slope = problem.beta / (1.0f - cut + kTiny), floor = problem.floor;
  double total = 0;
  for (int64_t i = 0; i < count; ++i) {
    const float n = (z[i] - low) / range;
    const float damped = n / under, raised = 1.0f + slope * (n - cut);
    z[i] = n < cut ? (damped < floor ? floor : damped) : raised;
  }
  for (int64_t i = 0; i < count; ++i) total += z[i];
  const float scale = problem.preserve ? static_cast<float>(static_cast<double>(count) / total) : 1.0f;
  for (int64_t i = 0; i < count; ++i) weights[row.places[i]] = z[i] * scale;
}

void reshape_row(const OarProblem& problem, int64_t index, Row& row) {
  const float* scores = problem.scores + index * problem.width;
  const bool* mask = problem.mask + index * problem.width;
  float* weights = problem.weights + index * problem.width;
  std::fill(weights, weights + problem.width, 1.0f);
  int64_t count = 0;
  bool broken = false;
  for (int64_t t = 0; t < problem.width; ++t) {
    const bool live = mask[t];
    const float s = live ? scores[t] : 0.0f;
    broken |= !(std::fabs(s) <= std::numeric_limits<float>::max());
    row.places[count] = t;
    row.z[count] = s > 0.0f ? s : 0.0f;
    count += live;
  }
  row.count = count;
  if (count < std::max<int64_t>(problem.min_tokens, 1)) return;
  if (!broken) return weigh(problem, row, weights);
  for (int64_t i = 0; i < count; ++i) weights[row.places[i]] = std::numeric_limits<float>::quiet_NaN();
}

}  // namespace

void oar_rows(const OarProblem& problem, int threads) {
  parallel_for(problem.rows, 1, threads, [&](int64_t begin, int64_t end) {
    Row row(problem.width);
    for (int64_t i = begin; i < end; ++i) reshape_row(problem, i, row);
  });
}

}  // namespace stepopsd::cpu
