// The CUDA launches as plain structs and functions, without templates or CUDA headers: any C++ compiler can bind them.
//
// Every pointer is a device pointer. Every function returns a cudaError_t as int, 0 for success, and waits for nothing.
// Limits (cudaErrorInvalidValue): vocab <= 2^30, batch * rows * splits < 2^31, tokens < 2^31.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../include/common.h"
#include "../include/epilogue.h"
#include "../include/policy.h"

namespace stepopsd::cuda {

struct Logits {
  const void* data;
  Dtype dtype;
  int64_t batch_stride, row_stride;  // in elements, any value; the vocabulary is contiguous
};

// Who merges the vocabulary splits of a row. Both ways give the same bits.
enum class Merge : int {
  automatic = 0,  // a thread-block cluster where the device has them (sm_90 on), else through the workspace
  workspace = 1,  // partial results in the workspace and a second, small kernel
};

struct ScoreProblem {
  Logits logits[2];
  int tensors;                // 1 or 2 of them are used; dtypes may differ
  const int64_t* ids;         // (batch, rows), as the next one
  const bool* active;
  double temperature;         // > 0; not used where `temperatures` is given
  const float* temperatures;  // (batch, rows) or null: one for each row
  int64_t batch, rows, vocab;
  bool entropy;
  bool normaliser;
  float* out;       // (tensors, 3, batch, rows): log-prob of the id, log-sum-exp, entropy; 5 with peak and log-mass
  void* workspace;  // score_workspace() bytes, aligned to 16; null is fine where that is 0
  int device;       // ordinal of the device that all of this lies on
  Merge merge;
};

// Bytes of workspace that launch_score needs for this problem; reads sizes, `device` and `merge`.
size_t score_workspace(const ScoreProblem& problem);

int launch_score(const ScoreProblem& problem, void* stream);

struct Rows {
  void* data;
  int64_t batch_stride, row_stride;  // in elements; the vocabulary is contiguous
};

// out_j = (a [j = id] + p_j (b + c ln p_j)) / temperature, with p = 2^(x log2(e) / temperature - peak - log_mass).
struct GradientProblem {
  Logits logits;
  const int64_t* ids;
  const bool* active;
  const float* normaliser;    // (2, batch, rows): peak, log-mass
  const float* coefficients;  // (3, batch, rows): a, b, c
  double temperature;
  const float* temperatures;
  int64_t batch, rows, vocab;
  Rows out;  // of the dtype of the logits; their own memory, or none of it
  int device;
};

int launch_gradient(const GradientProblem& problem, void* stream);

// Rows times a number on the device, in place. Where it is 1 nothing is read.
struct ScaleProblem {
  Rows data;
  Dtype dtype;
  const float* factor;
  int64_t batch, rows, vocab;
  int device;
};

int launch_scale(const ScaleProblem& problem, void* stream);

// Scores of rows, slopes of a token-level policy loss, and its gradient by the logits.
struct LossProblem {
  Logits logits;
  const int64_t* ids;
  const bool* active;
  const float* old_logprobs;  // (batch, rows), as the next three; null: the policy is its own sampler
  const float* ref_logprobs;  // or null
  const float* advantages;
  const float* weights;
  PolicyOptions options;  // `reference` follows from ref_logprobs
  double temperature;
  const float* temperatures;
  int64_t batch, rows, vocab;
  Rows out;         // of the dtype of the logits; their own memory, or none of it
  float* scores;    // (5, batch, rows), those of ScoreProblem
  void* workspace;  // loss_workspace() bytes, aligned to 16
  int device;
  Merge merge;  // automatic: a row that fits into the shared memory of a cluster is read once; workspace: twice
};

size_t loss_workspace(const LossProblem& problem);

int launch_loss(const LossProblem& problem, void* stream);

enum class StepNorm : int { mean_abs = 0, ratio = 1 };

struct ShapeProblem {
  const float* student_logprobs;  // (tokens,), as the next three
  const float* teacher_logprobs;
  const float* advantages;
  const bool* active;
  int64_t tokens;
  // Tokens sorted by trajectory and step: stepopsd/ops/segments.py. All null where there is no step budget.
  const int64_t *order, *step_starts, *trajectory_starts, *counts;
  double alpha_clip, lambda_mix;
  WeightFn weight_fn;
  StepNorm step_norm;
  float* planes;       // (4, tokens): shaped, weight, delta, scale
  double* statistics;  // (17,) in the order of stepopsd/ops/results.py
  void* workspace;     // shape_workspace() bytes, aligned to 16
  int device;
};

size_t shape_workspace(int64_t tokens);

int launch_shape(const ShapeProblem& problem, void* stream);

// Why the kernels cannot run on a device, or 0: asks the runtime for machine code or PTX that fits it.
int check_device(int device);

// "no kernel image is available for execution on the device" and the like.
const char* error_text(int error);

}  // namespace stepopsd::cuda
