// Tokens sorted by trajectory and step: stepopsd/ops/segments.py.
#pragma once

#include <cstdint>

namespace stepopsd::cpu {

struct Segments {
  int64_t* order;              // (tokens,)
  int64_t* step_starts;        // (tokens + 1,)
  int64_t* trajectory_starts;  // (tokens + 1,)
  int64_t* counts;             // (2,)
};

// Stable. Linear in the number of tokens, but for the sorting of runs: of neighbours of one step, masked tokens between
// them or not. Runs that come in order are not sorted at all.
void step_segments(const int64_t* step_ids, const int64_t* trajectory_ids, int64_t tokens, const Segments& out);

}  // namespace stepopsd::cpu
