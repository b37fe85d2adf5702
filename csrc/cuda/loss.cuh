// Score, policy loss slope and gradient of a row in one visit: the row stays in shared memory, one split of the
// vocabulary in each thread block of a cluster, between the scan and the gradient. One read and one write for each logit.
//
// The scan takes the same logits in the same order as the score kernel's, and the merge is the same: so are the bits.
#pragma once

#include "../include/policy.h"
#include "gradient.cuh"
#include "score.cuh"

namespace stepopsd::cuda {

struct LossTokens {
  const float *old_logprobs, *ref_logprobs, *advantages, *weights;  // the first two may be null
  PolicyOptions options;
};

struct LossArgs {
  ScoreArgs score;
  LossTokens tokens;
  char* out;
  int64_t out_batch_stride, out_row_stride;  // in bytes
  float temperature;                         // of all rows where there are no `temperatures`
};

struct LossShared {
  Partial partials[kMaxSplits * kScoreWarps];
  RowGradient gradient;
  int live;
};

// Blocks of 16 bytes that a split and the one behind it may lie in, wherever in its first block it begins.
template <class T>
constexpr int64_t blocks_of(int64_t length) {
  return (length + kPerGroup<T> - 1 + kPerGroup<T> - 1) / kPerGroup<T> + 1;
}

template <class T>
constexpr int64_t loss_shared_bytes(int64_t vocab, Splits splits) {
  const int64_t length = splits.chunk < vocab ? splits.chunk : vocab;
  return static_cast<int64_t>(sizeof(LossShared)) + 16 * blocks_of<T>(length);
}

// Part of a row in shared memory; `blocks` begin with element `origin` of the row. kAligned: groups begin with blocks.
template <class T, bool kAligned>
struct SharedRow {
  static constexpr int kTrip = kAligned ? kUnroll : 2;
  const uint4* blocks;
  int origin;

  __device__ __forceinline__ Group<T, 0> group(int at) const {
    const int place = at - origin;
    const uint4 a = blocks[place / kPerGroup<T>];
    if constexpr (kAligned) return {{a.x, a.y, a.z, a.w}};
    const uint4 b = blocks[place / kPerGroup<T> + 1];
    Blocks<T> both = {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}, place % kPerGroup<T>};
    Group<T, 0> group;
    both.align_to(group);
    return group;
  }
  __device__ __forceinline__ float element(int at) const {
    return read_logit<T>(reinterpret_cast<const char*>(blocks), at - origin);
  }
};

// Groups of a thread in shared memory, from element `at` on.
template <class T, bool kAligned>
struct SharedGroups {
  using Of = Group<T, 0>;
  SharedRow<T, kAligned> row;
  int at;
  __device__ __forceinline__ void load(Of& group, int step) const { group = row.group(at + step * kStep<T>); }
  __device__ __forceinline__ void advance(int steps) { at += steps * kStep<T>; }
};

// The elements [begin, end) of a row into shared memory, with -inf behind the row's last one. Blocks that reach out of
// the row are copied by the element: their rest may be another row's, which is written at this time.
template <class T>
__device__ __forceinline__ void copy_part(uint4* blocks, const char* row, int origin, int end, int vocab) {
  using Bits = typename T::Bits;
  const int count = (end - origin + kPerGroup<T> - 1) / kPerGroup<T>;
  const int first = origin < 0 ? 1 : 0, last = max(first, min(count, (vocab - origin) / kPerGroup<T>));
  const auto* from = reinterpret_cast<const uint4*>(row + static_cast<int64_t>(origin) * sizeof(Bits));
  for (int i = first + static_cast<int>(threadIdx.x); i < last; i += kScoreThreads) copy_async(blocks + i, from + i);
  const int singles = (first + count + 1 - last) * kPerGroup<T>;
  for (int i = static_cast<int>(threadIdx.x); i < singles; i += kScoreThreads) {
    const int place = i < first * kPerGroup<T> ? i : i + (last - first) * kPerGroup<T>, at = origin + place;
    const bool inside = at >= 0 && at < vocab;
    reinterpret_cast<Bits*>(blocks)[place] =
        inside ? reinterpret_cast<const Bits*>(row)[at] : static_cast<Bits>(T::kMinusInf);
  }
}

// As `scan`, from shared memory.
template <class T, bool kAligned>
__device__ __forceinline__ Online<true> scan_shared(const SharedRow<T, kAligned>& row, int begin, int end, int vocab,
                                                    Scale scale) {
  const int steps = whole_steps<T>(begin, end, vocab), mine = begin + static_cast<int>(threadIdx.x) * kPerGroup<T>;
  Online<true> online;
  scan_whole(online, SharedGroups<T, kAligned>{row, mine}, steps, scale);
  if (begin + steps * kStep<T> >= end) return online;
  Group<T, 0> groups[2];
#pragma unroll
  for (int g = 0; g < 2; ++g) {
    const int at = mine + (steps + g) * kStep<T>;
    if (at < end) groups[g] = row.group(at);
    else groups[g].clear();
  }
  online.reach(groups, scale);
#pragma unroll
  for (int g = 0; g < 2; ++g) online.add(groups[g], scale);
  return online;
}

