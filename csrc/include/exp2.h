// Constants of 2^y in fp32. y is rounded to a multiple of 1/entries, y = n + i / entries + r; then
//   2^y = table[i] * 2^n' * polynomial(r + shift), n' whole.
// The shift is the multiple of 1/entries that completes the square (or the cube): the polynomial loses a term, and the
// subtraction that leaves r leaves r + shift as well. Its leading coefficient is part of the table, and so is the power
// of two by which n' differs from n. Each instruction set supplies the range reduction.
//
// Largest relative error of the polynomial, and of 2^y for y in [-120, 64] with every rounding and the table's:
//   quadratic  6.8e-7   8.9e-7   16-bit logits on avx512
//   cubic      2.2e-9   2.2e-7   float logits on avx512
//   cubic_8    1.4e-7   3.4e-7   avx2
//   quintic    8.3e-8   2.2e-7   portable
#pragma once

namespace stepopsd::pow2 {

// (t^2 + c0) with t = r + 23/16, r in [-1/32, 1/32]; n' = floor(y - r - 23/16).
namespace quadratic {
constexpr float shift = 1.4375f;
constexpr float c0 = 0x1.0a5f5p+1f;
alignas(64) constexpr float table[16] = {
    0x1.edcc68p-1f, 0x1.01d494p+0f, 0x1.0d3edap+0f, 0x1.192a82p+0f, 0x1.259d44p+0f, 0x1.329d1ep+0f,
    0x1.40304ep+0f, 0x1.4e5d5ap-1f, 0x1.5d2b12p-1f, 0x1.6ca092p-1f, 0x1.7cc54ap-1f, 0x1.8da0fap-1f,
    0x1.9f3bbcp-1f, 0x1.b19e08p-1f, 0x1.c4d0bp-1f, 0x1.d8dceep-1f,
};
}  // namespace quadratic

// ((t^2 + c1) t + c0) with t = r + 23/16, r in [-1/32, 1/32]; n' = floor(y - r - 23/16).
namespace cubic {
constexpr float shift = 1.4375f;
constexpr float c0 = 0x1.805b1ep+2f, c1 = 0x1.8f947ep+2f;
alignas(64) constexpr float table[16] = {
    0x1.c85ab6p-3f, 0x1.dc8f14p-3f, 0x1.f1a87p-3f, 0x1.03d878p-2f, 0x1.0f5994p-2f, 0x1.1b5d16p-2f,
    0x1.27e8cp-2f, 0x1.35029cp-3f, 0x1.42b0f6p-3f, 0x1.50fa6p-3f, 0x1.5fe5b6p-3f, 0x1.6f7a26p-3f,
    0x1.7fbf2ap-3f, 0x1.90bc96p-3f, 0x1.a27a92p-3f, 0x1.b501a4p-3f,
};
}  // namespace cubic

// ((t^2 + c1) t + c0) with t = r + 12/8, r in [-1/16, 1/16]; n' = n.
namespace cubic_8 {
constexpr float shift = 1.5f;
constexpr float c0 = 0x1.8060aap+2f, c1 = 0x1.8ed908p+2f;
alignas(32) constexpr float table[8] = {
    0x1.b56624p-5f, 0x1.dcfcacp-5f, 0x1.04143ap-4f, 0x1.1b9e4p-4f, 0x1.3549aep-4f, 0x1.5147dep-4f,
    0x1.6fcea8p-4f, 0x1.9118bep-4f,
};
}  // namespace cubic_8

// No table: (((((c5 r + c4) r + c3) r + c2) r + c1) r + 1) with r in [0, 1].
namespace quintic {
constexpr float c1 = 0x1.62e4bap-1f, c2 = 0x1.ebdb56p-3f, c3 = 0x1.c91ce6p-5f, c4 = 0x1.277856p-7f,
                c5 = 0x1.e974fap-10f;
}  // namespace quintic

}  // namespace stepopsd::pow2
