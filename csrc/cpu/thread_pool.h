// A small persistent pool of our own: no OpenMP runtime to share (or to disagree about) with the host program.
#pragma once

#include <cstdint>
#include <functional>

namespace stepopsd::cpu {

// Calls body(i) once for every i in [0, count), on at most `threads` threads, this one among them. Items are handed
// out one by one; the result must not depend on who runs which. Returns when all are done. `body` must not throw.
void parallel_for(int64_t count, int threads, const std::function<void(int64_t)>& body);

}  // namespace stepopsd::cpu
