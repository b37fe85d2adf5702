// The bindings: addresses as integers, strides in elements, no torch. stepopsd/ops/native.py is the only caller and
// has checked shapes, dtypes and devices.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/kernels.h"
#include "cpu/pair_rows.h"

namespace py = pybind11;
using namespace stepopsd;

#if defined(STEPOPSD_WITH_CUDA)
namespace stepopsd {
void bind_cuda(py::module_& m);  // csrc/cuda/bindings.cpp
}
#endif

namespace {

template <class T>
T* at(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

Shaping shaping(double alpha_clip, double lambda_mix, int weight_fn) {
  return {static_cast<float>(1.0 - alpha_clip), static_cast<float>(1.0 + alpha_clip),
          static_cast<float>(lambda_mix), static_cast<WeightFn>(weight_fn)};
}

using Address = std::uintptr_t;
using Strided = std::tuple<Address, int, int64_t, int64_t>;  // address, Dtype, batch stride, row stride

cpu::Logits logits(const Strided& t) {
  return {at<const void>(std::get<0>(t)), static_cast<Dtype>(std::get<1>(t)), std::get<2>(t), std::get<3>(t)};
}

// Returns the flat index of the first bad id, before any logit is read, or -1 when the work is done.
int64_t pair_rows(const Strided& student, const Strided& teacher, Address token_ids, Address advantages,
                  Address active, Address out, int64_t batch, int64_t rows, int64_t vocab, double alpha_clip,
                  double lambda_mix, int weight_fn, double temperature, bool entropy, const std::string& isa,
                  int threads) {
  const cpu::PairProblem problem{logits(student), logits(teacher), at<const int64_t>(token_ids),
                                 at<const float>(advantages), at<const bool>(active), batch, rows, vocab,
                                 temperature, shaping(alpha_clip, lambda_mix, weight_fn), entropy,
                                 at<float>(out)};
  const cpu::RowKernels& kernels = cpu::kernels_for(isa);
  const py::gil_scoped_release no_gil;
  const int64_t bad = cpu::first_bad_id(problem);
  if (bad < 0) cpu::pair_rows(problem, kernels, threads);
  return bad;
}

void epilogue_rows(Address student, Address teacher, Address advantages, Address active, Address out,
                   int64_t count, double alpha_clip, double lambda_mix, int weight_fn) {
  const py::gil_scoped_release no_gil;
  cpu::epilogue_rows(at<const float>(student), at<const float>(teacher), at<const float>(advantages),
                     at<const bool>(active), count, shaping(alpha_clip, lambda_mix, weight_fn), at<float>(out));
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Native kernels of stepopsd. Call them through stepopsd.ops.native.";
  m.def("supported_isas", &cpu::supported_isas);
  m.def("pair_rows", &pair_rows);
  m.def("epilogue_rows", &epilogue_rows);
#if defined(STEPOPSD_WITH_CUDA)
  bind_cuda(m);
#endif
}
