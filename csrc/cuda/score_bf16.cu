#include "score_launch.cuh"

namespace stepopsd::cuda {

cudaError_t launch_rows_bf16(const ScoreLaunch& launch) { return launch_rows<Bf16>(launch); }

}  // namespace stepopsd::cuda
