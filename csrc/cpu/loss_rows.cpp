#include "loss_rows.h"

#include <cstring>
#include <vector>

#include "gradient_rows.h"
#include "score_rows.h"
#include "thread_pool.h"

namespace stepopsd::cpu {
namespace {

// With fewer active rows for each thread, one would wait for another's last row: then threads share each row.
constexpr int64_t kRowsForOne = 4;

Coefficients coefficients_of(const LossProblem& problem, int64_t i, float logprob, float entropy) {
  const PolicyToken token{problem.old_logprobs ? problem.old_logprobs[i] : logprob,
                          problem.ref_logprobs ? problem.ref_logprobs[i] : 0.0f, problem.advantages[i],
                          problem.weights[i]};
  return policy_coefficients(problem.options, logprob, entropy, token);
}

void whole_rows(const LossProblem& problem, const RowKernels& kernels, int threads) {
  const RowSet& rows = problem.rows;
  const Dtype dtype = problem.logits.dtype;
  const RowFn score = kernels.with_entropy[static_cast<int>(dtype)];
  const Pieces pieces(rows.vocab, kScorePiece), written(rows.vocab, kGradientPiece);
  const bool stream = streamed(problem.logits, problem.out, rows);
  const int64_t all = rows.count();
  if (all * rows.vocab < kThreadedFrom) threads = 1;
  parallel_for(all, written.grain(), threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const char* data = problem.logits.row(i, rows.rows);
      char* out = problem.out.row(i, rows.rows);
      if (!rows.active[i]) {
        put_scores({}, problem.scores + i, all, true);
        std::memset(out, 0, rows.vocab * element_size(dtype));
        continue;
      }
      const double scale = rows.scale(i);
      const RowStats stats = whole_row(score, data, dtype, scale, pieces);
      const Scores scores = scores_of(stats, data, dtype, rows.ids[i], scale, true);
      put_scores(scores, problem.scores + i, all, true);
      const RowSlopes slopes(kernels, dtype, rows.divisor(i), scores.peak, scores.log_mass,
                             coefficients_of(problem, i, scores.logprob, scores.entropy));
      for (int64_t piece = 0; piece < written.count; ++piece) {
        slopes.write(data, out, rows.ids[i], written.begin(piece), written.length(piece), stream);
      }
    }
  });
}

void shared_rows(const LossProblem& problem, const RowKernels& kernels, int threads) {
  const RowSet& rows = problem.rows;
  const int64_t all = rows.count();
  score_rows({{problem.logits}, rows, true, true, problem.scores}, kernels, threads);
  std::vector<float> coefficients(3 * all);
  for (int64_t i = 0; i < all; ++i) {
    if (!rows.active[i]) continue;
    const Coefficients abc = coefficients_of(problem, i, problem.scores[i], problem.scores[2 * all + i]);
    coefficients[i] = abc.a;
    coefficients[all + i] = abc.b;
    coefficients[2 * all + i] = abc.c;
  }
  gradient_rows({problem.logits, problem.out, rows, problem.scores + 3 * all, coefficients.data()}, kernels, threads);
}

}  // namespace

void loss_rows(const LossProblem& problem, const RowKernels& kernels, int threads) {
  int64_t active = 0;
  for (int64_t i = 0; i < problem.rows.count(); ++i) active += problem.rows.active[i];
  const bool long_rows = problem.rows.vocab > kGradientPiece;
  const bool share = threads > 1 && active < kRowsForOne * threads && long_rows;
  (share ? shared_rows : whole_rows)(problem, kernels, threads);
}

}  // namespace stepopsd::cpu
