// The score kernel: rows of logits to log-prob of an id, log-sum-exp and entropy, and to what normalises them. One thread block for each
// (row, vocabulary split, tensor); the splits of a row are merged in a fixed order.
//
// Numerics: one fma and one 2^x for each logit, sums in fp32, the last steps in double. Beyond the rounding of the
// results themselves, log-prob and log-sum-exp lie within 1e-6 of the exact values: 4e-7 is from the sums (the most
// seen on the emulated GPU), and 2^x is within 2^-22 of itself, which moves the log of a sum by 2.4e-7 at most. The
// entropy is the difference of two such terms and lies within 2e-6 where the logits that count span a few nats. The
// scale log2(e) / temperature is rounded to fp32 once, so what grows with the logits is off by 6e-8 of itself.
#pragma once

#include "scan.cuh"

namespace stepopsd::cuda {

constexpr int kScoreWarps = kScoreThreads / kWarp;
constexpr int kMaxSplits = 8;

// Splits of the vocabulary, from its size alone: a row's bits must not depend on how many rows there are.
struct Splits {
  int count, chunk;  // split s covers [s * chunk, min(vocab, (s + 1) * chunk))
};

inline Splits splits_of(int64_t vocab) {
  const int count = vocab < 16384 ? 1 : vocab < 32768 ? 2 : vocab < 65536 ? 4 : kMaxSplits;
  const int64_t chunk = ((vocab + count - 1) / count + 1023) / 1024 * 1024;
  return {count, static_cast<int>(chunk)};
}

// What a warp knows of its share of a row; the sums are those of `Online`.
struct alignas(16) Partial {
  float reference, sum, weighted, unused;
};

struct ScoreTensor {
  const char* data;
  int64_t batch_stride, row_stride;  // in bytes
  float* out;                        // (channels, batch, rows)
  Partial* partials;                 // (batch, rows, splits, kScoreWarps) where a second kernel merges, else null
};

struct ScoreArgs {
  ScoreTensor tensors[2];
  const int64_t* ids;
  const bool* active;
  const float* temperatures;  // null: `factor` holds for all rows
  float factor;
  uint32_t total, rows;  // batch * rows, and rows alone
  int channels;          // 3, or 5 with the normaliser
  int vocab;
  Splits splits;
};

__device__ __forceinline__ const char* row_address(const ScoreArgs& args, const ScoreTensor& tensor, uint32_t row) {
  return tensor.data + row / args.rows * tensor.batch_stride + row % args.rows * tensor.row_stride;
}

__device__ __forceinline__ float row_factor(const ScoreArgs& args, uint32_t row) {
  return args.temperatures == nullptr ? args.factor : scale_factor(args.temperatures[row]);
}

// NaN for an id outside the vocabulary.
template <class T>
__device__ __forceinline__ float logit_of(const char* row, int64_t id, int vocab) {
  return id >= 0 && id < vocab ? read_logit<T>(row, id) : __uint_as_float(0x7fc00000u);
}

template <bool kEntropy>
__device__ __forceinline__ Partial total(const Online<kEntropy>& o) {
  const float2 sum = add_pair(o.sum[0], o.sum[1]), weighted = add_pair(o.weighted[0], o.weighted[1]);
  return {o.reference, __fadd_rn(sum.x, sum.y), __fadd_rn(weighted.x, weighted.y), 0};
}

// The same sums around another reference, not below their own.
template <bool kEntropy>
__device__ __forceinline__ Partial around(float reference, const Partial& p) {
  const float drop = __fsub_rn(p.reference, reference);
  const float keep = exp2_approx(drop);
  return {reference, __fmul_rn(keep, p.sum), kEntropy ? __fmul_rn(keep, __fmaf_rn(drop, p.sum, p.weighted)) : 0, 0};
}

// The partial results of a warp's lanes as one, the same in every lane: a tree over the lanes.
template <bool kEntropy>
__device__ __forceinline__ Partial merge_lanes(const Partial& mine) {
  float top = mine.reference;
#pragma unroll
  for (int apart = 1; apart < kWarp; apart *= 2) top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, apart));
  Partial all = around<kEntropy>(top, mine);
#pragma unroll
  for (int apart = 1; apart < kWarp; apart *= 2) {
    all.sum = __fadd_rn(all.sum, __shfl_xor_sync(kAllLanes, all.sum, apart));
    if constexpr (kEntropy) all.weighted = __fadd_rn(all.weighted, __shfl_xor_sync(kAllLanes, all.weighted, apart));
  }
  return all;
}

// The partial results of all warps and splits of a row as one. A whole warp calls it. With 32 of them or fewer it is a
// tree in the order of the splits.
template <bool kEntropy>
__device__ __forceinline__ Partial merge_warps(const Partial* partials, int count, int lane) {
  Partial mine = {kBottom, 0, 0, 0};
  for (int i = lane; i < count; i += kWarp) {
    const Partial next = partials[i];
    const float top = fmaxf(mine.reference, next.reference);
    const Partial a = around<kEntropy>(top, mine), b = around<kEntropy>(top, next);
    mine = {top, __fadd_rn(a.sum, b.sum), __fadd_rn(a.weighted, b.weighted), 0};
  }
  return merge_lanes<kEntropy>(mine);
}

// What is known of a row; the last two are in base 2: sum over j of 2^(x_j * factor - peak) = 2^log_mass.
struct RowResult {
  float log_prob, log_sum, entropy, peak, log_mass;
};

