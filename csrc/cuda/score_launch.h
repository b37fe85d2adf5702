// One launcher for each dtype, each in a file of its own: nvcc takes seconds for the instances of the hot loop.
#pragma once

#include <cuda_runtime.h>

namespace stepopsd::cuda {

struct ScoreArgs;
struct ScoreProblem;

struct ScoreLaunch {
  const ScoreArgs& args;
  int tensors;  // the first so many of args.tensors, all of the launcher's dtype
  bool entropy;
  cudaStream_t stream;
};

bool score_valid(const ScoreProblem& problem);
ScoreArgs score_arguments(const ScoreProblem& problem, bool workspace);

cudaError_t launch_rows_f32(const ScoreLaunch& launch);
cudaError_t launch_rows_f16(const ScoreLaunch& launch);
cudaError_t launch_rows_bf16(const ScoreLaunch& launch);

}  // namespace stepopsd::cuda
