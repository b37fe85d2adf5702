// In place of the CUDA header of this name: as much of the language and of the runtime as the kernels use.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#include "machine.h"

#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

using dim3 = emulation::Dim3;
using std::max;
using std::min;

struct alignas(16) uint4 { uint32_t x, y, z, w; };
struct alignas(8) float2 { float x, y; };
inline float2 make_float2(float x, float y) { return {x, y}; }

template <class To, class From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
inline float __uint_as_float(uint32_t x) { return bits_as<float>(x); }
inline uint32_t __float_as_uint(float x) { return bits_as<uint32_t>(x); }
inline float __int_as_float(int x) { return bits_as<float>(x); }
inline int __float_as_int(float x) { return bits_as<int>(x); }

inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }

inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t by) {
  return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) >> (by & 31));
}
inline uint32_t __byte_perm(uint32_t low, uint32_t high, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(high) << 32 | low;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) result |= static_cast<uint32_t>(bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  return result;
}

inline void __syncthreads() { emulation::sync_block(); }
inline void __threadfence() { emulation::thread_fence(); }
inline unsigned atomicAdd(unsigned* target, unsigned value) { return emulation::atomic_add(target, value); }

template <class T>
T exchange_lanes(T value, int from_lane) {
  uint64_t raw = 0;
  std::memcpy(&raw, &value, sizeof value);
  raw = emulation::exchange(raw, from_lane);
  std::memcpy(&value, &raw, sizeof value);
  return value;
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return exchange_lanes(value, emulation::self.lane ^ mask);
}
template <class T>
T __shfl_down_sync(unsigned, T value, int by) {
  const int from = emulation::self.lane + by;
  return exchange_lanes(value, from < emulation::kWarp ? from : emulation::self.lane);
}

// The runtime: every call is done when it returns. Device 0 has thread-block clusters, device 1 has none.
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidDevice = 101 };
inline const char* cudaGetErrorString(cudaError_t) { return "an error of the emulated device"; }

using cudaStream_t = void*;

inline thread_local int current_device = 0;

inline cudaError_t cudaGetDevice(int* device) { return *device = current_device, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device > 1) return cudaErrorInvalidDevice;
  return current_device = device, cudaSuccess;
}

enum cudaDeviceAttr { cudaDevAttrClusterLaunch, cudaDevAttrMaxSharedMemoryPerBlockOptin };
constexpr int kMostShared = 48000;  // bytes for a block
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr what, int device) {
  return *value = what == cudaDevAttrClusterLaunch ? device == 0 : kMostShared, cudaSuccess;
}
struct cudaFuncAttributes { int ptxVersion; };
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel) {
  return attributes->ptxVersion = current_device == 0 ? 90 : 80, cudaSuccess;
}

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int bytes) {
  return bytes <= kMostShared ? cudaSuccess : cudaErrorInvalidValue;
}

inline cudaError_t cudaMemsetAsync(void* target, int value, size_t bytes, cudaStream_t) {
  return std::memset(target, value, bytes), cudaSuccess;
}

enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct { dim3 clusterDim; } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

template <class... Params, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...), Args&&... args) {
  emulation::Launch launch{config->gridDim, config->blockDim};
  launch.dynamic_shared = config->dynamicSmemBytes;
  if (config->numAttrs > 0) launch.cluster = config->attrs[0].val.clusterDim.x;
  if (launch.cluster > 1 && current_device != 0) return cudaErrorInvalidValue;
  emulation::run(launch, [&] { kernel(args...); });
  return cudaSuccess;
}
