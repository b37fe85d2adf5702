// What one visit of a row of logits (or of a piece of it) leaves behind, and the numbers a caller wants from it.
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
  if (s.sum > 0 && s.shift != shift) {
    const double down = s.shift - shift;
    const double factor = exp2(down);
    s.weighted = factor * (s.weighted + down * s.sum);
    s.sum *= factor;
  }
  s.shift = shift;
}

// The statistics of two pieces together. A piece of nothing but -inf adds nothing; NaN stays NaN.
STEPOPSD_HD RowStats merge(RowStats a, RowStats b) {
  if (b.sum == 0) return a;
  if (a.sum == 0) return b;
  const double shift = a.shift > b.shift ? a.shift : b.shift;
  move_shift(a, shift);
  move_shift(b, shift);
  return {shift, a.sum + b.sum, a.weighted + b.weighted};
}

// Natural log-probability of the element with scaled logit `y`. Rounding may not make it positive; NaN stays NaN.
STEPOPSD_HD float log_prob(const RowStats& s, double y) {
  const double value = kLn2 * ((y - s.shift) - log2(s.sum));
  return static_cast<float>(value > 0 ? 0.0 : value);
}

// Natural logarithm of the sum of exponentials. NaN where there is nothing but -inf.
STEPOPSD_HD double log_sum_exp(const RowStats& s) {
  return s.sum == 0 ? s.sum / s.sum : kLn2 * (s.shift + log2(s.sum));
}

// Base 2: sum 2^(x * scale - peak) = 2^log_mass. The peak, the sum's own logarithm as a float, lies less than log2 of the
// row's length above its maximum; the log-mass is what that float lacks.
struct Normaliser {
  float peak;
  float log_mass;
};

constexpr double kLargest = 0x1.fffffep127;  // of all floats

// The peak is finite. The log-mass of nothing but -inf is -inf; of a row that has NaN or +inf, and of sums beyond the
// range of fp32, NaN.
STEPOPSD_HD Normaliser normaliser_of(const RowStats& s) {
  if (s.sum == 0) return {0.0f, -INFINITY};
  const double all = s.shift + log2(s.sum);
  if (!(all >= -kLargest && all <= kLargest)) return {0.0f, NAN};
  const float peak = static_cast<float>(all);
  return {peak, static_cast<float>(all - peak)};
}

// Entropy in nats, at least 0. NaN stays NaN.
STEPOPSD_HD float entropy(const RowStats& s) {
  const double value = kLn2 * (log2(s.sum) - s.weighted / s.sum);
  return static_cast<float>(value < 0 ? 0.0 : value);
}

}  // namespace stepopsd
