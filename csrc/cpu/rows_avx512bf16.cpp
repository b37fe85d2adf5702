// AVX-512 (F, BW, DQ, VL) with AVX512-BF16: bfloat16 is rounded by one instruction.
#include "avx512.h"

namespace stepopsd::cpu {

const RowKernels avx512bf16_kernels = kernels_of<Avx512>("avx512bf16");

}  // namespace stepopsd::cpu
