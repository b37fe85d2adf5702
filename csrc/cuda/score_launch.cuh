// The body of the launchers in score_launch.h.
#pragma once

#include "score.cuh"
#include "score_launch.h"

namespace stepopsd::cuda {

template <class T, bool kEntropy>
cudaError_t launch_rows(const ScoreLaunch& launch) {
  const ScoreArgs& args = launch.args;
  const unsigned splits = static_cast<unsigned>(args.splits.count);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(args.total * splits, static_cast<unsigned>(launch.tensors));
  config.blockDim = dim3(kScoreThreads);
  config.stream = launch.stream;
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = splits;
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  config.attrs = &cluster;
  config.numAttrs = splits > 1 && args.tensors[0].partials == nullptr ? 1 : 0;
  return cudaLaunchKernelEx(&config, score_kernel<T, kEntropy>, args);
}

template <class T>
cudaError_t launch_rows(const ScoreLaunch& launch) {
  return launch.entropy ? launch_rows<T, true>(launch) : launch_rows<T, false>(launch);
}

}  // namespace stepopsd::cuda
