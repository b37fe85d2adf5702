// The gradient kernel, elementwise given the row's normaliser, and the scaling of a ready gradient. One thread block for
// each (row, chunk of the vocabulary); chunks begin at 16-byte boundaries of the output.
//
// Numerics: log2 p is one fma and one subtraction, so it is as exact for logits around 1e4 as for small ones.
#pragma once

#include "rewrite.cuh"

namespace stepopsd::cuda {

struct GradientArgs {
  const char* data;
  int64_t batch_stride, row_stride;  // in bytes
  char* out;
  int64_t out_batch_stride, out_row_stride;
  const int64_t* ids;
  const bool* active;
  const float *normaliser, *coefficients, *temperatures;
  float factor, temperature;  // of all rows where there are no `temperatures`
  uint32_t total, rows, chunks;
  int vocab;
};

struct ScaleArgs {
  char* data;
  int64_t batch_stride, row_stride;
  const float* factor;
  uint32_t total, rows, chunks;
  int vocab;
};

// With one more where the row begins off a 16-byte boundary and fills the last chunk nearly.
template <class T>
constexpr uint32_t chunks_of(int64_t vocab) {
  return static_cast<uint32_t>((vocab + kPerGroup<T> - 1 + kChunk<T> - 1) / kChunk<T>);
}

// What chunk `index` of an output row holds, maybe nothing.
template <class T>
__device__ __forceinline__ Share<T> chunk_of(const char* out, uint32_t index, int vocab) {
  const int shift = (kPerGroup<T> - lead_of<T>(out, 0)) & (kPerGroup<T> - 1);
  const int from = static_cast<int>(index) * kChunk<T> - shift;
  const int begin = min(vocab, max(0, from));
  return Share<T>(out, begin, max(begin, min(vocab, from + kChunk<T>)));
}

// p (b + c ln p) by the logits; b and c are divided by the temperature, and c is that of log2 p.
template <bool kEntropy>
struct Gradient {
  float factor, peak, log_mass, b, c;

  __device__ __forceinline__ float2 slope(float2 log_p) const {
    const float2 constant = make_float2(b, b);
    if constexpr (!kEntropy) return constant;
    return fma_pair(make_float2(c, c), make_float2(fmaxf(log_p.x, kNegligible), fmaxf(log_p.y, kNegligible)), constant);
  }
  __device__ __forceinline__ float2 log_probability(float2 x) const {
    const float2 y = fma_pair(x, make_float2(factor, factor), make_float2(-peak, -peak));
    return add_pair(y, make_float2(-log_mass, -log_mass));
  }
  __device__ __forceinline__ float2 operator()(float2 x) const {
    const float2 log_p = log_probability(x), by = slope(log_p);
    return make_float2(__fmul_rn(exp2_approx(log_p.x), by.x), __fmul_rn(exp2_approx(log_p.y), by.y));
  }
  // Of the row's own token, where `a` comes on top.
  __device__ __forceinline__ float at_token(float x, float a) const {
    const float2 log_p = log_probability(make_float2(x, x));
    return __fmaf_rn(exp2_approx(log_p.x), slope(log_p).x, a);
  }
};

// The gradient of one row, the same for all its threads.
struct RowGradient {
  float a, b, c;  // divided by the temperature, c by log2(e) too
  float factor, peak, log_mass;
  int token;
};

__device__ __forceinline__ RowGradient row_gradient(float a, float b, float c, float temperature, float factor,
                                                    float peak, float log_mass, int64_t id, int vocab) {
  const bool known = id >= 0 && id < vocab;
  const float nan = known ? 0.0f : __uint_as_float(0x7fc00000u);
  return {__fdiv_rn(a, temperature), __fadd_rn(__fdiv_rn(b, temperature), nan),
          __fmul_rn(__fdiv_rn(c, temperature), static_cast<float>(kLn2)), factor, peak, log_mass,
          known ? static_cast<int>(id) : -1};
}

// The token's element is written by the thread that wrote its group, once more; its logit is read before.
template <class T, bool kEntropy, class Source>
__device__ __forceinline__ void write_gradient(const Source& source, char* out, const Share<T>& share,
                                               const RowGradient& row) {
  const Gradient<kEntropy> map = {row.factor, row.peak, row.log_mass, row.b, row.c};
  const bool owner = row.token >= share.begin && row.token < share.end &&
                     share.owner(row.token) == static_cast<int>(threadIdx.x);
  const float logit = owner ? source.element(row.token) : 0.0f;
  rewrite<T>(source, out, share, map);
  if (owner) write_element<T>(out, row.token, map.at_token(logit, row.a));
}

template <class T, class Source>
__device__ __forceinline__ void write_gradient(const Source& source, char* out, const Share<T>& share,
                                               const RowGradient& row) {
  if (row.c != 0) write_gradient<T, true>(source, out, share, row);
  else write_gradient<T, false>(source, out, share, row);
}

struct Zeros {
  __device__ __forceinline__ float2 operator()(float2) const { return make_float2(0, 0); }
};

template <class T>
__device__ __forceinline__ void write_zeros(char* out, const Share<T>& share) {
  rewrite<T>(NoRow<T>{}, out, share, Zeros{});
}

template <class T>
__global__ void __launch_bounds__(kRewriteThreads, 8) gradient_kernel(const __grid_constant__ GradientArgs args) {
  const uint32_t row = blockIdx.x / args.chunks;
  const int64_t batch = row / args.rows, place = row % args.rows;
  char* out = args.out + batch * args.out_batch_stride + place * args.out_row_stride;
  const Share<T> share = chunk_of<T>(out, blockIdx.x % args.chunks, args.vocab);
  if (share.begin == share.end) return;
  const float* abc = args.coefficients + row;
  const bool live = args.active[row] && (abc[0] != 0 || abc[args.total] != 0 || abc[2 * int64_t{args.total}] != 0);
  if (!live) return write_zeros<T>(out, share);
  const bool own = args.temperatures != nullptr;
  const float temperature = own ? args.temperatures[row] : args.temperature;
  const float factor = own ? scale_factor(temperature) : args.factor;
  const RowGradient gradient =
      row_gradient(abc[0], abc[args.total], abc[2 * int64_t{args.total}], temperature, factor, args.normaliser[row],
                   args.normaliser[int64_t{args.total} + row], args.ids[row], args.vocab);
  const char* logits = args.data + batch * args.batch_stride + place * args.row_stride;
  const bool aligned = lead_of<T>(logits, 0) == lead_of<T>(out, 0);
  if (aligned) write_gradient<T>(AlignedRow<T>{logits}, out, share, gradient);
  else write_gradient<T>(ShiftedRow<T>{logits, args.vocab}, out, share, gradient);
}

struct Scaled {
  float factor;
  __device__ __forceinline__ float2 operator()(float2 x) const {
    return make_float2(__fmul_rn(x.x, factor), __fmul_rn(x.y, factor));
  }
};

// Few thread blocks, each of which takes many chunks: there is nothing to do most of the time.
template <class T>
__global__ void __launch_bounds__(kRewriteThreads) scale_kernel(const __grid_constant__ ScaleArgs args) {
  const Scaled map = {*args.factor};
  if (map.factor == 1) return;
  for (uint32_t item = blockIdx.x; item < args.total * args.chunks; item += gridDim.x) {
    const uint32_t row = item / args.chunks;
    char* data = args.data + row / args.rows * args.batch_stride + row % args.rows * args.row_stride;
    rewrite<T>(AlignedRow<T>{data}, data, chunk_of<T>(data, item % args.chunks, args.vocab), map);
  }
}

}  // namespace stepopsd::cuda
