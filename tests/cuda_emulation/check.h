// What the cases share: exactly sized buffers, numbers, comparisons.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "launch.h"

namespace check {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

inline int failures = 0;

inline void report(const std::string& where, const std::string& what) {
  if (++failures <= 20) std::printf("FAIL %s: %s\n", where.c_str(), what.c_str());
}

inline void expect(bool holds, const std::string& where, const std::string& what) {
  if (!holds) report(where, what);
}

// NaN equals NaN and an infinity itself; else within absolute + relative.
inline bool close(double got, double want, double absolute, double relative) {
  if (std::isnan(want) || std::isnan(got)) return std::isnan(want) && std::isnan(got);
  if (std::isinf(want)) return got == want;
  return std::fabs(got - want) <= absolute + relative * std::fabs(want);
}

inline void expect_close(double got, double want, double absolute, double relative, const std::string& where) {
  if (close(got, want, absolute, relative)) return;
  char text[128];
  std::snprintf(text, sizeof text, "got %.9g, want %.9g", got, want);
  report(where, text);
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

// A heap block of exactly `count` elements, each byte 0xff: a NaN in every dtype, and an id outside every vocabulary.
template <class T>
struct Exact {
  explicit Exact(int64_t count_) : count(count_), data(new T[static_cast<size_t>(count_)]) {
    std::memset(static_cast<void*>(data.get()), 0xff, sizeof(T) * static_cast<size_t>(count));
  }
  T& operator[](int64_t i) { return data[static_cast<size_t>(i)]; }
  std::vector<T> copy() const { return {data.get(), data.get() + count}; }
  T* get() { return data.get(); }
  int64_t count;
  std::unique_ptr<T[]> data;
};

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}
  uint64_t next() {
    state_ ^= state_ << 13, state_ ^= state_ >> 7, state_ ^= state_ << 17;
    return state_ * 0x2545f4914f6cdd1du;
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(next() >> 11) % n; }
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }
  double normal() { return std::sqrt(-2 * std::log(uniform() + 1e-300)) * std::cos(6.283185307179586 * uniform()); }

 private:
  uint64_t state_;
};

// Numbers in the three dtypes, rounded to nearest.
uint32_t encode(double value, stepopsd::Dtype dtype);
double decode(uint32_t bits, stepopsd::Dtype dtype);

}  // namespace check

struct Case {
  const char* name;
  void (*run)();
};
std::vector<Case> score_cases();
std::vector<Case> shape_cases();
std::vector<Case> gradient_cases();
std::vector<Case> loss_cases();
