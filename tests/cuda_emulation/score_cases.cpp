// The score kernel against sums in double, on rows whose values, places and lengths are chosen to hurt.
#include <cuda_runtime.h>

#include <sys/mman.h>

#include "online.cuh"
#include "score_problem.h"

using check::Call;
using check::Dtype;
using check::Exact;
using check::kDtypes;
using check::kNames;
using check::Logits;
using check::Truth;
using check::truth;
namespace cuda = stepopsd::cuda;

namespace {

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
void lengths_and_alignments() {
  check::Random random(1);
  for (const Dtype dtype : kDtypes) {
    for (const int64_t vocab : {1, 2, 7, 8, 9, 15, 17, 31, 33, 63, 64, 65, 255, 256, 257, 263, 264, 265, 520, 1031}) {
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

// Every number of splits, merged in clusters and through the workspace, for a pair of two dtypes.
void splits() {
  check::Random random(4);
  for (const int64_t vocab : {16384, 24571, 33000, 65536, 66003, 74757}) {
    Logits student(Dtype::bf16, 1, 3, vocab, 1, 3), teacher(Dtype::f32, 1, 3, vocab, 2, 0);
    for (const int64_t row : {0, 2}) student.fill(row, random, 3), teacher.fill(row, random, 3);
    student.put(0, vocab - 1, 25);
    teacher.put(2, 5000, -check::kInf);
    Call call = call_on(student, random);
    call.logits.push_back(&teacher);
    call.ids = {vocab - 1, 0, 12345};
    call.active[1] = 0;
    const std::string where = "splits of " + std::to_string(vocab);
    const std::vector<float> in_clusters = verify(call, where);
    call.merge = cuda::Merge::workspace;
    check::expect(check::same_bits(call.run(), in_clusters), where, "the merges differ");
    call.merge = cuda::Merge::automatic, call.device = 1;
    check::expect(check::same_bits(call.run(), in_clusters), where, "the device without clusters differs");
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
void scale_factors() {
  for (uint32_t mantissa = 0; mantissa < (1u << 23); mantissa += 61) {
    for (const uint32_t exponent : {100u, 126u, 127u, 150u}) {
      const float temperature = __uint_as_float(exponent << 23 | mantissa);
      const float want = static_cast<float>(stepopsd::kLog2e / temperature);
      if (cuda::scale_factor(temperature) != want) return check::report("scale factor", std::to_string(temperature));
    }
  }
}

// Rows further apart than 32 bits count, and rows that are one and the same.
void far_and_repeated_rows() {
  const int64_t vocab = 1021, stride = (int64_t{1} << 31) + 3;
  const size_t bytes = static_cast<size_t>(2 * (stride + vocab));
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return check::report("far rows", "no address space");
  check::Random random(7);
  Logits near(Dtype::bf16, 1, 2, vocab, 0, 0);
  for (int64_t row = 0; row < 2; ++row) {
    near.fill(row, random, 3);
    std::memcpy(static_cast<char*>(memory) + 2 * row * stride, near.memory.get() + 2 * row * vocab, 2 * vocab);
  }
  Exact<int64_t> ids(2);
  Exact<bool> active(2);
  for (int64_t row = 0; row < 2; ++row) ids[row] = 1000, active[row] = true;
  Exact<float> out(12);
  cuda::ScoreProblem problem = {};
  problem.logits[0] = {memory, Dtype::bf16, 0, stride};
  problem.logits[1] = {near.memory.get(), Dtype::bf16, 5, 0};
  problem.tensors = 2;
  problem.ids = ids.get(), problem.active = active.get();
  problem.temperature = 1, problem.entropy = true;
  problem.batch = 1, problem.rows = 2, problem.vocab = vocab;
  problem.out = out.get();
  check::expect(cuda::launch_score(problem, nullptr) == 0, "far rows", "the launch failed");
  munmap(memory, bytes);
  for (int64_t row = 0; row < 2; ++row) {
    const Truth far = truth(near, row, 1000, 1), repeated = truth(near, 0, 1000, 1);
    check::expect_close(out[row], far.log_prob, 1e-6, 1e-6, "far row " + std::to_string(row));
    check::expect_close(out[6 + row], repeated.log_prob, 1e-6, 1e-6, "repeated row " + std::to_string(row));
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

std::vector<Case> score_cases() {
  return {{"lengths_and_alignments", lengths_and_alignments},
          {"splits", splits},
          {"pair_of_one_dtype_in_one_launch", pair_of_one_dtype_in_one_launch},
          {"bits_follow_from_values", bits_follow_from_values},
          {"extreme_values", extreme_values},
          {"temperatures", temperatures},
          {"scale_factors", scale_factors},
          {"far_and_repeated_rows", far_and_repeated_rows},
          {"no_rows_and_bad_sizes", no_rows_and_bad_sizes}};
}
