// AVX-512 (F, BW, DQ, VL).
#include "avx512.h"

namespace stepopsd::cpu {

const RowKernels avx512_kernels = kernels_of<Avx512>("avx512");

}  // namespace stepopsd::cpu
