// The score kernel against sums in double, on rows whose values, places and lengths are chosen to hurt.
#include <cuda_runtime.h>

#include "check.h"
#include "online.cuh"

using stepopsd::Dtype;
namespace cuda = stepopsd::cuda;

namespace {

using check::Exact;

constexpr Dtype kDtypes[] = {Dtype::f32, Dtype::f16, Dtype::bf16};
const char* const kNames[] = {"f32", "f16", "bf16"};

// (batch, rows, vocab) logits that begin `offset` elements into an allocation and end where it ends. What belongs to no
// row, and every row that nobody fills, is NaN.
struct Logits {
  Logits(Dtype dtype_, int64_t batch_, int64_t rows_, int64_t vocab_, int64_t offset_, int64_t padding)
      : dtype(dtype_), batch(batch_), rows(rows_), vocab(vocab_), offset(offset_), row_stride(vocab_ + padding),
        batch_stride(rows_ * row_stride + padding),
        memory((offset_ + (batch_ - 1) * batch_stride + (rows_ - 1) * row_stride + vocab_) * element_size(dtype_)) {}

  int64_t at(int64_t row) const { return offset + row / rows * batch_stride + row % rows * row_stride; }

  void put(int64_t row, int64_t i, double value) {
    const uint32_t bits = check::encode(value, dtype);
    const int64_t size = element_size(dtype);
    std::memcpy(memory.get() + (at(row) + i) * size, &bits, static_cast<size_t>(size));
  }

  double get(int64_t row, int64_t i) {
    uint32_t bits = 0;
    const int64_t size = element_size(dtype);
    std::memcpy(&bits, memory.get() + (at(row) + i) * size, static_cast<size_t>(size));
    return check::decode(bits, dtype);
  }

  void fill(int64_t row, check::Random& random, double spread, double centre = 0) {
    for (int64_t i = 0; i < vocab; ++i) put(row, i, centre + spread * random.normal());
  }

  cuda::Logits view() { return {memory.get() + offset * element_size(dtype), dtype, batch_stride, row_stride}; }

  Dtype dtype;
  int64_t batch, rows, vocab, offset, row_stride, batch_stride;
  Exact<char> memory;
};

struct Call {
  std::vector<Logits*> logits;
  std::vector<int64_t> ids;
  std::vector<char> active;
  double temperature = 1;
  std::vector<float> temperatures;
  bool entropy = true;
  cuda::Merge merge = cuda::Merge::automatic;

