#include "shape_rows.h"

#include <cmath>
#include <limits>
#include <vector>

namespace stepopsd::cpu {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Extremes {
  double low = kInfinity, high = -kInfinity;

  void add(double x) {
    if (x < low) low = x;
    if (x > high) high = x;
  }
};

// The part of the statistics that is about the factors of the live steps.
struct Factors {
  int64_t steps = 0, clamped = 0;
  Extremes extremes;

  void add(double factor) {
    ++steps;
    clamped += factor <= 1 / kScaleLimit + kAtEdge || factor >= kScaleLimit - kAtEdge;
    extremes.add(factor);
  }
};

struct Planes {
  float *shaped, *weight, *delta, *scale;

  Planes(float* planes, int64_t tokens)
      : shaped(planes), weight(planes + tokens), delta(planes + 2 * tokens), scale(planes + 3 * tokens) {}
};

void shape_tokens(const ShapeProblem& problem, const Planes& out) {
  for (int64_t i = 0; i < problem.tokens; ++i) {
    const float advantage = problem.advantages[i];
    const Shaped token = problem.active[i] ? shape_token(problem.student_logprobs[i], problem.teacher_logprobs[i],
                                                         advantage, problem.shaping)
                                           : Shaped{advantage, 1.0f, 0.0f};
    out.shaped[i] = token.advantage;
    out.weight[i] = token.weight;
    out.delta[i] = token.delta;
    out.scale[i] = 1.0f;
  }
}

struct Mean {
  double sum = 0;
  int64_t count = 0;

  void add(double x) {
    sum += x;
    ++count;
  }
  double value() const { return sum / static_cast<double>(count); }
};

Mean step_budget(const ShapeProblem& problem, const Planes& out, int64_t step) {
  Mean mean;
  for (int64_t place = problem.step_starts[step]; place < problem.step_starts[step + 1]; ++place) {
    const int64_t i = problem.order[place];
    const Shaped token{out.shaped[i], out.weight[i], out.delta[i]};
    const float value = budget_value(token, problem.shaping, problem.step_norm);
    if (std::isfinite(value)) mean.add(value);
  }
  return mean;
}

void scale_step(const ShapeProblem& problem, const Planes& out, int64_t step, float factor) {
  for (int64_t place = problem.step_starts[step]; place < problem.step_starts[step + 1]; ++place) {
    const int64_t i = problem.order[place];
    if (!problem.active[i]) continue;
    out.shaped[i] *= factor;
    out.scale[i] = factor;
  }
}

Factors apply_budget(const ShapeProblem& problem, const Planes& out) {
  Factors factors;
  std::vector<Mean> budgets;
  for (int64_t trajectory = 0; trajectory < problem.counts[1]; ++trajectory) {
    const int64_t first = problem.trajectory_starts[trajectory], end = problem.trajectory_starts[trajectory + 1];
    budgets.clear();
    Mean over_steps;
    for (int64_t step = first; step < end; ++step) {
      budgets.push_back(step_budget(problem, out, step));
      if (budgets.back().count > 0) over_steps.add(budgets.back().value());
    }
    for (int64_t step = first; step < end; ++step) {
      const Mean& budget = budgets[step - first];
      if (budget.count == 0) continue;
      const double factor = step_factor(budget.value(), over_steps.value(), over_steps.count >= 2);
      factors.add(factor);
      if (factor != 1.0) scale_step(problem, out, step, static_cast<float>(factor));
    }
  }
  return factors;
}

// Moments of one quantity over the counted tokens, in two visits.
struct Moments {
  double sum = 0, abs_sum = 0, squares = 0;
  Extremes extremes;

  void add(double x) {
    sum += x;
    abs_sum += std::fabs(x);
    extremes.add(x);
  }
  void add_square(double x, double mean) { squares += (x - mean) * (x - mean); }
};

void write_statistics(const ShapeProblem& problem, const Planes& out, const Factors& factors) {
  const double at_low = 1 - problem.alpha_clip + kAtEdge, at_high = 1 + problem.alpha_clip - kAtEdge;
  Moments delta, weight;
  int64_t active = 0, count = 0, low = 0, high = 0;
  const auto counted = [&](int64_t i) {
    return problem.active[i] && std::isfinite(out.delta[i]) && std::isfinite(out.weight[i]);
  };
  for (int64_t i = 0; i < problem.tokens; ++i) {
    active += problem.active[i];
    if (!counted(i)) continue;
    ++count;
    delta.add(out.delta[i]);
    weight.add(out.weight[i]);
    low += out.weight[i] <= at_low;
    high += out.weight[i] >= at_high;
  }
  const double n = count > 0 ? static_cast<double>(count) : 1.0;
  const double delta_mean = delta.sum / n, weight_mean = weight.sum / n;
  for (int64_t i = 0; i < problem.tokens; ++i) {
    if (!counted(i)) continue;
    delta.add_square(out.delta[i], delta_mean);
    weight.add_square(out.weight[i], weight_mean);
  }
  const Extremes none{0, 0}, ones{1, 1};
  const Extremes d = count > 0 ? delta.extremes : none, w = count > 0 ? weight.extremes : none;
  const Extremes c = factors.steps > 0 ? factors.extremes : ones;
  const double steps = static_cast<double>(factors.steps);
  const double values[17] = {static_cast<double>(count),
                             static_cast<double>(active - count),
                             delta_mean,
                             std::sqrt(delta.squares / n),
                             d.low,
                             d.high,
                             delta.abs_sum / n,
                             weight_mean,
                             std::sqrt(weight.squares / n),
                             w.low,
                             w.high,
                             static_cast<double>(low) / n,
                             static_cast<double>(high) / n,
                             steps,
                             c.low,
                             c.high,
                             steps > 0 ? static_cast<double>(factors.clamped) / steps : 0.0};
  for (int i = 0; i < 17; ++i) problem.statistics[i] = values[i];
}

}  // namespace

void shape_rows(const ShapeProblem& problem) {
  const Planes out(problem.planes, problem.tokens);
  shape_tokens(problem, out);
  const Factors factors = problem.order ? apply_budget(problem, out) : Factors{};
  write_statistics(problem, out, factors);
}

}  // namespace stepopsd::cpu
