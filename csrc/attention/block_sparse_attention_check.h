// Validation of block_sparse_attention_forward / _backward, shared by the backends: dtype, device, rank, shape, range,
// strides, in that order. python/tokcore/ops/_attention_checks.py says the same of fake tensors.
#pragma once

#include "core/tensors.h"
#include "tokcore/attention/block_sparse_attention.h"
#include "tokcore/common/math.h"

namespace tokcore::attention {

using core::Checker;
using core::ScalarType;
using core::Tensor;

inline constexpr int64_t kLeastHeadDim = 32, kMostHeadDim = 256;

// A tensor that goes with q: of its dtype or fp32, of its shape or that without the last dimension.
struct QueryTensor {
  const char* name;
  const Tensor* tensor;
  bool is_float;
  bool has_head_dim;
};

inline void check_query_dtype(const Checker& check, const Tensor& q) {
  const ScalarType dtype = q.scalar_type();
  const bool supported = dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || dtype == ScalarType::Half;
  check.require(supported, "q", "dtype float32 or bfloat16 or float16", core::dtype_name(dtype));
}
inline void check_dtype_of_query(const Checker& check, const Tensor& q, const Tensor& tensor, const char* name) {
  const std::string dtype = core::dtype_name(q.scalar_type());
  check.require(tensor.scalar_type() == q.scalar_type(), name, "dtype " + dtype + " of q",
                core::dtype_name(tensor.scalar_type()));
}

// q [B, H, M, D] and k [B, Hkv, N, D].
inline void check_heads(const Checker& check, const Tensor& q, const Tensor& k) {
  const std::string batch = std::to_string(q.size(0)), head_dim = std::to_string(q.size(3));
  check.require(k.size(0) == q.size(0) && k.size(3) == q.size(3), "k",
                "shape [" + batch + ", Hkv, N, " + head_dim + "] (B and D of q)", core::shape_of(k));
  const bool divides = k.size(1) == 0 ? q.size(1) == 0 : q.size(1) % k.size(1) == 0;
  check.require(divides, "k", "a number of heads that divides " + std::to_string(q.size(1)) + " (H of q)", k.size(1));
}
inline void check_range(const Checker& check, const Tensor& q, double scale) {
  check.require(q.size(3) >= kLeastHeadDim && q.size(3) <= kMostHeadDim, "q", "a last dimension in [32, 256]",
                q.size(3));
  check.require(scale > 0.0 && std::isfinite(scale), "scale", "a finite value > 0", scale);
}
inline void check_block(const Checker& check, int64_t block_m, int64_t block_n) {
  check.require(block_m == 64 || block_m == 128, "block_m", "64 or 128", block_m);
  check.require(block_n == 64 || block_n == 128, "block_n", "64 or 128", block_n);
}

// Bits of a mask of B batch entries, H heads, M queries and N keys.
inline void check_mask_shape(const Checker& check, const Tensor& mask_bits, int64_t batch, int64_t heads,
                             int64_t queries, int64_t keys, int64_t block_m, int64_t block_n) {
  const int64_t rows = ceil_div(queries, block_m), words = ceil_div(ceil_div(keys, block_n), 32);
  const bool batch_fits = mask_bits.size(0) == 1 || mask_bits.size(0) == batch;
  const bool heads_fit = mask_bits.size(1) == 1 || mask_bits.size(1) == heads;
  check.require(batch_fits && heads_fit && mask_bits.size(2) == rows && mask_bits.size(3) == words, "mask_bits",
                "shape [1 or " + std::to_string(batch) + ", 1 or " + std::to_string(heads) + ", " +
                    std::to_string(rows) + ", " + std::to_string(words) + "] (B and H of q, blocks, words)",
                core::shape_of(mask_bits));
}

inline void check_query_shape(const Checker& check, const Tensor& q, const QueryTensor& other) {
  std::vector<int64_t> shape = {q.size(0), q.size(1), q.size(2)};
  if (other.has_head_dim) shape.push_back(q.size(3));
  check.shape(*other.tensor, other.name, shape, other.has_head_dim ? "shape of q" : "[B, H, M] of q");
}

inline void check_arguments(const Checker& check, const Tensor& q, const Tensor& k, const Tensor& v,
                            const Tensor& mask_bits, int64_t block_m, int64_t block_n, double scale,
                            const std::vector<QueryTensor>& further) {
  check_query_dtype(check, q);
  check_dtype_of_query(check, q, k, "k");
  check_dtype_of_query(check, q, v, "v");
  check.dtype(mask_bits, "mask_bits", ScalarType::Int);
  for (const QueryTensor& other : further) {
    if (other.is_float) {
      check.dtype(*other.tensor, other.name, ScalarType::Float);
    } else {
      check_dtype_of_query(check, q, *other.tensor, other.name);
    }
  }
  check.same_device(k, "k", q, "q");
  check.same_device(v, "v", q, "q");
  check.same_device(mask_bits, "mask_bits", q, "q");
  for (const QueryTensor& other : further) check.same_device(*other.tensor, other.name, q, "q");
  check.rank(q, "q", 4);
  check.rank(k, "k", 4);
  check.rank(v, "v", 4);
  check.rank(mask_bits, "mask_bits", 4);
  check_heads(check, q, k);
  check.shape(v, "v", {k.size(0), k.size(1), k.size(2), k.size(3)}, "shape of k");
  for (const QueryTensor& other : further) check_query_shape(check, q, other);
  check_block(check, block_m, block_n);
  check_mask_shape(check, mask_bits, q.size(0), q.size(1), q.size(2), k.size(2), block_m, block_n);
  check_range(check, q, scale);
  check.unit_last_stride(q, "q");
  check.unit_last_stride(k, "k");
  check.unit_last_stride(v, "v");
  for (const QueryTensor& other : further) {
    if (!other.is_float) check.unit_last_stride(*other.tensor, other.name);
  }
}

inline HeadsView heads_view(const Tensor& tensor) {
  return {tensor.const_data_ptr(), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}
inline AttentionShape shape_of(const Tensor& q, const Tensor& k) {
  return {q.size(0), q.size(1), k.size(1), q.size(2), k.size(2), q.size(3)};
}

// mask_bits: contiguous.
inline BlockMaskView mask_view(const Tensor& mask_bits, int64_t block_m, int64_t block_n) {
  const int64_t head_words = mask_bits.size(2) * mask_bits.size(3);
  return {reinterpret_cast<const uint32_t*>(core::data_of<int32_t>(mask_bits)),
          mask_bits.size(0) == 1 ? 0 : mask_bits.size(1) * head_words,
          mask_bits.size(1) == 1 ? 0 : head_words,
          mask_bits.size(3),
          block_m,
          block_n};
}

// mask_bits: contiguous.
inline void fill_params(BlockSparseAttentionParams& params, const Tensor& q, const Tensor& k, const Tensor& v,
                        const Tensor& mask_bits, int64_t block_m, int64_t block_n, double scale, bool causal) {
  params.dtype = core::to_dtype(q.scalar_type());
  params.shape = shape_of(q, k);
  params.q = heads_view(q);
  params.k = heads_view(k);
  params.v = heads_view(v);
  params.mask = mask_view(mask_bits, block_m, block_n);
  params.scale = static_cast<float>(scale);
  params.causal = causal;
}

}  // namespace tokcore::attention
