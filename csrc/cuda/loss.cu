// launch_loss: in one visit where a cluster's shared memory holds a row, else through the score and gradient kernels.
#include "loss.cuh"

#include "device.h"
#include "launch.h"
#include "score_launch.h"

namespace stepopsd::cuda {

__global__ void __launch_bounds__(kScoreThreads) slope_kernel(const __grid_constant__ SlopeArgs args) {
  const uint32_t row = blockIdx.x * kScoreThreads + threadIdx.x;
  if (row >= args.total || !args.active[row]) return;
  const int64_t total = args.total;
  const Coefficients abc = loss_coefficients(args.tokens, row, args.scores[row], args.scores[2 * total + row]);
  args.coefficients[row] = abc.a;
  args.coefficients[total + row] = abc.b;
  args.coefficients[2 * total + row] = abc.c;
}

namespace {

ScoreProblem score_of(const LossProblem& problem) {
  ScoreProblem score = {};
  score.logits[0] = problem.logits;
  score.tensors = 1;
  score.ids = problem.ids;
  score.active = problem.active;
  score.temperature = problem.temperature;
  score.temperatures = problem.temperatures;
  score.batch = problem.batch;
  score.rows = problem.rows;
  score.vocab = problem.vocab;
  score.entropy = score.normaliser = true;
  score.out = problem.scores;
  score.workspace = problem.workspace;
  score.device = problem.device;
  score.merge = problem.merge;
  return score;
}

LossTokens tokens_of(const LossProblem& problem) {
  LossTokens tokens = {problem.old_logprobs, problem.ref_logprobs, problem.advantages, problem.weights, problem.options};
  tokens.options.reference = problem.ref_logprobs != nullptr;
  return tokens;
}

int64_t shared_bytes(const LossProblem& problem) {
  const Splits splits = splits_of(problem.vocab);
  return problem.logits.dtype == Dtype::f32 ? loss_shared_bytes<F32>(problem.vocab, splits)
                                            : loss_shared_bytes<Bf16>(problem.vocab, splits);
}

// Whether the row stays on the chip.
cudaError_t in_one_visit(const LossProblem& problem, bool& so) {
  so = false;
  if (problem.merge == Merge::workspace || problem.vocab <= 0) return cudaSuccess;
  bool clusters = true;
  cudaError_t error = splits_of(problem.vocab).count > 1 ? has_clusters(problem.device, clusters) : cudaSuccess;
  int most = 0;
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, problem.device);
  }
  so = error == cudaSuccess && clusters && shared_bytes(problem) <= most;
  return error;
}

size_t score_bytes(const LossProblem& problem) { return (score_workspace(score_of(problem)) + 15) / 16 * 16; }

template <class T>
cudaError_t launch_cluster(const LossProblem& problem, cudaStream_t stream) {
  LossArgs args = {};
  args.score = score_arguments(score_of(problem), false);
  args.tokens = tokens_of(problem);
  const int64_t size = sizeof(typename T::Bits);
  args.out = static_cast<char*>(problem.out.data);
  args.out_batch_stride = problem.out.batch_stride * size;
  args.out_row_stride = problem.out.row_stride * size;
  args.temperature = static_cast<float>(problem.temperature);
  const auto splits = static_cast<unsigned>(args.score.splits.count);
  const auto bytes = static_cast<int>(shared_bytes(problem));
  const cudaError_t error =
      cudaFuncSetAttribute(loss_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(args.score.total * splits);
  config.blockDim = dim3(kScoreThreads);
  config.dynamicSmemBytes = static_cast<size_t>(bytes);
  config.stream = stream;
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = splits;
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  config.attrs = &cluster;
  config.numAttrs = splits > 1 ? 1 : 0;
  return cudaLaunchKernelEx(&config, loss_kernel<T>, args);
}

cudaError_t launch_one_visit(const LossProblem& problem, cudaStream_t stream) {
  const DeviceGuard guard(problem.device);
  if (guard.status() != cudaSuccess) return guard.status();
  switch (problem.logits.dtype) {
    case Dtype::f32: return launch_cluster<F32>(problem, stream);
    case Dtype::f16: return launch_cluster<F16>(problem, stream);
    case Dtype::bf16: return launch_cluster<Bf16>(problem, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_slopes(const SlopeArgs& args, int device, cudaStream_t stream) {
  const DeviceGuard guard(device);
  if (guard.status() != cudaSuccess) return guard.status();
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3((args.total + kScoreThreads - 1) / kScoreThreads);
  config.blockDim = dim3(kScoreThreads);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, slope_kernel, args);
}

int launch_two_visits(const LossProblem& problem, cudaStream_t stream) {
  if (const int error = launch_score(score_of(problem), stream)) return error;
  const int64_t total = problem.batch * problem.rows;
  auto* coefficients = reinterpret_cast<float*>(static_cast<char*>(problem.workspace) + score_bytes(problem));
  const SlopeArgs slopes = {tokens_of(problem), problem.active, problem.scores, coefficients,
                            static_cast<uint32_t>(total)};
  if (const int error = launch_slopes(slopes, problem.device, stream)) return error;
  GradientProblem gradient = {};
  gradient.logits = problem.logits;
  gradient.ids = problem.ids;
  gradient.active = problem.active;
  gradient.normaliser = problem.scores + 3 * total;
  gradient.coefficients = coefficients;
  gradient.temperature = problem.temperature;
  gradient.temperatures = problem.temperatures;
  gradient.batch = problem.batch;
  gradient.rows = problem.rows;
  gradient.vocab = problem.vocab;
  gradient.out = problem.out;
  gradient.device = problem.device;
  return launch_gradient(gradient, stream);
}

}  // namespace

size_t loss_workspace(const LossProblem& problem) {
  bool one_visit = false;
  if (problem.batch * problem.rows <= 0 || in_one_visit(problem, one_visit) != cudaSuccess || one_visit) return 0;
  return score_bytes(problem) + 3 * sizeof(float) * static_cast<size_t>(problem.batch * problem.rows);
}

int launch_loss(const LossProblem& problem, void* stream) {
  if (!score_valid(score_of(problem))) return cudaErrorInvalidValue;
  if (problem.batch * problem.rows == 0) return cudaSuccess;
  bool one_visit = false;
  if (const int error = in_one_visit(problem, one_visit)) return error;
  const auto queue = static_cast<cudaStream_t>(stream);
  return one_visit ? launch_one_visit(problem, queue) : launch_two_visits(problem, queue);
}

}  // namespace stepopsd::cuda
