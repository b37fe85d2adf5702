// launch_gradient and launch_scale.
#include "gradient.cuh"

#include "device.h"
#include "launch.h"

namespace stepopsd::cuda {
namespace {

constexpr int64_t kMaxGrid = 0x7fffffff, kMaxVocab = 1 << 30;
constexpr uint32_t kScaleBlocks = 4096;

template <class Problem>
bool valid(const Problem& problem, int64_t chunks) {
  return problem.vocab > 0 && problem.vocab <= kMaxVocab && problem.batch >= 0 && problem.rows >= 0 &&
         (problem.rows == 0 || problem.batch <= kMaxGrid / chunks / problem.rows);
}

template <class Kernel, class Args>
cudaError_t launch_blocks(Kernel kernel, uint32_t blocks, const Args& args, int device, void* stream) {
  const DeviceGuard guard(device);
  if (guard.status() != cudaSuccess) return guard.status();
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(kRewriteThreads);
  config.stream = static_cast<cudaStream_t>(stream);
  return cudaLaunchKernelEx(&config, kernel, args);
}

template <class T>
cudaError_t launch(const GradientProblem& problem, void* stream) {
  const uint32_t chunks = chunks_of<T>(problem.vocab);
  if (!valid(problem, chunks)) return cudaErrorInvalidValue;
  const int64_t size = sizeof(typename T::Bits), total = problem.batch * problem.rows;
  if (total == 0) return cudaSuccess;
  GradientArgs args = {};
  args.data = static_cast<const char*>(problem.logits.data);
  args.batch_stride = problem.logits.batch_stride * size;
  args.row_stride = problem.logits.row_stride * size;
  args.out = static_cast<char*>(problem.out.data);
  args.out_batch_stride = problem.out.batch_stride * size;
  args.out_row_stride = problem.out.row_stride * size;
  args.ids = problem.ids;
  args.active = problem.active;
  args.normaliser = problem.normaliser;
  args.coefficients = problem.coefficients;
  args.temperatures = problem.temperatures;
  args.temperature = static_cast<float>(problem.temperature);
  args.factor = problem.temperatures == nullptr ? static_cast<float>(kLog2e / problem.temperature) : 0.0f;
  args.total = static_cast<uint32_t>(total);
  args.rows = static_cast<uint32_t>(problem.rows);
  args.chunks = chunks;
  args.vocab = static_cast<int>(problem.vocab);
  return launch_blocks(gradient_kernel<T>, args.total * chunks, args, problem.device, stream);
}

template <class T>
cudaError_t launch(const ScaleProblem& problem, void* stream) {
  const uint32_t chunks = chunks_of<T>(problem.vocab);
  if (!valid(problem, chunks)) return cudaErrorInvalidValue;
  const int64_t size = sizeof(typename T::Bits), total = problem.batch * problem.rows;
  if (total == 0) return cudaSuccess;
  ScaleArgs args = {};
  args.data = static_cast<char*>(problem.data.data);
  args.batch_stride = problem.data.batch_stride * size;
  args.row_stride = problem.data.row_stride * size;
  args.factor = problem.factor;
  args.total = static_cast<uint32_t>(total);
  args.rows = static_cast<uint32_t>(problem.rows);
  args.chunks = chunks;
  args.vocab = static_cast<int>(problem.vocab);
  return launch_blocks(scale_kernel<T>, min(args.total * chunks, kScaleBlocks), args, problem.device, stream);
}

template <class Problem>
int launch_dtype(Dtype dtype, const Problem& problem, void* stream) {
  switch (dtype) {
    case Dtype::f32: return launch<F32>(problem, stream);
    case Dtype::f16: return launch<F16>(problem, stream);
    case Dtype::bf16: return launch<Bf16>(problem, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

int launch_gradient(const GradientProblem& problem, void* stream) {
  return launch_dtype(problem.logits.dtype, problem, stream);
}

int launch_scale(const ScaleProblem& problem, void* stream) { return launch_dtype(problem.dtype, problem, stream); }

}  // namespace stepopsd::cuda
