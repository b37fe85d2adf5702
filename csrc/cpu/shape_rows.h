// Ready log-probabilities to shaped advantages, step budget and statistics.
#pragma once

#include <cstdint>

#include "../include/epilogue.h"

namespace stepopsd::cpu {

struct ShapeProblem {
  const float* student_logprobs;  // (tokens,), as the next three
  const float* teacher_logprobs;
  const float* advantages;
  const bool* active;
  int64_t tokens;
  // Tokens sorted by trajectory and step: stepopsd/ops/segments.py. All null where there is no step budget.
  const int64_t *order, *step_starts, *trajectory_starts, *counts;
  Shaping shaping;
  double alpha_clip;
  StepNorm step_norm;
  float* planes;       // (4, tokens): shaped, weight, delta, scale
  double* statistics;  // (17,) in the order of stepopsd/ops/results.py
};

// Sums run in double and in one order. Tokens that are not active are not read but for their advantage.
void shape_rows(const ShapeProblem& problem);

}  // namespace stepopsd::cpu
