// Validation of paro_prepare and paro_attention, shared by the backends: dtype, device, rank, shape, range, strides, in
// that order. python/tokcore/ops/paro_attention.py says the same of fake tensors.
#pragma once

#include "attention/block_sparse_attention_check.h"
#include "tokcore/attention/paro.h"

namespace tokcore::attention {

inline ParoFormat format_of(const Checker& check, const char* argument, const std::string& name) {
  if (name == "int8") return ParoFormat::kInt8;
  if (name == "int4") return ParoFormat::kInt4;
  if (name == "bf16") return ParoFormat::kBf16;
  const bool of_values = argument == std::string("pv");
  if (of_values && name == "fp8") return ParoFormat::kFp8;
  check.fail(argument, of_values ? "'int8' or 'int4' or 'fp8' or 'bf16'" : "'int8' or 'int4' or 'bf16'",
             "'" + name + "'");
}

// dtype of what holds the codes.
inline ScalarType query_code_type(ParoFormat format) {
  return format == ParoFormat::kInt8   ? ScalarType::Char
         : format == ParoFormat::kInt4 ? ScalarType::Byte
                                       : ScalarType::BFloat16;
}
inline ScalarType value_code_type(ParoFormat format) {
  return format == ParoFormat::kFp8 ? ScalarType::Byte : query_code_type(format);
}
inline std::vector<int64_t> query_code_shape(const ParoShape& shape, int64_t heads, ParoFormat format) {
  return {shape.batch, heads, shape.padded_length(), shape.code_dim() / (format == ParoFormat::kInt4 ? 2 : 1)};
}
inline std::vector<int64_t> value_code_shape(const ParoShape& shape, ParoFormat format) {
  if (format == ParoFormat::kBf16) return query_code_shape(shape, shape.num_kv_heads, format);
  return {shape.batch, shape.num_kv_heads, shape.padded_length() / kParoGroup, shape.value_dim(),
          kParoGroup / (format == ParoFormat::kInt4 ? 2 : 1)};
}

// A group of options that says which token stands where, against N tokens of Hkv heads.
inline ParoGrid grid_of(const Checker& check, const std::vector<int64_t>& permutation, const std::vector<int64_t>& grid,
                        const std::vector<int64_t>& text, int64_t num_kv_heads, int64_t length,
                        const char* length_name) {
  check.require(static_cast<int64_t>(permutation.size()) == num_kv_heads, "permutation",
                std::to_string(num_kv_heads) + " codes (Hkv of k)", std::to_string(permutation.size()) + " codes");
  for (int64_t code : permutation) {
    check.require(code >= 0 && code < kParoOrders, "permutation", "codes in [0, 5]", code);
  }
  check.require(grid.size() == 3, "grid", "3 sizes", grid.size());
  check.require(text.size() == 2, "text", "2 counts", text.size());
  for (int64_t extent : grid) check.require(extent >= 1, "grid", "sizes >= 1", extent);
  for (int64_t count : text) check.require(count >= 0, "text", "counts >= 0", count);
  const ParoGrid result = {{grid[0], grid[1], grid[2]}, text[0], text[1]};
  const int64_t tokens = result.volume() + result.before + result.after;
  check.require(tokens == length, "grid", "F*H*W + text = " + std::to_string(length) + " (" + length_name + ")",
                tokens);
  return result;
}

inline void check_rotation(const Checker& check, const std::optional<Tensor>& cos, const std::optional<Tensor>& sin,
                           const std::string& pairs, const ParoShape& shape, const ParoGrid& grid) {
  check.require(pairs == "interleaved" || pairs == "half", "rope_pairs", "'interleaved' or 'half'", "'" + pairs + "'");
  check.require(cos.has_value() == sin.has_value(), "rope_sin", "a Tensor exactly if rope_cos is one",
                sin.has_value() ? "a Tensor" : "None");
  if (!cos.has_value()) return;
  const int64_t D = shape.head_dim;
  const bool rows_fit = cos->size(0) == shape.length || cos->size(0) == grid.volume();
  check.require(D % 2 == 0 && rows_fit && (cos->size(1) == D || cos->size(1) == D / 2), "rope_cos",
                "shape [" + std::to_string(shape.length) + " or " + std::to_string(grid.volume()) + ", " +
                    std::to_string(D) + " or " + std::to_string(D / 2) + "] (N or F*H*W, D or D/2, D even)",
                core::shape_of(*cos));
  check.shape(*sin, "rope_sin", {cos->size(0), cos->size(1)}, "shape of rope_cos");
}
inline void check_rotation_type(const Checker& check, const std::optional<Tensor>& table, const char* name) {
  if (table.has_value()) check.dtype(*table, name, ScalarType::Float);
}

// What is common to q, k, v and the codes made of them.
struct PrepareOptions {
  const std::vector<int64_t>& permutation;
  const std::vector<int64_t>& grid;
  const std::vector<int64_t>& text;
  const std::optional<Tensor>& rope_cos;
  const std::optional<Tensor>& rope_sin;
  const std::string& rope_pairs;
  const std::string& qk;
  const std::string& pv;
};

// Checks everything and fills shape, grid, formats and inputs.
inline void check_prepare(const Checker& check, const Tensor& q, const Tensor& k, const Tensor& v,
                          const PrepareOptions& options, ParoPrepareParams& params) {
  check_query_dtype(check, q);
  check_dtype_of_query(check, q, k, "k");
  check_dtype_of_query(check, q, v, "v");
  check_rotation_type(check, options.rope_cos, "rope_cos");
  check_rotation_type(check, options.rope_sin, "rope_sin");
  check.same_device(k, "k", q, "q");
  check.same_device(v, "v", q, "q");
  if (options.rope_cos.has_value()) check.same_device(*options.rope_cos, "rope_cos", q, "q");
  if (options.rope_sin.has_value()) check.same_device(*options.rope_sin, "rope_sin", q, "q");
  check.rank(q, "q", 4);
  check.rank(k, "k", 4);
  check.rank(v, "v", 4);
  if (options.rope_cos.has_value()) check.rank(*options.rope_cos, "rope_cos", 2);
  if (options.rope_sin.has_value()) check.rank(*options.rope_sin, "rope_sin", 2);
  check_heads(check, q, k);
  check.require(k.size(2) == q.size(2), "k", std::to_string(q.size(2)) + " tokens (N of q)", k.size(2));
  check.shape(v, "v", {k.size(0), k.size(1), k.size(2), k.size(3)}, "shape of k");
  check_range(check, q, 1.0);
  params.shape = {q.size(0), q.size(1), k.size(1), q.size(2), q.size(3)};
  params.grid = grid_of(check, options.permutation, options.grid, options.text, k.size(1), q.size(2), "N of q");
  check_rotation(check, options.rope_cos, options.rope_sin, options.rope_pairs, params.shape, params.grid);
  params.qk = format_of(check, "qk", options.qk);
  params.pv = format_of(check, "pv", options.pv);
  check.unit_last_stride(q, "q");
  check.unit_last_stride(k, "k");
  check.unit_last_stride(v, "v");
  params.dtype = core::to_dtype(q.scalar_type());
  params.q = heads_view(q);
  params.k = heads_view(k);
  params.v = heads_view(v);
  params.permutation = options.permutation.data();
}

// The tables of a call, contiguous; they live as long as this does.
class RotationTables {
 public:
  RotationTables(ParoPrepareParams& params, const std::optional<Tensor>& cos, const std::optional<Tensor>& sin,
                 bool interleaved) {
    if (!cos.has_value()) return;
    cos_ = torch::stable::contiguous(*cos);
    sin_ = torch::stable::contiguous(*sin);
    const int64_t rows = cos_->size(0);
    params.rotation = {core::data_of<float>(*cos_),
                       core::data_of<float>(*sin_),
                       cos_->size(1),
                       rows == params.shape.length ? 0 : params.grid.before,
                       rows,
                       interleaved};
  }

