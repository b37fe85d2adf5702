// A small persistent pool of our own: no OpenMP runtime to share (or to disagree about) with the host program.
#pragma once

#include <cstdint>
#include <functional>

namespace stepopsd::cpu {

// Covers [0, count) with calls body(begin, end) of `grain` items or more, on at most `threads` threads, this one among
// them. Ranges are handed out as threads become free; the result must not depend on who gets which. Returns when all
// are done, and waits for no thread that has not begun. `body` must not throw.
void parallel_for(int64_t count, int64_t grain, int threads, const std::function<void(int64_t, int64_t)>& body);

}  // namespace stepopsd::cpu
