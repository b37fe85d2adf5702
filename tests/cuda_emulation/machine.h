// A GPU of OS threads: one for each CUDA thread, so that a sanitizer sees every access and what orders it.
//
// Blocks run on teams of persistent threads; several teams run at once, and nothing but the kernel's own operations
// orders blocks of different teams. A block's shared memory is a heap block of exactly its size, filled with NaN.
// Within a warp a shuffle orders more here than on a GPU, where it synchronises the lanes but not their memory.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

namespace emulation {

constexpr int kWarp = 4;

struct Dim3 {
  unsigned x, y, z;
  constexpr Dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// A barrier in two halves. Arrivals with release order what came before them for everyone who waits.
class Barrier {
 public:
  explicit Barrier(unsigned members) : members_(members) {}
  void arrive(std::memory_order order);
  void wait(unsigned phase);  // for the end of the phase-th round, counted from 1

 private:
  const unsigned members_;
  std::atomic<unsigned> arrived_{0};
};

struct Warp {
  Barrier barrier{kWarp};
  uint64_t slots[2][kWarp];  // used in turn, so that one barrier for each shuffle is enough
};

struct Cluster;

struct Block {
  explicit Block(int threads);
  Barrier barrier;
  std::vector<std::unique_ptr<Warp>> warps;
  std::once_flag shared_made;
  std::unique_ptr<char[]> shared;
  size_t shared_bytes = 0;
  Cluster* cluster = nullptr;
};

struct Cluster {
  Cluster(int blocks, int threads, size_t dynamic_shared);
  const size_t dynamic_shared;  // bytes for each block
  Barrier barrier;
  std::vector<std::unique_ptr<Block>> blocks;
};

// What one emulated thread is, and how far it has come.
struct Thread {
  Block* home = nullptr;
  Warp* warp = nullptr;
  int lane = 0;
  unsigned syncs = 0, shuffles = 0, cluster_arrivals = 0, cluster_waits = 0;
  bool fence_pending = false;             // a __threadfence since the last atomic
  std::atomic<unsigned>* last_atomic = nullptr;
};

inline thread_local Thread self;

struct Launch {
  Dim3 grid, block;
  unsigned cluster = 1;  // blocks along x
  size_t dynamic_shared = 0;
};

// Runs the body once for every thread of the grid and returns when all are done.
void run(const Launch& launch, const std::function<void()>& body);

void sync_block();
void cluster_arrive(std::memory_order order);
void cluster_wait();
uint64_t exchange(uint64_t value, int from_lane);
void* block_shared(size_t bytes);
void* in_block(void* shared, unsigned block);
unsigned atomic_add(unsigned* target, unsigned value);
void thread_fence();

[[noreturn]] void fail(const char* what);

}  // namespace emulation

inline thread_local emulation::Dim3 threadIdx, blockIdx, gridDim;
