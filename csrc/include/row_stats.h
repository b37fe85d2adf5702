// What one visit of a row of logits leaves behind, and the two numbers a caller wants from it.
#pragma once

#include <cmath>

#include "common.h"

namespace stepopsd {

// Base 2: with y = x * log2(e) / temperature, `sum` = sum 2^(y - shift), `weighted` = sum 2^(y - shift) (y - shift).
struct RowStats {
  double shift = 0;
  double sum = 0;
  double weighted = 0;
};

// Expresses the sums around a new shift. Sums that are still empty stay empty, however far the shift moves.
STEPOPSD_HD void move_shift(RowStats& s, double shift) {
  if (s.sum > 0) {
    const double down = s.shift - shift;
    const double factor = exp2(down);
    s.weighted = factor * (s.weighted + down * s.sum);
    s.sum *= factor;
  }
  s.shift = shift;
}

// Natural log-probability of the element with scaled logit `y`. Rounding may not make it positive; NaN stays NaN.
STEPOPSD_HD float log_prob(const RowStats& s, double y) {
  const double value = kLn2 * ((y - s.shift) - log2(s.sum));
  return static_cast<float>(value > 0 ? 0.0 : value);
}

// Entropy in nats, at least 0. NaN stays NaN.
STEPOPSD_HD float entropy(const RowStats& s) {
  const double value = kLn2 * (log2(s.sum) - s.weighted / s.sum);
  return static_cast<float>(value < 0 ? 0.0 : value);
}

}  // namespace stepopsd
