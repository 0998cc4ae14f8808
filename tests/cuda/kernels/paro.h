// The params structs of PARO attention from Python.
#pragma once

#include "kernels/attention_fields.h"
#include "tokcore/attention/paro_cuda.h"

namespace tokcore::simt {

inline ParoFormat format_of(const std::string& name) {
  return name == "int8"   ? ParoFormat::kInt8
         : name == "int4" ? ParoFormat::kInt4
         : name == "fp8"  ? ParoFormat::kFp8
                          : ParoFormat::kBf16;
}

inline void fill(ParoGrid& grid, Fields& fields) {
  fields("frames", grid.extent[0]);
  fields("height", grid.extent[1]);
  fields("width", grid.extent[2]);
  fields("before", grid.before);
  fields("after", grid.after);
}

// What both structs have.
template <class Params>
void fill_paro(Params& params, Fields& fields) {
  std::string dtype, qk, pv;
  fields("dtype", dtype);
  fields("qk", qk);
  fields("pv", pv);
  params.dtype = dtype_of(dtype);
  params.qk = format_of(qk);
  params.pv = format_of(pv);
  fields("batch", params.shape.batch);
  fields("num_heads", params.shape.num_heads);
  fields("num_kv_heads", params.shape.num_kv_heads);
  fields("length", params.shape.length);
  fields("head_dim", params.shape.head_dim);
  fields("permutation", params.permutation);
  fields.nested("grid", [&](Fields& inner) { fill(params.grid, inner); });
  fields("q_codes", params.q_codes);
  fields("q_scale", params.q_scale);
  fields("k_codes", params.k_codes);
  fields("k_scale", params.k_scale);
  fields("v_codes", params.v_codes);
  fields("v_scale", params.v_scale);
  fields("mean_score", params.mean_score);
}

}  // namespace tokcore::simt
