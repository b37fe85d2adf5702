// The bindings of the CUDA kernels: addresses and streams as integers, strides in elements, no torch. A launch is
// queued and not waited for; one that cannot be queued raises RuntimeError. stepopsd/ops/cuda.py is the only caller.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "launch.h"

namespace py = pybind11;

#define STEPOPSD_LIST(...) {__VA_ARGS__}

namespace stepopsd {
namespace {

using Address = std::uintptr_t;
using Strided = std::tuple<Address, int, int64_t, int64_t>;  // address, Dtype, batch stride, row stride

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

cuda::Logits logits(const Strided& t) {
  return {at<const void>(std::get<0>(t)), static_cast<Dtype>(std::get<1>(t)), std::get<2>(t), std::get<3>(t)};
}

cuda::ScoreProblem score_problem(const std::vector<Strided>& tensors, Address ids, Address active, double temperature,
                                 Address temperatures, int64_t batch, int64_t rows, int64_t vocab, bool entropy,
                                 bool normaliser, Address out, int device, int merge) {
  if (tensors.empty() || tensors.size() > 2) throw std::invalid_argument("one or two logits tensors can be scored");
  cuda::ScoreProblem problem{};
  for (size_t i = 0; i < tensors.size(); ++i) problem.logits[i] = logits(tensors[i]);
  problem.tensors = static_cast<int>(tensors.size());
  problem.ids = at<const int64_t>(ids);
  problem.active = at<const bool>(active);
  problem.temperature = temperature;
  problem.temperatures = at<const float>(temperatures);
  problem.batch = batch;
  problem.rows = rows;
  problem.vocab = vocab;
  problem.entropy = entropy;
  problem.normaliser = normaliser;
  problem.out = at<float>(out);
  problem.device = device;
  problem.merge = static_cast<cuda::Merge>(merge);
  return problem;
}

cuda::Rows rows_at(const Strided& t) { return {at<void>(std::get<0>(t)), std::get<2>(t), std::get<3>(t)}; }

cuda::GradientProblem gradient_problem(const Strided& tensor, Address ids, Address active, Address normaliser,
                                       Address coefficients, double temperature, Address temperatures, int64_t batch,
                                       int64_t rows, int64_t vocab, const Strided& out, int device) {
  if (std::get<1>(tensor) != std::get<1>(out)) throw std::invalid_argument("logits and gradient differ in dtype");
  cuda::GradientProblem problem{};
  problem.logits = logits(tensor);
  problem.ids = at<const int64_t>(ids);
  problem.active = at<const bool>(active);
  problem.normaliser = at<const float>(normaliser);
  problem.coefficients = at<const float>(coefficients);
  problem.temperature = temperature;
  problem.temperatures = at<const float>(temperatures);
  problem.batch = batch;
  problem.rows = rows;
  problem.vocab = vocab;
  problem.out = rows_at(out);
  problem.device = device;
  return problem;
}

cuda::ScaleProblem scale_problem(const Strided& tensor, Address factor, int64_t batch, int64_t rows, int64_t vocab,
                                 int device) {
  return {rows_at(tensor), static_cast<Dtype>(std::get<1>(tensor)), at<const float>(factor), batch, rows, vocab,
          device};
}

using LossNumbers = std::array<float, 5>;  // low, high, dual_clip, kl_coef, entropy_coef of PolicyOptions

cuda::LossProblem loss_problem(const Strided& tensor, Address ids, Address active, const std::array<Address, 4>& tokens,
                               int objective, const LossNumbers& numbers, double temperature, Address temperatures,
                               int64_t batch, int64_t rows, int64_t vocab, const Strided& out, Address scores,
                               int device, int merge) {
  if (std::get<1>(tensor) != std::get<1>(out)) throw std::invalid_argument("logits and gradient differ in dtype");
  cuda::LossProblem problem{};
  problem.logits = logits(tensor);
  problem.ids = at<const int64_t>(ids);
  problem.active = at<const bool>(active);
  problem.old_logprobs = at<const float>(tokens[0]);
  problem.ref_logprobs = at<const float>(tokens[1]);
  problem.advantages = at<const float>(tokens[2]);
  problem.weights = at<const float>(tokens[3]);
  problem.options = {static_cast<Objective>(objective), numbers[0], numbers[1], numbers[2], numbers[3], numbers[4],
                     false};
  problem.temperature = temperature;
  problem.temperatures = at<const float>(temperatures);
  problem.batch = batch;
  problem.rows = rows;
  problem.vocab = vocab;
  problem.out = rows_at(out);
  problem.scores = at<float>(scores);
  problem.device = device;
  problem.merge = static_cast<cuda::Merge>(merge);
  return problem;
}

cuda::ShapeProblem shape_problem(Address student, Address teacher, Address advantages, Address active, int64_t tokens,
                                 const std::array<Address, 4>& segments, double alpha_clip, double lambda_mix,
                                 int weight_fn, int step_norm, Address planes, Address statistics, int device) {
  cuda::ShapeProblem problem{};
  problem.student_logprobs = at<const float>(student);
  problem.teacher_logprobs = at<const float>(teacher);
  problem.advantages = at<const float>(advantages);
  problem.active = at<const bool>(active);
  problem.tokens = tokens;
  problem.order = at<const int64_t>(segments[0]);
  problem.step_starts = at<const int64_t>(segments[1]);
  problem.trajectory_starts = at<const int64_t>(segments[2]);
  problem.counts = at<const int64_t>(segments[3]);
  problem.alpha_clip = alpha_clip;
  problem.lambda_mix = lambda_mix;
  problem.weight_fn = static_cast<WeightFn>(weight_fn);
  problem.step_norm = static_cast<cuda::StepNorm>(step_norm);
  problem.planes = at<float>(planes);
  problem.statistics = at<double>(statistics);
  problem.device = device;
  return problem;
}

size_t workspace(const cuda::ScoreProblem& problem) { return cuda::score_workspace(problem); }
size_t workspace(const cuda::ShapeProblem& problem) { return cuda::shape_workspace(problem.tokens); }
size_t workspace(const cuda::LossProblem& problem) { return cuda::loss_workspace(problem); }
int launch(const cuda::ScoreProblem& problem, void* stream) { return cuda::launch_score(problem, stream); }
int launch(const cuda::ShapeProblem& problem, void* stream) { return cuda::launch_shape(problem, stream); }
int launch(const cuda::LossProblem& problem, void* stream) { return cuda::launch_loss(problem, stream); }
int launch(const cuda::GradientProblem& problem, void* stream) { return cuda::launch_gradient(problem, stream); }
int launch(const cuda::ScaleProblem& problem, void* stream) { return cuda::launch_scale(problem, stream); }

template <class Problem>
void launch_on(const Problem& problem, Address stream) {
  const int error = launch(problem, at<void>(stream));
  if (error) throw std::runtime_error(std::string("the launch failed: ") + cuda::error_text(error));
}

// `workspace` is the number of bytes that `launch` needs in the memory it is given.
template <class Problem, class Make>
void bind_launch(py::module_& m, const char* name, Make make) {
  py::class_<Problem>(m, name, py::module_local())
      .def(py::init(make))
      .def_property_readonly("workspace", [](const Problem& problem) { return workspace(problem); })
      .def("launch", [](Problem problem, Address memory, Address stream) {
        const py::gil_scoped_release no_gil;
        problem.workspace = at<void>(memory);
        launch_on(problem, stream);
      });
}

// A launch that needs no memory.
template <class Problem, class Make>
void bind_small_launch(py::module_& m, const char* name, Make make) {
  py::class_<Problem>(m, name, py::module_local()).def(py::init(make)).def("launch", [](const Problem& problem,
                                                                                        Address stream) {
    const py::gil_scoped_release no_gil;
    launch_on(problem, stream);
  });
}

std::string version(int number) { return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10); }

// Why the kernels cannot run on a device; empty when they can.
std::string obstacle(int device) {
  const py::gil_scoped_release no_gil;
  int driver = 0, devices = 0, major = 0, minor = 0;
  if (cudaDriverGetVersion(&driver) || driver == 0) return "there is no NVIDIA driver";
  const int error = cudaGetDeviceCount(&devices);
  if (error == cudaErrorInsufficientDriver) {
    return "the NVIDIA driver is too old: it runs CUDA " + version(driver) + ", the kernels were built with CUDA " +
           version(CUDART_VERSION);
  }
  if (error) return cuda::error_text(error);
  if (device < 0 || device >= devices) return "there is no CUDA device " + std::to_string(device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  const std::string found = std::to_string(major) + "." + std::to_string(minor);
  if (major < 8) return "the device has compute capability " + found + ", the kernels need 8.0";
  if (const int missing = cuda::check_device(device)) {
    return std::string(cuda::error_text(missing)) + " (of compute capability " + found + ")";
  }
  return "";
}

}  // namespace

void bind_cuda(py::module_& m) {
  m.attr("cuda_archs") = std::vector<int> STEPOPSD_LIST(__CUDA_ARCH_LIST__);
  m.attr("cuda_version") = version(CUDART_VERSION);
  m.def("cuda_obstacle", &obstacle);
  bind_launch<cuda::ScoreProblem>(m, "CudaScore", &score_problem);
  bind_launch<cuda::ShapeProblem>(m, "CudaShape", &shape_problem);
  bind_launch<cuda::LossProblem>(m, "CudaLoss", &loss_problem);
  bind_small_launch<cuda::GradientProblem>(m, "CudaGradient", &gradient_problem);
  bind_small_launch<cuda::ScaleProblem>(m, "CudaScale", &scale_problem);
}

}  // namespace stepopsd
