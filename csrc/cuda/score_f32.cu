#include "score_launch.cuh"

namespace stepopsd::cuda {

cudaError_t launch_rows_f32(const ScoreLaunch& launch) { return launch_rows<F32>(launch); }

}  // namespace stepopsd::cuda
