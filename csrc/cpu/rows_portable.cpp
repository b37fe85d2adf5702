// Any processor: the vector extension that GCC and Clang share, which they lower to SSE2, NEON or scalar code.
#include "rows.h"

namespace stepopsd::cpu {
namespace {

struct Portable {
  using Vec = float __attribute__((vector_size(16)));
  using Bits = int32_t __attribute__((vector_size(16)));
  static constexpr int width = 4;

  static Vec splat(float x) { return Vec{x, x, x, x}; }
  static Bits splat_bits(uint32_t x) { return Bits{} + static_cast<int32_t>(x); }
  static Vec add(Vec a, Vec b) { return a + b; }
  static Vec sub(Vec a, Vec b) { return a - b; }
  static Vec mul(Vec a, Vec b) { return a * b; }
  static Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
  static Vec max(Vec a, Vec b) { return pick(a > b, a, b); }
  static float sum(Vec a) { return (a[0] + a[2]) + (a[1] + a[3]); }
  static float top(Vec a) {
    const float low = a[0] > a[1] ? a[0] : a[1], high = a[2] > a[3] ? a[2] : a[3];
    return low > high ? low : high;
  }

  static Vec exp2(Vec x) {
    // The ends of the exponent field: below -126.5 rounds to -127, scale 0, and 128 is infinity. NaN passes both.
    const Vec low = splat(-126.75f), high = splat(128.0f);
    x = pick(x < low, low, x);
    x = pick(x > high, high, x);
    // Adding 1.5 * 2^23 leaves round(x - 1/2) in the low bits: no conversion, so NaN is no undefined behaviour.
    const Vec magic = splat(12582912.0f);
    const Vec shifted = (x - splat(0.5f)) + magic;
    const Vec f = x - (shifted - magic);
    using Unsigned = uint32_t __attribute__((vector_size(16)));
    const Unsigned exponent = reinterpret_cast<Unsigned>(shifted) + 127;
    return power_of_fraction<Portable>(f) * reinterpret_cast<Vec>(exponent << 23);
  }

  static void load_pair(const float* p, Vec& a, Vec& b) {
    std::memcpy(&a, p, sizeof a);
    std::memcpy(&b, p + 4, sizeof b);
  }
  static void load_pair(const Bfloat* p, Vec& a, Vec& b) {
    Bits both;
    std::memcpy(&both, p, sizeof both);
    a = reinterpret_cast<Vec>(both << 16);
    b = reinterpret_cast<Vec>(both & splat_bits(0xffff0000u));
  }
  static void load_pair(const Half* p, Vec& a, Vec& b) {
    Bits both;
    std::memcpy(&both, p, sizeof both);
    a = widen(both & splat_bits(0xffffu));
    b = widen((both >> 16) & splat_bits(0xffffu));
  }

 private:
  static Vec pick(Bits mask, Vec yes, Vec no) {
    return reinterpret_cast<Vec>((mask & reinterpret_cast<Bits>(yes)) | (~mask & reinterpret_cast<Bits>(no)));
  }

  // Half to float: move exponent and mantissa into place, multiply the bias right (exact, subnormals included).
  static Vec widen(Bits half) {
    const Bits magnitude = (half & splat_bits(0x7fffu)) << 13;
    const Vec finite = reinterpret_cast<Vec>(magnitude) * splat(0x1p112f);
    const Vec special = reinterpret_cast<Vec>(magnitude | splat_bits(0x7f800000u));
    const Vec absolute = pick(magnitude >= splat_bits(0x0f800000u), special, finite);
    return reinterpret_cast<Vec>(reinterpret_cast<Bits>(absolute) | ((half & splat_bits(0x8000u)) << 16));
  }
};

}  // namespace

const RowKernels portable_kernels = kernels_of<Portable>("portable");

}  // namespace stepopsd::cpu
