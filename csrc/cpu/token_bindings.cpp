// The bindings of the kernels on (rows, width) token values: stepopsd/ops/native_tokens.py is the only caller.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "future_rows.h"
#include "oar_rows.h"

namespace py = pybind11;

namespace stepopsd {
namespace {

using Address = std::uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

void oar_rows(Address scores, Address mask, int64_t rows, int64_t width, double level, double beta, double floor,
              bool absolute, bool preserve, int64_t min_tokens, Address weights, int threads) {
  const py::gil_scoped_release no_gil;
  cpu::oar_rows({at<const float>(scores), at<const bool>(mask), rows, width, level, static_cast<float>(beta),
                 static_cast<float>(floor), absolute, preserve, min_tokens, at<float>(weights)},
                threads);
}

cpu::RatioClip clip(const std::array<double, 4>& x) {
  return {static_cast<float>(x[0]), static_cast<float>(x[1]), static_cast<float>(x[2]), static_cast<float>(x[3])};
}

// `tokens` are the addresses of log-probs, old log-probs, entropies or 0, and the mask; `numbers` are gamma, log clamp,
// the log-ratio above which a token is left out, and the least standard deviation; clips hold low, high and their logs.
void future_rows(const std::array<Address, 4>& tokens, int64_t rows, int64_t width, const std::array<double, 4>& numbers,
                 bool valid_decay, bool gate, const std::array<double, 4>& future_clip,
                 const std::array<double, 4>& branch_clip, Address future, Address scores, int threads) {
  const auto number = [&](int i) { return static_cast<float>(numbers[i]); };
  const py::gil_scoped_release no_gil;
  cpu::future_rows({at<const float>(tokens[0]), at<const float>(tokens[1]), at<const float>(tokens[2]),
                    at<const bool>(tokens[3]), rows, width, number(0), number(1), number(2), valid_decay, gate,
                    clip(future_clip), clip(branch_clip), numbers[3], at<float>(future), at<float>(scores)},
                   threads);
}

}  // namespace

void bind_tokens(py::module_& m) {
  m.def("oar_rows", &oar_rows);
  m.def("future_rows", &future_rows);
}

}  // namespace stepopsd
