// Runs the kernels' cases on the emulated GPU: `driver [case ...]`, by default all. Exit status 1 when one fails.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>

#include "check.h"

namespace check {
namespace {

// To `bits` of mantissa and an exponent not below `lowest`, ties to even.
double rounded(double value, int bits, int lowest) {
  if (value == 0 || !std::isfinite(value)) return value;
  const int exponent = std::ilogb(value) < lowest ? lowest : std::ilogb(value);
  const double ulp = std::ldexp(1.0, exponent - bits);
  return std::nearbyint(value / ulp) * ulp;
}

uint32_t as_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

}  // namespace

uint32_t encode(double value, stepopsd::Dtype dtype) {
  if (dtype == stepopsd::Dtype::f32) return as_bits(static_cast<float>(value));
  if (dtype == stepopsd::Dtype::bf16) return as_bits(static_cast<float>(rounded(value, 7, -126))) >> 16;
  const uint32_t sign = std::signbit(value) ? 0x8000u : 0u;
  const double magnitude = std::fabs(rounded(value, 10, -14));
  if (std::isnan(value)) return 0x7e00u;
  if (magnitude >= 65520) return sign | 0x7c00u;
  if (magnitude < 0x1p-14) return sign | static_cast<uint32_t>(magnitude * 0x1p24);
  const int exponent = std::ilogb(magnitude);
  return sign | static_cast<uint32_t>((exponent + 14) * 1024 + std::ldexp(magnitude, 10 - exponent));
}

double decode(uint32_t bits, stepopsd::Dtype dtype) {
  if (dtype != stepopsd::Dtype::f16) {
    const uint32_t whole = dtype == stepopsd::Dtype::bf16 ? bits << 16 : bits;
    float value;
    std::memcpy(&value, &whole, sizeof value);
    return value;
  }
  const int exponent = static_cast<int>(bits >> 10 & 31), mantissa = static_cast<int>(bits & 1023);
  const double magnitude = exponent == 31 ? (mantissa != 0 ? kNan : kInf)
                           : exponent == 0 ? std::ldexp(mantissa, -24)
                                           : std::ldexp(1024 + mantissa, exponent - 25);
  return bits & 0x8000u ? -magnitude : magnitude;
}

}  // namespace check

int main(int count, char** words) {
  std::vector<Case> cases = score_cases();
  for (const auto& more : {shape_cases(), gradient_cases(), loss_cases()}) cases.insert(cases.end(), more.begin(), more.end());
  const std::vector<std::string> wanted(words + 1, words + count);
  int found = 0;
  for (const Case& each : cases) {
    if (!wanted.empty() && std::find(wanted.begin(), wanted.end(), each.name) == wanted.end()) continue;
    ++found;
    const int before = check::failures;
    each.run();
    std::printf("%s: %d failures\n", each.name, check::failures - before);
    std::fflush(stdout);
  }
  const bool all_known = wanted.empty() || found == static_cast<int>(wanted.size());
  return !all_known ? 2 : check::failures == 0 ? 0 : 1;
}
