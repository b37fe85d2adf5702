// From two log-probabilities and an advantage to the shaped advantage: the scalar tail of every kernel.
#pragma once

#include <cmath>

#include "common.h"

namespace stepopsd {

enum class WeightFn : int { sigmoid = 0, exp = 1 };

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

STEPOPSD_HD Shaped shape_token(float student_logprob, float teacher_logprob, float advantage, const Shaping& how) {
  const float delta = teacher_logprob - student_logprob;
  const float gap = signed_gap(advantage, delta);
  float weight = how.weight_fn == WeightFn::sigmoid ? 2.0f / (1.0f + expf(-gap)) : expf(gap);
  // Comparisons rather than fmin/fmax: NaN must come out as NaN.
  if (weight < how.low) weight = how.low;
  if (weight > how.high) weight = how.high;
  return {advantage * (1.0f + how.lambda_mix * (weight - 1.0f)), weight, delta};
}

}  // namespace stepopsd
