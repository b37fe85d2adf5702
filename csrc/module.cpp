// The native module of stepopsd. Each folder of kernels binds its own.
#include <pybind11/pybind11.h>

namespace stepopsd {

void bind_cpu(pybind11::module_& m);
void bind_tokens(pybind11::module_& m);
void bind_cuda(pybind11::module_& m);

}  // namespace stepopsd

PYBIND11_MODULE(_native, m) {
  m.doc() = "Native kernels of stepopsd. Call them through stepopsd.ops.native and stepopsd.ops.cuda.";
  stepopsd::bind_cpu(m);
  stepopsd::bind_tokens(m);
#if defined(STEPOPSD_WITH_CUDA)
  stepopsd::bind_cuda(m);
#endif
}
