// draft_candidates on CUDA: a block for each row, which it sweeps once. Each warp keeps the k greatest logits that it
// has met, each thread the greatest of its own and the sum of exponentials against it; both are joined in the end.
#pragma once

#include "tokcore/cuda/element.cuh"
#include "tokcore/cuda/launch_over.h"
#include "tokcore/cuda/math.cuh"
#include "tokcore/cuda/topk.cuh"
#include "tokcore/speculative/draft_cuda.h"

namespace tokcore::speculative {

inline constexpr unsigned kCandidatesThreads = 256;
inline constexpr int kCandidatesWarps = kCandidatesThreads / 32;
inline constexpr int kTogether = 2;  // loads of 16 bytes between two decisions: most hold no candidate

struct CandidatesShared {
  cuda::RankKey keys[kCandidatesWarps][kMostDraftCandidates];  // of each warp, descending
  cuda::RankKey best[kMostDraftCandidates];                    // of the row, descending
  float sums[kCandidatesWarps];
};

template <class T>
class CandidatesBlock {
 public:
  static constexpr int kVector = 16 / static_cast<int>(sizeof(T));

  TOKCORE_DEVICE CandidatesBlock(const DraftCandidatesParams& params, int64_t row, CandidatesShared& shared)
      : p_(params),
        s_(shared),
        logits_(static_cast<const T*>(params.logits) + row * params.stride_row),
        row_(row),
        lane_(static_cast<int>(threadIdx.x) % 32),
        warp_(static_cast<int>(threadIdx.x) / 32),
        factor_(1.0f / params.temperature * cuda::kLog2E) {}

  TOKCORE_DEVICE void run() {
    const int k = static_cast<int>(p_.k);
    for (int i = lane_; i < k; i += 32) s_.keys[warp_][i] = 0;
    for (int i = static_cast<int>(threadIdx.x); i < k; i += kCandidatesThreads) s_.best[i] = 0;
    __syncwarp();
    sweep();
    __syncthreads();
    join();
    __syncthreads();
    write();
  }

 private:
  // Vectors begin where memory is aligned; what is before or behind the row is -inf.
  TOKCORE_DEVICE void load(int64_t begin, float (&values)[kVector]) const {
    if (begin >= 0 && begin + kVector <= p_.vocab_size) {
      const uint4 words = *reinterpret_cast<const uint4*>(logits_ + begin);
      const uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
      for (int i = 0; i < kVector; ++i) values[i] = element_of(word, i);
      return;
    }
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const bool inside = begin + i >= 0 && begin + i < p_.vocab_size;
      values[i] = inside ? cuda::to_float(logits_[begin + i]) : -INFINITY;
    }
  }
  static TOKCORE_DEVICE float element_of(const uint32_t (&word)[4], int i) {
    if constexpr (sizeof(T) == 4) {
      return __uint_as_float(word[i]);
    } else {
      return cuda::to_float(T{static_cast<uint16_t>(word[i / 2] >> (i % 2 * 16))});
    }
  }

