// The instructions that the kernels name themselves, and the size of a thread block. Everything else is plain C++, so a
// host compiler can run the same kernels on an emulated machine (tests/cuda_emulation).
#pragma once

#if defined(STEPOPSD_CUDA_EMULATION)
#include <emulated_intrinsics.h>
#else

#include <cstdint>
#include <cuda_runtime.h>

namespace stepopsd::cuda {

constexpr int kWarp = 32;
constexpr int kScoreThreads = 128;
constexpr int kShapeThreads = 256;
constexpr unsigned kAllLanes = 0xffffffffu;

// 16 bytes that no thread reads again.
__device__ __forceinline__ uint4 load_once(const uint4* p) {
  uint4 v;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
}

// 16 bytes that the neighbouring thread reads too, at about the same time.
__device__ __forceinline__ uint4 load_twice(const uint4* p) {
  uint4 v;
  asm("ld.global.nc.L1::evict_first.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
}

// 16 bytes that this thread may overwrite later: the load stays before the stores.
__device__ __forceinline__ uint4 load_own(const uint4* p) {
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
  return v;
}

// One MUFU.EX2, within 2 ulp; results below the smallest normal number are 0. exp2f costs three more instructions.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Two maxima in one instruction. A number beats NaN, except in max_nan_bf16x2, where NaN wins.
__device__ __forceinline__ uint32_t max_bf16x2(uint32_t a, uint32_t b) {
  uint32_t y;
  asm("max.bf16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
  return y;
}
__device__ __forceinline__ uint32_t max_nan_bf16x2(uint32_t a, uint32_t b) {
  uint32_t y;
  asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
  return y;
}
__device__ __forceinline__ uint32_t max_f16x2(uint32_t a, uint32_t b) {
  uint32_t y;
  asm("max.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
  return y;
}

__device__ __forceinline__ float f16_low(uint32_t word) {
  float y;
  asm("{.reg .b16 low, high; mov.b32 {low, high}, %1; cvt.f32.f16 %0, low;}" : "=f"(y) : "r"(word));
  return y;
}
__device__ __forceinline__ float f16_high(uint32_t word) {
  float y;
  asm("{.reg .b16 low, high; mov.b32 {low, high}, %1; cvt.f32.f16 %0, high;}" : "=f"(y) : "r"(word));
  return y;
}

// Two numbers rounded to nearest.
__device__ __forceinline__ uint32_t pack_bf16x2(float low, float high) {
  uint32_t y;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}
__device__ __forceinline__ uint32_t pack_f16x2(float low, float high) {
  uint32_t y;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}

// Two roundings side by side, each that of the scalar instruction; one instruction from sm_100 on.
__device__ __forceinline__ float2 fma_pair(float2 a, float2 b, float2 c) {
#if __CUDA_ARCH__ >= 1000
  float2 y;
  asm("{.reg .b64 a, b, c, y; mov.b64 a, {%2, %3}; mov.b64 b, {%4, %5}; mov.b64 c, {%6, %7};"
      " fma.rn.f32x2 y, a, b, c; mov.b64 {%0, %1}, y;}"
      : "=f"(y.x), "=f"(y.y) : "f"(a.x), "f"(a.y), "f"(b.x), "f"(b.y), "f"(c.x), "f"(c.y));
  return y;
#else
  return make_float2(__fmaf_rn(a.x, b.x, c.x), __fmaf_rn(a.y, b.y, c.y));
#endif
}
__device__ __forceinline__ float2 add_pair(float2 a, float2 b) {
#if __CUDA_ARCH__ >= 1000
  float2 y;
  asm("{.reg .b64 a, b, y; mov.b64 a, {%2, %3}; mov.b64 b, {%4, %5}; add.rn.f32x2 y, a, b; mov.b64 {%0, %1}, y;}"
      : "=f"(y.x), "=f"(y.y) : "f"(a.x), "f"(a.y), "f"(b.x), "f"(b.y));
  return y;
#else
  return make_float2(__fadd_rn(a.x, b.x), __fadd_rn(a.y, b.y));
#endif
}

__device__ __forceinline__ bool warp_any(bool x) { return __any_sync(kAllLanes, x); }

__device__ __forceinline__ void store_words(uint4* p, uint4 v) { *p = v; }

// Copies 16 bytes from global to shared memory behind the thread's back, until it waits for all its copies.
__device__ __forceinline__ void copy_async(uint4* shared, const uint4* global) {
  const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
}
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// The shared memory whose size the launch gives.
__device__ __forceinline__ char* dynamic_shared() {
  extern __shared__ uint4 storage[];
  return reinterpret_cast<char*>(storage);
}

// The block's shared memory as one T, which must need no constructor.
template <class T>
__device__ __forceinline__ T& block_shared() {
  __shared__ T storage;
  return storage;
}

// Thread-block clusters, from sm_90 on; the launcher asks for none below. All threads of the cluster arrive and wait;
// what was written before cluster_arrive is visible after cluster_wait, unless the arrival was relaxed.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
__device__ __forceinline__ void cluster_arrive_relaxed() {
  asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
}
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }
// Where another block of the cluster keeps what this block keeps at `shared`.
template <class T>
__device__ __forceinline__ T* in_block(T* shared, uint32_t block) {
  uint64_t there;
  asm volatile("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(shared), "r"(block));
  return reinterpret_cast<T*>(there);
}
#else
__device__ __forceinline__ void cluster_arrive_relaxed() { __trap(); }
__device__ __forceinline__ void cluster_arrive() { __trap(); }
__device__ __forceinline__ void cluster_wait() { __trap(); }
template <class T>
__device__ __forceinline__ T* in_block(T*, uint32_t) { __trap(); return nullptr; }
#endif

}  // namespace stepopsd::cuda

#endif