 private:
  std::optional<Tensor> cos_, sin_;
};

inline Tensor make_floats(const Tensor& like, const std::vector<int64_t>& shape, bool needed) {
  return core::empty_like_on(like, needed ? shape : std::vector<int64_t>{0}, ScalarType::Float);
}
inline float* floats_or_null(const Tensor& tensor) {
  return tensor.numel() > 0 ? core::mutable_data_of<float>(tensor) : nullptr;
}

using Prepared = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// What paro_prepare returns.
struct PreparedTensors {
  Tensor q_codes, q_scale, k_codes, k_scale, v_codes, v_scale, k_mean, mean_score;

  PreparedTensors(const Tensor& q, const ParoPrepareParams& params, bool smooths, bool corrects)
      : PreparedTensors(q, params.shape, params.qk, params.pv, smooths, corrects) {}

  // Of a call that has tokens.
  void fill(ParoPrepareParams& params) const {
    params.q_codes = q_codes.mutable_data_ptr();
    params.k_codes = k_codes.mutable_data_ptr();
    params.v_codes = v_codes.mutable_data_ptr();
    params.q_scale = floats_or_null(q_scale);
    params.k_scale = floats_or_null(k_scale);
    params.v_scale = floats_or_null(v_scale);
    params.k_mean = floats_or_null(k_mean);
    params.mean_score = floats_or_null(mean_score);
  }
  Prepared all() const { return {q_codes, q_scale, k_codes, k_scale, v_codes, v_scale, k_mean, mean_score}; }

