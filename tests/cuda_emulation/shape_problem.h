// Tokens in steps and trajectories, and calls of the shape kernel on exactly sized heap blocks.
#pragma once

#include <algorithm>
#include <numeric>
#include <tuple>

#include "check.h"

namespace check {

using stepopsd::WeightFn;
namespace cuda = stepopsd::cuda;

struct Tokens {
  std::vector<float> student, teacher, advantages;
  std::vector<int64_t> trajectories, steps;  // step < 0: in no step, not active
  size_t count() const { return advantages.size(); }
};

struct Options {
  double alpha_clip = 0.2, lambda_mix = 0.2;
  WeightFn weight_fn = WeightFn::sigmoid;
  cuda::StepNorm step_norm = cuda::StepNorm::mean_abs;
  bool budget = true;
};

struct Result {
  std::vector<float> planes;  // (4, tokens)
  std::vector<double> statistics;
  double at(int plane, size_t token) const { return planes[static_cast<size_t>(plane) * (planes.size() / 4) + token]; }
};

// The fields of stepopsd/ops/segments.py.
struct Segments {
  std::vector<int64_t> order, step_starts, trajectory_starts, counts;
};

inline Segments segments_of(const Tokens& tokens) {
  const size_t count = tokens.count();
  Segments s;
  s.order.resize(count);
  std::iota(s.order.begin(), s.order.end(), 0);
  const auto key = [&](int64_t i) {
    const size_t at = static_cast<size_t>(i);
    return std::tuple(tokens.steps[at] < 0, tokens.steps[at] < 0 ? 0 : tokens.trajectories[at],
                      tokens.steps[at] < 0 ? 0 : tokens.steps[at]);
  };
  std::stable_sort(s.order.begin(), s.order.end(), [&](int64_t a, int64_t b) { return key(a) < key(b); });
  int64_t inside = 0;
  for (size_t place = 0; place < count; ++place) {
    const auto here = key(s.order[place]);
    if (std::get<0>(here)) break;
    ++inside;
    const bool first = place == 0;
    if (first || std::get<1>(key(s.order[place - 1])) != std::get<1>(here)) {
      s.trajectory_starts.push_back(static_cast<int64_t>(s.step_starts.size()));
    }
    if (first || key(s.order[place - 1]) != here) s.step_starts.push_back(static_cast<int64_t>(place));
  }
  s.counts = {static_cast<int64_t>(s.step_starts.size()), static_cast<int64_t>(s.trajectory_starts.size())};
  s.step_starts.resize(count + 1, inside);
  s.trajectory_starts.resize(count + 1, s.counts[0]);
  return s;
}

template <class T>
Exact<T> exact(const std::vector<T>& values) {
  Exact<T> copy(static_cast<int64_t>(values.size()));
  std::copy(values.begin(), values.end(), copy.get());
  return copy;
}

inline Result run(const Tokens& tokens, const Options& options) {
  const int64_t count = static_cast<int64_t>(tokens.count());
  auto student = exact(tokens.student), teacher = exact(tokens.teacher), advantages = exact(tokens.advantages);
  Exact<bool> active(count);
  for (int64_t i = 0; i < count; ++i) active[i] = tokens.steps[static_cast<size_t>(i)] >= 0;
  const Segments segments = segments_of(tokens);
  auto order = exact(segments.order), steps = exact(segments.step_starts);
  auto trajectories = exact(segments.trajectory_starts), counts = exact(segments.counts);
  Exact<float> planes(4 * count);
  Exact<double> statistics(17);
  Exact<char> workspace(static_cast<int64_t>(cuda::shape_workspace(count)));
  cuda::ShapeProblem problem = {};
  problem.student_logprobs = student.get();
  problem.teacher_logprobs = teacher.get();
  problem.advantages = advantages.get();
  problem.active = active.get();
  problem.tokens = count;
  if (options.budget) {
    problem.order = order.get(), problem.step_starts = steps.get();
    problem.trajectory_starts = trajectories.get(), problem.counts = counts.get();
  }
  problem.alpha_clip = options.alpha_clip;
  problem.lambda_mix = options.lambda_mix;
  problem.weight_fn = options.weight_fn;
  problem.step_norm = options.step_norm;
  problem.planes = planes.get();
  problem.statistics = statistics.get();
  problem.workspace = workspace.get();
  expect(cuda::launch_shape(problem, nullptr) == 0, "shape", "the launch failed");
  return {planes.copy(), statistics.copy()};
}

}  // namespace check
