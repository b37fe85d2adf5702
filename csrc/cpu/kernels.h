// The row kernel as each instruction set provides it, and how one is chosen at run time.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../include/common.h"
#include "../include/row_stats.h"

namespace stepopsd::cpu {

// Statistics of `vocab` contiguous elements, whose scaled logits are x * scale with scale = log2(e) / temperature.
using RowFn = RowStats (*)(const void* row, int64_t vocab, float scale);

using PowersFn = void (*)(const float* x, float* out, int64_t n);
using ReadFn = uint64_t (*)(const void* memory, int64_t bytes);

struct RowKernels {
  const char* isa;
  RowFn stats[3];         // by Dtype
  RowFn with_entropy[3];  // the same, `weighted` filled in
  PowersFn powers[3];     // by Dtype of the logits: 2^x as the row kernels compute it; n is a multiple of 64
  ReadFn read;            // reads and does nothing else
};

extern const RowKernels portable_kernels;
#if defined(STEPOPSD_X86)
extern const RowKernels avx2_kernels;
extern const RowKernels avx512_kernels;
#endif

// What this machine can run, slowest first.
std::vector<std::string> supported_isas();

// The fastest that this machine can run, or the one that STEPOPSD_CPU_ISA names. Throws std::invalid_argument for a
// name that is not in supported_isas().
const RowKernels& kernels_in_use();

}  // namespace stepopsd::cpu
