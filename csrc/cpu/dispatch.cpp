// Run-time choice of the instruction set. Compiled without any of them, so that it runs everywhere.
#include <cstdlib>
#include <stdexcept>

#include "kernels.h"

namespace stepopsd::cpu {
namespace {

std::vector<const RowKernels*> find_runnable() {
  std::vector<const RowKernels*> found{&portable_kernels};
#if defined(STEPOPSD_X86)
  __builtin_cpu_init();  // also asks the operating system whether it saves the wide registers
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    found.push_back(&avx2_kernels);
  }
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    found.push_back(&avx512_kernels);
    if (__builtin_cpu_supports("avx512bf16")) found.push_back(&avx512bf16_kernels);
  }
#endif
  return found;
}

const std::vector<const RowKernels*>& runnable() {
  static const std::vector<const RowKernels*> found = find_runnable();
  return found;
}

}  // namespace

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const RowKernels* kernels : runnable()) names.emplace_back(kernels->isa);
  return names;
}

const RowKernels& kernels_in_use() {
  const char* asked = std::getenv("STEPOPSD_CPU_ISA");
  const std::string wanted = asked ? asked : "";
  if (wanted.empty()) return *runnable().back();
  std::string names;
  for (const RowKernels* kernels : runnable()) {
    if (wanted == kernels->isa) return *kernels;
    names += names.empty() ? kernels->isa : std::string(", ") + kernels->isa;
  }
  throw std::invalid_argument("STEPOPSD_CPU_ISA must be one of " + names + " on this machine, got '" + wanted + "'");
}

}  // namespace stepopsd::cpu
