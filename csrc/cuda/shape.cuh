// The shape kernel: ready log-probs to shaped advantages, step budget and statistics, in one launch. A thread block
// takes whole trajectories, so that nothing waits for another block; the last block to finish merges the statistics.
#pragma once

#include "../include/epilogue.h"
#include "shape_statistics.cuh"

namespace stepopsd::cuda {

constexpr int kShapeWarps = kShapeThreads / kWarp;
constexpr int kMaxShapeBlocks = 512;
constexpr double kEpsilon = 1e-6, kScaleLimit = 2.0, kEdge = 1e-6;

// Blocks of a launch, from the number of tokens alone: the statistics' order of summation depends on it.
inline int shape_blocks(int64_t tokens) {
  const int64_t blocks = (tokens + kShapeThreads - 1) / kShapeThreads;
  return static_cast<int>(blocks < 1 ? 1 : blocks > kMaxShapeBlocks ? kMaxShapeBlocks : blocks);
}

struct ShapeWorkspace {
  unsigned* finished;  // blocks that have written their summary; 0 at the start
  Summary* summaries;  // (blocks,)
  double* steps;       // (tokens,) for each step its mean, -1 where it has none, and then its scale
  float* values;       // (tokens,) for each place in `order` what the step means are of
};

struct ShapeArgs {
  const float* student_logprobs;
  const float* teacher_logprobs;
  const float* advantages;
  const bool* active;
  int64_t tokens;
  const int64_t *order, *step_starts, *trajectory_starts, *counts;
  Shaping shaping;
  bool ratio;  // step means of |shaped / advantage| instead of |shaped|
  Edges edges;
  float* planes;
  double* statistics;
  ShapeWorkspace workspace;
};

struct ShapeShared {
  Summary summaries[kShapeWarps];
  bool last;
};

// Writes a token's four numbers, with scale 1, and returns what its step's mean is of.
__device__ __forceinline__ float shape_one(const ShapeArgs& args, int64_t token, Gatherer& gatherer) {
  const Shaping& how = args.shaping;
  const float advantage = args.advantages[token];
  float shaped = advantage, weight = 1, delta = 0, mixed = 1;
  if (args.active[token]) {
    delta = __fsub_rn(args.teacher_logprobs[token], args.student_logprobs[token]);
    const float gap = signed_gap(advantage, delta);
    weight = how.weight_fn == WeightFn::sigmoid ? 2.0f / (1.0f + expf(-gap)) : expf(gap);
    // Comparisons rather than fminf and fmaxf: NaN must come out as NaN.
    if (weight < how.low) weight = how.low;
    if (weight > how.high) weight = how.high;
    if (how.lambda_mix != 0) {
      mixed = __fmaf_rn(how.lambda_mix, __fsub_rn(weight, 1.0f), 1.0f);
      shaped = __fmul_rn(advantage, mixed);
    }
    gatherer.add_token(delta, weight, args.edges);
  }
  float* out = args.planes + token;
  out[0] = shaped;
  out[args.tokens] = weight;
  out[2 * args.tokens] = delta;
  out[3 * args.tokens] = 1;
  return args.ratio ? mixed : fabsf(shaped);
}

// The sum over a warp's lanes, the same in every lane: a tree over the lanes.
__device__ __forceinline__ double sum_lanes(double x) {
#pragma unroll
  for (int apart = 1; apart < kWarp; apart *= 2) x += __shfl_xor_sync(kAllLanes, x, apart);
  return x;
}

// Mean of the finite values of one step, -1 where there is none. A whole warp calls it.
__device__ __forceinline__ double step_mean(const float* values, int64_t count, int lane) {
  double sum = 0, finite = 0;
#pragma unroll 4
  for (int64_t i = lane; i < count; i += kWarp) {
    const float value = values[i];
    const bool counts = value <= 3.402823466e38f;  // values are not negative; NaN fails too
    sum += counts ? value : 0.0f;
    finite += counts;
  }
  sum = sum_lanes(sum);
  finite = sum_lanes(finite);
  return finite > 0 ? sum / finite : -1.0;
}

// Number and mean of the live steps [first, last) of a trajectory. A whole warp calls it.
struct LiveSteps {
  double count, mean;
};

__device__ __forceinline__ LiveSteps live_steps(const double* means, int64_t first, int64_t last, int lane) {
  double sum = 0, count = 0;
  for (int64_t k = first + lane; k < last; k += kWarp) {
    const double mean = means[k];
    sum += mean >= 0 ? mean : 0;
    count += mean >= 0;
  }
  count = sum_lanes(count);
  return {count, sum_lanes(sum) / fmax(1.0, count)};
}

// The step of [first, last) that a place in `order` belongs to.
__device__ __forceinline__ int64_t step_at(const int64_t* starts, int64_t first, int64_t last, int64_t place) {
  while (last - first > 1) {
    const int64_t middle = first + (last - first) / 2;
    (starts[middle] <= place ? first : last) = middle;
  }
  return first;
}

// Shapes the steps [first, last) of one trajectory and brings their means together. A whole block calls it.
__device__ __forceinline__ void shape_trajectory(const ShapeArgs& args, int64_t first, int64_t last,
                                                 Gatherer& gatherer) {
  const ShapeWorkspace& work = args.workspace;
  const int64_t begin = args.step_starts[first], end = args.step_starts[last];
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int64_t place = begin + threadIdx.x; place < end; place += kShapeThreads) {
    work.values[place] = shape_one(args, args.order[place], gatherer);
  }
  __syncthreads();
  for (int64_t k = first + warp; k < last; k += kShapeWarps) {
    const int64_t start = args.step_starts[k];
    const double mean = step_mean(work.values + start, args.step_starts[k + 1] - start, lane);
    if (lane == 0) work.steps[k] = mean;
  }
  __syncthreads();
  const LiveSteps live = live_steps(work.steps, first, last, lane);
  __syncthreads();
  for (int64_t k = first + threadIdx.x; k < last; k += kShapeThreads) {
    const double mean = work.steps[k];
    double scale = 1;
    if (mean >= 0 && live.count >= 2 && live.mean > 0) {
      scale = fmin(fmax(live.mean / (mean + kEpsilon), 1 / kScaleLimit), kScaleLimit);
    }
    work.steps[k] = scale;
    if (mean >= 0) gatherer.add_step(scale, scale <= 1 / kScaleLimit + kEdge || scale >= kScaleLimit - kEdge);
  }
  __syncthreads();
  // Each thread meets the tokens again that it has written.
  for (int64_t place = begin + threadIdx.x; place < end; place += kShapeThreads) {
    const int64_t token = args.order[place];
    if (!args.active[token]) continue;
    const float scale = static_cast<float>(work.steps[step_at(args.step_starts, first, last, place)]);
    args.planes[token] = __fmul_rn(args.planes[token], scale);
    args.planes[3 * args.tokens + token] = scale;
  }
}

