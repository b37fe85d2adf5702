// Run-time choice of the instruction set. Compiled without any of them, so that it runs everywhere.
#include <stdexcept>

#include "kernels.h"

namespace stepopsd::cpu {
namespace {

std::vector<const RowKernels*> runnable() {
  std::vector<const RowKernels*> found{&portable_kernels};
#if defined(STEPOPSD_X86)
  __builtin_cpu_init();  // also asks the operating system whether it saves the wide registers
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    found.push_back(&avx2_kernels);
  }
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    found.push_back(&avx512_kernels);
  }
#endif
  return found;
}

}  // namespace

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const RowKernels* kernels : runnable()) names.emplace_back(kernels->isa);
  return names;
}

const RowKernels& kernels_for(const std::string& isa) {
  static const std::vector<const RowKernels*> found = runnable();
  for (const RowKernels* kernels : found) {
    if (isa == kernels->isa) return *kernels;
  }
  throw std::invalid_argument("this machine cannot run the instruction set '" + isa + "'");
}

}  // namespace stepopsd::cpu
