// AVX-512 (F, BW, DQ, VL). exp2 is VREDUCEPS, the polynomial and VSCALEFPS; -inf and NaN need no extra care.
#include <immintrin.h>

#include "rows.h"

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
  static float sum(Vec a) { return _mm512_reduce_add_ps(a); }
  static float top(Vec a) { return _mm512_reduce_max_ps(a); }

  static Vec exp2(Vec x) {
    const Vec f = _mm512_reduce_ps(x, 0x01);  // x - floor(x); scalef floors the same way
    return _mm512_scalef_ps(power_of_fraction<Avx512>(f), x);
  }

  static void load_pair(const float* p, Vec& a, Vec& b) {
    a = _mm512_loadu_ps(p);
    b = _mm512_loadu_ps(p + 16);
  }
  static void load_pair(const Half* p, Vec& a, Vec& b) {
    a = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    b = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 16)));
  }
  static void load_pair(const Bfloat* p, Vec& a, Vec& b) {
    const __m512i both = _mm512_loadu_si512(p);
    a = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    b = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  }
};

}  // namespace

const RowKernels avx512_kernels = kernels_of<Avx512>("avx512");

}  // namespace stepopsd::cpu
