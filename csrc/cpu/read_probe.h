// How fast memory can be read at all: the limit that the row kernels are measured against.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace stepopsd::cpu {

// Reads `bytes` of memory once with the widest loads there are, through the pool that the row kernels use. The number
// that comes back depends on every whole group of cache lines, so that nothing can be left out.
uint64_t read_probe(const void* memory, int64_t bytes, const RowKernels& kernels, int threads);

}  // namespace stepopsd::cpu
