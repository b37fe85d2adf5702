#include "read_probe.h"

#include <algorithm>
#include <atomic>

#include "thread_pool.h"

namespace stepopsd::cpu {
namespace {

// About half a row: with larger ones threads would end apart. Streams that lie 2^n apart would share a few sets of the
// cache; so that they do not, each of 16 has an odd number of lines.
constexpr int64_t kChunk = 299 << 10;

}  // namespace

uint64_t read_probe(const void* memory, int64_t bytes, const ReadFn read, int threads) {
  std::atomic<uint64_t> all{0};
  const char* p = static_cast<const char*>(memory);
  parallel_for((bytes + kChunk - 1) / kChunk, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin * kChunk; at < std::min(end * kChunk, bytes); at += kChunk) {
      all ^= read(p + at, std::min(kChunk, bytes - at));
    }
  });
  return all;
}

}  // namespace stepopsd::cpu
