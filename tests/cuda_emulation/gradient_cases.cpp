// The gradient kernel and the scaling against double, on rows at every alignment, in place and into other memory.
#include <cuda_runtime.h>

#include "score_problem.h"

using check::Dtype;
using check::Exact;
using check::kDtypes;
using check::kNames;
using check::Logits;
namespace cuda = stepopsd::cuda;

namespace {

struct GradientCall {
  std::vector<int64_t> ids;
  std::vector<char> active;
  std::vector<float> coefficients;  // (3, rows)
  double temperature = 1;
  std::vector<float> temperatures;

  size_t rows() const { return ids.size(); }
  double degrees(size_t row) const { return temperatures.empty() ? temperature : static_cast<double>(temperatures[row]); }

  // (2, rows): peak and log-mass of the score kernel.
  std::vector<float> normaliser(Logits& logits, cuda::Merge merge = cuda::Merge::automatic) const {
    check::Call call;
    call.logits = {&logits};
    call.ids = ids, call.active = active, call.temperature = temperature, call.temperatures = temperatures;
    call.entropy = false, call.normaliser = true, call.merge = merge;
    const std::vector<float> out = call.run();
    return {out.begin() + static_cast<int64_t>(3 * rows()), out.end()};
  }

  int run(Logits& logits, Logits& out) const {
    const auto total = static_cast<int64_t>(rows());
    const std::vector<float> sums = normaliser(logits);
    Exact<int64_t> id(total);
    Exact<bool> on(total);
    Exact<float> degree(total), norm(2 * total), abc(3 * total);
    for (int64_t i = 0; i < total; ++i) {
      const auto at = static_cast<size_t>(i);
      on[i] = active[at] != 0;
      for (size_t plane = 0; plane < 3; ++plane) {
        if (on[i]) abc[static_cast<int64_t>(plane) * total + i] = coefficients[plane * rows() + at];
      }
      if (!on[i]) continue;
      id[i] = ids[at];
      if (!temperatures.empty()) degree[i] = temperatures[at];
      norm[i] = sums[at], norm[total + i] = sums[rows() + at];
    }
    cuda::GradientProblem problem = {};
    problem.logits = logits.view();
    problem.ids = id.get(), problem.active = on.get();
    problem.normaliser = norm.get(), problem.coefficients = abc.get();
    problem.temperature = temperature;
    problem.temperatures = temperatures.empty() ? nullptr : degree.get();
    problem.batch = logits.batch, problem.rows = logits.rows, problem.vocab = logits.vocab;
    const cuda::Logits target = out.view();
    problem.out = {const_cast<void*>(target.data), target.batch_stride, target.row_stride};
    return cuda::launch_gradient(problem, nullptr);
  }
};

GradientCall call_on(Logits& logits, check::Random& random, bool entropy) {
  GradientCall call;
  const int64_t total = logits.batch * logits.rows;
  for (int64_t row = 0; row < total; ++row) call.ids.push_back(random.below(logits.vocab)), call.active.push_back(1);
  for (int64_t i = 0; i < 3 * total; ++i) {
    call.coefficients.push_back(i < 2 * total || entropy ? static_cast<float>(random.normal()) : 0.0f);
  }
  return call;
}

std::vector<double> wanted(Logits& logits, int64_t row, const GradientCall& call) {
  const auto at = static_cast<size_t>(row);
  const double a = call.coefficients[at], b = call.coefficients[call.rows() + at];
  const double c = call.coefficients[2 * call.rows() + at], temperature = call.degrees(at);
  std::vector<double> want(static_cast<size_t>(logits.vocab), 0.0);
  if (!call.active[at] || (a == 0 && b == 0 && c == 0)) return want;
  const double log_sum = check::truth(logits, row, 0, temperature).log_sum;
  const bool known = call.ids[at] >= 0 && call.ids[at] < logits.vocab;
  for (int64_t i = 0; i < logits.vocab; ++i) {
    const double log_p = logits.get(row, i) / temperature - log_sum, p = std::exp(log_p);
    const double value = (p == 0 ? b * p : p * (b + c * log_p)) + (i == call.ids[at] ? a : 0);
    want[static_cast<size_t>(i)] = known ? value / temperature : check::kNan;
  }
  return want;
}

// Every element of `out`, and that nothing beside its rows was written.
void verify(Logits& logits, Logits& out, const GradientCall& call, const std::string& where) {
  std::vector<std::vector<double>> want;
  for (int64_t row = 0; row < logits.batch * logits.rows; ++row) want.push_back(wanted(logits, row, call));
  if (const int error = call.run(logits, out)) check::report(where, cuda::error_text(error));
  const double relative[] = {3e-6, 6e-4, 5e-3};
  Exact<char> beside(out.memory.count);
  for (size_t row = 0; row < want.size(); ++row) {
    const std::string here = where + " " + kNames[static_cast<int>(out.dtype)] + " row " + std::to_string(row);
    for (int64_t i = 0; i < out.vocab; ++i) {
      const double scale = 1 / call.degrees(row);
      check::expect_close(out.get(static_cast<int64_t>(row), i), want[row][static_cast<size_t>(i)], 2e-6 * scale,
                          relative[static_cast<int>(out.dtype)], here + " element " + std::to_string(i));
      out.put(static_cast<int64_t>(row), i, 0);
    }
    std::memset(beside.get() + out.at(static_cast<int64_t>(row)) * element_size(out.dtype), 0,
                static_cast<size_t>(out.vocab * element_size(out.dtype)));
  }
  check::expect(check::same_bits(out.memory.copy(), beside.copy()), where, "memory beside the rows has changed");
}

void gradients_at_every_alignment() {
  check::Random random(21);
  for (const Dtype dtype : kDtypes) {
    for (const int64_t vocab : {1, 7, 8, 9, 63, 64, 65, 129, 260, 1031, 2051}) {
      for (const int64_t offset : {0, 1, 3, 6}) {
        Logits logits(dtype, 2, 2, vocab, offset, offset % 2);
        for (int64_t row = 0; row < 4; ++row) {
          if (row != 2) logits.fill(row, random, 3);
        }
        GradientCall call = call_on(logits, random, offset % 3 == 0);
        call.active[2] = 0;
        call.coefficients[1] = call.coefficients[5] = call.coefficients[9] = 0;
        if (offset == 3) call.temperatures = {0.5f, 1, 2, 3};
        else call.temperature = 0.8;
        const std::string where = "gradient of " + std::to_string(vocab) + " at " + std::to_string(offset);
        Logits same(dtype, 2, 2, vocab, offset, offset % 2), other(dtype, 2, 2, vocab, random.below(8), 3);
        verify(logits, same, call, where);
        verify(logits, other, call, where + " elsewhere");
        verify(logits, logits, call, where + " in place");
      }
    }
  }
}

// The same bits in place, elsewhere, and in a row by itself.
void gradient_bits_follow_from_values() {
  check::Random random(22);
  for (const Dtype dtype : kDtypes) {
    const int64_t vocab = 2047;
    Logits logits(dtype, 1, 3, vocab, 5, 2), out(dtype, 1, 3, vocab, 2, 1);
    for (int64_t row = 0; row < 3; ++row) logits.fill(row, random, 4);
    const GradientCall call = call_on(logits, random, true);
    Logits alone(dtype, 1, 1, vocab, 1, 0);
    for (int64_t i = 0; i < vocab; ++i) alone.put(0, i, logits.get(1, i));
    GradientCall one;
    one.ids = {call.ids[1]}, one.active = {1};
    one.coefficients = {call.coefficients[1], call.coefficients[4], call.coefficients[7]};
    const int errors = call.run(logits, out) | call.run(logits, logits) | one.run(alone, alone);
    check::expect(errors == 0, "gradient bits", "a launch failed");
    bool same = true;
    for (int64_t i = 0; i < 3 * vocab; ++i) same &= out.get(i / vocab, i % vocab) == logits.get(i / vocab, i % vocab);
    check::expect(same, "gradient bits", "in place they are others");
    for (int64_t i = 0; i < vocab; ++i) same &= alone.get(0, i) == logits.get(1, i);
    check::expect(same, "gradient bits", "alone they are others");
  }
}

void gradients_of_extreme_rows() {
  check::Random random(23);
  const int64_t vocab = 300;
  for (const Dtype dtype : kDtypes) {
    Logits logits(dtype, 1, 9, vocab, 2, 1), out(dtype, 1, 9, vocab, 2, 1);
    for (int64_t row = 0; row < 9; ++row) logits.fill(row, random, 2, row == 3 ? 1e4 : row == 4 ? -1e4 : 0);
    for (int64_t i = 0; i < vocab; ++i) {
      logits.put(0, i, -check::kInf);
      if (i % 3 != 0) logits.put(1, i, -check::kInf);
      if (i != 250) logits.put(2, i, -check::kInf);
    }
    logits.put(5, 299, check::kNan);
    logits.put(6, 7, check::kInf);
    for (const bool entropy : {false, true}) {
      GradientCall call = call_on(logits, random, entropy);
      call.ids = {0, 3, 250, 5, 6, 7, 8, -1, vocab};
      verify(logits, out, call, "gradient of extremes");
      const std::vector<float> sums = call.normaliser(logits);
      check::expect(sums[9] == -static_cast<float>(check::kInf), "normaliser", "the log-mass of a row of -inf");
      check::expect(std::isnan(sums[14]) && std::isnan(sums[15]), "normaliser", "a row of NaN has a log-mass");
      for (size_t row = 0; row < 9; ++row) check::expect(std::isfinite(sums[row]), "normaliser", "a peak is not finite");
    }
  }
}

// Peak and log-mass, with splits merged in clusters and through the workspace.
void normalisers() {
  check::Random random(24);
  Logits logits(Dtype::f32, 1, 2, 40003, 1, 0);
  logits.fill(0, random, 3, 9000), logits.fill(1, random, 1);
  GradientCall call = call_on(logits, random, false);
  call.temperature = 0.7;
  const std::vector<float> sums = call.normaliser(logits);
  check::expect(check::same_bits(sums, call.normaliser(logits, cuda::Merge::workspace)), "normaliser", "merges differ");
  for (int64_t row = 0; row < 2; ++row) {
    double mass = 0;
    const auto factor = static_cast<float>(stepopsd::kLog2e / 0.7);
    for (int64_t i = 0; i < logits.vocab; ++i) {
      mass += std::exp2(logits.get(row, i) * factor - static_cast<double>(sums[static_cast<size_t>(row)]));
    }
    check::expect_close(sums[static_cast<size_t>(2 + row)], std::log2(mass), 1e-6, 0, "log-mass");
  }
}

void scaling() {
  check::Random random(25);
  for (const Dtype dtype : kDtypes) {
    for (const float number : {1.0f, 0.3f}) {
      Logits rows(dtype, 2, 2, 1500, 3, 1);
      for (int64_t row = 0; row < 4; ++row) rows.fill(row, random, 2);
      const std::vector<char> before = rows.memory.copy();
      Exact<float> factor(1);
      factor[0] = number;
      cuda::ScaleProblem problem = {};
      problem.data = {const_cast<void*>(rows.view().data), rows.batch_stride, rows.row_stride};
      problem.dtype = dtype, problem.factor = factor.get();
      problem.batch = 2, problem.rows = 2, problem.vocab = 1500;
      check::expect(cuda::launch_scale(problem, nullptr) == 0, "scaling", "the launch failed");
      Logits old(dtype, 2, 2, 1500, 3, 1);
      std::memcpy(old.memory.get(), before.data(), before.size());
      if (number == 1) check::expect(check::same_bits(rows.memory.copy(), before), "scaling", "by 1 changes something");
      for (int64_t row = 0; row < 4; ++row) {
        for (int64_t i = 0; i < 1500; ++i) {
          const auto product = static_cast<float>(old.get(row, i)) * number;
          const double want = check::decode(check::encode(product, dtype), dtype);
          check::expect(rows.get(row, i) == want, "scaling", "a product is wrong");
        }
      }
    }
  }
}

void no_gradients_and_bad_sizes() {
  cuda::GradientProblem gradient = {};
  gradient.vocab = 100, gradient.rows = 3, gradient.temperature = 1;
  check::expect(cuda::launch_gradient(gradient, nullptr) == 0, "no gradients", "an error");
  gradient.batch = int64_t{1} << 30;
  check::expect(cuda::launch_gradient(gradient, nullptr) == cudaErrorInvalidValue, "too many gradients", "no error");
  cuda::ScaleProblem scale = {};
  scale.vocab = 100, scale.rows = 3;
  check::expect(cuda::launch_scale(scale, nullptr) == 0, "nothing to scale", "an error");
  scale.vocab = 0;
  check::expect(cuda::launch_scale(scale, nullptr) == cudaErrorInvalidValue, "no vocabulary", "no error");
}

}  // namespace

std::vector<Case> gradient_cases() {
  return {{"gradients_at_every_alignment", gradients_at_every_alignment},
          {"gradient_bits_follow_from_values", gradient_bits_follow_from_values},
          {"gradients_of_extreme_rows", gradients_of_extreme_rows},
          {"normalisers", normalisers},
          {"scaling", scaling},
          {"no_gradients_and_bad_sizes", no_gradients_and_bad_sizes}};
}