  // (tensors, 3, rows)
  std::vector<float> run() const {
    const int64_t total = static_cast<int64_t>(ids.size()), count = static_cast<int64_t>(logits.size());
    Exact<int64_t> id(total);
    Exact<bool> on(total);
    Exact<float> degrees(total), out(count * 3 * total);
    for (int64_t i = 0; i < total; ++i) {
      on[i] = active[static_cast<size_t>(i)] != 0;
      if (on[i]) id[i] = ids[static_cast<size_t>(i)];
      if (on[i] && !temperatures.empty()) degrees[i] = temperatures[static_cast<size_t>(i)];
    }
    cuda::ScoreProblem problem = {};
    for (int64_t k = 0; k < count; ++k) problem.logits[k] = logits[static_cast<size_t>(k)]->view();
    problem.tensors = static_cast<int>(count);
    problem.ids = id.get();
    problem.active = on.get();
    problem.temperature = temperature;
    problem.temperatures = temperatures.empty() ? nullptr : degrees.get();
    problem.batch = logits[0]->batch;
    problem.rows = logits[0]->rows;
    problem.vocab = logits[0]->vocab;
    problem.entropy = entropy;
    problem.out = out.get();
    problem.merge = merge;
    Exact<char> workspace(static_cast<int64_t>(cuda::score_workspace(problem)));
    problem.workspace = workspace.get();
    if (const int error = cuda::launch_score(problem, nullptr)) check::report("launch", cuda::error_text(
        static_cast<cudaError_t>(error)));
    return out.copy();
  }
};

struct Truth {
  double log_prob, log_sum, entropy;
};

Truth truth(Logits& logits, int64_t row, int64_t id, double temperature) {
  std::vector<double> y;
  double top = -check::kInf, sum = 0, moment = 0;
  bool bad = false;
  for (int64_t i = 0; i < logits.vocab; ++i) {
    y.push_back(logits.get(row, i) / temperature);
    bad |= std::isnan(y.back()) || y.back() == check::kInf;
    top = std::fmax(top, y.back());
  }
  if (bad || top == -check::kInf) return {check::kNan, check::kNan, check::kNan};
  for (double value : y) {
    const double e = std::exp(value - top);
    sum += e;
    if (e > 0) moment += e * (value - top);
  }
  const bool known = id >= 0 && id < logits.vocab;
  return {known ? y[static_cast<size_t>(id)] - top - std::log(sum) : check::kNan, top + std::log(sum),
          std::log(sum) - moment / sum};
}

// Runs the call and compares every number with the truth, and the kind of zero that inactive rows give.
std::vector<float> verify(const Call& call, const std::string& where) {
  const std::vector<float> out = call.run();
  const size_t total = call.ids.size();
  for (size_t k = 0; k < call.logits.size(); ++k) {
    const std::string name = where + " " + kNames[static_cast<int>(call.logits[k]->dtype)];
    for (size_t row = 0; row < total; ++row) {
      const float* got = out.data() + k * 3 * total + row;
      const std::string here = name + " row " + std::to_string(row);
      if (!call.active[row]) {
        check::expect(got[0] == 0 && got[total] == 0 && got[2 * total] == 0, here, "an inactive row is not 0");
        continue;
      }
      const double temperature = call.temperatures.empty() ? call.temperature : call.temperatures[row];
      const Truth want = truth(*call.logits[k], static_cast<int64_t>(row), call.ids[row], temperature);
      check::expect_close(got[0], want.log_prob, 1e-6, 1e-6, here + " log-prob");
      check::expect_close(got[total], want.log_sum, 1e-6, 2e-7, here + " log-sum-exp");
      check::expect_close(got[2 * total], call.entropy ? want.entropy : 0, 2e-6, 1e-6, here + " entropy");
      check::expect(!(got[0] > 0), here, "a positive log-prob");
    }
  }
  return out;
}

Call call_on(Logits& logits, check::Random& random) {
  Call call;
  call.logits = {&logits};
  for (int64_t row = 0; row < logits.batch * logits.rows; ++row) {
    call.ids.push_back(random.below(logits.vocab));
    call.active.push_back(1);
  }
  return call;
}

// Lengths around the edges of groups, steps and trips, at every alignment that the strides give.
void lengths_and_alignments(bool quick) {
  const std::vector<int64_t> all = {1,  2,  7,  8,   9,   15,  16,  17,  31,  33,  63,
                                    64, 65, 255, 256, 257, 263, 264, 265, 520, 1031};
  const std::vector<int64_t> few = {7, 257, 264, 520};
  check::Random random(1);
  for (const Dtype dtype : kDtypes) {
    for (const int64_t vocab : quick ? few : all) {
      for (const int64_t padding : {int64_t{0}, int64_t{1}}) {
        Logits logits(dtype, 2, 5, vocab, random.below(8), padding);
        for (int64_t row = 0; row < 10; ++row) {
          if (row != 3) logits.fill(row, random, 3);
        }
        Call call = call_on(logits, random);
        call.active[3] = 0;
        call.temperature = padding ? 1 : 0.7;
        for (const bool entropy : {false, true}) {
          call.entropy = entropy;
          verify(call, "length " + std::to_string(vocab));
        }
      }
    }
  }
}

// One row at every alignment, and in the middle of others: the same bits.
void bits_follow_from_values() {
  check::Random random(2);
  for (const Dtype dtype : kDtypes) {
    for (const int64_t vocab : {int64_t{37}, int64_t{777}, int64_t{16411}}) {
      Logits first(dtype, 1, 1, vocab, 0, 0);
      first.fill(0, random, 5);
      std::vector<float> before;
      for (int64_t offset = 0; offset < 8; ++offset) {
        Logits moved(dtype, 1, 3, vocab, offset, 5);
        for (int64_t i = 0; i < vocab; ++i) moved.put(1, i, first.get(0, i));
        Call call;
        call.logits = {&moved, &moved};
        call.ids = {0, vocab / 2, 0};
        call.active = {0, 1, 0};
        const std::vector<float> out = call.run(), mine = {out[1], out[4], out[7]};
        check::expect(mine == std::vector<float>({out[10], out[13], out[16]}), "pair", "its halves differ");
        if (offset > 0) check::expect(check::same_bits(mine, before), "offset " + std::to_string(offset), "other bits");
        before = mine;
      }
    }
  }
}

void extreme_values() {
  check::Random random(3);
  const int64_t vocab = 700;
  for (const Dtype dtype : kDtypes) {
    Logits logits(dtype, 1, 16, vocab, 3, 1);
    for (int64_t row = 0; row < 16; ++row) logits.fill(row, random, 2);
    for (int64_t i = 0; i < vocab; ++i) {
      if (i % 3 != 0) logits.put(0, i, -check::kInf);
      logits.put(1, i, -check::kInf);
      if (i != 699) logits.put(2, i, -check::kInf);
      if (i < 600) logits.put(3, i, -check::kInf);
      logits.put(7, i, 1e4);
      logits.put(8, i, -1e4 + i % 2 * 16);
      logits.put(13, i, i == 650 ? 60 : -60);   // far above the reference, late
      logits.put(14, i, 0.125 * (i % 512));     // the reference moves again and again
      logits.put(15, i, -60000);
    }
    logits.put(4, 333, check::kNan);
    logits.put(5, 699, check::kInf);
    logits.put(6, 0, check::kNan);
    logits.put(9, 17, 1e4);
    logits.put(10, 690, 1e4);
    logits.put(11, 5, 30);
    logits.put(12, 640, 30);
    Call call = call_on(logits, random);
    call.ids = {0, 4, 699, 650, 3, 3, 0, 5, 8, 17, 690, 5, 1, 650, 511, 9};
    for (const bool entropy : {false, true}) {
      call.entropy = entropy;
      verify(call, "extremes");
    }
    const int64_t lowest = std::numeric_limits<int64_t>::min();
    call.ids = {1, 0, 0, 0, -1, vocab, lowest, -1, vocab, int64_t{1} << 40, 1, 2, 3, 4, 5, -7};
    verify(call, "extremes with bad ids");
  }
}

// Every number of splits, merged in clusters and through the workspace, pairs of dtypes included.
void splits(bool quick) {
  check::Random random(4);
  const std::vector<int64_t> all = {16384, 24571, 33000, 65536, 66003, 8 * 8192 - 1024 + 3}, few = {33000};
  for (const int64_t vocab : quick ? few : all) {
    Logits student(Dtype::bf16, 1, 3, vocab, 1, 3), teacher(Dtype::f32, 1, 3, vocab, 2, 0);
    for (const int64_t row : {0, 2}) student.fill(row, random, 3), teacher.fill(row, random, 3);
    student.put(0, vocab - 1, 25);
    teacher.put(2, 5000, -check::kInf);
    Call call = call_on(student, random);
    call.logits.push_back(&teacher);
    call.ids = {vocab - 1, 0, 12345};
    call.active[1] = 0;
    std::vector<float> in_clusters;
    for (const cuda::Merge merge : {cuda::Merge::automatic, cuda::Merge::workspace}) {
      call.merge = merge;
      const std::vector<float> out = verify(call, "splits of " + std::to_string(vocab));
      if (merge == cuda::Merge::automatic) in_clusters = out;
      check::expect(check::same_bits(out, in_clusters), "splits of " + std::to_string(vocab), "merges differ");
    }
  }
}

void pair_of_one_dtype_in_one_launch() {
  check::Random random(5);
  Logits student(Dtype::f16, 2, 2, 20011, 0, 1), teacher(Dtype::f16, 2, 2, 20011, 5, 0);
  for (int64_t row = 0; row < 4; ++row) student.fill(row, random, 4), teacher.fill(row, random, 1);
  Call call = call_on(student, random);
  call.logits.push_back(&teacher);
  call.active[2] = 0;
  call.entropy = false;
  verify(call, "pair");
}

void temperatures() {
  check::Random random(6);
  Logits logits(Dtype::bf16, 2, 3, 301, 0, 0);
  for (int64_t row = 0; row < 6; ++row) logits.fill(row, random, 3);
  Call call = call_on(logits, random);
  call.active[4] = 0;
  call.temperatures = {0.25f, 1, 3, 0.7f, 1, 100};
  const std::vector<float> each = verify(call, "temperatures");
  for (size_t row = 0; row < 6; ++row) {
    Call one = call;
    one.temperature = static_cast<double>(call.temperatures[row]);
    one.temperatures.clear();
    const std::vector<float> out = one.run();
    for (size_t plane = 0; plane < 3; ++plane) {
      check::expect(out[plane * 6 + row] == each[plane * 6 + row], "temperature", "a row's and a number's differ");
    }
  }
}

// The device's log2(e) / temperature is the host's for every mantissa: a row's bits do not tell which of them it was.
void scale_factors(bool quick) {
  for (uint32_t mantissa = 0; mantissa < (1u << 23); mantissa += quick ? 4999 : 61) {
    for (const uint32_t exponent : {100u, 126u, 127u, 150u}) {
      const float temperature = __uint_as_float(exponent << 23 | mantissa);
      const float want = static_cast<float>(stepopsd::kLog2e / temperature);
      if (cuda::scale_factor(temperature) != want) return check::report("scale factor", std::to_string(temperature));
    }
  }
}

void no_rows_and_bad_sizes() {
  cuda::ScoreProblem problem = {};
  problem.tensors = 1;
  problem.vocab = 70000;
  problem.rows = 5;
  problem.temperature = 1;
  check::expect(cuda::launch_score(problem, nullptr) == 0, "no rows", "an error");
  check::expect(cuda::score_workspace(problem) == 0, "no rows", "a workspace");
  problem.batch = int64_t{1} << 26;
  check::expect(cuda::launch_score(problem, nullptr) == cudaErrorInvalidValue, "too many rows", "no error");
  problem.batch = 1, problem.vocab = int64_t{1} << 31;
  check::expect(cuda::launch_score(problem, nullptr) == cudaErrorInvalidValue, "too many logits", "no error");
}

}  // namespace

void score_cases(bool quick) {
  lengths_and_alignments(quick);
  splits(quick);
  pair_of_one_dtype_in_one_launch();
  if (quick) return;
  bits_follow_from_values();
  extreme_values();
  temperatures();
  scale_factors(quick);
  no_rows_and_bad_sizes();
  emulated_device.clusters = false;
}
