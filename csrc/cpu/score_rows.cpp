#include "score_rows.h"

#include <algorithm>
#include <atomic>
#include <memory>

#include "elements.h"
#include "thread_pool.h"

namespace stepopsd::cpu {
namespace {

// Elements of a piece at most. Long pieces are read faster: what the processor fetches past the end of one is lost.
constexpr int64_t kPiece = 1 << 17;
constexpr int64_t kThreadedFrom = 1 << 19;   // elements to read; below, waking a thread costs more than it saves
constexpr int64_t kWorthFetching = 1 << 14;  // elements to read for one visit of the counter that threads share

struct Pieces {
  int64_t count, size;

  explicit Pieces(int64_t vocab) {
    const int64_t wanted = (vocab + kPiece - 1) / kPiece;
    size = ((vocab + wanted - 1) / wanted + 1023) / 1024 * 1024;
    count = (vocab + size - 1) / size;
  }
};

class Scoring {
 public:
  Scoring(const ScoreProblem& problem, const RowKernels& kernels)
      : problem_(problem), kernels_(problem.entropy ? kernels.with_entropy : kernels.stats), pieces_(problem.vocab) {
    const int64_t all = problem.batch * problem.rows;
    active_.reserve(all);
    for (int64_t i = 0; i < all; ++i) {
      if (problem.active[i]) active_.push_back(i);
    }
    if (static_cast<int64_t>(active_.size()) < all) std::fill_n(problem.out, problem.logits.size() * 3 * all, 0.0f);
  }

  void run(int threads) {
    const int64_t visits = active_.size() * problem_.logits.size();  // a row of one of the tensors
    const int64_t jobs = visits * pieces_.count, length = std::min(pieces_.size, problem_.vocab);
    if (jobs * length < kThreadedFrom) threads = 1;
    if (pieces_.count > 1) {
      partial_.reset(new RowStats[jobs]);
      missing_.reset(new std::atomic<int64_t>[visits]);
      for (int64_t i = 0; i < visits; ++i) missing_[i].store(pieces_.count, std::memory_order_relaxed);
    }
    parallel_for(jobs, std::max<int64_t>(1, kWorthFetching / length), threads, [this](int64_t begin, int64_t end) {
      for (int64_t job = begin; job < end; ++job) score_piece(job / pieces_.count, job % pieces_.count);
    });
  }

 private:
  struct Row {
    const void* data;
    Dtype dtype;
    double scale;
    int64_t index, tensor;
  };

  Row row(int64_t visit) const {
    const int64_t tensors = problem_.logits.size(), tensor = visit % tensors, index = active_[visit / tensors];
    const Logits& logits = problem_.logits[tensor];
    const int64_t offset = index / problem_.rows * logits.batch_stride + index % problem_.rows * logits.row_stride;
    const double temperature = problem_.temperatures ? problem_.temperatures[index] : problem_.temperature;
    return {static_cast<const char*>(logits.data) + offset * element_size(logits.dtype), logits.dtype,
            kLog2e / temperature, index, tensor};
  }

  void score_piece(int64_t visit, int64_t piece) {
    const Row row = this->row(visit);
    const int64_t begin = piece * pieces_.size, end = std::min(begin + pieces_.size, problem_.vocab);
    const void* data = static_cast<const char*>(row.data) + begin * element_size(row.dtype);
    const RowStats stats = kernels_[static_cast<int>(row.dtype)](data, end - begin, static_cast<float>(row.scale));
    if (pieces_.count == 1) return finish(row, stats);
    RowStats* partial = &partial_[visit * pieces_.count];
    partial[piece] = stats;
    if (missing_[visit].fetch_sub(1, std::memory_order_acq_rel) > 1) return;
    RowStats whole = partial[0];  // every piece is there: this thread was the last
    for (int64_t i = 1; i < pieces_.count; ++i) whole = merge(whole, partial[i]);
    finish(row, whole);
  }

  // The kernels multiply by the float next to `row.scale`, and so does this; the log-sum-exp, which may be large, makes
  // up for the difference.
  void finish(const Row& row, const RowStats& stats) const {
    const double scale = static_cast<float>(row.scale);
    const int64_t plane = problem_.batch * problem_.rows;
    float* out = problem_.out + row.tensor * 3 * plane + row.index;
    out[0] = log_prob(stats, element(row.data, row.dtype, problem_.ids[row.index]) * scale);
    out[plane] = static_cast<float>(log_sum_exp(stats) * (row.scale / scale));
    out[2 * plane] = problem_.entropy ? entropy(stats) : 0.0f;
  }

  const ScoreProblem& problem_;
  const RowFn* kernels_;
  const Pieces pieces_;
  std::vector<int64_t> active_;
  std::unique_ptr<RowStats[]> partial_;               // by visit and piece
  std::unique_ptr<std::atomic<int64_t>[]> missing_;  // pieces still to come, by visit
};

}  // namespace

int64_t first_bad_id(const ScoreProblem& problem) {
  for (int64_t i = 0; i < problem.batch * problem.rows; ++i) {
    const int64_t id = problem.ids[i];
    if (problem.active[i] && (id < 0 || id >= problem.vocab)) return i;
  }
  return -1;
}

void score_rows(const ScoreProblem& problem, const RowKernels& kernels, int threads) {
  Scoring(problem, kernels).run(threads);
}

}  // namespace stepopsd::cpu