// In double where a large common offset of the logits would cost digits.
template <bool kEntropy>
__device__ __forceinline__ RowResult finish_row(const Partial& all, float logit, float factor) {
  // NaN where the row holds NaN or +inf, and where it holds nothing above -inf. Else the sum is at least about 1.
  const float nan = all.sum > 0 ? 0.0f : __uint_as_float(0x7fc00000u);
  const int exponent = (__float_as_int(all.sum) >> 23) - 127;
  const float mantissa = __int_as_float((__float_as_int(all.sum) & 0x7fffff) | 0x3f800000);
  const double log_sum = exponent + static_cast<double>(log2f(mantissa) + nan);
  const double scaled = static_cast<double>(logit) * factor;
  const double log_prob = kLn2 * ((scaled - all.reference) - log_sum), mass = all.reference + log_sum;
  double entropy = 0;
  if constexpr (kEntropy) {
    entropy = kLn2 * (log_sum - static_cast<double>(all.weighted) / all.sum);
    if (entropy < 0) entropy = 0;
  }
  // The peak takes as much of the mass as fits, and the rest is exact. NaN compares false.
  const float peak = all.sum > 0 ? static_cast<float>(mass) : 0.0f;
  const float log_mass = all.sum == 0 ? -__uint_as_float(0x7f800000u) : static_cast<float>(mass - peak);
  return {static_cast<float>(log_prob > 0 ? 0.0 : log_prob), static_cast<float>(kLn2 * mass),
          static_cast<float>(entropy), peak, log_mass};
}

__device__ __forceinline__ void write_row(const ScoreArgs& args, float* out, uint32_t row, const RowResult& result) {
  const float values[5] = {result.log_prob, result.log_sum, result.entropy, result.peak, result.log_mass};
#pragma unroll
  for (int channel = 0; channel < 5; ++channel) {
    if (channel < args.channels) out[channel * static_cast<int64_t>(args.total) + row] = values[channel];
  }
}

struct ScoreShared {
  Partial partials[kMaxSplits * kScoreWarps];
};

// Grid (rows * splits, tensors). Without `partials`, the splits of a row are a cluster, and its first block writes.
template <class T, bool kEntropy>
__global__ void __launch_bounds__(kScoreThreads, 8)
    score_kernel(const __grid_constant__ ScoreArgs args) {
  const uint32_t splits = args.splits.count, row = blockIdx.x / splits, split = blockIdx.x % splits;
  const ScoreTensor& tensor = args.tensors[blockIdx.y];
  const bool in_cluster = splits > 1 && tensor.partials == nullptr;
  const bool writes = split == 0 && tensor.partials == nullptr;
  if (!args.active[row]) {
    if (writes && threadIdx.x == 0) write_row(args, tensor.out, row, {});
    return;
  }
  if (in_cluster) cluster_arrive_relaxed();
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const bool finishes = writes && warp == 0;
  const int64_t id = finishes ? args.ids[row] : -1;  // long before it is needed
  const char* logits = row_address(args, tensor, row);
  const Scale scale = make_scale(row_factor(args, row));

  const int begin = static_cast<int>(split) * args.splits.chunk, end = min(args.vocab, begin + args.splits.chunk);
  const Online<kEntropy> online = scan<T, kEntropy>(logits, begin, end, args.vocab, scale);

  const float logit = logit_of<T>(logits, id, args.vocab);
  const Partial mine = merge_lanes<kEntropy>(total(online));
  ScoreShared& shared = block_shared<ScoreShared>();
  const int place = static_cast<int>(split) * kScoreWarps + warp;
  if (tensor.partials != nullptr) {
    if (lane == 0) tensor.partials[static_cast<int64_t>(row) * splits * kScoreWarps + place] = mine;
    return;
  }
  if (in_cluster) {
    cluster_wait();  // the first block has begun: its shared memory can be written
    if (lane == 0) in_block(&shared, 0)->partials[place] = mine;
    cluster_arrive();
    cluster_wait();
  } else {
    if (lane == 0) shared.partials[place] = mine;
    __syncthreads();
  }
  if (!finishes) return;
  const Partial all = merge_warps<kEntropy>(shared.partials, splits * kScoreWarps, lane);
  if (lane == 0) write_row(args, tensor.out, row, finish_row<kEntropy>(all, logit, scale.factor));
}

// Grid (rows / kScoreWarps, tensors), one warp for each row.
template <bool kEntropy>
__global__ void __launch_bounds__(kScoreThreads)
    merge_kernel(const __grid_constant__ ScoreArgs args, Dtype first_dtype, Dtype second_dtype) {
  const uint32_t row = blockIdx.x * kScoreWarps + threadIdx.x / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  if (row >= args.total) return;
  const ScoreTensor& tensor = args.tensors[blockIdx.y];
  if (!args.active[row]) {
    if (lane == 0) write_row(args, tensor.out, row, {});
    return;
  }
  const int count = args.splits.count * kScoreWarps;
  const Partial all = merge_warps<kEntropy>(tensor.partials + static_cast<int64_t>(row) * count, count, lane);
  if (lane != 0) return;
  const Dtype dtype = blockIdx.y == 0 ? first_dtype : second_dtype;
  const char* logits = row_address(args, tensor, row);
  const int64_t id = args.ids[row];
  const float logit = dtype == Dtype::f32   ? logit_of<F32>(logits, id, args.vocab)
                      : dtype == Dtype::f16 ? logit_of<F16>(logits, id, args.vocab)
                                            : logit_of<Bf16>(logits, id, args.vocab);
  write_row(args, tensor.out, row, finish_row<kEntropy>(all, logit, row_factor(args, row)));
}

}  // namespace stepopsd::cuda
