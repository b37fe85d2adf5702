// The CUDA half of the native module, on the emulated GPU.
#include <pybind11/pybind11.h>

namespace stepopsd {
void bind_cuda(pybind11::module_& m);
}

PYBIND11_MODULE(_emulated, m) { stepopsd::bind_cuda(m); }
