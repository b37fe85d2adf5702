// launch_shape: one kernel, and the counter that it needs set to 0.
#include "shape.cuh"

#include "device.h"
#include "launch.h"

namespace stepopsd::cuda {
namespace {

// The parts of the workspace, each aligned to 16 bytes. `base` may be null to learn the size.
size_t divide(void* base, int64_t tokens, ShapeWorkspace& parts) {
  size_t used = 0;
  const auto take = [&](size_t bytes) {
    char* start = static_cast<char*>(base) + used;
    used += (bytes + 15) / 16 * 16;
    return start;
  };
  const size_t count = static_cast<size_t>(tokens);
  parts.finished = reinterpret_cast<unsigned*>(take(sizeof(unsigned)));
  parts.summaries = reinterpret_cast<Summary*>(take(sizeof(Summary) * static_cast<size_t>(shape_blocks(tokens))));
  parts.steps = reinterpret_cast<double*>(take(sizeof(double) * count));
  parts.values = reinterpret_cast<float*>(take(sizeof(float) * count));
  return used;
}

ShapeArgs arguments(const ShapeProblem& problem) {
  const double low = 1 - problem.alpha_clip, high = 1 + problem.alpha_clip;
  ShapeArgs args = {};
  args.student_logprobs = problem.student_logprobs;
  args.teacher_logprobs = problem.teacher_logprobs;
  args.advantages = problem.advantages;
  args.active = problem.active;
  args.tokens = problem.tokens;
  args.order = problem.order;
  args.step_starts = problem.step_starts;
  args.trajectory_starts = problem.trajectory_starts;
  args.counts = problem.counts;
  args.shaping = {static_cast<float>(low), static_cast<float>(high), static_cast<float>(problem.lambda_mix),
                  problem.weight_fn};
  args.ratio = problem.step_norm == StepNorm::ratio;
  args.edges = {low + kEdge, high - kEdge};
  args.planes = problem.planes;
  args.statistics = problem.statistics;
  divide(problem.workspace, problem.tokens, args.workspace);
  return args;
}

cudaError_t launch(const ShapeProblem& problem, cudaStream_t stream) {
  if (problem.tokens < 0 || problem.tokens > 0x7fffffff) return cudaErrorInvalidValue;
  const DeviceGuard guard(problem.device);
  if (guard.status() != cudaSuccess) return guard.status();
  const ShapeArgs args = arguments(problem);
  const cudaError_t error = cudaMemsetAsync(args.workspace.finished, 0, sizeof(unsigned), stream);
  if (error != cudaSuccess) return error;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(shape_blocks(problem.tokens)));
  config.blockDim = dim3(kShapeThreads);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, shape_kernel, args);
}

}  // namespace

size_t shape_workspace(int64_t tokens) {
  ShapeWorkspace parts;
  return divide(nullptr, tokens, parts);
}

int launch_shape(const ShapeProblem& problem, void* stream) {
  return launch(problem, static_cast<cudaStream_t>(stream));
}

}  // namespace stepopsd::cuda