  TOKCORE_DEVICE void sweep() {
    constexpr int64_t kStep = int64_t{kTogether} * kVector * kCandidatesThreads;
    const auto address = reinterpret_cast<uintptr_t>(logits_);
    const int64_t shift = static_cast<int64_t>(address % 16 / sizeof(T));
    for (int64_t first = -shift; first < p_.vocab_size; first += kStep) {
      float values[kTogether][kVector];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) load(first + place(i), values[i]);
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        take(first + place(i), values[i]);
        if (p_.probs != nullptr) weigh(values[i]);
      }
    }
  }
  TOKCORE_DEVICE int64_t place(int i) const { return (int64_t{i} * kCandidatesThreads + threadIdx.x) * kVector; }

  TOKCORE_DEVICE void take(int64_t begin, const float (&values)[kVector]) {
    bool reached = false;
#pragma unroll
    for (int i = 0; i < kVector; ++i) reached = reached || !(values[i] < bound_);
    if (__any_sync(cuda::kAllLanes, reached) == 0) return;
    cuda::RankKey* keys = s_.keys[warp_];
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const bool inside = begin + i >= 0 && begin + i < p_.vocab_size;
      const cuda::RankKey key = inside ? cuda::rank_key(values[i], static_cast<uint32_t>(begin + i)) : 0;
      unsigned waiting = __ballot_sync(cuda::kAllLanes, key > keys[p_.k - 1]);
      for (; waiting != 0; waiting &= waiting - 1) {
        cuda::insert_ranked(keys, p_.k, __shfl_sync(cuda::kAllLanes, key, __ffs(static_cast<int>(waiting)) - 1), lane_);
      }
    }
    bound_ = cuda::value_to_beat(keys, p_.k);
    bound_ = bound_ == bound_ ? bound_ : INFINITY;  // k NaN: nothing else matters any more
  }

  TOKCORE_DEVICE void weigh(const float (&values)[kVector]) {
    float greatest = greatest_;
#pragma unroll
    for (int i = 0; i < kVector; ++i) greatest = fmaxf(greatest, values[i]);
    if (greatest > greatest_) {
      sum_ *= cuda::exp2_approx((greatest_ - greatest) * factor_);
      greatest_ = greatest;
    }
#pragma unroll
    for (int i = 0; i < kVector; ++i) sum_ += cuda::exp2_approx((values[i] - greatest_) * factor_);
  }

  // A key's rank is the number of those above it: no two are the same.
  TOKCORE_DEVICE void join() {
    const int k = static_cast<int>(p_.k);
    for (int i = static_cast<int>(threadIdx.x); i < kCandidatesWarps * k; i += kCandidatesThreads) {
      const cuda::RankKey key = s_.keys[i / k][i % k];
      if (key == 0) continue;
      int rank = i % k;  // in its own warp's list
      for (int warp = 0; warp < kCandidatesWarps && rank < k; ++warp) {
        if (warp == i / k) continue;
        for (int other = 0; other < k && s_.keys[warp][other] > key; ++other) ++rank;
      }
      if (rank < k) s_.best[rank] = key;
    }
  }

  TOKCORE_DEVICE void write() {
    const float greatest = s_.best[0] == 0 ? -INFINITY : cuda::value_of(s_.best[0]);
    const bool has_nan = greatest != greatest;
    if (p_.probs != nullptr) {
      float sum = sum_ * cuda::exp2_approx((greatest_ - greatest) * factor_);
      for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(cuda::kAllLanes, sum, step);
      if (lane_ == 0) s_.sums[warp_] = sum;
      __syncthreads();
    }
    const int i = static_cast<int>(threadIdx.x);
    if (i >= p_.k) return;
    const float value = s_.best[i] == 0 ? -INFINITY : cuda::value_of(s_.best[i]);
    const bool proposed = !has_nan && value > -INFINITY;
    p_.tokens[row_ * p_.k + i] = proposed ? static_cast<int32_t>(cuda::index_of(s_.best[i])) : -1;
    if (p_.probs == nullptr) return;
    float total = 0.0f;
    for (int warp = 0; warp < kCandidatesWarps; ++warp) total += s_.sums[warp];
    const float weight = cuda::exp2_approx((value - greatest) * factor_) / total;
    p_.probs[row_ * p_.k + i] = has_nan ? __uint_as_float(0x7fffffffu) : proposed ? weight : 0.0f;
  }

  const DraftCandidatesParams& p_;
  CandidatesShared& s_;
  const T* logits_;
  int64_t row_;
  int lane_, warp_;
  float factor_;
  float bound_ = -INFINITY;           // what a logit must reach to be among the warp's k
  float greatest_ = -3.40282347e38f;  // of this thread's logits
  float sum_ = 0.0f;                  // of exp((logit - greatest_) / temperature)
};

// Grid: a block for each row.
template <class T>
__global__ void __launch_bounds__(kCandidatesThreads) draft_candidates_kernel(const DraftCandidatesParams params) {
  TOKCORE_SHARED_MEMORY(memory);
  CandidatesBlock<T>(params, blockIdx.x, *reinterpret_cast<CandidatesShared*>(memory)).run();
}

}  // namespace tokcore::speculative

namespace tokcore {

void run_draft_candidates_cuda(const DraftCandidatesParams& params, cuda::Stream stream) {
  using namespace speculative;
  cuda::LaunchConfig config =
      cuda::launch_over(params.num_rows, 1, kCandidatesThreads, stream, "draft_candidates_kernel");
  config.shared_bytes = sizeof(CandidatesShared);
  with_dtype(params.dtype,
             [&](auto element) { cuda::launch<draft_candidates_kernel<decltype(element)>>(config, params); });
}

}  // namespace tokcore
