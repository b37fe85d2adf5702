#include "future_rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "../include/common.h"
#include "thread_pool.h"

namespace stepopsd::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

template <class To, class From>
STEPOPSD_INLINE To bits_of(From x) {
  To y;
  std::memcpy(&y, &x, sizeof(y));
  return y;
}

// exp(x) for |x| <= 87 within 2 units in the last place, exactly 1 at 0, NaN for NaN; without branches, so that
// compilers make vectors of it.
STEPOPSD_INLINE float exp_of(float x) {
  constexpr float round = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest whole number in the low bits
  const float shifted = x * 1.44269504f + round, whole = shifted - round;
  const float r = (x - whole * 0.693359375f) - whole * -2.12194440e-4f;  // ln 2 in two parts
  const float tail = 1.0f / 6 + r * (1.0f / 24 + r * (1.0f / 120 + r * (1.0f / 720 + r * (1.0f / 5040))));
  const float power = 1.0f + (r + r * r * (0.5f + r * tail));
  return power * bits_of<float>((bits_of<int32_t>(shifted) << 23) + 0x3f800000);
}

// The very bounds where the clip holds.
STEPOPSD_INLINE float clip(float ratio, float sum, const RatioClip& clip) {
  return sum <= clip.log_low ? clip.low : sum >= clip.log_high ? clip.high : ratio;
}

// NaN stays NaN.
STEPOPSD_INLINE float clamp(float x, float low, float high) { return x < low ? low : x > high ? high : x; }

// The masked tokens of a row, from the last to the first.
struct Row {
  std::vector<int64_t> places;
  std::vector<float> sums, ratios, entropies;
  int64_t count = 0;

  explicit Row(int64_t width) : places(width + 1), sums(width + 1), ratios(width), entropies(width) {}
};

// Four sums side by side, whose order is that of the places: fast, and the same for rows of any width.
template <class Value>
double sum_of(int64_t count, const Value& value) {
  double lanes[4] = {0, 0, 0, 0};
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    for (int lane = 0; lane < 4; ++lane) lanes[lane] += value(i + lane);
  }
  for (int lane = 0; i < count; ++i, ++lane) lanes[lane] += value(i);
  return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
}

struct Moments {
  double mean, std;
};

Moments moments_of(const float* x, int64_t count) {
  const double tokens = static_cast<double>(count);
  const double mean = sum_of(count, [&](int64_t i) { return static_cast<double>(x[i]); }) / tokens;
  const double squares = sum_of(count, [&](int64_t i) { return (x[i] - mean) * (x[i] - mean); });
  return {mean, std::sqrt(squares / tokens)};
}

// F_t = x_t + a_t F_{t+1} over the row, kept where the mask is set.
void scan(const FutureProblem& problem, int64_t index, Row& row) {
  const int64_t offset = index * problem.width;
  const float *logprobs = problem.logprobs + offset, *old = problem.old_logprobs + offset;
  const bool* mask = problem.mask + offset;
  const float limit = problem.log_clamp, between = problem.valid_decay ? 1.0f : problem.gamma;
  float sum = 0;
  int64_t count = 0;
  for (int64_t t = problem.width; t-- > 0;) {
    const bool live = mask[t];
    const float gap = live ? logprobs[t] - old[t] : 0.0f;
    const float x = gap > problem.drop_above ? 0.0f : clamp(gap, -limit, limit);
    sum = x + (live ? problem.gamma : between) * sum;
    row.places[count] = t;
    row.sums[count] = sum;
    count += live;
  }
  row.count = count;
}

void score(const FutureProblem& problem, const float* entropies, Row& row, float* scores) {
  const RatioClip& bounds = problem.branch_clip;
  for (int64_t i = 0; i < row.count; ++i) row.ratios[i] = clip(row.ratios[i], row.sums[i], bounds);
  for (int64_t i = 0; i < row.count; ++i) row.entropies[i] = entropies[row.places[i]];
  const Moments ratio = moments_of(row.ratios.data(), row.count);
  const Moments entropy = moments_of(row.entropies.data(), row.count);
  const bool degenerate = ratio.std <= problem.std_eps, flat = entropy.std <= problem.std_eps;
  const double per_ratio = degenerate ? 0 : 1 / ratio.std, per_entropy = flat ? 0 : 1 / entropy.std;
  const bool gate = problem.gate && !degenerate;
  for (int64_t i = 0; i < row.count; ++i) {
    const double of_entropy = (row.entropies[i] - entropy.mean) * per_entropy;
    const double of_ratio = degenerate ? 1.0 : (row.ratios[i] - ratio.mean) * per_ratio;
    const double product = of_ratio * of_entropy;
    const bool out = gate && (of_ratio <= 0 || of_entropy <= 0) && product == product;
    scores[row.places[i]] = out ? -kInfinity : static_cast<float>(product);
  }
}

void future_row(const FutureProblem& problem, int64_t index, Row& row) {
  const int64_t offset = index * problem.width;
  scan(problem, index, row);
  const RatioClip &wide = problem.future_clip, &branch = problem.branch_clip;
  const float low = std::fmin(wide.log_low, branch.log_low), high = std::fmax(wide.log_high, branch.log_high);
  for (int64_t i = 0; i < row.count; ++i) row.ratios[i] = exp_of(clamp(row.sums[i], low, high));
  float* future = problem.future + offset;
  std::fill(future, future + problem.width, 1.0f);
  for (int64_t i = 0; i < row.count; ++i) future[row.places[i]] = clip(row.ratios[i], row.sums[i], wide);
  if (problem.entropies == nullptr) return;
  float* scores = problem.scores + offset;
  std::fill(scores, scores + problem.width, -kInfinity);
  if (row.count > 0) score(problem, problem.entropies + offset, row, scores);
}

}  // namespace

void future_rows(const FutureProblem& problem, int threads) {
  parallel_for(problem.rows, 1, threads, [&](int64_t begin, int64_t end) {
    Row row(problem.width);
    for (int64_t i = begin; i < end; ++i) future_row(problem, i, row);
  });
}

}  // namespace stepopsd::cpu
