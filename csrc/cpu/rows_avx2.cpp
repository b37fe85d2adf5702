// AVX2 with FMA and F16C.
#include <immintrin.h>

#include "rows.h"

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

  static float sum(Vec a) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
  }
  static float top(Vec a) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
  }

  static Vec exp2(Vec x) {
    // The ends of the exponent field: -127 makes the scale 0, 128 makes it infinity. NaN passes both limits.
    x = _mm256_min_ps(splat(128.0f), _mm256_max_ps(splat(-127.0f), x));
    const Vec whole = _mm256_floor_ps(x);
    const Vec f = sub(x, whole);
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127));
    return mul(power_of_fraction<Avx2>(f), _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
  }

  static void load_pair(const float* p, Vec& a, Vec& b) {
    a = _mm256_loadu_ps(p);
    b = _mm256_loadu_ps(p + 8);
  }
  static void load_pair(const Half* p, Vec& a, Vec& b) {
    a = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    b = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)));
  }
  static void load_pair(const Bfloat* p, Vec& a, Vec& b) {
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    a = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
    b = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
  }
};

}  // namespace

const RowKernels avx2_kernels = kernels_of<Avx2>("avx2");

}  // namespace stepopsd::cpu
