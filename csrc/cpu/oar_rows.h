// Outcome scores of a row's tokens to weights of mean 1 (arXiv 2601.07408).
#pragma once

#include <cstdint>

namespace stepopsd::cpu {

struct OarProblem {
  const float* scores;  // (rows, width), as `mask` and `weights`
  const bool* mask;
  int64_t rows, width;
  double level;  // of the quantile, or the cut itself
  float beta, floor;
  bool absolute, preserve;
  int64_t min_tokens;
  float* weights;
};

// Sums run in double and in order. Tokens outside the mask are not read and get 1; so do rows with fewer than
// `min_tokens` in it. A score that is not finite makes its row NaN.
void oar_rows(const OarProblem& problem, int threads);

}  // namespace stepopsd::cpu
