// Shared by every kernel: what marks a function as callable on host and device, and the element types.
#pragma once

#include <cstdint>

// Internal linkage on purpose: files are compiled for different instruction sets, and a shared inline function might
// be kept in its AVX-512 form and then run on a machine without it.
#if defined(__CUDACC__)
#define STEPOPSD_HD static __host__ __device__ __forceinline__
#else
#define STEPOPSD_HD static inline
#endif

// For loops whose vectors must stay in registers.
#define STEPOPSD_INLINE inline __attribute__((always_inline))

namespace stepopsd {

// The numbers are part of the Python contract (stepopsd/ops/native.py).
enum class Dtype : int { f32 = 0, f16 = 1, bf16 = 2 };

STEPOPSD_HD constexpr int element_size(Dtype dtype) { return dtype == Dtype::f32 ? 4 : 2; }

constexpr double kLog2e = 1.4426950408889634;
constexpr double kLn2 = 0.6931471805599453;

}  // namespace stepopsd
