// AVX2 with FMA and F16C.
#include <immintrin.h>

#include "row_kernels.h"

namespace stepopsd::cpu {
namespace {

struct Avx2 {
  using Vec = __m256;
  static constexpr int width = 8;

  static Vec splat(float x) { return _mm256_set1_ps(x); }
  static Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
  static Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
  static Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
  static Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
  static Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }

  static float top(Vec a) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
  }
  static bool within(Vec a, float limit) {
    const Vec low = _mm256_cmp_ps(a, splat(0), _CMP_GE_OQ), high = _mm256_cmp_ps(a, splat(limit), _CMP_LE_OQ);
    return _mm256_movemask_ps(_mm256_and_ps(low, high)) == 0xff;
  }

  struct Sums {
    __m256d low = _mm256_setzero_pd(), high = _mm256_setzero_pd();

    void add(Vec a) {
      low = _mm256_add_pd(low, _mm256_cvtps_pd(_mm256_castps256_ps128(a)));
      high = _mm256_add_pd(high, _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1)));
    }
    double total() const {
      const __m256d both = _mm256_add_pd(low, high);
      const __m128d half = _mm_add_pd(_mm256_castpd256_pd128(both), _mm256_extractf128_pd(both, 1));
      return _mm_cvtsd_f64(_mm_add_sd(half, _mm_unpackhi_pd(half, half)));
    }
  };

  static constexpr float floor = -120.0f;  // the entries are as small as 2^-5
  static constexpr bool factors = false, streams = false;
  static constexpr Mode first = Mode::floored;

  // Adding 1.5 * 2^23 / 8 leaves 8 n + i in the low bits; moved up by 20 they add n to the exponent of the entry, from
  // whose bits i << 20 has been taken off. The limit keeps n within the exponent's bits; NaN passes it.
  template <bool kExact>
  struct Powers {
    static constexpr float kRound = 12582912.0f / 8;
    Vec scale, limit;
    __m256i table;

    explicit Powers(float factor) : scale(splat(factor)), limit(splat(120.0f / factor)) {
      const __m256i entries = _mm256_castps_si256(_mm256_load_ps(pow2::cubic_8::table));
      table = _mm256_sub_epi32(entries, _mm256_slli_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), 20));
    }

    STEPOPSD_INLINE void operator()(const Group<Avx2>& x, Group<Avx2>& coarse, Group<Avx2>& fine) const {
      using namespace pow2::cubic_8;
      for (int v = 0; v < kGroup; ++v) {
        const Vec low = _mm256_min_ps(limit, x[v]);
        const Vec rounded = fma(low, scale, splat(kRound));
        const Vec t = _mm256_fmsub_ps(low, scale, sub(rounded, splat(kRound + shift)));
        const __m256i bits = _mm256_castps_si256(rounded);
        const __m256i entry = _mm256_permutevar8x32_epi32(table, bits);
        coarse[v] = _mm256_castsi256_ps(_mm256_add_epi32(entry, _mm256_slli_epi32(bits, 20)));
        fine[v] = fma(fma(t, t, splat(c1)), t, splat(c0));
      }
    }
  };

  static Vec read(const float* p) { return _mm256_loadu_ps(p); }
  static void load(const float* p, Vec& a, Vec& b) {
    a = read(p);
    b = read(p + 8);
  }
  static void load(const Half* p, Vec& a, Vec& b) {
    a = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    b = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)));
  }
  static void load(const Bfloat* p, Vec& a, Vec& b) {
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    a = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
    b = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
  }

  static Vec vanish(Vec power, Vec x, Vec floor) { return _mm256_and_ps(power, _mm256_cmp_ps(x, floor, _CMP_NLT_UQ)); }

  static void store(float* p, const Group<Avx2>& x) {
    for (int v = 0; v < kGroup; ++v) _mm256_storeu_ps(p + 8 * v, x[v]);
  }
  static void store(Half* p, const Group<Avx2>& x) {
    for (int v = 0; v < kGroup; ++v) _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8 * v), narrow(x[v]));
  }
  static void store(Bfloat* p, const Group<Avx2>& x) {
    for (int v = 0; v < kGroup; v += 2) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8 * v), narrow(x[v], x[v + 1]));
    }
  }

 private:
  static __m128i narrow(Vec x) { return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static __m256i narrow(Vec even, Vec odd) {
    return _mm256_blend_epi16(_mm256_srli_epi32(rounded(even), 16), rounded(odd), 0xaa);
  }
  static __m256i rounded(Vec x) {  // to nearest even in the high 16 bits
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i last = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), last);
  }
};

}  // namespace

const RowKernels avx2_kernels = kernels_of<Avx2>("avx2");

}  // namespace stepopsd::cpu
