// One thread's share of one vocabulary split of one row: every logit is read once, 16 bytes at a time.
#pragma once

#include "online.cuh"

namespace stepopsd::cuda {

constexpr int kUnroll = 4;  // groups of a thread that are loaded before the first of them is used
template <class T>
constexpr int kStep = kScoreThreads* kPerGroup<T>;  // logits of one group per thread

// Groups of a thread in global memory, from its first 16-byte block on.
template <class T, int kShift>
struct GlobalGroups {
  using Of = Group<T, kShift>;
  const uint4* block;
  __device__ __forceinline__ void load(Of& group, int step) const { group.load(block + step * kScoreThreads); }
  __device__ __forceinline__ void advance(int steps) { block += steps * kScoreThreads; }
};

// The hot loop: `trips` times kUnroll steps.
//
// The reference moves in the outer loop, so that the inner one holds no instruction that is rarely needed. A warp
// leaves the inner loop as a whole: its threads stay together, and each moves its reference only where it has to.
template <class Source, bool kEntropy>
__device__ __forceinline__ void scan_trips(Online<kEntropy>& online, Source source, int trips, Scale scale) {
  if (trips == 0) return;
  typename Source::Of groups[kUnroll];
  const auto load = [&] {
#pragma unroll
    for (int g = 0; g < kUnroll; ++g) source.load(groups[g], g);
    source.advance(kUnroll);
  };
  load();
  for (;;) {
    online.reach(groups, scale);
    do {
#pragma unroll
      for (int g = 0; g < kUnroll; ++g) online.add(groups[g], scale);
      if (--trips == 0) {
        online.keep_beside(groups);
        return;
      }
      load();
    } while (!warp_any(online.out_of_reach(groups, scale)));
  }
}

// The steps that do not fill a trip, loaded together.
template <class Source, bool kEntropy>
__device__ __forceinline__ void scan_steps(Online<kEntropy>& online, const Source& source, int steps, Scale scale) {
  if (steps == 0) return;
  typename Source::Of groups[kUnroll - 1];
#pragma unroll
  for (int g = 0; g < kUnroll - 1; ++g) {
    if (g < steps) source.load(groups[g], g);
    else groups[g].clear();
  }
  online.reach(groups, scale);
#pragma unroll
  for (int g = 0; g < kUnroll - 1; ++g) {
    if (g < steps) online.add(groups[g], scale);
  }
  online.keep_beside(groups);
}

template <class Source, bool kEntropy>
__device__ __forceinline__ void scan_whole(Online<kEntropy>& online, Source source, int steps, Scale scale) {
  const int trips = steps / kUnroll;
  scan_trips(online, source, trips, scale);
  source.advance(trips * kUnroll);
  scan_steps(online, source, steps % kUnroll, scale);
}

// Steps of a split that are scanned whole; a shifted group reads one block further than its own, which must lie in the
// row.
template <class T>
__device__ __forceinline__ int whole_steps(int begin, int end, int vocab) {
  const int room = vocab - begin - kPerGroup<T>;
  return max(0, min(end - begin, room)) / kStep<T>;
}

// The 16-byte blocks under the group of logits [at, at + kPerGroup) of a row, and how far into them it begins. Where
// they reach beyond `end`, its logits one by one instead, with -inf from `end` on: nothing behind the row's last logit
// is read, and before its first one only the rest of that logit's block.
template <class T>
struct Blocks {
  uint32_t word[8];
  int shift;

