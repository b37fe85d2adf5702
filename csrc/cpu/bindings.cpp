// The bindings of the CPU kernels: addresses as integers, strides in elements, no torch. stepopsd/ops/native.py is the
// only caller; shapes, dtypes and devices have been checked when it is called.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "kernels.h"
#include "read_probe.h"
#include "score_rows.h"
#include "shape_rows.h"
#include "step_segments.h"

namespace py = pybind11;

namespace stepopsd {
namespace {

using Address = std::uintptr_t;
using Strided = std::tuple<Address, int, int64_t, int64_t>;  // address, Dtype, batch stride, row stride

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

std::string bad_id(const cpu::ScoreProblem& problem, int64_t index) {
  const std::string place =
      "(" + std::to_string(index / problem.rows) + ", " + std::to_string(index % problem.rows) + ")";
  return "token_ids must lie in [0, " + std::to_string(problem.vocab) + "), got " +
         std::to_string(problem.ids[index]) + " at position " + place;
}

// `temperatures` is 0 or the address of one for each row.
void score_rows(const std::vector<Strided>& logits, Address ids, Address active, double temperature,
                Address temperatures, Address out, int64_t batch, int64_t rows, int64_t vocab, bool entropy,
                int threads) {
  const cpu::RowKernels& kernels = cpu::kernels_in_use();
  cpu::ScoreProblem problem{{},    at<const int64_t>(ids), at<const bool>(active),
                            temperature, at<const float>(temperatures), batch,
                            rows,  vocab, entropy,
                            at<float>(out)};
  for (const auto& [address, dtype, batch_stride, row_stride] : logits) {
    problem.logits.push_back({at<const void>(address), static_cast<Dtype>(dtype), batch_stride, row_stride});
  }
  const py::gil_scoped_release no_gil;
  const int64_t bad = cpu::first_bad_id(problem);
  if (bad >= 0) throw std::out_of_range(bad_id(problem, bad));
  cpu::score_rows(problem, kernels, threads);
}

// `segments` are the addresses of order, step starts, trajectory starts and counts, or all 0.
void shape_rows(const std::array<Address, 4>& tokens, int64_t count, const std::array<Address, 4>& segments,
                double alpha_clip, double lambda_mix, int weight_fn, int step_norm, Address planes,
                Address statistics) {
  const Shaping shaping{static_cast<float>(1.0 - alpha_clip), static_cast<float>(1.0 + alpha_clip),
                        static_cast<float>(lambda_mix), static_cast<WeightFn>(weight_fn)};
  const cpu::ShapeProblem problem{at<const float>(tokens[0]),
                                  at<const float>(tokens[1]),
                                  at<const float>(tokens[2]),
                                  at<const bool>(tokens[3]),
                                  count,
                                  at<const int64_t>(segments[0]),
                                  at<const int64_t>(segments[1]),
                                  at<const int64_t>(segments[2]),
                                  at<const int64_t>(segments[3]),
                                  shaping,
                                  alpha_clip,
                                  static_cast<StepNorm>(step_norm),
                                  at<float>(planes),
                                  at<double>(statistics)};
  const py::gil_scoped_release no_gil;
  cpu::shape_rows(problem);
}

void step_segments(Address step_ids, Address trajectory_ids, int64_t tokens, const std::array<Address, 4>& out) {
  const py::gil_scoped_release no_gil;
  cpu::step_segments(at<const int64_t>(step_ids), at<const int64_t>(trajectory_ids), tokens,
                     {at<int64_t>(out[0]), at<int64_t>(out[1]), at<int64_t>(out[2]), at<int64_t>(out[3])});
}

uint64_t read_probe(Address memory, int64_t bytes, int threads) {
  const cpu::RowKernels& kernels = cpu::kernels_in_use();
  const py::gil_scoped_release no_gil;
  return cpu::read_probe(at<const void>(memory), bytes, kernels, threads);
}

void powers(int dtype, Address x, Address out, int64_t count) {
  cpu::kernels_in_use().powers[dtype](at<const float>(x), at<float>(out), count);
}

}  // namespace

void bind_cpu(py::module_& m) {
  m.def("supported_isas", &cpu::supported_isas);
  m.def("isa", [] { return cpu::kernels_in_use().isa; });
  m.def("score_rows", &score_rows);
  m.def("shape_rows", &shape_rows);
  m.def("step_segments", &step_segments);
  m.def("read_probe", &read_probe);
  m.def("powers", &powers);
}

}  // namespace stepopsd
