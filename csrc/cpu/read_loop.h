// Loops that only read, for the read probe, over the `Simd` type of rows.h.
#pragma once

#include "rows.h"

namespace stepopsd::cpu {
namespace {

// Reads in kStreams streams, asks for lines kBytesAhead early (0: for none), and does nothing else. What comes back
// depends on every byte but a rest of less than a group.
template <class Simd, int kStreams, int kBytesAhead>
uint64_t read_all(const void* memory, int64_t bytes) {
  constexpr int kSets = kStreams > kGroup ? kStreams / kGroup : 1, kStep = kGroup * Simd::width;
  const float* p = static_cast<const float*>(memory);
  const int64_t steps = bytes / (kStep * static_cast<int64_t>(sizeof(float))), rounds = steps / kSets;
  const int64_t stride = kStreams > 1 ? rounds * Simd::width : Simd::width;
  const int64_t advance = kStreams > 1 ? Simd::width : kStep;
  auto top = Simd::splat(0);
  const auto add = [&](const float* at, int64_t apart) {
    for (int v = 0; v < kGroup; ++v) top = Simd::max(Simd::read(at + v * apart), top);
  };
  for (int64_t i = 0; i < rounds; ++i) {
    for (int set = 0; set < kSets; ++set) {
      const float* at = p + i * advance + set * kGroup * stride;
      for (int v = 0; kBytesAhead > 0 && v < kGroup; ++v) {
        const auto address = reinterpret_cast<uintptr_t>(at + v * stride);
        __builtin_prefetch(reinterpret_cast<const void*>(address + kBytesAhead), 0, 2);
      }
      add(at, stride);
    }
  }
  for (int64_t i = rounds * kSets; i < steps; ++i) add(p + i * kStep, Simd::width);
  const float result = Simd::top(top);
  uint32_t bits;
  std::memcpy(&bits, &result, sizeof bits);
  return bits;
}

}  // namespace
}  // namespace stepopsd::cpu