 private:
  PreparedTensors(const Tensor& q, const ParoShape& s, ParoFormat qk, ParoFormat pv, bool smooths, bool corrects)
      : q_codes(core::empty_like_on(q, query_code_shape(s, s.num_heads, qk), query_code_type(qk))),
        q_scale(make_floats(q, {s.batch, s.num_heads, s.padded_length()}, is_quantized(qk))),
        k_codes(core::empty_like_on(q, query_code_shape(s, s.num_kv_heads, qk), query_code_type(qk))),
        k_scale(make_floats(q, {s.batch, s.num_kv_heads, s.padded_length() / kParoGroup}, is_quantized(qk))),
        v_codes(core::empty_like_on(q, value_code_shape(s, pv), value_code_type(pv))),
        v_scale(make_floats(q, {s.batch, s.num_kv_heads, s.head_dim}, is_quantized(pv))),
        k_mean(make_floats(q, {s.batch, s.num_kv_heads, s.head_dim}, smooths)),
        mean_score(make_floats(q, {s.batch, s.num_heads, s.length}, corrects)) {}
};

// The arguments of paro_attention.
struct AttentionArguments {
  const Tensor& q_codes;
  const Tensor& q_scale;
  const Tensor& k_codes;
  const Tensor& k_scale;
  const Tensor& v_codes;
  const Tensor& v_scale;
  const Tensor& mean_score;
  const Tensor& mask_bits;
  const std::vector<int64_t>& permutation;
  const std::vector<int64_t>& grid;
  const std::vector<int64_t>& text;
  int64_t block_m, block_n, head_dim;
  double scale;
  ScalarType out_dtype;
  const std::string& qk;
  const std::string& pv;
};

// Checks everything and fills what lies in the prepared operands, which are contiguous.
inline void check_attention(const Checker& check, const AttentionArguments& a, ParoAttentionParams& params) {
  params.qk = format_of(check, "qk", a.qk);
  params.pv = format_of(check, "pv", a.pv);
  const std::pair<const char*, const Tensor*> codes[] = {
      {"q_codes", &a.q_codes}, {"k_codes", &a.k_codes}, {"v_codes", &a.v_codes}};
  const std::pair<const char*, const Tensor*> floats[] = {
      {"q_scale", &a.q_scale}, {"k_scale", &a.k_scale}, {"v_scale", &a.v_scale}, {"mean_score", &a.mean_score}};
  check.dtype(a.q_codes, "q_codes", query_code_type(params.qk));
  check.dtype(a.k_codes, "k_codes", query_code_type(params.qk));
  check.dtype(a.v_codes, "v_codes", value_code_type(params.pv));
  for (const auto& [name, tensor] : floats) check.dtype(*tensor, name, ScalarType::Float);
  check.dtype(a.mask_bits, "mask_bits", ScalarType::Int);
  const bool real =
      a.out_dtype == ScalarType::Float || a.out_dtype == ScalarType::BFloat16 || a.out_dtype == ScalarType::Half;
  check.require(real, "out_dtype", "float32 or bfloat16 or float16", core::dtype_name(a.out_dtype));
  for (const auto& [name, tensor] : codes) check.same_device(*tensor, name, a.q_codes, "q_codes");
  for (const auto& [name, tensor] : floats) check.same_device(*tensor, name, a.q_codes, "q_codes");
  check.same_device(a.mask_bits, "mask_bits", a.q_codes, "q_codes");
  check.rank(a.q_codes, "q_codes", 4);
  check.rank(a.k_codes, "k_codes", 4);
  check.rank(a.v_codes, "v_codes", params.pv == ParoFormat::kBf16 ? 4 : 5);
  check.rank(a.mask_bits, "mask_bits", 4);

  const int64_t B = a.q_codes.size(0), H = a.q_codes.size(1), Hkv = a.k_codes.size(1);
  const bool divides = Hkv == 0 ? H == 0 : H % Hkv == 0;
  check.require(divides, "k_codes", "a number of heads that divides " + std::to_string(H) + " (H of q_codes)", Hkv);
  int64_t length = 0;
  if (a.grid.size() == 3 && a.text.size() == 2) length = a.grid[0] * a.grid[1] * a.grid[2] + a.text[0] + a.text[1];
  params.grid = grid_of(check, a.permutation, a.grid, a.text, Hkv, length, "N");
  params.shape = {B, H, Hkv, length, a.head_dim};
  const ParoShape& shape = params.shape;
  const bool fits = a.head_dim >= kLeastHeadDim && a.head_dim <= kMostHeadDim;
  check.require(fits, "head_dim", "a value in [32, 256]", a.head_dim);
  check.shape(a.q_codes, "q_codes", query_code_shape(shape, H, params.qk), "codes of [B, H, N, D]");
  check.shape(a.k_codes, "k_codes", query_code_shape(shape, Hkv, params.qk), "codes of [B, Hkv, N, D]");
  check.shape(a.v_codes, "v_codes", value_code_shape(shape, params.pv), "codes of [B, Hkv, N, D]");
  const int64_t P = shape.padded_length();
  const std::vector<int64_t> none = {0};
  const bool scales_qk = is_quantized(params.qk), scales_pv = is_quantized(params.pv);
  check.shape(a.q_scale, "q_scale", scales_qk ? std::vector<int64_t>{B, H, P} : none, "scales of q_codes");
  check.shape(a.k_scale, "k_scale", scales_qk ? std::vector<int64_t>{B, Hkv, P / kParoGroup} : none,
              "scales of k_codes");
  check.shape(a.v_scale, "v_scale", scales_pv ? std::vector<int64_t>{B, Hkv, a.head_dim} : none, "scales of v_codes");
  const bool corrects = a.mean_score.dim() != 1;
  check.shape(a.mean_score, "mean_score", corrects ? std::vector<int64_t>{B, H, length} : none, "[B, H, N] or none");
  check_block(check, a.block_m, a.block_n);
  check_mask_shape(check, a.mask_bits, B, H, length, length, a.block_m, a.block_n);
  check.require(a.scale > 0.0 && std::isfinite(a.scale), "scale", "a finite value > 0", a.scale);
  for (const auto& [name, tensor] : codes) {
    check.require(tensor->is_contiguous(), name, "a contiguous tensor", "strides that are not");
  }
  for (const auto& [name, tensor] : floats) {
    check.require(tensor->is_contiguous(), name, "a contiguous tensor", "strides that are not");
  }
  params.dtype = core::to_dtype(a.out_dtype);
  params.q_codes = a.q_codes.const_data_ptr();
  params.k_codes = a.k_codes.const_data_ptr();
  params.v_codes = a.v_codes.const_data_ptr();
  params.q_scale = scales_qk ? core::data_of<float>(a.q_scale) : nullptr;
  params.k_scale = scales_qk ? core::data_of<float>(a.k_scale) : nullptr;
  params.v_scale = scales_pv ? core::data_of<float>(a.v_scale) : nullptr;
  params.mean_score = corrects ? core::data_of<float>(a.mean_score) : nullptr;
  params.permutation = a.permutation.data();
  params.scale = static_cast<float>(a.scale);
}

// What paro_attention returns.
struct AttendedTensors {
  Tensor out, lse;

  AttendedTensors(const Tensor& like, const ParoShape& s, ScalarType dtype, bool need_lse)
      : out(core::empty_like_on(like, {s.batch, s.num_heads, s.length, s.head_dim}, dtype)),
        lse(make_floats(like, {s.batch, s.num_heads, s.length}, need_lse)) {}

  // Of a call that has tokens.
  void fill(ParoAttentionParams& params) const {
    params.out = out.mutable_data_ptr();
    params.lse = floats_or_null(lse);
  }
};

}  // namespace tokcore::attention
