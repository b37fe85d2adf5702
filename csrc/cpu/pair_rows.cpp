#include "pair_rows.h"

#include <cstring>

#include "thread_pool.h"

namespace stepopsd::cpu {
namespace {

constexpr int64_t kThreadedFrom = 1 << 17;  // elements read; below, waking a thread costs more than it saves

float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

float half_to_float(uint16_t half) {
  const uint32_t magnitude = static_cast<uint32_t>(half & 0x7fffu) << 13, sign = (half & 0x8000u) << 16;
  const float absolute =
      magnitude >= 0x0f800000u ? as_float(magnitude | 0x7f800000u) : as_float(magnitude) * 0x1p112f;
  return sign ? -absolute : absolute;
}

float element(const void* row, Dtype dtype, int64_t i) {
  if (dtype == Dtype::f32) return static_cast<const float*>(row)[i];
  const uint16_t bits = static_cast<const uint16_t*>(row)[i];
  return dtype == Dtype::f16 ? half_to_float(bits) : as_float(static_cast<uint32_t>(bits) << 16);
}

struct RowResult {
  float log_prob, entropy;
};

RowResult score(const Logits& logits, int64_t index, const PairProblem& problem, const RowKernels& kernels) {
  const int64_t offset = index / problem.rows * logits.batch_stride + index % problem.rows * logits.row_stride;
  const void* row = static_cast<const char*>(logits.data) + offset * element_size(logits.dtype);
  const int kind = static_cast<int>(logits.dtype);
  const double scale = kLog2e / problem.temperature;
  const RowStats stats =
      (problem.entropy ? kernels.with_entropy : kernels.stats)[kind](row, problem.vocab, scale);
  const double target = element(row, logits.dtype, problem.token_ids[index]) * scale;
  return {log_prob(stats, target), problem.entropy ? entropy(stats) : 0.0f};
}

Shaped inactive(float advantage) { return {advantage, 1.0f, 0.0f}; }

}  // namespace

int64_t first_bad_id(const PairProblem& problem) {
  for (int64_t i = 0; i < problem.batch * problem.rows; ++i) {
    const int64_t id = problem.token_ids[i];
    if (problem.active[i] && (id < 0 || id >= problem.vocab)) return i;
  }
  return -1;
}

void pair_rows(const PairProblem& problem, const RowKernels& kernels, int threads) {
  const int64_t count = problem.batch * problem.rows;
  if (count * problem.vocab < kThreadedFrom) threads = 1;
  parallel_for(count, threads, [&](int64_t i) {
    RowResult student{0, 0}, teacher{0, 0};
    Shaped shaped = inactive(problem.advantages[i]);
    if (problem.active[i]) {
      teacher = score(problem.teacher, i, problem, kernels);
      student = score(problem.student, i, problem, kernels);
      shaped = shape_token(student.log_prob, teacher.log_prob, problem.advantages[i], problem.shaping);
    }
    const float row[7] = {shaped.advantage, shaped.weight,    shaped.delta,   student.log_prob,
                          teacher.log_prob, student.entropy, teacher.entropy};
    for (int plane = 0; plane < 7; ++plane) problem.out[plane * count + i] = row[plane];
  });
}

void epilogue_rows(const float* student, const float* teacher, const float* advantages, const bool* active,
                   int64_t count, const Shaping& shaping, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    const Shaped shaped =
        active[i] ? shape_token(student[i], teacher[i], advantages[i], shaping) : inactive(advantages[i]);
    out[i] = shaped.advantage;
    out[count + i] = shaped.weight;
    out[2 * count + i] = shaped.delta;
  }
}

}  // namespace stepopsd::cpu
