#include "step_segments.h"

#include <algorithm>
#include <vector>

namespace stepopsd::cpu {
namespace {

struct Run {
  int64_t trajectory, step;
  int64_t begin, end;  // places in the list of tokens that are in steps

  bool before(const Run& other) const {
    return trajectory != other.trajectory ? trajectory < other.trajectory : step < other.step;
  }
};

// Writes the tokens in steps to the front of `order`, the others behind them, and returns the runs of the former.
std::vector<Run> find_runs(const int64_t* step_ids, const int64_t* trajectory_ids, int64_t tokens, int64_t* order) {
  std::vector<Run> runs;
  int64_t inside = 0;
  for (int64_t i = 0; i < tokens; ++i) {
    if (step_ids[i] < 0) continue;
    if (runs.empty() || runs.back().step != step_ids[i] || runs.back().trajectory != trajectory_ids[i]) {
      runs.push_back({trajectory_ids[i], step_ids[i], inside, inside});
    }
    order[inside++] = i;
    runs.back().end = inside;
  }
  for (int64_t i = 0; i < tokens; ++i) {
    if (step_ids[i] < 0) order[inside++] = i;
  }
  return runs;
}

void sort_runs(std::vector<Run>& runs, int64_t* order) {
  const auto before = [](const Run& a, const Run& b) { return a.before(b); };
  if (std::is_sorted(runs.begin(), runs.end(), before)) return;
  const std::vector<int64_t> unsorted(order, order + runs.back().end);
  std::stable_sort(runs.begin(), runs.end(), before);
  for (Run& run : runs) {
    const int64_t* from = unsorted.data();
    order = std::copy(from + run.begin, from + run.end, order);
  }
}

}  // namespace

void step_segments(const int64_t* step_ids, const int64_t* trajectory_ids, int64_t tokens, const Segments& out) {
  std::vector<Run> runs = find_runs(step_ids, trajectory_ids, tokens, out.order);
  sort_runs(runs, out.order);
  int64_t steps = 0, trajectories = 0, place = 0;
  const Run* last = nullptr;
  for (const Run& run : runs) {
    if (last == nullptr || last->trajectory != run.trajectory) out.trajectory_starts[trajectories++] = steps;
    if (last == nullptr || last->before(run)) out.step_starts[steps++] = place;
    place += run.end - run.begin;
    last = &run;
  }
  std::fill(out.step_starts + steps, out.step_starts + tokens + 1, place);
  std::fill(out.trajectory_starts + trajectories, out.trajectory_starts + tokens + 1, steps);
  out.counts[0] = steps;
  out.counts[1] = trajectories;
}

}  // namespace stepopsd::cpu