  __device__ __forceinline__ void load(const char* row, int row_shift, int at, int end) {
    constexpr int kBytes = 4 / T::kPerWord;
    if (at - row_shift + (row_shift == 0 ? 1 : 2) * kPerGroup<T> <= end) {
      const uint4* block = reinterpret_cast<const uint4*>(row + static_cast<int64_t>(at - row_shift) * kBytes);
      const uint4 a = load_twice(block), b = row_shift == 0 ? a : load_twice(block + 1);
      word[0] = a.x, word[1] = a.y, word[2] = a.z, word[3] = a.w;
      word[4] = b.x, word[5] = b.y, word[6] = b.z, word[7] = b.w;
      shift = row_shift;
      return;
    }
    const auto* logits = reinterpret_cast<const typename T::Bits*>(row);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      word[i] = 0, word[i + 4] = 0;
#pragma unroll
      for (int k = 0; k < T::kPerWord; ++k) {
        const int here = at + i * T::kPerWord + k;
        const auto bits = here < end ? logits[here] : static_cast<typename T::Bits>(T::kMinusInf);
        word[i] |= static_cast<uint32_t>(bits) << (16 * k);
      }
    }
    shift = 0;
  }

  __device__ __forceinline__ void align_to(Group<T, 0>& group) {
    const int words = shift / T::kPerWord;
#pragma unroll
    for (int i = 0; i < 6; ++i) word[i] = words & 2 ? word[i + 2] : word[i];
#pragma unroll
    for (int i = 0; i < 5; ++i) word[i] = words & 1 ? word[i + 1] : word[i];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      group.word[i] = shift % T::kPerWord ? __funnelshift_r(word[i], word[i + 1], 16) : word[i];
    }
  }
};

// The logits [begin, end) at the end of a row, fewer than a step and a group.
template <class T, bool kEntropy>
__device__ __forceinline__ void scan_edge(Online<kEntropy>& online, const char* row, int shift, int begin, int end,
                                          Scale scale) {
  if (begin >= end) return;
  Blocks<T> blocks[2];
#pragma unroll
  for (int g = 0; g < 2; ++g) {
    blocks[g].load(row, shift, begin + g * kStep<T> + static_cast<int>(threadIdx.x) * kPerGroup<T>, end);
  }
  Group<T, 0> groups[2];
#pragma unroll
  for (int g = 0; g < 2; ++g) blocks[g].align_to(groups[g]);
  online.reach(groups, scale);
#pragma unroll
  for (int g = 0; g < 2; ++g) online.add(groups[g], scale);
}

// Logits [begin, end) of a row of `vocab`. The order in which a thread adds them follows from these numbers alone; the
// alignment of the row only chooses between instances of the loop that differ in where they find each element.
template <class T, bool kEntropy>
__device__ __forceinline__ Online<kEntropy> scan(const char* row, int begin, int end, int vocab, Scale scale) {
  constexpr int kBytes = 4 / T::kPerWord;
  const int shift = static_cast<int>(reinterpret_cast<uintptr_t>(row) % 16) / kBytes;
  const int steps = whole_steps<T>(begin, end, vocab);
  const uint4* block = reinterpret_cast<const uint4*>(row + static_cast<int64_t>(begin - shift) * kBytes) + threadIdx.x;

  Online<kEntropy> online;
  switch (shift) {
    case 0: scan_whole(online, GlobalGroups<T, 0>{block}, steps, scale); break;
    case 1: scan_whole(online, GlobalGroups<T, 1>{block}, steps, scale); break;
    case 2: scan_whole(online, GlobalGroups<T, 2>{block}, steps, scale); break;
    case 3: scan_whole(online, GlobalGroups<T, 3>{block}, steps, scale); break;
    default:
      if constexpr (T::kPerWord == 2) {
        switch (shift) {
          case 4: scan_whole(online, GlobalGroups<T, 4>{block}, steps, scale); break;
          case 5: scan_whole(online, GlobalGroups<T, 5>{block}, steps, scale); break;
          case 6: scan_whole(online, GlobalGroups<T, 6>{block}, steps, scale); break;
          case 7: scan_whole(online, GlobalGroups<T, 7>{block}, steps, scale); break;
        }
      }
  }
  online.use_beside(vocab < 0);
  scan_edge<T>(online, row, shift, begin + steps * kStep<T>, end, scale);
  return online;
}

}  // namespace stepopsd::cuda
