// In place of the instructions in csrc/cuda/intrinsics.cuh, with small blocks: two warps of four threads.
#pragma once

#include <utility>
#include <vector>

#include "cuda_runtime.h"

namespace stepopsd::cuda {

constexpr int kWarp = emulation::kWarp;
constexpr int kScoreThreads = 8;
constexpr int kShapeThreads = 8;
constexpr unsigned kAllLanes = 0xffffffffu;

inline uint4 load_once(const uint4* p) {
  if (reinterpret_cast<uintptr_t>(p) % 16 != 0) emulation::fail("a misaligned 16-byte load");
  return {p->x, p->y, p->z, p->w};  // by the word: ThreadSanitizer overlooks copies of the whole
}
inline uint4 load_twice(const uint4* p) { return load_once(p); }
inline uint4 load_own(const uint4* p) { return load_once(p); }

inline void store_words(uint4* p, uint4 v) {
  if (reinterpret_cast<uintptr_t>(p) % 16 != 0) emulation::fail("a misaligned 16-byte store");
  p->x = v.x, p->y = v.y, p->z = v.z, p->w = v.w;
}

inline thread_local std::vector<std::pair<uint4*, const uint4*>> pending_copies;
inline void copy_async(uint4* shared, const uint4* global) { pending_copies.emplace_back(shared, global); }
inline void wait_for_copies() {
  for (const auto& [to, from] : pending_copies) store_words(to, load_once(from));
  pending_copies.clear();
}

inline float exp2_approx(float x) {
  const float y = std::exp2(x);
  return y < 0x1p-126f ? 0.0f : y;
}

inline float half_to_float(uint32_t half) {
  const uint32_t magnitude = (half & 0x7fffu) << 13, sign = (half & 0x8000u) << 16;
  const float finite = __uint_as_float(magnitude) * 0x1p112f;
  const float absolute = magnitude >= 0x0f800000u ? __uint_as_float(magnitude | 0x7f800000u) : finite;
  return __uint_as_float(__float_as_uint(absolute) | sign);
}
inline float f16_low(uint32_t word) { return half_to_float(word & 0xffffu); }
inline float f16_high(uint32_t word) { return half_to_float(word >> 16); }
inline float bf16_half(uint32_t word, int half) { return __uint_as_float(half ? word & 0xffff0000u : word << 16); }

// Halves by `value`, chosen like the instruction chooses: a number before NaN, or NaN before all.
template <class Value>
uint32_t max_halves(uint32_t a, uint32_t b, Value value, bool nan_wins) {
  uint32_t result = 0;
  for (int half = 0; half < 2; ++half) {
    const float x = value(a, half), y = value(b, half);
    const bool take_a = nan_wins ? std::isnan(x) || x > y : std::isnan(y) || x > y;
    result |= (take_a ? a : b) & (half ? 0xffff0000u : 0x0000ffffu);
  }
  return result;
}
inline uint32_t max_bf16x2(uint32_t a, uint32_t b) { return max_halves(a, b, bf16_half, false); }
inline uint32_t max_nan_bf16x2(uint32_t a, uint32_t b) { return max_halves(a, b, bf16_half, true); }
inline uint32_t max_f16x2(uint32_t a, uint32_t b) {
  return max_halves(a, b, [](uint32_t w, int half) { return half ? f16_high(w) : f16_low(w); }, false);
}

inline uint32_t round_to_bf16(float x) {
  const uint32_t bits = __float_as_uint(x);
  return std::isnan(x) ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
}
inline uint32_t round_to_f16(float x) {
  const uint32_t sign = __float_as_uint(x) >> 16 & 0x8000u;
  const float magnitude = std::fabs(x);
  if (std::isnan(x)) return 0x7fffu;
  if (magnitude >= 65520) return sign | 0x7c00u;
  // Multiples of the last place, which of subnormals is 2^-24.
  const int exponent = magnitude < 0x1p-14f ? -14 : std::ilogb(magnitude);
  const auto steps = static_cast<uint32_t>(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));
  return sign | (static_cast<uint32_t>(exponent + 14) * 1024 + steps);
}
inline uint32_t pack_bf16x2(float low, float high) { return round_to_bf16(high) << 16 | round_to_bf16(low); }
inline uint32_t pack_f16x2(float low, float high) { return round_to_f16(high) << 16 | round_to_f16(low); }

inline float2 fma_pair(float2 a, float2 b, float2 c) { return {std::fma(a.x, b.x, c.x), std::fma(a.y, b.y, c.y)}; }
inline float2 add_pair(float2 a, float2 b) { return {a.x + b.x, a.y + b.y}; }

// Each thread for itself: leaving the inner loop early changes no result, and a meeting for every trip would take long.
inline bool warp_any(bool x) { return x; }

template <class T>
T& block_shared() {
  return *static_cast<T*>(emulation::block_shared(sizeof(T)));
}

inline char* dynamic_shared() {
  return static_cast<char*>(emulation::block_shared(emulation::self.home->cluster->dynamic_shared));
}

inline void cluster_arrive_relaxed() { emulation::cluster_arrive(std::memory_order_relaxed); }
inline void cluster_arrive() { emulation::cluster_arrive(std::memory_order_release); }
inline void cluster_wait() { emulation::cluster_wait(); }
template <class T>
T* in_block(T* shared, uint32_t block) {
  return static_cast<T*>(emulation::in_block(shared, block));
}

}  // namespace stepopsd::cuda
