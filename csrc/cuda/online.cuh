// The online softmax of one thread, in base 2, with a reference that moves rarely.
#pragma once

#include "group.cuh"

namespace stepopsd::cuda {

// Start of the reference. Finite, so that no difference of two references is NaN or infinite, and below every scaled
// logit that counts: what lies lower counts as -inf.
constexpr float kBottom = -1e20f;
// The reference moves when a logit lies more octaves than this above it. Terms then stay below 2^8, and a move almost
// never happens after a thread's first groups.
constexpr float kSlack = 8.0f;
// 2^-200 is 0 in fp32: a floor that keeps 0 * -inf out of the entropy without changing it.
constexpr float kNegligible = -200.0f;

// What logits are multiplied by, log2(e) / temperature, and twice kBottom in units of bf16 logits, packed: the same
// floor for two logits at a time.
struct Scale {
  float factor;
  uint32_t floor;
};

__device__ __forceinline__ Scale make_scale(float factor) {
  const uint32_t floor = __float_as_uint(2.0f * kBottom / factor) >> 16;
  return {factor, floor << 16 | floor};
}

// log2(e) / temperature, rounded once, like the host's division in double.
__device__ __forceinline__ float scale_factor(float temperature) {
  constexpr float high = static_cast<float>(kLog2e), low = static_cast<float>(kLog2e - high);
  const float quotient = __fdiv_rn(high, temperature);
  const float rest = __fadd_rn(__fmaf_rn(-quotient, temperature, high), low);
  return __fadd_rn(quotient, __fdiv_rn(rest, temperature));
}

// With y = x * scale: sum of 2^(y - reference) and of 2^(y - reference) * (y - reference), each in four parts.
template <bool kEntropy>
struct Online {
  float reference = kBottom;
  float2 sum[2] = {{0, 0}, {0, 0}};
  float2 weighted[2] = {{0, 0}, {0, 0}};
  uint32_t beside = 0;

  // The highest scaled logit of the groups is too far above the reference.
  template <class T, int kShift, int kGroups>
  __device__ __forceinline__ bool out_of_reach(const Group<T, kShift> (&groups)[kGroups], Scale scale) const {
    return __fmaf_rn(top(groups), scale.factor, -reference) > kSlack;
  }

  template <class T, int kShift, int kGroups>
  __device__ __forceinline__ void reach(const Group<T, kShift> (&groups)[kGroups], Scale scale) {
    if (out_of_reach(groups, scale)) move_reference(__fmul_rn(top(groups), scale.factor));
  }

  template <class T, int kShift>
  __device__ __forceinline__ void add(Group<T, kShift>& group, Scale scale) {
    constexpr bool kPackedFloor = kEntropy && T::kDtype == Dtype::bf16;
    if constexpr (kPackedFloor) {
#pragma unroll
      for (int i = 0; i < 4; ++i) group.word[i] = max_nan_bf16x2(group.word[i], scale.floor);
    }
    const float2 factor = make_float2(scale.factor, scale.factor), down = make_float2(-reference, -reference);
#pragma unroll
    for (int k = 0; k < kPerGroup<T>; k += 2) {
      float2 y = fma_pair(make_float2(group[k], group[k + 1]), factor, down);
      const float2 e = make_float2(exp2_approx(y.x), exp2_approx(y.y));
      float2& part = sum[k / 2 % 2];
      part = add_pair(part, e);
      if constexpr (kEntropy) {
        if constexpr (!kPackedFloor) y = make_float2(fmaxf(y.x, kNegligible), fmaxf(y.y, kNegligible));
        float2& moment = weighted[k / 2 % 2];
        moment = fma_pair(e, y, moment);
      }
    }
  }

  // Makes the compiler load whole blocks. The last groups that a loop loads are enough for all of its loads, and cost
  // nothing inside it.
  template <class T, int kShift, int kGroups>
  __device__ __forceinline__ void keep_beside(const Group<T, kShift> (&groups)[kGroups]) {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) beside ^= groups[g].beside[0] ^ groups[g].beside[1];
  }

  // `never` must be a condition whose outcome the compiler cannot know.
  __device__ __forceinline__ void use_beside(bool never) {
    if (never) sum[0].x = __uint_as_float(beside);
  }

 private:
  template <class T, int kShift, int kGroups>
  static __device__ __forceinline__ float top(const Group<T, kShift> (&groups)[kGroups]) {
    uint32_t highest = T::kMinusInf;
#pragma unroll
    for (int g = 0; g < kGroups; ++g) highest = groups[g].max(highest);
    return T::top(highest);
  }

  __device__ __forceinline__ void move_reference(float to) {
    const float drop = __fsub_rn(reference, to);
    const float keep = exp2_approx(drop);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if constexpr (kEntropy) {
        weighted[i].x = __fmul_rn(keep, __fmaf_rn(drop, sum[i].x, weighted[i].x));
        weighted[i].y = __fmul_rn(keep, __fmaf_rn(drop, sum[i].y, weighted[i].y));
      }
      sum[i] = make_float2(__fmul_rn(sum[i].x, keep), __fmul_rn(sum[i].y, keep));
    }
    reference = to;
  }
};

}  // namespace stepopsd::cuda
