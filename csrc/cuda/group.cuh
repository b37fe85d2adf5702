// The three dtypes as 32-bit words, and the group: the 16 bytes of neighbouring logits that a thread works on.
#pragma once

#include "../include/common.h"
#include "intrinsics.cuh"

namespace stepopsd::cuda {

struct F32 {
  using Bits = uint32_t;
  static constexpr Dtype kDtype = Dtype::f32;
  static constexpr int kPerWord = 1;
  static constexpr uint32_t kMinusInf = 0xff800000u;
  static __device__ __forceinline__ float value(uint32_t word, int) { return __uint_as_float(word); }
  static __device__ __forceinline__ uint32_t max(uint32_t a, uint32_t b) {
    return __float_as_uint(fmaxf(__uint_as_float(a), __uint_as_float(b)));
  }
  static __device__ __forceinline__ float top(uint32_t word) { return __uint_as_float(word); }
  static __device__ __forceinline__ uint32_t pack(float low, float) { return __float_as_uint(low); }
};

struct F16 {
  using Bits = uint16_t;
  static constexpr Dtype kDtype = Dtype::f16;
  static constexpr int kPerWord = 2;
  static constexpr uint32_t kMinusInf = 0xfc00fc00u;
  static __device__ __forceinline__ float value(uint32_t word, int i) { return i ? f16_high(word) : f16_low(word); }
  static __device__ __forceinline__ uint32_t max(uint32_t a, uint32_t b) { return max_f16x2(a, b); }
  static __device__ __forceinline__ float top(uint32_t word) { return fmaxf(f16_low(word), f16_high(word)); }
  static __device__ __forceinline__ uint32_t pack(float low, float high) { return pack_f16x2(low, high); }
};

struct Bf16 {
  using Bits = uint16_t;
  static constexpr Dtype kDtype = Dtype::bf16;
  static constexpr int kPerWord = 2;
  static constexpr uint32_t kMinusInf = 0xff80ff80u;
  static __device__ __forceinline__ float value(uint32_t word, int i) {
    return __uint_as_float(i ? word & 0xffff0000u : word << 16);
  }
  static __device__ __forceinline__ uint32_t max(uint32_t a, uint32_t b) { return max_bf16x2(a, b); }
  static __device__ __forceinline__ float top(uint32_t word) { return fmaxf(value(word, 0), value(word, 1)); }
  static __device__ __forceinline__ uint32_t pack(float low, float high) { return pack_bf16x2(low, high); }
};

// The logit at an element's own address.
template <class T>
__device__ __forceinline__ float read_logit(const char* row, int64_t index) {
  return T::value(reinterpret_cast<const typename T::Bits*>(row)[index], 0);
}

template <class T>
constexpr int kPerGroup = 4 * T::kPerWord;

// On sm_100 the packed arithmetic leaves no registers for words that nothing needs.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr bool kWholeBlocks = false;
#else
constexpr bool kWholeBlocks = true;
#endif

// The group that begins kShift elements into an aligned 16-byte block: the upper part of that block and the lower part
// of the next. Words keep the place where the loads put them, and kShift says at compile time which element lies where:
// no element moves, and neither the elements nor their order depend on the alignment of the row.
template <class T, int kShift>
struct Group {
  // An odd shift splits the first and the last word in two halves, which share word 0: the group is rotated by one.
  static constexpr int kRotation = kShift % T::kPerWord;
  uint32_t word[4];
  // Words of the two blocks that hold no element of the group. Of a block of which fewer than three words are wanted the
  // compiler loads no more than these: what uses `beside` makes it load whole blocks.
  uint32_t beside[2] = {0, 0};

  __device__ __forceinline__ void load(const uint4* block) {
    if constexpr (kShift == 0) {
      const uint4 a = load_once(block);
      word[0] = a.x, word[1] = a.y, word[2] = a.z, word[3] = a.w;
    } else {
      const uint4 a = load_twice(block), b = load_twice(block + 1);
      const uint32_t both[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
      constexpr int first = kShift / T::kPerWord;
#pragma unroll
      for (int i = 0; i < 4; ++i) word[i] = both[first + i];
      if constexpr (kRotation != 0) word[0] = __byte_perm(both[first + 4], both[first], 0x7610);
      if constexpr (kWholeBlocks) {
        constexpr int last = (kShift + kPerGroup<T> - 1) / T::kPerWord;
        int kept = 0;
#pragma unroll
        for (int i = 1; i < 7; ++i) {
          if (i < first || i > last) beside[kept++] = both[i];
        }
      }
    }
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < 4; ++i) word[i] = T::kMinusInf;
    beside[0] = beside[1] = 0;
  }

  // Element k of the group, in the order of the vocabulary.
  __device__ __forceinline__ float operator[](int k) const {
    const int at = (k + kRotation) % kPerGroup<T>;
    return T::value(word[at / T::kPerWord], at % T::kPerWord);
  }

  // The elements' maximum and that of `top`, still packed. NaN may be passed over: it reaches the sum.
  __device__ __forceinline__ uint32_t max(uint32_t top) const {
    return T::max(T::max(T::max(T::max(top, word[0]), word[1]), word[2]), word[3]);
  }
};

}  // namespace stepopsd::cuda
