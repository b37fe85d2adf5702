// Slopes of the token-level policy losses, one token at a time: what policy_terms in stepopsd/ops/losses.py computes in
// tensors. NaN comes out wherever it would come out there.
#pragma once

#include <cmath>

#include "common.h"

namespace stepopsd {

// The numbers are part of the Python contract (stepopsd/ops/native.py, stepopsd/ops/cuda.py). Surrogate: every loss of
// the form max(-A r, -A clip(r)) with the token's own ratio r.
enum class Objective : int { surrogate = 0, cispo = 1, reinforce = 2 };

constexpr float kRatioLimit = 20.0f;  // a log-ratio or gap beyond it is cut, and has no slope

struct PolicyOptions {
  Objective objective;
  float low;        // 1 - clip_low
  float high;       // 1 + clip_high
  float dual_clip;  // 0: none
  float kl_coef;
  float entropy_coef;
  bool reference;  // whether there are log-probs of a reference policy
};

struct PolicyToken {
  float old_logprob;  // the token's own log-prob where the policy is its own sampler
  float ref_logprob;  // not used without a reference
  float advantage;
  float weight;
};

// What gradient_rows takes: out_j = (a [j == id] + p_j (b + c ln p_j)) / T.
struct Coefficients {
  float a, b, c;
};

// Whether the gradient is 0 whatever the logits are.
STEPOPSD_HD bool vanishes(const Coefficients& g) { return g.a == 0 && g.b == 0 && g.c == 0; }

STEPOPSD_HD float bounded(float x, float low, float high) { return x < low ? low : x > high ? high : x; }

// Derivative of the policy term by the log-prob.
STEPOPSD_HD float policy_slope(const PolicyOptions& how, float logprob, const PolicyToken& token) {
  if (how.objective == Objective::reinforce) return -token.advantage;
  const float log_ratio = logprob - token.old_logprob;
  const float ratio = expf(bounded(log_ratio, -kRatioLimit, kRatioLimit));
  const float clipped = -token.advantage * bounded(ratio, how.low, how.high);
  if (how.objective == Objective::cispo) return clipped;
  const float plain = -token.advantage * ratio;
  const float value = clipped > plain ? clipped : plain;
  const bool over = how.dual_clip != 0 && token.advantage < 0 && value > -token.advantage * how.dual_clip;
  const bool passes = !(clipped > plain) && !over && fabsf(log_ratio) <= kRatioLimit;
  return plain * (passes ? 1.0f : 0.0f);  // a product, so that NaN stays NaN
}

// Derivative by the log-prob of exp(d) - d - 1 with d = reference - log-prob.
STEPOPSD_HD float k3_slope(float logprob, float ref_logprob) {
  const float gap = ref_logprob - logprob;
  const float rise = expm1f(bounded(gap, -kRatioLimit, kRatioLimit));
  return -rise * (fabsf(gap) <= kRatioLimit ? 1.0f : 0.0f);
}

// Of the whole loss, by the logits of the token's row. `entropy` is that of the row, in nats.
STEPOPSD_HD Coefficients policy_coefficients(const PolicyOptions& how, float logprob, float entropy,
                                             const PolicyToken& token) {
  float slope = policy_slope(how, logprob, token);
  if (how.reference) slope += how.kl_coef * k3_slope(logprob, token.ref_logprob);
  const float a = token.weight * slope;
  if (how.entropy_coef == 0) return {a, -a, 0.0f};
  const float spread = -how.entropy_coef * token.weight;
  return {a, -a - spread * entropy, -spread};
}

}  // namespace stepopsd
