// Rows of logits as every kernel takes them, and how they are shared out among threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../include/common.h"

namespace stepopsd::cpu {

constexpr int64_t kThreadedFrom = 1 << 19;   // elements to visit; below, waking a thread costs more than it saves
constexpr int64_t kWorthFetching = 1 << 14;  // elements to visit for one look at the counter that threads share

// What is known of each row beside its logits.
struct RowSet {
  const int64_t* ids;  // (batch, rows), as the next one
  const bool* active;
  double temperature;         // > 0; not used where `temperatures` is given
  const float* temperatures;  // (batch, rows) or null: one for each row
  int64_t batch, rows, vocab;

  int64_t count() const { return batch * rows; }
  double divisor(int64_t index) const { return temperatures ? temperatures[index] : temperature; }
  double scale(int64_t index) const { return kLog2e / divisor(index); }

  // Flat index of the first active row whose id lies outside [0, vocab), or -1.
  int64_t first_bad_id() const {
    for (int64_t i = 0; i < count(); ++i) {
      if (active[i] && (ids[i] < 0 || ids[i] >= vocab)) return i;
    }
    return -1;
  }
};

// Where the logits are, or what is written in their place.
struct Strided {
  void* data;
  Dtype dtype;
  int64_t batch_stride, row_stride;  // in elements; the vocabulary is contiguous

  char* row(int64_t index, int64_t rows) const {
    const int64_t offset = index / rows * batch_stride + index % rows * row_stride;
    return static_cast<char*>(data) + offset * element_size(dtype);
  }
};

// A long row is cut into pieces of `most` elements or fewer, which follow from `vocab` alone: few rows keep all threads
// busy.
struct Pieces {
  int64_t vocab, count, size;

  Pieces(int64_t vocab, int64_t most) : vocab(vocab) {
    const int64_t wanted = (vocab + most - 1) / most;
    size = ((vocab + wanted - 1) / wanted + 1023) / 1024 * 1024;
    count = (vocab + size - 1) / size;
  }

  int64_t begin(int64_t piece) const { return piece * size; }
  int64_t length(int64_t piece) const { return std::min(size, vocab - begin(piece)); }
  int64_t longest() const { return std::min(size, vocab); }
  int64_t grain() const { return std::max<int64_t>(1, kWorthFetching / longest()); }
};

}  // namespace stepopsd::cpu
