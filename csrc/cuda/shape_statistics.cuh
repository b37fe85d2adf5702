// Statistics of the shaping, gathered per thread and merged in a fixed order: double throughout, no float atomics.
#pragma once

#include "intrinsics.cuh"

namespace stepopsd::cuda {

// Mean and spread of the values seen so far. A thread sums distances from its first value, so that nothing cancels.
struct Moments {
  double mean, squares;  // squares: sum of (x - mean)^2
  double low, high;
};

__device__ __forceinline__ Moments merge(const Moments& a, double count_a, const Moments& b, double count_b) {
  if (count_b == 0) return a;
  if (count_a == 0) return b;
  const double count = count_a + count_b, apart = b.mean - a.mean;
  return {a.mean + apart * (count_b / count), a.squares + b.squares + apart * apart * (count_a * count_b / count),
          fmin(a.low, b.low), fmax(a.high, b.high)};
}

// What one thread, warp, block or the whole launch has seen. Seventeen doubles, shuffled as such.
struct Summary {
  double active, count;  // count: the active tokens with finite delta and weight, which all the rest is about
  Moments delta, weight;
  double absolute;       // sum of |delta|
  double at_low, at_high;
  double steps, scale_low, scale_high, clamped;  // of the live steps
};

constexpr int kSummaryDoubles = sizeof(Summary) / sizeof(double);

__device__ __forceinline__ Summary empty_summary() {
  Summary s = {};
  s.scale_low = s.scale_high = 1;
  return s;
}

__device__ __forceinline__ Summary merge(const Summary& a, const Summary& b) {
  Summary s;
  s.active = a.active + b.active;
  s.count = a.count + b.count;
  s.delta = merge(a.delta, a.count, b.delta, b.count);
  s.weight = merge(a.weight, a.count, b.weight, b.count);
  s.absolute = a.absolute + b.absolute;
  s.at_low = a.at_low + b.at_low;
  s.at_high = a.at_high + b.at_high;
  s.steps = a.steps + b.steps;
  s.scale_low = a.steps == 0 ? b.scale_low : b.steps == 0 ? a.scale_low : fmin(a.scale_low, b.scale_low);
  s.scale_high = a.steps == 0 ? b.scale_high : b.steps == 0 ? a.scale_high : fmax(a.scale_high, b.scale_high);
  s.clamped = a.clamped + b.clamped;
  return s;
}

// A thread's values on their way into a Summary.
struct Sums {
  double origin, distance, squares, low, high;

  __device__ __forceinline__ void add(double x, bool first) {
    if (first) *this = {x, 0, 0, x, x};
    const double apart = x - origin;
    distance += apart;
    squares += apart * apart;
    low = fmin(low, x);
    high = fmax(high, x);
  }

  __device__ __forceinline__ Moments moments(double count) const {
    if (count == 0) return {0, 0, 0, 0};
    return {origin + distance / count, fmax(0.0, squares - distance * distance / count), low, high};
  }
};

struct Edges {
  double low, high;  // a weight up to `low` or from `high` on counts as clipped
};

class Gatherer {
 public:
  __device__ __forceinline__ void add_token(float delta, float weight, const Edges& edges) {
    own_.active += 1;
    if (!(fabsf(delta) <= kLargest && fabsf(weight) <= kLargest)) return;
    delta_.add(delta, own_.count == 0);
    weight_.add(weight, own_.count == 0);
    own_.count += 1;
    own_.absolute += fabsf(delta);
    own_.at_low += weight <= edges.low;
    own_.at_high += weight >= edges.high;
  }

  __device__ __forceinline__ void add_step(double scale, bool clamped) {
    own_.scale_low = own_.steps == 0 ? scale : fmin(own_.scale_low, scale);
    own_.scale_high = own_.steps == 0 ? scale : fmax(own_.scale_high, scale);
    own_.steps += 1;
    own_.clamped += clamped;
  }

  __device__ __forceinline__ Summary summary() const {
    Summary s = own_;
    s.delta = delta_.moments(own_.count);
    s.weight = weight_.moments(own_.count);
    return s;
  }

 private:
  static constexpr float kLargest = 3.402823466e38f;
  Summary own_ = empty_summary();
  Sums delta_ = {}, weight_ = {};
};

// Lane 0 gets the summary of all lanes: a tree in the order of the lanes.
__device__ __forceinline__ Summary merge_lanes(Summary mine) {
#pragma unroll
  for (int apart = 1; apart < kWarp; apart *= 2) {
    Summary other;
    const double* from = reinterpret_cast<const double*>(&mine);
    double* to = reinterpret_cast<double*>(&other);
#pragma unroll
    for (int i = 0; i < kSummaryDoubles; ++i) to[i] = __shfl_down_sync(kAllLanes, from[i], apart);
    mine = merge(mine, other);
  }
  return mine;
}

// The seventeen numbers in the order of stepopsd/ops/results.py.
__device__ __forceinline__ void write_statistics(double* out, const Summary& s) {
  const double count = fmax(1.0, s.count), steps = fmax(1.0, s.steps);
  const double values[17] = {s.count,          s.active - s.count,       s.delta.mean,  sqrt(s.delta.squares / count),
                             s.delta.low,      s.delta.high,             s.absolute / count,
                             s.weight.mean,    sqrt(s.weight.squares / count),
                             s.weight.low,     s.weight.high,            s.at_low / count, s.at_high / count,
                             s.steps,          s.scale_low,              s.scale_high,  s.clamped / steps};
#pragma unroll
  for (int i = 0; i < 17; ++i) out[i] = values[i];
}

}  // namespace stepopsd::cuda