__device__ __forceinline__ Coefficients loss_coefficients(const LossTokens& tokens, uint32_t row, float log_prob,
                                                          float entropy) {
  const PolicyToken token = {tokens.old_logprobs != nullptr ? tokens.old_logprobs[row] : log_prob,
                             tokens.ref_logprobs != nullptr ? tokens.ref_logprobs[row] : 0.0f, tokens.advantages[row],
                             tokens.weights[row]};
  return policy_coefficients(tokens.options, log_prob, entropy, token);
}

// What one thread does once for its block, when all partial results of the row have come in.
__device__ __forceinline__ void finish_loss(const LossArgs& args, LossShared& shared, const Partial& all, uint32_t row,
                                            float logit, float factor, int64_t id, bool writes) {
  const ScoreArgs& score = args.score;
  const RowResult result = finish_row<true>(all, logit, factor);
  const Coefficients abc = loss_coefficients(args.tokens, row, result.log_prob, result.entropy);
  const float temperature = score.temperatures == nullptr ? args.temperature : score.temperatures[row];
  shared.live = abc.a != 0 || abc.b != 0 || abc.c != 0;
  shared.gradient =
      row_gradient(abc.a, abc.b, abc.c, temperature, factor, result.peak, result.log_mass, id, score.vocab);
  if (writes) write_row(score, score.tensors[0].out, row, result);
}

// Grid rows * splits; the splits of a row are a cluster. Between the two meetings of the cluster every block has read
// all that it reads, so the gradient may overwrite the logits after the second one.
template <class T>
__global__ void __launch_bounds__(kScoreThreads, 6) loss_kernel(const __grid_constant__ LossArgs args) {
  const ScoreArgs& score = args.score;
  const uint32_t splits = score.splits.count, row = blockIdx.x / splits, split = blockIdx.x % splits;
  const int begin = static_cast<int>(split) * score.splits.chunk, end = min(score.vocab, begin + score.splits.chunk);
  char* out = args.out + row / score.rows * args.out_batch_stride + row % score.rows * args.out_row_stride;
  const Share<T> share(out, begin, end);
  if (!score.active[row]) {
    if (split == 0 && threadIdx.x == 0) write_row(score, score.tensors[0].out, row, {});
    return write_zeros<T>(out, share);
  }
  if (splits > 1) cluster_arrive_relaxed();
  char* memory = dynamic_shared();
  LossShared& shared = *reinterpret_cast<LossShared*>(memory);
  auto* blocks = reinterpret_cast<uint4*>(memory + sizeof(LossShared));
  const char* logits = row_address(score, score.tensors[0], row);
  const int shift = (kPerGroup<T> - lead_of<T>(logits, begin)) & (kPerGroup<T> - 1), origin = begin - shift;
  copy_part<T>(blocks, logits, origin, end, score.vocab);

  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t id = warp == 0 ? score.ids[row] : -1;
  const float logit = logit_of<T>(logits, id, score.vocab);
  const Scale scale = make_scale(row_factor(score, row));
  wait_for_copies();
  __syncthreads();
  const Online<true> online = shift == 0
                                  ? scan_shared(SharedRow<T, true>{blocks, origin}, begin, end, score.vocab, scale)
                                  : scan_shared(SharedRow<T, false>{blocks, origin}, begin, end, score.vocab, scale);

  const Partial mine = merge_lanes<true>(total(online));
  const int place = static_cast<int>(split) * kScoreWarps + warp;
  if (splits > 1) {
    cluster_wait();  // all blocks have begun: their shared memory can be written
    for (uint32_t to = lane; to < splits; to += kWarp) in_block(&shared, to)->partials[place] = mine;
    cluster_arrive();
    cluster_wait();
  } else {
    if (lane == 0) shared.partials[place] = mine;
    __syncthreads();
  }
  if (warp == 0) {
    const Partial all = merge_warps<true>(shared.partials, splits * kScoreWarps, lane);
    if (lane == 0) finish_loss(args, shared, all, row, logit, scale.factor, id, split == 0);
  }
  __syncthreads();
  if (!shared.live) return write_zeros<T>(out, share);
  const RowGradient gradient = shared.gradient;
  if ((share.first - origin) % kPerGroup<T> == 0) {
    write_gradient<T>(SharedRow<T, true>{blocks, origin}, out, share, gradient);
  } else {
    write_gradient<T>(SharedRow<T, false>{blocks, origin}, out, share, gradient);
  }
}

struct SlopeArgs {
  LossTokens tokens;
  const bool* active;
  const float* scores;  // (5, total)
  float* coefficients;  // (3, total)
  uint32_t total;
};

// The slopes alone, between the score kernel and the gradient kernel.
__global__ void __launch_bounds__(kScoreThreads) slope_kernel(const __grid_constant__ SlopeArgs args);

}  // namespace stepopsd::cuda
