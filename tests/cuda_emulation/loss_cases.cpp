// The loss kernel: its scores and gradients have the bits of the score kernel and of the gradient kernel, whose cases
// compare with double; the slopes are those of csrc/include/policy.h.
#include <cuda_runtime.h>

#include "score_problem.h"

using check::Dtype;
using check::Exact;
using check::kDtypes;
using check::kNames;
using check::Logits;
namespace cuda = stepopsd::cuda;

namespace {

struct LossCall {
  std::vector<int64_t> ids;
  std::vector<char> active;
  std::vector<float> tokens;  // (4, rows): old, ref, advantages, weights
  stepopsd::PolicyOptions options = {stepopsd::Objective::surrogate, 0.8f, 1.2f, 3, 0.1f, 0.01f, false};
  double temperature = 0.8;
  cuda::Merge merge = cuda::Merge::automatic;
  int device = 0;

  // (5, rows)
  std::vector<float> run(Logits& logits, Logits& out) const {
    const auto total = static_cast<int64_t>(ids.size());
    Exact<int64_t> id(total);
    Exact<bool> on(total);
    Exact<float> values(4 * total), scores(5 * total);
    for (int64_t i = 0; i < total; ++i) {
      const auto at = static_cast<size_t>(i);
      on[i] = active[at] != 0;
      if (!on[i]) continue;
      id[i] = ids[at];
      for (size_t plane = 0; plane < 4; ++plane) {
        values[static_cast<int64_t>(plane) * total + i] = tokens[plane * ids.size() + at];
      }
    }
    cuda::LossProblem problem = {};
    problem.logits = logits.view();
    problem.ids = id.get(), problem.active = on.get();
    problem.old_logprobs = values.get();
    problem.ref_logprobs = options.kl_coef > 0 ? values.get() + total : nullptr;
    problem.advantages = values.get() + 2 * total, problem.weights = values.get() + 3 * total;
    problem.options = options;
    problem.temperature = temperature;
    problem.batch = logits.batch, problem.rows = logits.rows, problem.vocab = logits.vocab;
    const cuda::Logits target = out.view();
    problem.out = {const_cast<void*>(target.data), target.batch_stride, target.row_stride};
    problem.scores = scores.get();
    problem.merge = merge, problem.device = device;
    Exact<char> workspace(static_cast<int64_t>(cuda::loss_workspace(problem)));
    problem.workspace = workspace.get();
    if (const int error = cuda::launch_loss(problem, nullptr)) check::report("launch", cuda::error_text(error));
    return scores.copy();
  }
};

LossCall call_on(Logits& logits, check::Random& random) {
  LossCall call;
  const int64_t total = logits.batch * logits.rows;
  for (int64_t row = 0; row < total; ++row) call.ids.push_back(random.below(logits.vocab)), call.active.push_back(1);
  for (int64_t i = 0; i < 2 * total; ++i) {
    const auto row = i % total;
    const double near = check::truth(logits, row, call.ids[static_cast<size_t>(row)], call.temperature).log_prob;
    call.tokens.push_back(static_cast<float>(near + 0.1 * random.normal()));
  }
  for (int64_t i = 0; i < 2 * total; ++i) call.tokens.push_back(static_cast<float>(random.normal()));
  return call;
}

// The rows alone: what lies beside them is compared by the caller.
bool same_rows(Logits& a, Logits& b) {
  const int64_t size = element_size(a.dtype);
  bool same = true;
  for (int64_t row = 0; row < a.batch * a.rows; ++row) {
    same &= std::memcmp(a.memory.get() + a.at(row) * size, b.memory.get() + b.at(row) * size,
                        static_cast<size_t>(a.vocab * size)) == 0;
  }
  return same;
}

// In one visit into other memory and in place, in two visits, and on the device without clusters.
void verify(Logits& logits, const LossCall& call, int64_t offset, int64_t padding, const std::string& where) {
  const std::string here = where + " " + kNames[static_cast<int>(logits.dtype)];
  check::Call plain;
  plain.logits = {&logits};
  plain.ids = call.ids, plain.active = call.active, plain.temperature = call.temperature, plain.normaliser = true;
  const std::vector<float> want = plain.run();
  Logits one(logits.dtype, logits.batch, logits.rows, logits.vocab, offset, padding);
  Logits two(logits.dtype, logits.batch, logits.rows, logits.vocab, offset, padding);
  check::expect(check::same_bits(call.run(logits, one), want), here, "scores in one visit");
  LossCall other = call;
  other.merge = cuda::Merge::workspace;
  check::expect(check::same_bits(other.run(logits, two), want), here, "scores in two visits");
  check::expect(check::same_bits(one.memory.copy(), two.memory.copy()), here, "one visit and two differ");
  Logits third(logits.dtype, logits.batch, logits.rows, logits.vocab, offset, padding);
  other.merge = cuda::Merge::automatic, other.device = 1;
  check::expect(check::same_bits(other.run(logits, third), want), here, "scores without clusters");
  check::expect(check::same_bits(one.memory.copy(), third.memory.copy()), here, "without clusters it differs");
  check::expect(check::same_bits(call.run(logits, logits), want), here, "scores in place");
  check::expect(same_rows(logits, one), here, "in place it differs");
}

void losses_at_every_alignment() {
  check::Random random(31);
  for (const Dtype dtype : kDtypes) {
    for (const int64_t vocab : {1, 7, 8, 9, 64, 65, 130, 519, 1031}) {
      for (const int64_t offset : {0, 1, 3, 6}) {
        Logits logits(dtype, 2, 2, vocab, offset, offset % 2);
        for (int64_t row = 0; row < 4; ++row) logits.fill(row, random, 3);
        LossCall call = call_on(logits, random);
        call.active[2] = 0;
        if (offset == 1) call.options.objective = stepopsd::Objective::cispo, call.options.entropy_coef = 0;
        if (offset == 3) call.options.objective = stepopsd::Objective::reinforce, call.options.kl_coef = 0;
        if (offset == 6) call.tokens[13] = 0;  // a weight: without an entropy term that row's gradient is 0
        verify(logits, call, offset, offset % 2, "loss of " + std::to_string(vocab));
        for (int64_t row = 0; row < 4; ++row) logits.fill(row, random, 3);
        verify(logits, call, (offset + 5) % 8, 3, "loss elsewhere of " + std::to_string(vocab));
      }
    }
  }
}

// Rows in clusters of every size, and one that does not fit into shared memory.
void losses_of_long_rows() {
  check::Random random(32);
  for (const int64_t vocab : {16383, 16387, 33001, 66003}) {
    const Dtype dtype = kDtypes[vocab % 3];
    for (const int64_t offset : {0, 5}) {
      Logits logits(dtype, 1, 2, vocab, offset, offset / 5);
      for (int64_t row = 0; row < 2; ++row) logits.fill(row, random, 3);
      logits.put(0, vocab - 1, 20);
      verify(logits, call_on(logits, random), offset, offset / 5, "loss of " + std::to_string(vocab));
    }
  }
}

void losses_of_extreme_rows() {
  check::Random random(33);
  const int64_t vocab = 300;
  for (const Dtype dtype : kDtypes) {
    Logits logits(dtype, 1, 6, vocab, 2, 1);
    for (int64_t row = 0; row < 6; ++row) logits.fill(row, random, 2, row == 3 ? 1e4 : 0);
    for (int64_t i = 0; i < vocab; ++i) {
      logits.put(0, i, -check::kInf);
      if (i % 3 != 0) logits.put(1, i, -check::kInf);
    }
    logits.put(2, 299, check::kNan);
    logits.put(4, 0, check::kInf);
    LossCall call = call_on(logits, random);
    call.ids = {0, 3, 250, 5, 6, vocab};
    Logits out(dtype, 1, 6, vocab, 2, 1);
    call.run(logits, out);
    for (int64_t row = 0; row < 6; ++row) {
      const bool broken = row != 1 && row != 3;
      for (int64_t i = 0; i < vocab; ++i) {
        check::expect(std::isnan(out.get(row, i)) == broken, "loss of extremes", "NaN in row " + std::to_string(row));
      }
    }
  }
}

void no_losses_and_bad_sizes() {
  cuda::LossProblem loss = {};
  loss.vocab = 70000, loss.rows = 5, loss.temperature = 1;
  check::expect(cuda::launch_loss(loss, nullptr) == 0, "no losses", "an error");
  check::expect(cuda::loss_workspace(loss) == 0, "no losses", "a workspace");
  loss.batch = int64_t{1} << 26;
  check::expect(cuda::launch_loss(loss, nullptr) == cudaErrorInvalidValue, "too many losses", "no error");
}

}  // namespace

std::vector<Case> loss_cases() {
  return {{"losses_at_every_alignment", losses_at_every_alignment},
          {"losses_of_long_rows", losses_of_long_rows},
          {"losses_of_extreme_rows", losses_of_extreme_rows},
          {"no_losses_and_bad_sizes", no_losses_and_bad_sizes}};
}
