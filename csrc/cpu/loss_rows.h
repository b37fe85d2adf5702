// Token-level policy losses: each row is scored, and its gradient written while the row is in the cache.
#pragma once

#include "../include/policy.h"
#include "kernels.h"
#include "row_set.h"

namespace stepopsd::cpu {

struct LossProblem {
  Strided logits;
  Strided out;  // of the logits' dtype; may be the very memory of the logits
  RowSet rows;
  const float* old_logprobs;  // (batch, rows), as the next three; null: the policy is its own sampler
  const float* ref_logprobs;  // null without a reference
  const float* advantages;
  const float* weights;
  PolicyOptions options;
  float* scores;  // (5, batch, rows): log-prob of the id, log-sum-exp, entropy, peak, log-mass
};

// The same bits as score_rows, and as gradient_rows with the coefficients of policy.h. Of rows that are not active
// nothing is read; their scores and gradients are 0. Ids of active rows must be valid.
void loss_rows(const LossProblem& problem, const RowKernels& kernels, int threads);

}  // namespace stepopsd::cpu
