// 2^f on [0, 1] as a polynomial; each instruction set supplies the range reduction around it.
//
// Minimax in the relative error with c0 fixed to 1, so that 2^0 is exactly 1. The polynomial alone is within 8.3e-8;
// 2^x evaluated in fp32 is within 2.2e-7 on every instruction set (every seventh float in [-126, 16] was tried).
#pragma once

namespace stepopsd::exp2_poly {

constexpr float c0 = 1.0f;
constexpr float c1 = 0x1.62e4bap-1f;
constexpr float c2 = 0x1.ebdb56p-3f;
constexpr float c3 = 0x1.c91ce6p-5f;
constexpr float c4 = 0x1.277856p-7f;
constexpr float c5 = 0x1.e974fap-10f;

}  // namespace stepopsd::exp2_poly
