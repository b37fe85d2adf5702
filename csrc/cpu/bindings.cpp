// The bindings of the CPU kernels: addresses as integers, strides in elements, no torch. stepopsd/ops/native.py is the
// only caller; shapes, dtypes and devices have been checked when it is called.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "gradient_rows.h"
#include "kernels.h"
#include "loss_rows.h"
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

cpu::Strided at(const Strided& x) {
  const auto& [address, dtype, batch_stride, row_stride] = x;
  return {at<void>(address), static_cast<Dtype>(dtype), batch_stride, row_stride};
}

// (ids, active, temperature, temperatures, batch, rows, vocab); `temperatures` is 0 or the address of one for each row.
using Rows = std::tuple<Address, Address, double, Address, int64_t, int64_t, int64_t>;

// Throws where an active row's id is invalid, before anything is read or written.
cpu::RowSet checked(const Rows& x) {
  const auto& [ids, active, temperature, temperatures, batch, rows, vocab] = x;
  const cpu::RowSet set{at<const int64_t>(ids), at<const bool>(active), temperature, at<const float>(temperatures),
                        batch, rows, vocab};
  const int64_t bad = set.first_bad_id();
  if (bad < 0) return set;
  const std::string place = "(" + std::to_string(bad / rows) + ", " + std::to_string(bad % rows) + ")";
  throw std::out_of_range("token_ids must lie in [0, " + std::to_string(vocab) + "), got " +
                          std::to_string(set.ids[bad]) + " at position " + place);
}

void score_rows(const std::vector<Strided>& logits, const Rows& rows, bool entropy, bool normaliser, Address out,
                int threads) {
  const cpu::RowKernels& kernels = cpu::kernels_in_use();
  const py::gil_scoped_release no_gil;
  cpu::ScoreProblem problem{{}, checked(rows), entropy, normaliser, at<float>(out)};
  for (const Strided& x : logits) problem.logits.push_back(at(x));
  cpu::score_rows(problem, kernels, threads);
}

void gradient_rows(const Strided& logits, const Strided& out, const Rows& rows, Address normaliser,
                   Address coefficients, int threads) {
  const cpu::RowKernels& kernels = cpu::kernels_in_use();
  const py::gil_scoped_release no_gil;
  cpu::gradient_rows({at(logits), at(out), checked(rows), at<const float>(normaliser), at<const float>(coefficients)},
                     kernels, threads);
}

void scale_rows(const Strided& data, int64_t batch, int64_t rows, int64_t vocab, double factor, int threads) {
  const cpu::RowKernels& kernels = cpu::kernels_in_use();
  const py::gil_scoped_release no_gil;
  cpu::scale_rows(at(data), batch, rows, vocab, static_cast<float>(factor), kernels, threads);
}

// `tokens` are the addresses of old log-probs or 0, reference log-probs or 0, advantages, weights; `numbers` are 1 -
// clip_low, 1 + clip_high, dual_clip, kl_coef, entropy_coef.
void loss_rows(const Strided& logits, const Strided& out, const Rows& rows, const std::array<Address, 4>& tokens,
               int objective, const std::array<double, 5>& numbers, Address scores, int threads) {
  const cpu::RowKernels& kernels = cpu::kernels_in_use();
  const auto number = [&](int i) { return static_cast<float>(numbers[i]); };
  const PolicyOptions options{static_cast<Objective>(objective), number(0), number(1), number(2), number(3),
                              number(4), tokens[1] != 0};
  const py::gil_scoped_release no_gil;
  cpu::loss_rows({at(logits), at(out), checked(rows), at<const float>(tokens[0]), at<const float>(tokens[1]),
                  at<const float>(tokens[2]), at<const float>(tokens[3]), options, at<float>(scores)},
                 kernels, threads);
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

uint64_t read_probe(Address memory, int64_t bytes, int loop, int threads) {
  const cpu::ReadFn read = cpu::kernels_in_use().read[loop];
  const py::gil_scoped_release no_gil;
  return cpu::read_probe(at<const void>(memory), bytes, read, threads);
}

void powers(int dtype, Address x, Address out, int64_t count) {
  cpu::kernels_in_use().powers[dtype](at<const float>(x), at<float>(out), count);
}

}  // namespace

void bind_cpu(py::module_& m) {
  m.def("supported_isas", &cpu::supported_isas);
  m.def("isa", [] { return cpu::kernels_in_use().isa; });
  m.def("score_rows", &score_rows);
  m.def("gradient_rows", &gradient_rows);
  m.def("scale_rows", &scale_rows);
  m.def("loss_rows", &loss_rows);
  m.def("shape_rows", &shape_rows);
  m.def("step_segments", &step_segments);
  m.def("read_loops", [] {
    return std::vector<std::string>(cpu::kReadLoopNames, cpu::kReadLoopNames + cpu::kReadLoops);
  });
  m.def("read_probe", &read_probe);
  m.def("powers", &powers);
}

}  // namespace stepopsd