// The block's summary, in thread 0.
__device__ __forceinline__ Summary merge_block(const Summary& mine, ShapeShared& shared) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  Summary all = merge_lanes(mine);
  if (lane == 0) shared.summaries[warp] = all;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < kShapeWarps; ++w) all = merge(all, shared.summaries[w]);
  }
  return all;
}

// Grid shape_blocks(tokens).
static __global__ void __launch_bounds__(kShapeThreads) shape_kernel(const __grid_constant__ ShapeArgs args) {
  ShapeShared& shared = block_shared<ShapeShared>();
  const int64_t block = blockIdx.x, blocks = gridDim.x;
  Gatherer gatherer;
  int64_t in_steps = 0;
  if (args.order != nullptr) {
    const int64_t trajectories = args.counts[1];
    in_steps = args.step_starts[args.counts[0]];
    for (int64_t j = block; j < trajectories; j += blocks) {
      shape_trajectory(args, args.trajectory_starts[j], args.trajectory_starts[j + 1], gatherer);
    }
  }
  for (int64_t i = in_steps + block * kShapeThreads + threadIdx.x; i < args.tokens; i += blocks * kShapeThreads) {
    shape_one(args, args.order == nullptr ? i : args.order[i], gatherer);
  }

  const ShapeWorkspace& work = args.workspace;
  const Summary mine = merge_block(gatherer.summary(), shared);
  if (threadIdx.x == 0) {
    work.summaries[block] = mine;
    __threadfence();  // the summary comes before the count
    shared.last = atomicAdd(work.finished, 1u) == blocks - 1;
    __threadfence();  // and the count before the others' summaries, for this thread and those that it meets next
  }
  __syncthreads();
  if (!shared.last) return;
  Summary all = empty_summary();
  for (int64_t b = threadIdx.x; b < blocks; b += kShapeThreads) all = merge(all, work.summaries[b]);
  all = merge_block(all, shared);
  if (threadIdx.x == 0) write_statistics(args.statistics, all);
}

}  // namespace stepopsd::cuda
