#include "thread_pool.h"

#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

namespace stepopsd::cpu {
namespace {

class Pool {
 public:
  explicit Pool(pid_t owner) : owner_(owner) {}

  pid_t owner() const { return owner_; }

  void run(int64_t count, int helpers, const std::function<void(int64_t)>& body) {
    std::unique_lock<std::mutex> one_job(busy_, std::try_to_lock);
    if (!one_job.owns_lock()) {  // another thread is inside: work alone rather than wait
      for (int64_t i = 0; i < count; ++i) body(i);
      return;
    }
    grow(helpers);
    {
      const std::lock_guard<std::mutex> lock(state_);
      body_ = &body;
      count_ = count;
      next_.store(0, std::memory_order_relaxed);
      wanted_ = helpers < size_ ? helpers : size_;
      pending_ = wanted_;
      ++job_;
    }
    start_.notify_all();
    work();
    std::unique_lock<std::mutex> lock(state_);
    done_.wait(lock, [this] { return pending_ == 0; });
  }

 private:
  void grow(int helpers) {
    for (; size_ < helpers; ++size_) {
      try {
        std::thread([this, index = size_, seen = job_] { serve(index, seen); }).detach();
      } catch (const std::system_error&) {
        return;  // the system gives no more threads: fewer of them give the same bits
      }
    }
  }

  void serve(int index, uint64_t seen) {
    std::unique_lock<std::mutex> lock(state_);
    for (;;) {
      start_.wait(lock, [&] { return job_ != seen; });
      seen = job_;
      if (index >= wanted_) continue;
      lock.unlock();
      work();
      lock.lock();
      if (--pending_ == 0) done_.notify_one();
    }
  }

  void work() {
    for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) (*body_)(i);
  }

  const pid_t owner_;
  std::mutex busy_;   // one job at a time
  std::mutex state_;  // everything below but next_
  std::condition_variable start_, done_;
  const std::function<void(int64_t)>* body_ = nullptr;
  int64_t count_ = 0;
  std::atomic<int64_t> next_{0};
  uint64_t job_ = 0;
  int wanted_ = 0, pending_ = 0, size_ = 0;
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

void parallel_for(int64_t count, int threads, const std::function<void(int64_t)>& body) {
  if (threads > count) threads = static_cast<int>(count);
  if (threads > 1) {
    pool().run(count, threads - 1, body);
  } else {
    for (int64_t i = 0; i < count; ++i) body(i);
  }
}

}  // namespace stepopsd::cpu
