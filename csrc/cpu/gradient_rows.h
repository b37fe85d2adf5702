// The gradient of any function of log-prob, log-sum-exp and entropy by the rows of logits, and its product with a number.
#pragma once

#include <cstdint>

#include "../include/policy.h"
#include "kernels.h"
#include "row_set.h"

namespace stepopsd::cpu {

constexpr int64_t kGradientPiece = 1 << 15;     // elements of a piece at most
constexpr int64_t kStreamedFrom = int64_t{1} << 23;  // bytes; what is larger would leave the caches before it is used

struct GradientProblem {
  Strided logits;
  Strided out;  // of the logits' dtype; may be the very memory of the logits
  RowSet rows;
  const float* normaliser;    // (2, batch, rows): peak, log-mass
  const float* coefficients;  // (3, batch, rows): a, b, c of policy.h
};

// The gradient of one row, piece by piece. Of a row with coefficients that are all 0 nothing is read.
class RowSlopes {
 public:
  RowSlopes(const RowKernels& kernels, Dtype dtype, double divisor, float peak, float log_mass,
            const Coefficients& coefficients);

  // One piece; `data` and `out` are the beginning of the row, and may be the same.
  void write(const char* data, char* out, int64_t id, int64_t begin, int64_t length, bool stream) const;

 private:
  void set_origin(float origin);
  double target(double logit) const;

  const RowKernels& kernels_;
  const Dtype dtype_;
  const double divisor_, centre_;
  const Coefficients coefficients_;
  RowGradient rest_;
};

// Whether results of this size should go past the caches.
bool streamed(const Strided& logits, const Strided& out, const RowSet& rows);

// Reads each logit of rows that have a gradient once, writes each element of `out` once: 0 where there is none. Ids of
// active rows must be valid. An element's bits follow from its logit and from what is given of its row.
void gradient_rows(const GradientProblem& problem, const RowKernels& kernels, int threads);

// Multiplies (batch, rows, vocab) elements in place, in fp32.
void scale_rows(const Strided& data, int64_t batch, int64_t rows, int64_t vocab, float factor,
                const RowKernels& kernels, int threads);

}  // namespace stepopsd::cpu
