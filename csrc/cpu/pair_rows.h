// Two logits tensors in, seven numbers per row out.
#pragma once

#include <cstdint>

#include "../include/common.h"
#include "../include/epilogue.h"
#include "kernels.h"

namespace stepopsd::cpu {

struct Logits {
  const void* data;
  Dtype dtype;
  int64_t batch_stride, row_stride;  // in elements; the vocabulary is contiguous
};

struct PairProblem {
  Logits student, teacher;
  const int64_t* token_ids;  // (batch, rows), as the next two and every plane of `out`
  const float* advantages;
  const bool* active;
  int64_t batch, rows, vocab;
  double temperature;
  Shaping shaping;
  bool entropy;
  float* out;  // 7 planes: shaped, weight, delta, log-prob student, teacher, entropy student, teacher
};

// Flat index of the first active row whose id lies outside [0, vocab), or -1.
int64_t first_bad_id(const PairProblem& problem);

// Reads the logits of active rows once, and no others. Ids must be valid.
void pair_rows(const PairProblem& problem, const RowKernels& kernels, int threads);

// The same tail from ready log-probabilities: `out` holds 3 planes of `count`: shaped, weight, delta.
void epilogue_rows(const float* student, const float* teacher, const float* advantages, const bool* active,
                   int64_t count, const Shaping& shaping, float* out);

}  // namespace stepopsd::cpu
