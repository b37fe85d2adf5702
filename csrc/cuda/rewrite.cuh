// A map over part of a row: every element is read once and written once, 16 bytes at a time. Where the output may be
// the memory of the input, the thread that writes an element is the one that has read it.
#pragma once

#include "scan.cuh"

namespace stepopsd::cuda {

constexpr int kRewriteThreads = kScoreThreads;
template <class T>
constexpr int kChunk = 16 * kRewriteThreads * kPerGroup<T>;  // elements that a thread block rewrites

template <class T>
__device__ __forceinline__ void write_element(char* row, int64_t index, float value) {
  reinterpret_cast<typename T::Bits*>(row)[index] = static_cast<typename T::Bits>(T::pack(value, 0));
}

// Elements of `row` up to the next 16-byte boundary, from `index` on.
template <class T>
__device__ __forceinline__ int lead_of(const char* row, int index) {
  const auto element = static_cast<int>(reinterpret_cast<uintptr_t>(row) % 16) * T::kPerWord / 4;
  return -(element + index) & (kPerGroup<T> - 1);
}

// What the elements are read from: groups of 16 bytes from element `at` on, the output's aligned ones.
template <class T>
struct AlignedRow {  // as far into 16 bytes as the output
  static constexpr int kTrip = kUnroll;
  const char* row;
  __device__ __forceinline__ Group<T, 0> group(int at) const {
    const uint4 a = load_own(reinterpret_cast<const uint4*>(row + static_cast<int64_t>(at) * sizeof(typename T::Bits)));
    return {{a.x, a.y, a.z, a.w}};
  }
  __device__ __forceinline__ float element(int at) const { return read_logit<T>(row, at); }
};

template <class T>
struct ShiftedRow {  // any other row, which is not written to: each group lies in two blocks
  static constexpr int kTrip = 2;
  const char* row;
  int vocab;
  __device__ __forceinline__ Group<T, 0> group(int at) const {
    Blocks<T> blocks;
    blocks.load(row, (kPerGroup<T> - lead_of<T>(row, at)) & (kPerGroup<T> - 1), at, vocab);
    Group<T, 0> group;
    blocks.align_to(group);
    return group;
  }
  __device__ __forceinline__ float element(int at) const { return read_logit<T>(row, at); }
};

template <class T>
struct NoRow {
  static constexpr int kTrip = kUnroll;
  __device__ __forceinline__ Group<T, 0> group(int) const { return {{0, 0, 0, 0}}; }
  __device__ __forceinline__ float element(int) const { return 0; }
};

// The elements [begin, end) of an output row: single ones, whole aligned groups from `first` on, single ones from `last`.
template <class T>
struct Share {
  int begin, first, last, end;

  __device__ __forceinline__ Share(const char* out, int begin_, int end_) : begin(begin_), end(end_) {
    first = min(end, begin + lead_of<T>(out, begin));
    last = end - (end - first) % kPerGroup<T>;
  }

  // The thread that writes an element of it.
  __device__ __forceinline__ int owner(int index) const {
    return index < first ? index - begin : index < last ? (index - first) / kPerGroup<T> % kRewriteThreads : index - last;
  }
};

// One trip of a thread: its groups from `at` on, of those that begin before `last`.
template <class T, bool kWhole, class Source, class Map>
__device__ __forceinline__ void rewrite_groups(const Source& source, char* out, int at, int last, const Map& map) {
  constexpr int kApart = kRewriteThreads * kPerGroup<T>;
  Group<T, 0> groups[Source::kTrip];
#pragma unroll
  for (int g = 0; g < Source::kTrip; ++g) {
    if (kWhole || at + g * kApart < last) groups[g] = source.group(at + g * kApart);
  }
#pragma unroll
  for (int g = 0; g < Source::kTrip; ++g) {
    if (!kWhole && at + g * kApart >= last) break;
    uint32_t word[4];
#pragma unroll
    for (int k = 0; k < kPerGroup<T>; k += 2) {
      const float2 y = map(make_float2(groups[g][k], groups[g][k + 1]));
      if constexpr (T::kPerWord == 2) word[k / 2] = T::pack(y.x, y.y);
      else word[k] = T::pack(y.x, 0), word[k + 1] = T::pack(y.y, 0);
    }
    auto* target = reinterpret_cast<uint4*>(out + static_cast<int64_t>(at + g * kApart) * sizeof(typename T::Bits));
    store_words(target, {word[0], word[1], word[2], word[3]});
  }
}

template <class T, class Source, class Map>
__device__ __forceinline__ void rewrite(const Source& source, char* out, const Share<T>& share, const Map& map) {
  constexpr int kStride = Source::kTrip * kRewriteThreads * kPerGroup<T>;
  const int thread = static_cast<int>(threadIdx.x);
  const auto single = [&](int at) {
    const float x = source.element(at);
    write_element<T>(out, at, map(make_float2(x, x)).x);
  };
  if (thread < share.first - share.begin) single(share.begin + thread);
  int at = share.first + thread * kPerGroup<T>;
#pragma unroll 1
  for (int trips = (share.last - share.first) / kStride; trips > 0; --trips, at += kStride) {
    rewrite_groups<T, true>(source, out, at, share.last, map);
  }
  if constexpr (Source::kTrip > 1) rewrite_groups<T, false>(source, out, at, share.last, map);
  if (thread < share.end - share.last) single(share.last + thread);
}

}  // namespace stepopsd::cuda
