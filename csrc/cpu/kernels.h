// The row kernel as each instruction set provides it, and how one is chosen at run time.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../include/common.h"
#include "../include/row_stats.h"

namespace stepopsd::cpu {

// Statistics of `vocab` contiguous elements; `scale` = log2(e) / temperature.
using RowFn = RowStats (*)(const void* row, int64_t vocab, double scale);

struct RowKernels {
  const char* isa;
  RowFn stats[3];         // by Dtype
  RowFn with_entropy[3];  // the same, `weighted` filled in
};

extern const RowKernels portable_kernels;
#if defined(STEPOPSD_X86)
extern const RowKernels avx2_kernels;
extern const RowKernels avx512_kernels;
#endif

// What this machine can run, slowest first.
std::vector<std::string> supported_isas();

// Throws std::invalid_argument for a name that is not in supported_isas().
const RowKernels& kernels_for(const std::string& isa);

}  // namespace stepopsd::cpu
