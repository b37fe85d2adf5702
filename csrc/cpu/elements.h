// The three element types of logits, and one element as a float.
//
// Included for several instruction sets, so everything here has internal linkage (see common.h).
#pragma once

#include <cstdint>
#include <cstring>

#include "../include/common.h"

namespace stepopsd::cpu {
namespace {

struct Half { uint16_t bits; };
struct Bfloat { uint16_t bits; };

constexpr Half minus_infinity(Half) { return {0xfc00}; }
constexpr Bfloat minus_infinity(Bfloat) { return {0xff80}; }
constexpr float minus_infinity(float) { return -__builtin_inff(); }

[[maybe_unused]] float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

[[maybe_unused]] float half_to_float(uint16_t half) {
  const uint32_t magnitude = static_cast<uint32_t>(half & 0x7fffu) << 13, sign = (half & 0x8000u) << 16;
  const float absolute =
      magnitude >= 0x0f800000u ? from_bits(magnitude | 0x7f800000u) : from_bits(magnitude) * 0x1p112f;
  return sign ? -absolute : absolute;
}

[[maybe_unused]] float element(const void* row, Dtype dtype, int64_t i) {
  if (dtype == Dtype::f32) return static_cast<const float*>(row)[i];
  const uint16_t bits = static_cast<const uint16_t*>(row)[i];
  return dtype == Dtype::f16 ? half_to_float(bits) : from_bits(static_cast<uint32_t>(bits) << 16);
}

}  // namespace
}  // namespace stepopsd::cpu
