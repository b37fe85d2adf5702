// In place of the CUDA header of this name: what the bindings ask the runtime, beside the kernels' launches.
#pragma once

#include "../cuda_runtime.h"

#define CUDART_VERSION 13000
#define __CUDA_ARCH_LIST__ 800, 900
// The emulated device answers one question, whatever it is asked.
#define cudaDevAttrComputeCapabilityMajor cudaDevAttrClusterLaunch
#define cudaDevAttrComputeCapabilityMinor cudaDevAttrClusterLaunch

constexpr int cudaErrorInsufficientDriver = 35;
inline cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 2, cudaSuccess; }
