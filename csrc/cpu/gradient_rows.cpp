#include "gradient_rows.h"

#include <cmath>
#include <cstring>

#include "elements.h"
#include "thread_pool.h"

namespace stepopsd::cpu {
namespace {

// Of the logarithm of a row's sum: where powers of its logits are all within range.
constexpr double kUsualFrom = -8, kUsualUpTo = 64;

bool tiny(float x) { return x != 0 && std::fabs(x) < 0x1p-90f; }

// The one NaN whose low bits are 0: 16-bit stores round bits, not numbers.
float plain(double x) { return x != x ? __builtin_nanf("") : static_cast<float>(x); }

}  // namespace

// The kernels take p as 2^((x - origin) * scale) * 2^-rest. The usual row has no origin; else it is the normaliser as a
// logit, from which x lies an exact difference away. A slope needs one: without it the slope's product with x * scale
// and the constant would all but cancel where p is large.
RowSlopes::RowSlopes(const RowKernels& kernels, Dtype dtype, double divisor, float peak, float log_mass,
                     const Coefficients& coefficients)
    : kernels_(kernels),
      dtype_(dtype),
      divisor_(divisor),
      centre_(static_cast<double>(peak) + log_mass),
      coefficients_(coefficients) {
  const float origin = static_cast<float>(centre_ * divisor / kLog2e);
  const bool usual = centre_ >= kUsualFrom && centre_ <= kUsualUpTo && coefficients_.c == 0;
  set_origin(usual ? 0 : origin);
  if (tiny(rest_.constant) || tiny(rest_.slope)) set_origin(origin);
}

void RowSlopes::set_origin(float origin) {
  const float scale = static_cast<float>(kLog2e / divisor_);
  const double rest = centre_ - static_cast<double>(origin) * scale, factor = std::exp2(-rest) / divisor_;
  const double slope = kLn2 * coefficients_.c, constant = coefficients_.b - slope * rest;
  rest_ = {scale, plain(origin), plain(factor * constant), plain(factor * slope)};
}

void RowSlopes::write(const char* data, char* out, int64_t id, int64_t begin, int64_t length,
                      bool stream) const {
  const int64_t size = element_size(dtype_), at = id - begin;
  const int kind = static_cast<int>(dtype_);
  data += begin * size;
  out += begin * size;
  if (vanishes(coefficients_)) {
    std::memset(out, 0, length * size);
    return;
  }
  const bool mine = at >= 0 && at < length;
  const double logit = mine ? element(data, dtype_, at) : 0;  // before it may be overwritten
  kernels_.gradient[kind](data, out, length, rest_, stream);
  if (mine) kernels_.put[kind](out + at * size, plain(target(logit)));
}

double RowSlopes::target(double logit) const {
  const double y = logit * rest_.scale - centre_, p = std::exp2(y);
  const double entropic = p > 0 ? coefficients_.c * kLn2 * y : 0;
  return (coefficients_.a + p * (coefficients_.b + entropic)) / divisor_;
}

bool streamed(const Strided& logits, const Strided& out, const RowSet& rows) {
  return out.data != logits.data && rows.count() * rows.vocab * element_size(out.dtype) >= kStreamedFrom;
}

void gradient_rows(const GradientProblem& problem, const RowKernels& kernels, int threads) {
  const RowSet& rows = problem.rows;
  const Pieces pieces(rows.vocab, kGradientPiece);
  const bool stream = streamed(problem.logits, problem.out, rows);
  const int64_t all = rows.count(), jobs = all * pieces.count;
  if (jobs * pieces.longest() < kThreadedFrom) threads = 1;
  parallel_for(jobs, pieces.grain(), threads, [&](int64_t begin, int64_t end) {
    for (int64_t job = begin; job < end; ++job) {
      const int64_t i = job / pieces.count, piece = job % pieces.count;
      const float *normaliser = problem.normaliser + i, *abc = problem.coefficients + i;
      const bool live = rows.active[i];
      const Coefficients coefficients = live ? Coefficients{abc[0], abc[all], abc[2 * all]} : Coefficients{0, 0, 0};
      const RowSlopes slopes(kernels, problem.out.dtype, live ? rows.divisor(i) : 1, normaliser[0], normaliser[all],
                             coefficients);
      slopes.write(problem.logits.row(i, rows.rows), problem.out.row(i, rows.rows), rows.ids[i], pieces.begin(piece),
                   pieces.length(piece), stream);
    }
  });
}

void scale_rows(const Strided& data, int64_t batch, int64_t rows, int64_t vocab, float factor,
                const RowKernels& kernels, int threads) {
  const Pieces pieces(vocab, kGradientPiece);
  const int64_t jobs = batch * rows * pieces.count;
  const ScaleFn scale = kernels.scale[static_cast<int>(data.dtype)];
  if (jobs * pieces.longest() < kThreadedFrom) threads = 1;
  parallel_for(jobs, pieces.grain(), threads, [&](int64_t begin, int64_t end) {
    for (int64_t job = begin; job < end; ++job) {
      const int64_t piece = job % pieces.count;
      char* row = data.row(job / pieces.count, rows);
      scale(row + pieces.begin(piece) * element_size(data.dtype), pieces.length(piece), plain(factor));
    }
  });
}

}  // namespace stepopsd::cpu
