// Discounted future log-ratios of a row's tokens, clipped, and branching scores made of them (arXiv 2606.12384).
#pragma once

#include <cstdint>

namespace stepopsd::cpu {

// A clip of exp(x), by its logarithm and by itself.
struct RatioClip {
  float low, high, log_low, log_high;
};

struct FutureProblem {
  const float *logprobs, *old_logprobs, *entropies;  // (rows, width); entropies null where no scores are asked for
  const bool* mask;
  int64_t rows, width;
  float gamma, log_clamp, drop_above;
  bool valid_decay, gate;
  RatioClip future_clip, branch_clip;
  double std_eps;
  float *future, *scores;  // (rows, width)
};

// One reverse scan and one pass of moments per row, sums in double and in order. Tokens outside the mask are not read
// and get a future of 1 and a score of -inf.
void future_rows(const FutureProblem& problem, int threads);

}  // namespace stepopsd::cpu
