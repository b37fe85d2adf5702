// Logits on exactly sized heap blocks, calls of the score kernel on them, and what they should give.
#pragma once

#include "check.h"

namespace check {

using stepopsd::Dtype;
namespace cuda = stepopsd::cuda;

constexpr Dtype kDtypes[] = {Dtype::f32, Dtype::f16, Dtype::bf16};
const char* const kNames[] = {"f32", "f16", "bf16"};

// (batch, rows, vocab) logits that begin `offset` elements into an allocation and end where it ends. What belongs to no
// row, and every row that nobody fills, is NaN.
struct Logits {
  Logits(Dtype dtype_, int64_t batch_, int64_t rows_, int64_t vocab_, int64_t offset_, int64_t padding)
      : dtype(dtype_), batch(batch_), rows(rows_), vocab(vocab_), offset(offset_), row_stride(vocab_ + padding),
        batch_stride(rows_ * row_stride + padding),
        memory((offset_ + (batch_ - 1) * batch_stride + (rows_ - 1) * row_stride + vocab_) * element_size(dtype_)) {}

  int64_t at(int64_t row) const { return offset + row / rows * batch_stride + row % rows * row_stride; }

  void put(int64_t row, int64_t i, double value) {
    const uint32_t bits = encode(value, dtype);
    const int64_t size = element_size(dtype);
    std::memcpy(memory.get() + (at(row) + i) * size, &bits, static_cast<size_t>(size));
  }

  double get(int64_t row, int64_t i) {
    uint32_t bits = 0;
    const int64_t size = element_size(dtype);
    std::memcpy(&bits, memory.get() + (at(row) + i) * size, static_cast<size_t>(size));
    return decode(bits, dtype);
  }

  void fill(int64_t row, Random& random, double spread, double centre = 0) {
    for (int64_t i = 0; i < vocab; ++i) put(row, i, centre + spread * random.normal());
  }

  cuda::Logits view() { return {memory.get() + offset * element_size(dtype), dtype, batch_stride, row_stride}; }

  Dtype dtype;
  int64_t batch, rows, vocab, offset, row_stride, batch_stride;
  Exact<char> memory;
};

struct Call {
  std::vector<Logits*> logits;
  std::vector<int64_t> ids;
  std::vector<char> active;
  double temperature = 1;
  std::vector<float> temperatures;
  bool entropy = true, normaliser = false;
  cuda::Merge merge = cuda::Merge::automatic;
  int device = 0;

  // (tensors, 3 or 5, rows)
  std::vector<float> run() const {
    const int64_t total = static_cast<int64_t>(ids.size()), count = static_cast<int64_t>(logits.size());
    Exact<int64_t> id(total);
    Exact<bool> on(total);
    Exact<float> degrees(total), out(count * (normaliser ? 5 : 3) * total);
    for (int64_t i = 0; i < total; ++i) {
      on[i] = active[static_cast<size_t>(i)] != 0;
      if (on[i]) id[i] = ids[static_cast<size_t>(i)];
      if (on[i] && !temperatures.empty()) degrees[i] = temperatures[static_cast<size_t>(i)];
    }
    cuda::ScoreProblem problem = {};
    for (int64_t k = 0; k < count; ++k) problem.logits[k] = logits[static_cast<size_t>(k)]->view();
    problem.tensors = static_cast<int>(count);
    problem.ids = id.get();
    problem.active = on.get();
    problem.temperature = temperature;
    problem.temperatures = temperatures.empty() ? nullptr : degrees.get();
    problem.batch = logits[0]->batch;
    problem.rows = logits[0]->rows;
    problem.vocab = logits[0]->vocab;
    problem.entropy = entropy;
    problem.normaliser = normaliser;
    problem.out = out.get();
    problem.merge = merge;
    problem.device = device;
    Exact<char> workspace(static_cast<int64_t>(cuda::score_workspace(problem)));
    problem.workspace = workspace.get();
    if (const int error = cuda::launch_score(problem, nullptr)) report("launch", cuda::error_text(error));
    expect(current_device == 0, "launch", "the current device has changed");
    return out.copy();
  }
};

struct Truth {
  double log_prob, log_sum, entropy;
};

inline Truth truth(Logits& logits, int64_t row, int64_t id, double temperature) {
  std::vector<double> y;
  double top = -kInf, sum = 0, moment = 0;
  bool bad = false;
  for (int64_t i = 0; i < logits.vocab; ++i) {
    y.push_back(logits.get(row, i) / temperature);
    bad |= std::isnan(y.back()) || y.back() == kInf;
    top = std::fmax(top, y.back());
  }
  if (bad || top == -kInf) return {kNan, kNan, kNan};
  for (double value : y) {
    const double e = std::exp(value - top);
    sum += e;
    if (e > 0) moment += e * (value - top);
  }
  const bool known = id >= 0 && id < logits.vocab;
  return {known ? y[static_cast<size_t>(id)] - top - std::log(sum) : kNan, top + std::log(sum),
          std::log(sum) - moment / sum};
}

}  // namespace check
