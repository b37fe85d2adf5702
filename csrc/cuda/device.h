// The device that a launch works on.
#pragma once

#include <cuda_runtime.h>

namespace stepopsd::cuda {

// Makes a device the current one for a scope.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    status_ = cudaGetDevice(&before_);
    if (status_ == cudaSuccess && device != before_) {
      status_ = cudaSetDevice(device);
      changed_ = status_ == cudaSuccess;
    }
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

  cudaError_t status() const { return status_; }

 private:
  int before_ = 0;
  bool changed_ = false;
  cudaError_t status_;
};

// Whether thread-block clusters can be launched there: by the device, and by the code that it runs.
cudaError_t has_clusters(int device, bool& there);

}  // namespace stepopsd::cuda
