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
// The same of two rows, with the same bits.
using TwoRowsFn = void (*)(const void* first, const void* second, int64_t vocab, float scale, RowStats* stats);

// The derivative of a loss by `vocab` logits of a row, but for that of the selected token by itself:
//   2^((x - origin) * scale) * (constant + slope * (x - origin) * scale); nothing but `constant` where the slope is 0.
struct RowGradient {
  float scale, origin, constant, slope;
};

// `out` may be `row`. With `stream`, and where the instruction set writes whole cache lines, it goes past the caches.
using GradientFn = void (*)(const void* row, void* out, int64_t vocab, const RowGradient& gradient, bool stream);
using ScaleFn = void (*)(void* row, int64_t vocab, float factor);
using PutFn = void (*)(void* element, float value);

using PowersFn = void (*)(const float* x, float* out, int64_t n);
using ReadFn = uint64_t (*)(const void* memory, int64_t bytes);

// The loops of RowKernels::read: streams side by side, and how early lines are asked for.
constexpr int kReadLoops = 5;
constexpr const char* kReadLoopNames[kReadLoops] = {"16 streams, 256 bytes ahead", "16 streams",
                                                    "8 streams, 768 bytes ahead", "4 streams, 1024 bytes ahead",
                                                    "1 stream"};

struct RowKernels {
  const char* isa;
  RowFn stats[3];         // by Dtype
  RowFn with_entropy[3];  // the same, `weighted` filled in
  TwoRowsFn two_rows[3];  // null where it would not be faster
  GradientFn gradient[3];
  ScaleFn scale[3];
  PutFn put[3];
  PowersFn powers[3];     // by Dtype of the logits: 2^x as the row kernels compute it; n is a multiple of 64
  ReadFn read[kReadLoops];  // reads and does nothing else
};

extern const RowKernels portable_kernels;
#if defined(STEPOPSD_X86)
extern const RowKernels avx2_kernels;
extern const RowKernels avx512_kernels;
extern const RowKernels avx512bf16_kernels;
#endif

// What this machine can run, slowest first.
std::vector<std::string> supported_isas();

// The fastest that this machine can run, or the one that STEPOPSD_CPU_ISA names. Throws std::invalid_argument for a
// name that is not in supported_isas().
const RowKernels& kernels_in_use();

}  // namespace stepopsd::cpu
