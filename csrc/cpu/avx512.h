// AVX-512 (F, BW, DQ, VL), with the conversion of AVX512-BF16 where the including file is compiled for that.
#pragma once

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12's header uses undefined registers on purpose
#include <immintrin.h>
#pragma GCC diagnostic pop

#include "row_kernels.h"

namespace stepopsd::cpu {
namespace {

struct Avx512 {
  using Vec = __m512;
  static constexpr int width = 16;

  static Vec splat(float x) { return _mm512_set1_ps(x); }
  static Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
  static Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
  static Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
  static Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
  static Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
  static float top(Vec a) { return _mm512_reduce_max_ps(a); }
  static bool within(Vec a, float limit) {  // as integers NaN and negative numbers are above every limit
    return _mm512_cmple_epu32_mask(_mm512_castps_si512(a), _mm512_castps_si512(splat(limit))) == 0xffff;
  }

  struct Sums {
    __m512d low = _mm512_setzero_pd(), high = _mm512_setzero_pd();

    void add(Vec a) {
      low = _mm512_add_pd(low, _mm512_cvtps_pd(_mm512_castps512_ps256(a)));
      high = _mm512_add_pd(high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1)));
    }
    double total() const { return _mm512_reduce_add_pd(_mm512_add_pd(low, high)); }
  };

  static constexpr float floor = -200.0f;
  static constexpr bool factors = true, streams = true;
  static constexpr Mode first = Mode::plain;

  // Adding 1.5 * 2^23 / 16 rounds y to a multiple of 1/16 and leaves i in the low four bits, which are all that VPERMPS
  // looks at. VSCALEFPS floors the exponent itself and goes to 0 and infinity at the ends.
  template <bool kExact>
  struct Powers {
    static constexpr float kRound = 12582912.0f / 16;
    static constexpr float kC0 = kExact ? pow2::cubic::c0 : pow2::quadratic::c0;
    Vec scale, table;

    explicit Powers(float scale, float factor = 1)
        : scale(splat(scale)),
          table(mul(_mm512_load_ps(kExact ? pow2::cubic::table : pow2::quadratic::table), splat(factor))) {}

    STEPOPSD_INLINE void operator()(const Group<Avx512>& x, Group<Avx512>& coarse, Group<Avx512>& fine) const {
      static_assert(pow2::cubic::shift == pow2::quadratic::shift);
      Group<Avx512> rounded, whole;
      for (int v = 0; v < kGroup; ++v) rounded[v] = fma(x[v], scale, splat(kRound));
      for (int v = 0; v < kGroup; ++v) whole[v] = sub(rounded[v], splat(kRound + pow2::cubic::shift));
      for (int v = 0; v < kGroup; ++v) coarse[v] = _mm512_permutexvar_ps(_mm512_castps_si512(rounded[v]), table);
      for (int v = 0; v < kGroup; ++v) fine[v] = _mm512_fmsub_ps(x[v], scale, whole[v]);
      for (int v = 0; v < kGroup; ++v) coarse[v] = _mm512_scalef_ps(coarse[v], whole[v]);
      for (int v = 0; v < kGroup; ++v) {
        if constexpr (kExact) fine[v] = fma(fma(fine[v], fine[v], splat(pow2::cubic::c1)), fine[v], splat(kC0));
        else fine[v] = fma(fine[v], fine[v], splat(kC0));
      }
    }
  };

  static Vec read(const float* p) { return _mm512_loadu_ps(p); }
  static void load(const float* p, Vec& a, Vec& b) {
    a = read(p);
    b = read(p + 16);
  }
  static void load(const Half* p, Vec& a, Vec& b) {
    a = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    b = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 16)));
  }
  static void load(const Bfloat* p, Vec& a, Vec& b) {
    const __m512i both = _mm512_loadu_si512(p);
    a = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    b = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  }

  static Vec vanish(Vec power, Vec, Vec) { return power; }

  static void store(float* p, const Group<Avx512>& x) {
    for (int v = 0; v < kGroup; ++v) _mm512_storeu_ps(p + 16 * v, x[v]);
  }
  template <class T>
  static void store(T* p, const Group<Avx512>& x) {
    for (int v = 0; v < kGroup; v += 2) _mm512_storeu_si512(p + 16 * v, narrow(T{}, x[v], x[v + 1]));
  }
  static void stream(float* p, const Group<Avx512>& x) {
    for (int v = 0; v < kGroup; ++v) _mm512_stream_ps(p + 16 * v, x[v]);
  }
  template <class T>
  static void stream(T* p, const Group<Avx512>& x) {
    for (int v = 0; v < kGroup; v += 2) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(p + 16 * v), narrow(T{}, x[v], x[v + 1]));
    }
  }
  static void fence() { _mm_sfence(); }

 private:
  static __m512i narrow(Half, Vec low, Vec high) {
    constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtps_ph(low, kNearest)), _mm512_cvtps_ph(high, kNearest), 1);
  }
#if defined(__AVX512BF16__)  // takes numbers below the smallest normal one for 0
  static __m512i narrow(Bfloat, Vec even, Vec odd) {
    alignas(64) static constexpr uint16_t kOrder[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return _mm512_permutexvar_epi16(_mm512_load_si512(kOrder), (__m512i)_mm512_cvtne2ps_pbh(odd, even));
  }
#else
  static __m512i narrow(Bfloat, Vec even, Vec odd) {
    return _mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_srli_epi32(rounded(even), 16), rounded(odd));
  }
  static __m512i rounded(Vec x) {  // to nearest even in the high 16 bits
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i last = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), last);
  }
#endif
};

}  // namespace
}  // namespace stepopsd::cpu
