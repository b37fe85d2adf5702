// Drives the CPU kernels without Python, for a build under sanitizers: rows end where their memory ends, so that a read
// past them is found. Exits with 1 where a result is wrong.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "../../csrc/cpu/gradient_rows.h"
#include "../../csrc/cpu/loss_rows.h"
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

float loaded(float x) { return x; }
float loaded(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float y;
  std::memcpy(&y, &bits, sizeof y);
  return y;
}

// Two rows of exactly `vocab` elements in memory of their own, `offset` elements from an aligned address.
template <class T>
struct TwoRows {
  std::unique_ptr<T[]> memory;
  T* first;
  const int64_t vocab;
  double sum = 0;
  int64_t ids[2];
  bool active[2] = {true, true};
  const Dtype dtype = sizeof(T) == 4 ? Dtype::f32 : Dtype::bf16;

  TwoRows(int64_t vocab, int64_t offset)
      : memory(new T[offset + 2 * vocab]), first(memory.get() + offset), vocab(vocab), ids{0, vocab - 1} {
    for (int64_t i = 0; i < vocab; ++i) {
      first[i] = first[vocab + i] = stored<T>(logit(i));
      sum += std::exp(static_cast<double>(logit(i)));
    }
  }

  cpu::Strided logits() const { return {first, dtype, 0, vocab}; }
  cpu::RowSet rows() const { return {ids, active, 1.0, nullptr, 1, 2, vocab}; }
  double p(int64_t i) const { return std::exp(static_cast<double>(logit(i))) / sum; }
};

// One tensor with entropies; then many without, whose rows are taken two at a time.
template <class T>
void score(int64_t vocab, int64_t offset, int threads) {
  constexpr int kTensors = 8;
  const TwoRows<T> rows(vocab, offset);
  float out[kTensors * 6];
  for (const int tensors : {1, kTensors}) {
    const std::vector<cpu::Strided> logits(tensors, rows.logits());
    cpu::score_rows({logits, rows.rows(), tensors == 1, false, out}, cpu::kernels_in_use(), threads);
    for (const float* scores = out; scores < out + 6 * tensors; scores += 6) {
      expect_near("log-prob of the first", scores[0], logit(0) - std::log(rows.sum), 2e-5);
      expect_near("log-prob of the last", scores[1], logit(vocab - 1) - std::log(rows.sum), 2e-5);
      expect_near("log-sum-exp", scores[2], std::log(rows.sum), 2e-5);
    }
  }
}

// Scores and gradients of REINFORCE with an advantage of -2, the second row masked on request; then the gradient alone,
// out of place where `apart`, and its half.
template <class T>
void differentiate(int64_t vocab, int64_t offset, int threads, bool masked, bool apart) {
  TwoRows<T> rows(vocab, offset), other(vocab, offset + 1);
  rows.active[1] = !masked;
  const float advantages[2] = {-2, -2}, weights[2] = {1, 1};
  float scores[10];
  const PolicyOptions how{Objective::reinforce, 0, 0, 0, 0, 0, false};
  const cpu::RowKernels& kernels = cpu::kernels_in_use();
  const cpu::Strided out = apart ? other.logits() : rows.logits();
  cpu::loss_rows({rows.logits(), out, rows.rows(), nullptr, nullptr, advantages, weights, how, scores}, kernels, threads);
  const float coefficients[6] = {2, 2, -2, -2, 0, 0};
  TwoRows<T> again(vocab, offset);
  cpu::gradient_rows({again.logits(), again.logits(), rows.rows(), scores + 6, coefficients}, kernels, threads);
  const T* got = static_cast<T*>(out.data);
  for (int64_t i = 0; i < vocab; ++i) {
    const double first = 2 * ((i == 0) - rows.p(i)), second = masked ? 0 : 2 * ((i == vocab - 1) - rows.p(i));
    expect_near("gradient of the first row", loaded(got[i]), first, std::fabs(first) / 256 + 1e-6);
    expect_near("gradient of the second", loaded(got[vocab + i]), second, std::fabs(second) / 256 + 1e-6);
  }
  if (std::memcmp(got, again.first, 2 * vocab * sizeof(T)) != 0) expect_near("bits of the gradient", 1, 0, 0);
  cpu::scale_rows(again.logits(), 1, 2, vocab, 0.5f, kernels, threads);
  expect_near("half the gradient", loaded(again.first[0]), loaded(got[0]) / 2, 0);
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

template <class T>
void every_size() {
  for (const int64_t vocab : {1, 15, 64, 65, 2049, 33000}) {
    for (const int64_t offset : {0, 1}) {
      score<T>(vocab, offset, 1);
      differentiate<T>(vocab, offset, 1, offset == 1, offset == 0);
    }
  }
}

int main() {
  every_size<float>();
  every_size<uint16_t>();
  for (int repeat = 0; repeat < 10; ++repeat) score<uint16_t>(270000, 1, 3);
  for (int repeat = 0; repeat < 5; ++repeat) differentiate<uint16_t>(270000, 1, 3, repeat % 2 == 1, repeat % 2 == 0);
  differentiate<float>(1100000, 1, 1, false, true);  // 8 MiB, written past the caches
  shape();
  return failures > 0;
}
