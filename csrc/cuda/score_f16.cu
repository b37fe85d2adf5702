#include "score_launch.cuh"

namespace stepopsd::cuda {

cudaError_t launch_rows_f16(const ScoreLaunch& launch) { return launch_rows<F16>(launch); }

}  // namespace stepopsd::cuda
