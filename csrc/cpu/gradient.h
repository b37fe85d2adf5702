// The gradient of a row by its logits, written once over the `Simd` type of rows.h, which for this also supplies
//   factors: whether Powers takes a second number that the powers are multiplied by
//   vanish(power, x, floor): the power, 0 where x < floor; NaN stays NaN
//   store(float* | Half* | Bfloat* p, x): the elements of a step, in the order of `load`, rounded to nearest even
//   streams: whether there are stream(p, x), which stores whole cache lines past the caches, and fence() to end with
// The low 16 bits of a NaN must be 0: rounding to bfloat16 may take them for digits.
#pragma once

#include "rows.h"

namespace stepopsd::cpu {
namespace {

constexpr int kGradientAhead = 512;  // bytes between a line that is read and the one that is asked for

template <class Simd, class T>
typename Simd::template Powers<sizeof(T) == 4> powers_times(float scale, float factor) {
  using Powers = typename Simd::template Powers<sizeof(T) == 4>;
  if constexpr (Simd::factors) return Powers(scale, factor);
  else return Powers(scale);
}

// What RowGradient asks for, of a group at a time. kShifted: whether there is an origin.
template <class Simd, bool kShifted, bool kEntropy, class T>
struct GradientOf {
  static constexpr bool kInExponents = Simd::first == Mode::shifted;  // powers take no scale
  static constexpr bool kFactor = Simd::factors && !kEntropy;         // powers come multiplied by the constant
  using Vec = typename Simd::Vec;
  Vec origin, factor, floor, constant, slope;
  typename Simd::template Powers<sizeof(T) == 4> powers;

  explicit GradientOf(const RowGradient& g)
      : origin(Simd::splat(g.origin)),
        factor(Simd::splat(g.scale)),
        floor(Simd::splat(kInExponents ? Simd::floor : Simd::floor / g.scale)),
        constant(Simd::splat(g.constant)),
        slope(Simd::splat(kInExponents ? g.slope : g.slope * g.scale)),
        powers(powers_times<Simd, T>(kInExponents ? 1.0f : g.scale, kFactor ? g.constant : 1.0f)) {}

  STEPOPSD_INLINE void operator()(Group<Simd>& x) const {
    Group<Simd> low, coarse, fine;
    for (int v = 0; v < kGroup; ++v) {
      if constexpr (kShifted) x[v] = Simd::sub(x[v], origin);
      if constexpr (kInExponents) x[v] = Simd::mul(x[v], factor);
      low[v] = x[v];
      x[v] = Simd::max(floor, x[v]);
    }
    powers(x, coarse, fine);
    for (int v = 0; v < kGroup; ++v) {
      const Vec power = Simd::vanish(Simd::mul(coarse[v], fine[v]), low[v], floor);
      if constexpr (kEntropy) x[v] = Simd::mul(power, Simd::fma(x[v], slope, constant));
      else x[v] = kFactor ? power : Simd::mul(power, constant);
    }
  }
};

template <class Simd, bool kStream, class T, class Map>
inline void map_steps(const T* p, T* out, int64_t steps, const Map& map) {
  using Part = stepopsd::cpu::Part<Simd, T>;
  Group<Simd> x;
  for (int64_t i = 0; i < steps * Part::kStep; i += Part::kStep) {
    fetch_ahead<kGradientAhead, false>(p + i, Part::kStep * sizeof(T));
    load_group(p + i, x);
    map(x);
    if constexpr (kStream) Simd::stream(out + i, x);
    else Simd::store(out + i, x);
  }
}

// Fewer elements than a step has.
template <class Simd, class T, class Map>
inline void map_few(const T* p, T* out, int64_t n, const Map& map) {
  constexpr int kStep = Part<Simd, T>::kStep;
  if (n == 0) return;
  T few[kStep];
  for (T& x : few) x = minus_infinity(T{});
  std::memcpy(few, p, n * sizeof(T));
  map_steps<Simd, false>(few, few, 1, map);
  std::memcpy(out, few, n * sizeof(T));
}

// Every element by itself, so that its bits do not depend on where the row lies or is cut.
template <class Simd, class T, class Map>
inline void map_row(const T* p, T* out, int64_t n, bool stream, const Map& map) {
  constexpr int kStep = Part<Simd, T>::kStep;
  if constexpr (Simd::streams) {
    constexpr int kLine = 64 / sizeof(T);
    if (stream && n >= kLine + kStep) {
      const int64_t place = reinterpret_cast<uintptr_t>(out) / sizeof(T) % kLine, head = (kLine - place) % kLine;
      const int64_t body = (n - head) / kStep * kStep, end = head + body;
      map_few<Simd>(p, out, head, map);
      map_steps<Simd, true>(p + head, out + head, body / kStep, map);
      map_few<Simd>(p + end, out + end, n - end, map);
      return Simd::fence();
    }
  }
  const int64_t body = n / kStep * kStep;
  map_steps<Simd, false>(p, out, body / kStep, map);
  map_few<Simd>(p + body, out + body, n - body, map);
}

template <class Simd>
struct ScaledBy {
  typename Simd::Vec factor;

  STEPOPSD_INLINE void operator()(Group<Simd>& x) const {
    for (int v = 0; v < kGroup; ++v) x[v] = Simd::mul(x[v], factor);
  }
};

template <class Simd, bool kShifted, class T>
void gradient_row(const T* row, T* out, int64_t n, const RowGradient& g, bool stream) {
  if (g.slope == 0) map_row<Simd>(row, out, n, stream, GradientOf<Simd, kShifted, false, T>(g));
  else map_row<Simd>(row, out, n, stream, GradientOf<Simd, kShifted, true, T>(g));
}

template <class Simd, class T>
void gradient_row(const void* row, void* out, int64_t n, const RowGradient& g, bool stream) {
  const T* p = static_cast<const T*>(row);
  T* q = static_cast<T*>(out);
  if (g.origin == 0) gradient_row<Simd, Simd::first == Mode::shifted>(p, q, n, g, stream);
  else gradient_row<Simd, true>(p, q, n, g, stream);
}

template <class Simd, class T>
void scale_row(void* row, int64_t n, float factor) {
  T* p = static_cast<T*>(row);
  map_row<Simd>(p, p, n, false, ScaledBy<Simd>{Simd::splat(factor)});
}

template <class Simd, class T>
void put_element(void* at, float value) {
  T few[Part<Simd, T>::kStep];
  Group<Simd> x;
  for (int v = 0; v < kGroup; ++v) x[v] = Simd::splat(value);
  Simd::store(few, x);
  std::memcpy(at, few, sizeof(T));
}

}  // namespace
}  // namespace stepopsd::cpu
