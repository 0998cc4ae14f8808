// kv_quantize, kv_dequantize and kv_append on CUDA for pytest: the launchers, on addresses of arrays.
#include "kv_cache/kv_append_cuda.cuh"
#include "kv_cache/kv_quantize_cuda.cuh"

#include "bindings.h"
#include "kernels/kv_cache.h"

namespace py = pybind11;

namespace tokcore::simt {
namespace {

void fill(KvCodesParams& params, Fields& fields) {
  fields.nested("scheme", [&](Fields& inner) { simt::fill(params.scheme, inner); });
  fields("num_items", params.num_items);
  fields("num_tokens", params.num_tokens);
  fields("head_dim", params.head_dim);
  fields("rotates", params.rotates);
  fields("channel_scale", params.channel_scale);
  fields("num_channel_scales", params.num_channel_scales);
}

template <class Params, class Fill>
Params made(const py::dict& values, Fill&& fill_rest) {
  Params params = {};
  Fields fields(values);
  fill_rest(params, fields);
  return params;
}

void kv_quantize(const py::dict& values) {
  const auto params = made<KvQuantizeParams>(values, [](KvQuantizeParams& p, Fields& fields) {
    fill(p, fields);
    std::string dtype;
    fields("dtype", dtype);
    p.dtype = dtype_of(dtype);
    fields("x", p.x);
    fields("stride_item", p.stride_item);
    fields("stride_token", p.stride_token);
    fields("packed", p.packed);
    fields("scale", p.scale);
    fields("zero", p.zero);
  });
  const py::gil_scoped_release unlocked;
  run_kv_quantize_cuda(params, nullptr);
}

void kv_dequantize(const py::dict& values) {
  const auto params = made<KvDequantizeParams>(values, [](KvDequantizeParams& p, Fields& fields) {
    fill(p, fields);
    std::string dtype;
    fields("dtype", dtype);
    p.dtype = dtype_of(dtype);
    fields("x", p.x);
    fields("packed", p.packed);
    fields("scale", p.scale);
    fields("zero", p.zero);
  });
  const py::gil_scoped_release unlocked;
  run_kv_dequantize_cuda(params, nullptr);
}

KvAppendCudaParams append_params(const py::dict& values) {
  return made<KvAppendCudaParams>(values, [](KvAppendCudaParams& p, Fields& fields) {
    fields.nested("cache", [&](Fields& inner) { simt::fill(p.cache, inner); });
    fields("k", p.k);
    fields("v", p.v);
    fields("stride_k_token", p.stride_k_token);
    fields("stride_k_head", p.stride_k_head);
    fields("stride_v_token", p.stride_v_token);
    fields("stride_v_head", p.stride_v_head);
    fields("slots", p.slots);
    fields("num_tokens", p.num_tokens);
    fields("capacity", p.capacity);
    fields("residual", p.residual);
  });
}

const Bindings bindings([](py::module_& m) {
  m.def("kv_quantize", &kv_quantize);
  m.def("kv_dequantize", &kv_dequantize);
  py::class_<KvAppendCudaParams>(m, "KvAppend").def(py::init(&append_params));
  m.def("workspace", &kv_append_workspace_cuda);
  m.def("run", [](const KvAppendCudaParams& params, uintptr_t workspace) {
    const py::gil_scoped_release unlocked;
    run_kv_append_cuda(params, pointer<void>(workspace), nullptr);
  });
});

}  // namespace
}  // namespace tokcore::simt
