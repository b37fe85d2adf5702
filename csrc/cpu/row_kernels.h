// The table of kernels that a file of one instruction set gives away.
#pragma once

#include "gradient.h"
#include "read_loop.h"
#include "two_rows.h"

namespace stepopsd::cpu {
namespace {

template <class Simd, class T>
constexpr TwoRowsFn two_rows() {
  if constexpr (Simd::first == Mode::plain) return two_rows_stats<Simd, T>;
  else return nullptr;
}

template <class Simd>
constexpr RowKernels kernels_of(const char* isa) {
  return {isa,
          {row_stats<Simd, float, false>, row_stats<Simd, Half, false>, row_stats<Simd, Bfloat, false>},
          {row_stats<Simd, float, true>, row_stats<Simd, Half, true>, row_stats<Simd, Bfloat, true>},
          {two_rows<Simd, float>(), two_rows<Simd, Half>(), two_rows<Simd, Bfloat>()},
          {gradient_row<Simd, float>, gradient_row<Simd, Half>, gradient_row<Simd, Bfloat>},
          {scale_row<Simd, float>, scale_row<Simd, Half>, scale_row<Simd, Bfloat>},
          {put_element<Simd, float>, put_element<Simd, Half>, put_element<Simd, Bfloat>},
          {powers_of<Simd, true>, powers_of<Simd, false>, powers_of<Simd, false>},
          {read_all<Simd, 16, 256>, read_all<Simd, 16, 0>, read_all<Simd, 8, 768>, read_all<Simd, 4, 1024>,
           read_all<Simd, 1, 0>}};
}

}  // namespace
}  // namespace stepopsd::cpu
