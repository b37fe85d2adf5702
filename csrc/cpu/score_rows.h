// Rows of logits to log-prob, log-sum-exp and entropy.
#pragma once

#include <cstdint>
#include <vector>

#include "../include/common.h"
#include "kernels.h"

namespace stepopsd::cpu {

struct Logits {
  const void* data;
  Dtype dtype;
  int64_t batch_stride, row_stride;  // in elements; the vocabulary is contiguous
};

struct ScoreProblem {
  std::vector<Logits> logits;
  const int64_t* ids;  // (batch, rows), as the next one
  const bool* active;
  double temperature;         // > 0; not used where `temperatures` is given
  const float* temperatures;  // (batch, rows) or null: one for each row
  int64_t batch, rows, vocab;
  bool entropy;
  float* out;  // (logits, 3, batch, rows): log-prob of the id, log-sum-exp, entropy
};

// Flat index of the first active row whose id lies outside [0, vocab), or -1.
int64_t first_bad_id(const ScoreProblem& problem);

// Reads the logits of active rows once, and no others. Ids must be valid.
//
// A long row is cut into pieces that follow from `vocab` alone and are merged in order: few rows keep all threads busy,
// and a row's bits depend on nothing but its values.
void score_rows(const ScoreProblem& problem, const RowKernels& kernels, int threads);

}  // namespace stepopsd::cpu
