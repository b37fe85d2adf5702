// launch_score: which kernels run, with or without a workspace.
#include "score.cuh"

#include <atomic>

#include "device.h"
#include "launch.h"
#include "score_launch.h"

namespace stepopsd::cuda {
namespace {

constexpr int64_t kMaxGrid = 0x7fffffff, kMaxVocab = 1 << 30;

cudaError_t ask_for_clusters(int device, bool& there) {
  const DeviceGuard guard(device);
  if (guard.status() != cudaSuccess) return guard.status();
  int supported = 0;
  cudaError_t error = cudaDeviceGetAttribute(&supported, cudaDevAttrClusterLaunch, device);
  cudaFuncAttributes kernel = {};
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&kernel, merge_kernel<false>);
  // Also code that was compiled for them: on a newer chip the PTX of an older one may run.
  there = supported != 0 && kernel.ptxVersion >= 90;
  return error;
}

}  // namespace

// Asked once for each device: 0 unknown, 1 no, 2 yes.
cudaError_t has_clusters(int device, bool& there) {
  constexpr int kRemembered = 64;
  static std::atomic<int> known[kRemembered];
  std::atomic<int>* slot = device >= 0 && device < kRemembered ? &known[device] : nullptr;
  if (slot != nullptr && slot->load() != 0) {
    there = slot->load() == 2;
    return cudaSuccess;
  }
  const cudaError_t error = ask_for_clusters(device, there);
  if (error == cudaSuccess && slot != nullptr) slot->store(there ? 2 : 1);
  return error;
}

namespace {

cudaError_t needs_workspace(const ScoreProblem& problem, bool& needed) {
  needed = splits_of(problem.vocab).count > 1 && problem.batch * problem.rows > 0;
  if (!needed || problem.merge == Merge::workspace) return cudaSuccess;
  bool clusters = false;
  const cudaError_t error = has_clusters(problem.device, clusters);
  needed = !clusters;
  return error;
}

int64_t partials_per_tensor(const ScoreProblem& problem) {
  return problem.batch * problem.rows * splits_of(problem.vocab).count * kScoreWarps;
}

}  // namespace

ScoreArgs score_arguments(const ScoreProblem& problem, bool workspace) {
  ScoreArgs args = {};
  const int64_t total = problem.batch * problem.rows;
  const int channels = problem.normaliser ? 5 : 3;
  for (int k = 0; k < problem.tensors; ++k) {
    const Logits& logits = problem.logits[k];
    const int64_t size = element_size(logits.dtype);
    Partial* partials = nullptr;
    if (workspace) partials = static_cast<Partial*>(problem.workspace) + k * partials_per_tensor(problem);
    args.tensors[k] = {static_cast<const char*>(logits.data), logits.batch_stride * size, logits.row_stride * size,
                       problem.out + k * channels * total, partials};
  }
  args.ids = problem.ids;
  args.active = problem.active;
  args.temperatures = problem.temperatures;
  args.factor = problem.temperatures == nullptr ? static_cast<float>(kLog2e / problem.temperature) : 0.0f;
  args.total = static_cast<uint32_t>(total);
  args.rows = static_cast<uint32_t>(problem.rows);
  args.channels = channels;
  args.vocab = static_cast<int>(problem.vocab);
  args.splits = splits_of(problem.vocab);
  return args;
}

namespace {

cudaError_t launch_dtype(Dtype dtype, const ScoreLaunch& launch) {
  switch (dtype) {
    case Dtype::f32: return launch_rows_f32(launch);
    case Dtype::f16: return launch_rows_f16(launch);
    case Dtype::bf16: return launch_rows_bf16(launch);
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_merge(const ScoreProblem& problem, const ScoreArgs& args, cudaStream_t stream) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3((args.total + kScoreWarps - 1) / kScoreWarps, static_cast<unsigned>(problem.tensors));
  config.blockDim = dim3(kScoreThreads);
  config.stream = stream;
  const auto kernel = problem.entropy ? merge_kernel<true> : merge_kernel<false>;
  return cudaLaunchKernelEx(&config, kernel, args, problem.logits[0].dtype, problem.logits[1].dtype);
}

}  // namespace

bool score_valid(const ScoreProblem& problem) {
  const int64_t splits = splits_of(problem.vocab).count;
  return (problem.tensors == 1 || problem.tensors == 2) && problem.vocab > 0 && problem.vocab <= kMaxVocab &&
         problem.batch >= 0 && problem.rows >= 0 &&
         (problem.rows == 0 || problem.batch <= kMaxGrid / splits / problem.rows);
}

namespace {

cudaError_t launch(const ScoreProblem& problem, cudaStream_t stream) {
  if (!score_valid(problem)) return cudaErrorInvalidValue;
  if (problem.batch * problem.rows == 0) return cudaSuccess;
  bool workspace = false;
  cudaError_t error = needs_workspace(problem, workspace);
  const DeviceGuard guard(problem.device);
  if (error == cudaSuccess) error = guard.status();
  if (error != cudaSuccess) return error;

  const ScoreArgs args = score_arguments(problem, workspace);
  const Dtype first = problem.logits[0].dtype, last = problem.logits[problem.tensors - 1].dtype;
  if (first == last) {
    error = launch_dtype(first, {args, problem.tensors, problem.entropy, stream});
  } else {
    ScoreArgs second = args;
    second.tensors[0] = args.tensors[1];
    error = launch_dtype(first, {args, 1, problem.entropy, stream});
    if (error == cudaSuccess) error = launch_dtype(last, {second, 1, problem.entropy, stream});
  }
  return error == cudaSuccess && workspace ? launch_merge(problem, args, stream) : error;
}

}  // namespace

size_t score_workspace(const ScoreProblem& problem) {
  bool needed = false;
  if (!score_valid(problem) || needs_workspace(problem, needed) != cudaSuccess || !needed) return 0;
  return sizeof(Partial) * static_cast<size_t>(problem.tensors * partials_per_tensor(problem));
}

int launch_score(const ScoreProblem& problem, void* stream) {
  return launch(problem, static_cast<cudaStream_t>(stream));
}

int check_device(int device) {
  bool clusters = false;
  return has_clusters(device, clusters);
}

const char* error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace stepopsd::cuda
