// The shape kernel against the formulas in double, and its statistics against two passes over what it wrote.
#include <cuda_runtime.h>

#include <algorithm>
#include <map>

#include "shape_problem.h"

using check::Options;
using check::Result;
using check::run;
using check::Tokens;
using stepopsd::WeightFn;
namespace cuda = stepopsd::cuda;

namespace {

double weight_of(double advantage, double delta, const Options& options) {
  if (std::isnan(advantage) || std::isnan(delta)) return check::kNan;
  const double gap = advantage == 0 ? 0 : advantage > 0 ? delta : -delta;
  const double raw = options.weight_fn == WeightFn::exp ? std::exp(gap) : 2 / (1 + std::exp(-gap));
  return std::min(std::max(raw, 1 - options.alpha_clip), 1 + options.alpha_clip);
}

// c_k of every token's step (1 for the others), and of every live step.
std::vector<double> scales_of(const Tokens& tokens, const std::vector<double>& values, std::vector<double>& live) {
  std::map<int64_t, std::map<int64_t, std::vector<size_t>>> members;
  for (size_t i = 0; i < tokens.count(); ++i) {
    if (tokens.steps[i] >= 0) members[tokens.trajectories[i]][tokens.steps[i]].push_back(i);
  }
  std::vector<double> scales(tokens.count(), 1.0);
  for (const auto& [trajectory, steps] : members) {
    std::map<int64_t, double> means;
    for (const auto& [step, where] : steps) {
      double sum = 0, finite = 0;
      for (const size_t i : where) {
        if (std::isfinite(values[i])) sum += values[i], finite += 1;
      }
      if (finite > 0) means[step] = sum / finite;
    }
    double mean = 0;
    for (const auto& [step, m] : means) mean += m / static_cast<double>(means.size());
    for (const auto& [step, m] : means) {
      const double c = means.size() < 2 || mean == 0 ? 1 : std::min(std::max(mean / (m + 1e-6), 0.5), 2.0);
      live.push_back(c);
      for (const size_t i : steps.at(step)) scales[i] = c;
    }
  }
  return scales;
}

struct Spread {
  double mean = 0, std = 0, low = 0, high = 0, absolute = 0;
};

Spread spread(const std::vector<double>& x) {
  Spread s;
  if (x.empty()) return s;
  const double n = static_cast<double>(x.size());
  for (const double v : x) s.mean += v / n, s.absolute += std::fabs(v) / n;
  for (const double v : x) s.std += (v - s.mean) * (v - s.mean) / n;
  s.std = std::sqrt(s.std);
  s.low = *std::min_element(x.begin(), x.end()), s.high = *std::max_element(x.begin(), x.end());
  return s;
}

std::vector<double> statistics_of(const Tokens& tokens, const Result& result, const Options& options,
                                  const std::vector<double>& live) {
  std::vector<double> deltas, weights;
  double active = 0, at_low = 0, at_high = 0, clamped = 0;
  for (size_t i = 0; i < tokens.count(); ++i) {
    if (tokens.steps[i] < 0) continue;
    active += 1;
    const double delta = result.at(2, i), weight = result.at(1, i);
    if (!std::isfinite(delta) || !std::isfinite(weight)) continue;
    deltas.push_back(delta), weights.push_back(weight);
    at_low += weight <= 1 - options.alpha_clip + 1e-6, at_high += weight >= 1 + options.alpha_clip - 1e-6;
  }
  for (const double c : live) clamped += c <= 0.5 + 1e-6 || c >= 2 - 1e-6;
  const Spread d = spread(deltas), w = spread(weights), c = spread(live);
  const double count = static_cast<double>(deltas.size()), steps = static_cast<double>(live.size());
  const double n = std::max(1.0, count), k = std::max(1.0, steps);
  return {count, active - count, d.mean, d.std, d.low, d.high, d.absolute, w.mean, w.std, w.low, w.high, at_low / n,
          at_high / n, steps, live.empty() ? 1 : c.low, live.empty() ? 1 : c.high, clamped / k};
}

Result verify(const Tokens& tokens, const Options& options, const std::string& where) {
  const Result got = run(tokens, options);
  const size_t count = tokens.count();
  std::vector<double> values(count, 1.0), shaped(count), live;
  for (size_t i = 0; i < count; ++i) {
    const bool active = tokens.steps[i] >= 0;
    const float delta = active ? tokens.teacher[i] - tokens.student[i] : 0;
    const double a = tokens.advantages[i], weight = active ? weight_of(a, delta, options) : 1;
    const double mixed = options.lambda_mix == 0 || !active ? 1 : 1 + options.lambda_mix * (weight - 1);
    shaped[i] = a * mixed;
    values[i] = options.step_norm == cuda::StepNorm::ratio ? mixed : std::fabs(shaped[i]);
    const std::string here = where + " token " + std::to_string(i);
    check::expect_close(got.at(1, i), weight, 0, 4e-7, here + " weight");
    check::expect_close(got.at(2, i), delta, 0, 0, here + " delta");
  }
  std::vector<double> scales(count, 1.0);
  if (options.budget) scales = scales_of(tokens, values, live);
  for (size_t i = 0; i < count; ++i) {
    const std::string here = where + " token " + std::to_string(i);
    if (tokens.steps[i] < 0 || (options.lambda_mix == 0 && !options.budget)) {
      const float kept = got.planes[i];
      check::expect(std::memcmp(&kept, &tokens.advantages[i], sizeof kept) == 0, here, "the advantage has changed");
      check::expect(got.at(3, i) == 1, here, "a scale");
      continue;
    }
    check::expect_close(got.at(3, i), scales[i], 0, 3e-7, here + " scale");
    check::expect_close(got.at(0, i), shaped[i] * scales[i], 0, 2e-6, here + " shaped");
  }
  const std::vector<double> want = statistics_of(tokens, got, options, live);
  for (size_t i = 0; i < want.size(); ++i) {
    const bool of_scales = i == 14 || i == 15;  // in double from values in float
    check::expect_close(got.statistics[i], want[i], 1e-13, of_scales ? 1e-6 : 1e-11,
                        where + " statistic " + std::to_string(i));
  }
  return got;
}

Tokens random_tokens(size_t count, int64_t trajectories, int64_t steps, double outside, uint64_t seed) {
  check::Random random(seed);
  Tokens tokens;
  for (size_t i = 0; i < count; ++i) {
    const bool inside = random.uniform() >= outside;
    tokens.trajectories.push_back(random.below(trajectories) * 3);
    tokens.steps.push_back(inside ? random.below(steps) : -1);
    tokens.student.push_back(inside ? static_cast<float>(-std::fabs(random.normal())) : NAN);
    tokens.teacher.push_back(inside ? static_cast<float>(-std::fabs(random.normal())) : NAN);
    tokens.advantages.push_back(static_cast<float>(random.normal()));
  }
  return tokens;
}

void sizes() {
  for (const size_t count : {0, 1, 7, 8, 9, 64, 400, 4500}) {
    for (const int64_t trajectories : {1, 23}) {
      const Tokens tokens = random_tokens(count, trajectories, 6, 0.2, count + 1);
      Options options;
      verify(tokens, options, "size " + std::to_string(count));
      options.budget = false;
      verify(tokens, options, "size without budget " + std::to_string(count));
    }
  }
}

void every_option() {
  const Tokens tokens = random_tokens(150, 4, 5, 0.1, 77);
  for (const WeightFn weight_fn : {WeightFn::sigmoid, WeightFn::exp}) {
    for (const cuda::StepNorm norm : {cuda::StepNorm::mean_abs, cuda::StepNorm::ratio}) {
      for (const double lambda : {0.2, 1.0}) verify(tokens, {1.0, lambda, weight_fn, norm, true}, "options");
    }
    verify(tokens, {0.2, 0, weight_fn, cuda::StepNorm::mean_abs, false}, "lambda 0");
  }
}

void special_values() {
  const float inf = INFINITY, nan = NAN;
  Tokens tokens = random_tokens(64, 1, 8, 0, 5);
  for (size_t i = 0; i < 64; ++i) {
    tokens.steps[i] = static_cast<int64_t>(i / 8);
    tokens.trajectories[i] = i < 40 ? 1 : 2;
  }
  tokens.student[0] = -inf;                          // delta inf
  tokens.teacher[1] = -inf;                          // delta -inf
  tokens.student[2] = tokens.teacher[2] = -inf;      // delta NaN
  tokens.student[3] = nan;
  tokens.advantages[4] = 0, tokens.student[4] = -inf;
  tokens.advantages[5] = nan;
  tokens.advantages[6] = -0.0f;
  for (size_t i = 8; i < 16; ++i) tokens.teacher[i] = nan;          // a step without a finite value
  for (size_t i = 16; i < 24; ++i) tokens.advantages[i] = 0;        // a step of mean 0
  for (size_t i = 24; i < 32; ++i) tokens.advantages[i] *= 1000;    // one that is scaled down to the limit
  for (size_t i = 40; i < 56; ++i) tokens.student[i] = nan;         // one live step alone
  verify(tokens, {}, "special values");
  Options zero;
  zero.lambda_mix = 0, zero.budget = false;
  verify(tokens, zero, "special values, lambda 0");
  for (float& advantage : tokens.advantages) advantage = 0;
  verify(tokens, {}, "no advantage at all");
  for (size_t i = 0; i < 64; ++i) tokens.student[i] = -3, tokens.teacher[i] = -1, tokens.advantages[i] = 1;
  check::expect(run(tokens, {}).statistics[3] == 0, "equal deltas", "a spread");
}

// A trajectory's bits do not depend on the others, and no bit on the run.
void independence() {
  Tokens tokens = random_tokens(700, 9, 5, 0.1, 9), alone;
  const Result together = run(tokens, {});
  for (int repeat = 0; repeat < 3; ++repeat) {
    const Result again = run(tokens, {});
    check::expect(check::same_bits(again.planes, together.planes), "again", "other planes");
    check::expect(check::same_bits(again.statistics, together.statistics), "again", "other statistics");
  }
  std::vector<size_t> where;
  for (size_t i = 0; i < 700; ++i) {
    if (tokens.trajectories[i] != 12 || tokens.steps[i] < 0) continue;
    where.push_back(i);
    alone.student.push_back(tokens.student[i]), alone.teacher.push_back(tokens.teacher[i]);
    alone.advantages.push_back(tokens.advantages[i]), alone.steps.push_back(tokens.steps[i]);
    alone.trajectories.push_back(0);
  }
  const Result apart = run(alone, {});
  for (size_t k = 0; k < where.size(); ++k) {
    for (int plane = 0; plane < 4; ++plane) {
      check::expect(apart.at(plane, k) == together.at(plane, where[k]), "a trajectory alone", "other bits");
    }
  }
}

}  // namespace

std::vector<Case> shape_cases() {
  return {{"sizes", sizes},
          {"every_option", every_option},
          {"special_token_values", special_values},
          {"independence", independence}};
}
