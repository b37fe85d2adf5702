// Rows of logits to log-prob, log-sum-exp, entropy and what gradients need.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"
#include "row_set.h"

namespace stepopsd::cpu {

// Elements of a piece at most. Long pieces are read faster: what the processor fetches past the end of one is lost.
constexpr int64_t kScorePiece = 1 << 17;

// Rows are scored two at a time where that leaves every thread so many jobs.
constexpr int64_t kJobsPerThread = 4;

struct ScoreProblem {
  std::vector<Strided> logits;
  RowSet rows;
  bool entropy;
  bool normaliser;
  // (logits, 3 or with the normaliser 5, batch, rows): log-prob of the id, log-sum-exp, entropy, peak, log-mass
  float* out;
};

// Numbers of one row.
struct Scores {
  float logprob, lse, entropy, peak, log_mass;
};

// Visits a row's pieces one after the other; the same bits as score_rows.
RowStats whole_row(const RowFn row, const char* data, Dtype dtype, double scale, const Pieces& pieces);

// `entropy` says whether the statistics hold it; `scale` is that of the row.
Scores scores_of(const RowStats& stats, const char* data, Dtype dtype, int64_t id, double scale, bool entropy);

// Writes the first three scores, or all five, `plane` elements apart.
void put_scores(const Scores& scores, float* out, int64_t plane, bool normaliser);

// Reads the logits of active rows once, and no others. Ids must be valid.
//
// A long row is cut into pieces that are merged in order: few rows keep all threads busy, and a row's bits depend on
// nothing but its values.
void score_rows(const ScoreProblem& problem, const RowKernels& kernels, int threads);

}  // namespace stepopsd::cpu
