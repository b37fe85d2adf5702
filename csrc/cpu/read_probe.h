// How fast memory can be read at all: the limit that the row kernels are measured against.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace stepopsd::cpu {

// Reads `bytes` of memory once with one of the loops of RowKernels::read, through the pool that the row kernels use. The
// number that comes back depends on every whole group of cache lines, so that nothing can be left out.
//
// Which loop is fastest depends on the machine and on its other users: the limit is the fastest of all.
uint64_t read_probe(const void* memory, int64_t bytes, ReadFn read, int threads);

}  // namespace stepopsd::cpu
