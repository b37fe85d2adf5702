// From two log-probabilities and an advantage to the shaped advantage: the scalar tail of every kernel.
#pragma once

#include <cmath>

#include "common.h"

namespace stepopsd {

// The numbers of both are part of the Python contract (stepopsd/ops/native.py, stepopsd/ops/cuda.py).
enum class WeightFn : int { sigmoid = 0, exp = 1 };
enum class StepNorm : int { mean_abs = 0, ratio = 1 };

constexpr double kScaleEps = 1e-6;   // keeps the factor of a step without advantage finite
constexpr double kScaleLimit = 2.0;  // factors of steps lie in [1/2, 2]
constexpr double kAtEdge = 1e-6;     // distance below which a value counts as clipped; backends differ in the last bits

struct Shaping {
  float low;   // 1 - alpha_clip
  float high;  // 1 + alpha_clip
  float lambda_mix;
  WeightFn weight_fn;
};

struct Shaped {
  float advantage;
  float weight;
  float delta;
};

// sign(A) * delta, with A = 0 giving 0 even where delta is infinite, and NaN in either giving NaN.
STEPOPSD_HD float signed_gap(float advantage, float delta) {
  if (advantage > 0) return delta;
  if (advantage < 0) return -delta;
  return delta != delta ? delta : advantage;
}

// 1 + lambda (w - 1): what the advantage is multiplied by.
STEPOPSD_HD float mixed_weight(float weight, const Shaping& how) { return 1.0f + how.lambda_mix * (weight - 1.0f); }

STEPOPSD_HD Shaped shape_token(float student_logprob, float teacher_logprob, float advantage, const Shaping& how) {
  const float delta = teacher_logprob - student_logprob;
  const float gap = signed_gap(advantage, delta);
  float weight = how.weight_fn == WeightFn::sigmoid ? 2.0f / (1.0f + expf(-gap)) : expf(gap);
  // Comparisons rather than fmin/fmax: NaN must come out as NaN.
  if (weight < how.low) weight = how.low;
  if (weight > how.high) weight = how.high;
  // With lambda = 0 the op only observes, also where the weight is NaN.
  const float shaped = how.lambda_mix == 0 ? advantage : advantage * mixed_weight(weight, how);
  return {shaped, weight, delta};
}

// What a token adds to the budget of its step; tokens for which this is not finite are left out.
STEPOPSD_HD float budget_value(const Shaped& token, const Shaping& how, StepNorm norm) {
  return norm == StepNorm::mean_abs ? fabsf(token.advantage) : mixed_weight(token.weight, how);
}

// Factor of a step with budget `mean_value` where the live steps of its trajectory have `mean_of_steps` on average.
STEPOPSD_HD double step_factor(double mean_value, double mean_of_steps, bool budgeted) {
  if (!budgeted || !(mean_of_steps > 0)) return 1.0;
  const double factor = mean_of_steps / (mean_value + kScaleEps);
  if (factor < 1 / kScaleLimit) return 1 / kScaleLimit;
  return factor > kScaleLimit ? kScaleLimit : factor;
}

}  // namespace stepopsd
