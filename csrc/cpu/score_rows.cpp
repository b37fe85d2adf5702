#include "score_rows.h"

#include <algorithm>
#include <atomic>
#include <memory>

#include "elements.h"
#include "thread_pool.h"

namespace stepopsd::cpu {
namespace {

class Scoring {
 public:
  Scoring(const ScoreProblem& problem, const RowKernels& kernels)
      : problem_(problem),
        rows_(problem.rows),
        kernels_(problem.entropy ? kernels.with_entropy : kernels.stats),
        two_rows_(kernels.two_rows),
        channels_(problem.normaliser ? 5 : 3),
        pieces_(problem.rows.vocab, kScorePiece) {
    const int64_t all = rows_.count();
    active_.reserve(all);
    for (int64_t i = 0; i < all; ++i) {
      if (rows_.active[i]) active_.push_back(i);
    }
    if (static_cast<int64_t>(active_.size()) < all) {
      std::fill_n(problem.out, problem.logits.size() * channels_ * all, 0.0f);
    }
  }

  void run(int threads) {
    const int64_t visits = active_.size() * problem_.logits.size();  // a row of one of the tensors
    if (visits * pieces_.count * pieces_.longest() < kThreadedFrom) threads = 1;
    if (pieces_.count > 1) {
      partial_.reset(new RowStats[visits * pieces_.count]);
      missing_.reset(new std::atomic<int64_t>[visits]);
      for (int64_t i = 0; i < visits; ++i) missing_[i].store(pieces_.count, std::memory_order_relaxed);
    }
    // A job is a piece of the visit by that number, and of the one half of the list further on: of two tensors the same
    // row, as a rule. A thread's jobs follow each other in memory, so that it reads two long streams.
    const bool can = !problem_.entropy && two_rows_[0] != nullptr;
    const int64_t apart = can && visits / 2 * pieces_.count >= kJobsPerThread * threads ? visits / 2 : 0;
    parallel_for((visits - apart) * pieces_.count, pieces_.grain(), threads, [this, apart](int64_t begin, int64_t end) {
      for (int64_t job = begin; job < end; ++job) {
        const int64_t visit = job / pieces_.count, piece = job % pieces_.count;
        if (visit < apart) score_two(visit, visit + apart, piece);
        else score_piece(visit + apart, piece);
      }
    });
  }

 private:
  struct Row {
    const char* data;
    Dtype dtype;
    double scale;
    int64_t index, tensor;
  };

  Row row(int64_t visit) const {
    const int64_t active = active_.size(), tensor = visit / active, index = active_[visit % active];
    const Strided& logits = problem_.logits[tensor];
    return {logits.row(index, rows_.rows), logits.dtype, rows_.scale(index), index, tensor};
  }

  const char* begin(const Row& row, int64_t piece) const {
    return row.data + pieces_.begin(piece) * element_size(row.dtype);
  }

  void score_piece(int64_t visit, int64_t piece) {
    const Row row = this->row(visit);
    const RowFn kernel = kernels_[static_cast<int>(row.dtype)];
    put(visit, row, piece, kernel(begin(row, piece), pieces_.length(piece), static_cast<float>(row.scale)));
  }

  void score_two(int64_t visit, int64_t other_visit, int64_t piece) {
    const Row row = this->row(visit), other = this->row(other_visit);
    if (row.dtype != other.dtype || row.scale != other.scale) {
      score_piece(visit, piece);
      return score_piece(other_visit, piece);
    }
    RowStats stats[2];
    const TwoRowsFn kernel = two_rows_[static_cast<int>(row.dtype)];
    kernel(begin(row, piece), begin(other, piece), pieces_.length(piece), static_cast<float>(row.scale), stats);
    put(visit, row, piece, stats[0]);
    put(other_visit, other, piece, stats[1]);
  }

  void put(int64_t visit, const Row& row, int64_t piece, const RowStats& stats) {
    if (pieces_.count == 1) return finish(row, stats);
    RowStats* partial = &partial_[visit * pieces_.count];
    partial[piece] = stats;
    if (missing_[visit].fetch_sub(1, std::memory_order_acq_rel) > 1) return;
    RowStats whole = partial[0];  // every piece is there: this thread was the last
    for (int64_t i = 1; i < pieces_.count; ++i) whole = merge(whole, partial[i]);
    finish(row, whole);
  }

  void finish(const Row& row, const RowStats& stats) const {
    const Scores scores =
        scores_of(stats, row.data, row.dtype, rows_.ids[row.index], row.scale, problem_.entropy);
    const int64_t plane = rows_.count();
    put_scores(scores, problem_.out + row.tensor * channels_ * plane + row.index, plane, problem_.normaliser);
  }

  const ScoreProblem& problem_;
  const RowSet& rows_;
  const RowFn* kernels_;
  const TwoRowsFn* two_rows_;
  const int64_t channels_;
  const Pieces pieces_;
  std::vector<int64_t> active_;
  std::unique_ptr<RowStats[]> partial_;               // by visit and piece
  std::unique_ptr<std::atomic<int64_t>[]> missing_;  // pieces still to come, by visit
};

}  // namespace

RowStats whole_row(const RowFn row, const char* data, Dtype dtype, double scale, const Pieces& pieces) {
  RowStats whole = row(data, pieces.length(0), static_cast<float>(scale));
  for (int64_t i = 1; i < pieces.count; ++i) {
    const char* at = data + pieces.begin(i) * element_size(dtype);
    whole = merge(whole, row(at, pieces.length(i), static_cast<float>(scale)));
  }
  return whole;
}

// The kernels multiply by the float next to `scale`, and so does this; the log-sum-exp, which may be large, makes up for
// the difference.
Scores scores_of(const RowStats& stats, const char* data, Dtype dtype, int64_t id, double scale, bool with_entropy) {
  const double used = static_cast<float>(scale);
  const Normaliser normaliser = normaliser_of(stats);
  return {log_prob(stats, element(data, dtype, id) * used),
          static_cast<float>(log_sum_exp(stats) * (scale / used)),
          with_entropy ? entropy(stats) : 0.0f,
          normaliser.peak,
          normaliser.log_mass};
}

void put_scores(const Scores& scores, float* out, int64_t plane, bool normaliser) {
  out[0] = scores.logprob;
  out[plane] = scores.lse;
  out[2 * plane] = scores.entropy;
  if (!normaliser) return;
  out[3 * plane] = scores.peak;
  out[4 * plane] = scores.log_mass;
}

void score_rows(const ScoreProblem& problem, const RowKernels& kernels, int threads) {
  Scoring(problem, kernels).run(threads);
}

}  // namespace stepopsd::cpu
