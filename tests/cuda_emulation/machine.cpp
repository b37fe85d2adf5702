#include "machine.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

namespace emulation {
namespace {

constexpr unsigned kTeamThreads = 32;  // aim for so many threads in all, with at least one team

// Threads that sleep between launches.
class Pool {
 public:
  void run(unsigned count, const std::function<void(unsigned)>& body) {
    std::unique_lock<std::mutex> lock(mutex_);
    while (size_ < count) {
      std::thread([this, index = size_, seen = job_] { serve(index, seen); }).detach();
      ++size_;
    }
    body_ = &body;
    wanted_ = pending_ = count;
    ++job_;
    start_.notify_all();
    done_.wait(lock, [this] { return pending_ == 0; });
  }

 private:
  void serve(unsigned index, unsigned seen) {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      start_.wait(lock, [&] { return job_ != seen; });
      seen = job_;
      if (index >= wanted_) continue;
      const auto* body = body_;
      lock.unlock();
      (*body)(index);
      lock.lock();
      if (--pending_ == 0) done_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable start_, done_;
  const std::function<void(unsigned)>* body_ = nullptr;
  unsigned size_ = 0, wanted_ = 0, pending_ = 0, job_ = 0;
};

// The threads that run one cluster (or one block) after another.
struct Team {
  explicit Team(unsigned threads) : barrier(threads) {}
  Barrier barrier;
  std::unique_ptr<Cluster> cluster;
};

// Runs every `teams`-th cluster from `first` on: which team has which follows from the launch alone.
void run_member(const Launch& launch, Team& team, unsigned first, unsigned teams, unsigned member,
                const std::function<void()>& body) {
  const unsigned threads = launch.block.x, per_row = launch.grid.x / launch.cluster;
  unsigned rounds = 0;
  const auto meet = [&] {
    team.barrier.arrive(std::memory_order_acq_rel);
    team.barrier.wait(++rounds);
  };
  for (unsigned index = first; index < per_row * launch.grid.y; index += teams) {
    if (member == 0) team.cluster = std::make_unique<Cluster>(launch.cluster, threads, launch.dynamic_shared);
    meet();
    self = Thread{};
    threadIdx = Dim3(member % threads, 0, 0);
    blockIdx = Dim3(index % per_row * launch.cluster + member / threads, index / per_row, 0);
    gridDim = launch.grid;
    self.home = team.cluster->blocks[member / threads].get();
    self.warp = self.home->warps[member % threads / kWarp].get();
    self.lane = static_cast<int>(member % threads % kWarp);
    body();
    meet();
  }
}

}  // namespace

// The system call itself, since atomic::wait brings counters of its own, which would order what must stay unordered.
void Barrier::arrive(std::memory_order order) {
  if ((arrived_.fetch_add(1, order) + 1) % members_ != 0) return;
  syscall(SYS_futex, &arrived_, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

void Barrier::wait(unsigned phase) {
  for (unsigned now; (now = arrived_.load(std::memory_order_acquire)) < phase * members_;) {
    syscall(SYS_futex, &arrived_, FUTEX_WAIT_PRIVATE, now, nullptr, nullptr, 0);
  }
}

Block::Block(int threads) : barrier(static_cast<unsigned>(threads)) {
  for (int w = 0; w < threads / kWarp; ++w) warps.push_back(std::make_unique<Warp>());
}

Cluster::Cluster(int count, int threads, size_t dynamic_shared_)
    : dynamic_shared(dynamic_shared_), barrier(static_cast<unsigned>(count * threads)) {
  for (int b = 0; b < count; ++b) {
    blocks.push_back(std::make_unique<Block>(threads));
    blocks.back()->cluster = this;
  }
}

void run(const Launch& launch, const std::function<void()>& body) {
  if (launch.block.x % kWarp != 0 || launch.grid.x % launch.cluster != 0) fail("a launch that no GPU would take");
  static Pool& pool = *new Pool;  // never destroyed: its threads sleep until the process ends
  const unsigned size = launch.block.x * launch.cluster;
  const unsigned count = size >= kTeamThreads ? 1 : kTeamThreads / size;
  std::vector<std::unique_ptr<Team>> teams;
  for (unsigned t = 0; t < count; ++t) teams.push_back(std::make_unique<Team>(size));
  Barrier gate(size * count);
  pool.run(size * count, [&](unsigned i) {
    // All have woken before one begins: who woke late would else have seen what the early ones did.
    gate.arrive(std::memory_order_relaxed);
    gate.wait(1);
    run_member(launch, *teams[i / size], i / size, count, i % size, body);
  });
}

void sync_block() {
  self.home->barrier.arrive(std::memory_order_acq_rel);
  self.home->barrier.wait(++self.syncs);
}

void cluster_arrive(std::memory_order order) {
  if (self.cluster_arrivals != self.cluster_waits) fail("a second arrival without a wait");
  ++self.cluster_arrivals;
  self.home->cluster->barrier.arrive(order);
}

void cluster_wait() {
  if (self.cluster_arrivals != self.cluster_waits + 1) fail("a wait without an arrival");
  self.home->cluster->barrier.wait(++self.cluster_waits);
}

uint64_t exchange(uint64_t value, int from_lane) {
  uint64_t* slots = self.warp->slots[self.shuffles % 2];
  slots[self.lane] = value;
  self.warp->barrier.arrive(std::memory_order_acq_rel);
  self.warp->barrier.wait(++self.shuffles);
  return slots[from_lane];
}

char* shared_of(Block& block, size_t bytes) {
  std::call_once(block.shared_made, [&] {
    block.shared = std::unique_ptr<char[]>(new char[bytes]);
    block.shared_bytes = bytes;
    std::memset(block.shared.get(), 0xff, bytes);
  });
  if (block.shared_bytes != bytes) fail("one block, two kinds of shared memory");
  return block.shared.get();
}

void* block_shared(size_t bytes) { return shared_of(*self.home, bytes); }

void* in_block(void* shared, unsigned block) {
  // Before the cluster has met, the other block may not have begun, and on a GPU its memory may be another's.
  if (self.cluster_waits == 0) fail("another block's shared memory before the cluster has met");
  Block& home = *self.home;
  return shared_of(*home.cluster->blocks[block], home.shared_bytes) + (static_cast<char*>(shared) - home.shared.get());
}

unsigned atomic_add(unsigned* target, unsigned value) {
  auto* atomic = reinterpret_cast<std::atomic<unsigned>*>(target);
  const auto order = self.fence_pending ? std::memory_order_release : std::memory_order_relaxed;
  self.fence_pending = false;
  self.last_atomic = atomic;
  return atomic->fetch_add(value, order);
}

void thread_fence() {
  // What a fence means beside an atomic: release for the next one, acquire for the last one.
  self.fence_pending = true;
  if (self.last_atomic != nullptr) self.last_atomic->load(std::memory_order_acquire);
}

void fail(const char* what) {
  std::fprintf(stderr, "emulation: %s\n", what);
  std::_Exit(3);
}

}  // namespace emulation
