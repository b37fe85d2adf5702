#include "thread_pool.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

namespace stepopsd::cpu {
namespace {

// One call of parallel_for.
struct Job {
  const std::function<void(int64_t, int64_t)>& body;
  const int64_t count, grain;
  const int threads;
  std::atomic<int64_t> next{0};

  // Large ranges first: memory is read faster in order. Small ones at the end, for the threads to end together.
  void work() {
    for (int64_t begin = next.load(std::memory_order_relaxed); begin < count;) {
      const int64_t size = std::max(grain, (count - begin) / (2 * threads));
      const int64_t end = std::min(begin + size, count);
      if (!next.compare_exchange_weak(begin, end, std::memory_order_relaxed)) continue;
      body(begin, end);
      begin = next.load(std::memory_order_relaxed);
    }
  }
};

class Pool {
 public:
  explicit Pool(pid_t owner) : owner_(owner) {}

  pid_t owner() const { return owner_; }

  void run(Job& job, int helpers) {
    const std::unique_lock<std::mutex> one_job(busy_, std::try_to_lock);
    if (!one_job.owns_lock()) return job.work();  // another thread is inside: work alone rather than wait
    grow(helpers);
    {
      const std::lock_guard<std::mutex> lock(state_);
      job_ = &job;
      wanted_ = helpers;
      ++number_;
    }
    start_.notify_all();
    job.work();
    std::unique_lock<std::mutex> lock(state_);
    job_ = nullptr;  // a helper that wakes up only now finds nothing to do, and nobody waits for it
    done_.wait(lock, [this] { return inside_ == 0; });
  }

 private:
  void grow(int helpers) {
    for (; size_ < helpers; ++size_) {
      try {
        std::thread([this, index = size_] { serve(index); }).detach();
      } catch (const std::system_error&) {
        return;  // the system gives no more threads: fewer of them give the same bits
      }
    }
  }

  void serve(int index) {
    std::unique_lock<std::mutex> lock(state_);
    for (uint64_t seen = 0;;) {
      start_.wait(lock, [&] { return number_ != seen; });
      seen = number_;
      if (job_ == nullptr || index >= wanted_) continue;
      Job& job = *job_;
      ++inside_;
      lock.unlock();
      job.work();
      lock.lock();
      if (--inside_ == 0) done_.notify_one();
    }
  }

  const pid_t owner_;
  std::mutex busy_;  // one job at a time; also guards size_
  int size_ = 0;
  std::mutex state_;  // everything below
  std::condition_variable start_, done_;
  Job* job_ = nullptr;
  uint64_t number_ = 0;
  int wanted_ = 0, inside_ = 0;
};

// Never destroyed, its threads never joined: they sleep until the process ends. A forked child inherits the object but
// none of its threads, so it gets a new one.
Pool& pool() {
  static std::atomic<Pool*> current{nullptr};
  Pool* mine = current.load();
  while (mine == nullptr || mine->owner() != getpid()) {
    Pool* fresh = new Pool(getpid());
    if (current.compare_exchange_strong(mine, fresh)) return *fresh;
    delete fresh;
  }
  return *mine;
}

}  // namespace

void parallel_for(int64_t count, int64_t grain, int threads, const std::function<void(int64_t, int64_t)>& body) {
  const int64_t ranges = (count + grain - 1) / grain;
  if (threads > ranges) threads = static_cast<int>(ranges);
  if (threads <= 1) {
    if (count > 0) body(0, count);
    return;
  }
  Job job{body, count, grain, threads};
  pool().run(job, threads - 1);
}

}  // namespace stepopsd::cpu
