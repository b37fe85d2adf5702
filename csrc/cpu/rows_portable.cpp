// Any processor: the vector extension that GCC and Clang share, which they lower to SSE2, NEON or scalar code.
#include "row_kernels.h"

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
  static Vec max(Vec a, Vec b) { return a > b ? a : b; }
  static float top(Vec a) {
    const float low = a[0] > a[1] ? a[0] : a[1], high = a[2] > a[3] ? a[2] : a[3];
    return low > high ? low : high;
  }
  static bool within(Vec a, float limit) {
    bool all = true;
    for (int i = 0; i < width; ++i) all = all && a[i] >= 0 && a[i] <= limit;
    return all;
  }

  struct Sums {
    double lane[width] = {};

    void add(Vec a) {
      for (int i = 0; i < width; ++i) lane[i] += a[i];
    }
    double total() const { return (lane[0] + lane[2]) + (lane[1] + lane[3]); }
  };

  static constexpr float floor = -126.75f;  // rounds down to -127, the power 0
  static constexpr bool factors = false, streams = false;
  static constexpr Mode first = Mode::shifted;  // without an fma the product x * scale is not exact enough

  // Adding 1.5 * 2^23 leaves round(y - 1/2) in the low bits: no conversion, so NaN is no undefined behaviour. At 128
  // the exponent's bits mean infinity.
  template <bool kExact>
  struct Powers {
    explicit Powers(float) {}  // always 1

    STEPOPSD_INLINE void operator()(const Group<Portable>& y, Group<Portable>& coarse, Group<Portable>& fine) const {
      using namespace pow2::quintic;
      const Vec high = splat(128.0f), round = splat(12582912.0f);
      for (int v = 0; v < kGroup; ++v) {
        const Vec low = high < y[v] ? high : y[v];
        const Vec rounded = (low - splat(0.5f)) + round;
        const Vec r = low - (rounded - round);
        coarse[v] = reinterpret_cast<Vec>((reinterpret_cast<Unsigned>(rounded) + 127) << 23);
        fine[v] = ((((splat(c5) * r + splat(c4)) * r + splat(c3)) * r + splat(c2)) * r + splat(c1)) * r + splat(1.0f);
      }
    }
  };

  static Vec read(const float* p) {
    Vec x;
    std::memcpy(&x, p, sizeof x);
    return x;
  }
  static void load(const float* p, Vec& a, Vec& b) {
    a = read(p);
    b = read(p + 4);
  }
  static void load(const Bfloat* p, Vec& a, Vec& b) {
    Bits both;
    std::memcpy(&both, p, sizeof both);
    a = reinterpret_cast<Vec>(both << 16);
    b = reinterpret_cast<Vec>(both & splat_bits(0xffff0000u));
  }
  static void load(const Half* p, Vec& a, Vec& b) {
    Bits both;
    std::memcpy(&both, p, sizeof both);
    a = widen(both & splat_bits(0xffffu));
    b = widen((both >> 16) & splat_bits(0xffffu));
  }

  static Vec vanish(Vec power, Vec, Vec) { return power; }

  static void store(float* p, const Group<Portable>& x) { std::memcpy(p, &x, sizeof x); }
  static void store(Bfloat* p, const Group<Portable>& x) {
    for (int v = 0; v < kGroup; v += 2) {
      const Unsigned both = (rounded(x[v]) >> 16) | (rounded(x[v + 1]) & 0xffff0000u);
      std::memcpy(p + 4 * v, &both, sizeof both);
    }
  }
  static void store(Half* p, const Group<Portable>& x) {
    for (int v = 0; v < kGroup; v += 2) {
      const Unsigned both = narrow(x[v]) | (narrow(x[v + 1]) << 16);
      std::memcpy(p + 4 * v, &both, sizeof both);
    }
  }

 private:
  using Unsigned = uint32_t __attribute__((vector_size(16)));

  static Unsigned rounded(Vec x) {  // to nearest even in the high 16 bits
    const Unsigned bits = reinterpret_cast<Unsigned>(x);
    return bits + 0x7fffu + ((bits >> 16) & 1u);
  }

  // Float to half: the exponent is moved and the sum rounds, up to infinity where it must; below 2^-14 adding 1/2 rounds.
  static Unsigned narrow(Vec x) {
    const Unsigned bits = reinterpret_cast<Unsigned>(x), magnitude = bits & 0x7fffffffu;
    const Unsigned normal = (magnitude + 0xc8000fffu + ((magnitude >> 13) & 1u)) >> 13;
    const Unsigned small = reinterpret_cast<Unsigned>(reinterpret_cast<Vec>(magnitude) + splat(0.5f)) - 0x3f000000u;
    const Unsigned special = magnitude > 0x7f800000u ? Unsigned{} + 0x7e00u : Unsigned{} + 0x7c00u;
    const Unsigned finite = magnitude < 0x38800000u ? small : normal;
    return (magnitude >= 0x47800000u ? special : finite) | ((bits >> 16) & 0x8000u);
  }

  // Half to float: move exponent and mantissa into place, multiply the bias right (exact, subnormals included).
  static Vec widen(Bits half) {
    const Bits magnitude = (half & splat_bits(0x7fffu)) << 13;
    const Vec finite = reinterpret_cast<Vec>(magnitude) * splat(0x1p112f);
    const Vec special = reinterpret_cast<Vec>(magnitude | splat_bits(0x7f800000u));
    const Vec absolute = magnitude >= splat_bits(0x0f800000u) ? special : finite;
    return reinterpret_cast<Vec>(reinterpret_cast<Bits>(absolute) | ((half & splat_bits(0x8000u)) << 16));
  }
};

}  // namespace

const RowKernels portable_kernels = kernels_of<Portable>("portable");

}  // namespace stepopsd::cpu
