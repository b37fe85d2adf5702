// Drives the CPU kernels without Python, for a build under sanitizers: rows end where their memory ends, so that a read
// past them is found. Exits with 1 where a result is wrong.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "../../csrc/cpu/score_rows.h"
#include "../../csrc/cpu/shape_rows.h"
#include "../../csrc/cpu/step_segments.h"

using namespace stepopsd;

namespace {

int failures = 0;

void expect_near(const char* what, double got, double want, double tolerance) {
  if (std::fabs(got - want) <= tolerance) return;
  std::printf("%s: got %.9g, expected %.9g\n", what, got, want);
  ++failures;
}

uint16_t to_bfloat(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return static_cast<uint16_t>(bits >> 16);
}

// Logits 0, 1/4, 1/2, ... 15/4, 0, ...: exact in every dtype.
float logit(int64_t i) { return static_cast<float>(i % 16) / 4; }

template <class T>
T stored(float x);
template <>
float stored<float>(float x) { return x; }
template <>
uint16_t stored<uint16_t>(float x) { return to_bfloat(x); }

// Two rows of exactly `vocab` elements in memory of their own, `offset` elements from an aligned address.
template <class T>
void score(Dtype dtype, int64_t vocab, int64_t offset, int threads) {
  std::unique_ptr<T[]> memory(new T[offset + 2 * vocab]);
  double sum = 0;
  for (int64_t i = 0; i < vocab; ++i) {
    memory[offset + i] = memory[offset + vocab + i] = stored<T>(logit(i));
    sum += std::exp(static_cast<double>(logit(i)));
  }
  const int64_t ids[2] = {0, vocab - 1};
  const bool active[2] = {true, true};
  float out[6];
  cpu::ScoreProblem problem{{}, ids, active, 1.0, nullptr, 1, 2, vocab, true, out};
  problem.logits.push_back({memory.get() + offset, dtype, 0, vocab});
  cpu::score_rows(problem, cpu::kernels_in_use(), threads);
  expect_near("log-prob of the first", out[0], logit(0) - std::log(sum), 2e-5);
  expect_near("log-prob of the last", out[1], logit(vocab - 1) - std::log(sum), 2e-5);
  expect_near("log-sum-exp", out[2], std::log(sum), 2e-5);
}

void shape() {
  const int64_t tokens = 7;
  const float student[] = {-1, -2, -1, -3, -1, -1, -2}, teacher[] = {-2, -1, -1, -1, -3, -1, -2};
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float advantages[] = {1, 1, -1, 2, nan, 1, 0.5f};
  const bool active[] = {true, true, true, true, true, false, true};
  const int64_t steps[] = {4, 4, 0, 0, 9, -1, 1}, trajectories[] = {5, 5, 5, 5, 5, 5, 2};
  std::vector<int64_t> order(tokens), step_starts(tokens + 1), trajectory_starts(tokens + 1), counts(2);
  cpu::step_segments(steps, trajectories, tokens,
                     {order.data(), step_starts.data(), trajectory_starts.data(), counts.data()});
  expect_near("steps", static_cast<double>(counts[0]), 4, 0);
  std::vector<float> planes(4 * tokens);
  std::vector<double> statistics(17);
  cpu::shape_rows({student, teacher, advantages, active, tokens, order.data(), step_starts.data(),
                   trajectory_starts.data(), counts.data(), Shaping{0.8f, 1.2f, 0.5f, WeightFn::sigmoid}, 0.2,
                   StepNorm::mean_abs, planes.data(), statistics.data()});
  expect_near("counted", statistics[0], 5, 0);
  expect_near("live steps", statistics[13], 3, 0);
  expect_near("masked advantage", planes[5], 1, 0);
}

}  // namespace

int main() {
  for (const int64_t vocab : {1, 15, 64, 65, 2049, 132000}) {
    for (const int64_t offset : {0, 1}) {
      score<float>(Dtype::f32, vocab, offset, 1);
      score<uint16_t>(Dtype::bf16, vocab, offset, 1);
    }
  }
  for (int repeat = 0; repeat < 8; ++repeat) score<uint16_t>(Dtype::bf16, 270000, 1, 3);
  shape();
  return failures > 0;
}
