// TMA as kernels see it: a block moves one tile, or one run of bytes, and shows shared memory as it lies.
#include <cutlass/arch/barrier.h>
#include <pybind11/stl.h>
#include <cute/arch/copy_sm90_desc.hpp>
#include <cute/arch/copy_sm90_tma.hpp>

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bindings.h"
#include "simt/tma.h"
#include "tokcore/cuda/kernel.h"
#include "tokcore/cuda/launch.h"
#include "tokcore/cuda/tensor_map.h"

namespace tokcore::simt {
namespace {

using cutlass::arch::ClusterTransactionBarrier;

constexpr unsigned kThreads = 64;
constexpr uint64_t kHint = static_cast<uint64_t>(cute::TMA::CacheHintSm90::EVICT_NORMAL);

struct TileParams {
  CUtensorMap map;
  int corner[5];
  int bytes;                // of the tile
  unsigned char* out;       // [bytes] shared memory after a load
  const unsigned char* in;  // [bytes] shared memory before a store
};

// Copy::copy(args..., corner[0], corner[1] ...) with as many coordinates as the rank.
template <class Copy, size_t... kIndex, class... Args>
TOKCORE_DEVICE void copy_tile(std::index_sequence<kIndex...>, const TileParams& params, const Args&... args) {
  Copy::copy(args..., params.corner[kIndex]...);
}

template <int kRank>
__global__ void load_kernel(const __grid_constant__ TileParams params) {
  TOKCORE_SHARED_MEMORY(shared);
  constexpr auto kRanks = std::make_index_sequence<kRank>();
  auto* barrier = reinterpret_cast<uint64_t*>(shared + params.bytes);
  if (threadIdx.x == 0) {
    ClusterTransactionBarrier::init(barrier, 1);
    cutlass::arch::fence_barrier_init();
    cute::prefetch_tma_descriptor(&params.map);
    copy_tile<cute::SM90_TMA_LOAD::PREFETCH>(kRanks, params, &params.map);
    ClusterTransactionBarrier::arrive_and_expect_tx(barrier, static_cast<uint32_t>(params.bytes));
    copy_tile<cute::SM90_TMA_LOAD>(kRanks, params, &params.map, barrier, kHint, shared);
  }
  __syncthreads();
  ClusterTransactionBarrier::wait(barrier, 0);
  for (int i = static_cast<int>(threadIdx.x); i < params.bytes; i += kThreads) params.out[i] = shared[i];
}

template <int kRank, bool kAdds>
__global__ void store_kernel(const __grid_constant__ TileParams params) {
  TOKCORE_SHARED_MEMORY(shared);
  using Copy = std::conditional_t<kAdds, cute::SM90_TMA_REDUCE_ADD, cute::SM90_TMA_STORE>;
  for (int i = static_cast<int>(threadIdx.x); i < params.bytes; i += kThreads) shared[i] = params.in[i];
  cute::tma_store_fence();
  __syncthreads();
  if (threadIdx.x == 0) {
    copy_tile<Copy>(std::make_index_sequence<kRank>(), params, &params.map, shared);
    cute::tma_store_arrive();
    cute::tma_store_wait<0>();
  }
}

// out [bytes] = in [bytes] by way of shared memory, 16 bytes on from its beginning; then the first byte is inverted,
// which the store must not undo.
__global__ void bulk_kernel(const unsigned char* in, unsigned char* out, int bytes) {
  TOKCORE_SHARED_MEMORY(shared);
  auto* barrier = reinterpret_cast<uint64_t*>(shared);
  unsigned char* data = shared + 16;
  if (threadIdx.x == 0) {
    ClusterTransactionBarrier::init(barrier, 1);
    cutlass::arch::fence_view_async_shared();
    cute::SM90_BULK_COPY_G2S::PREFETCH::copy(in, bytes);
    // Bytes may be expected apart from the arrival.
    ClusterTransactionBarrier::expect_transaction(barrier, static_cast<uint32_t>(bytes));
    cute::SM90_BULK_COPY_G2S::copy(in, barrier, data, bytes);
    ClusterTransactionBarrier::arrive(barrier);
    while (!ClusterTransactionBarrier::try_wait(barrier, 0)) continue;
    cute::SM90_BULK_COPY_S2G::copy(data, out, bytes);
    cute::tma_store_arrive();
    bulk_wait_group(0, /*reads_only=*/false);  // CuTe only has the wait for the reads
    out[0] ^= 0xff;
    ClusterTransactionBarrier::invalidate(barrier);
  }
}

cuda::TensorMapElement element_of(const std::string& name) {
  using Element = cuda::TensorMapElement;
  for (const auto& [text, element] :
       std::initializer_list<std::pair<const char*, Element>>{{"uint8", Element::kByte},
                                                              {"float16", Element::kFloat16},
                                                              {"bfloat16", Element::kBFloat16},
                                                              {"float32", Element::kFloat32},
                                                              {"int32", Element::kInt32}}) {
    if (name == text) return element;
  }
  throw std::invalid_argument("no element is called " + name);
}

// A tile of a tensor as Python describes it.
struct Tile {
  std::string element;
  uintptr_t base;
  std::vector<uint64_t> sizes, strides_bytes;
  std::vector<uint32_t> box;
  int swizzle;
  std::vector<int> corner;

  CUtensorMap map() const {
    return cuda::make_tensor_map(element_of(element), pointer<const void>(base), sizes, strides_bytes, box,
                                 static_cast<cuda::TensorMapSwizzle>(swizzle));
  }
  TileParams params() const {
    TileParams params{};
    params.map = map();
    params.bytes = static_cast<int>(cuda::size_of(element_of(element)));
    for (uint32_t extent : box) params.bytes *= static_cast<int>(extent);
    for (size_t i = 0; i < corner.size(); ++i) params.corner[i] = corner[i];
    return params;
  }
};

template <template <int> class Launch>
void for_rank(const TileParams& params, size_t rank) {
  static constexpr void (*kLaunches[])(const TileParams&) = {&Launch<1>::run, &Launch<2>::run, &Launch<3>::run,
                                                             &Launch<4>::run, &Launch<5>::run};
  kLaunches[rank - 1](params);
}

cuda::LaunchConfig config_of(const TileParams& params, const char* name) {
  return {.grid = {1}, .threads = kThreads, .shared_bytes = static_cast<size_t>(params.bytes) + 8, .name = name};
}
template <int kRank>
struct LaunchLoad {
  static void run(const TileParams& params) {
    cuda::launch<&load_kernel<kRank>>(config_of(params, "tma_load"), params);
  }
};
template <int kRank>
struct LaunchStore {
  static void run(const TileParams& params) {
    cuda::launch<&store_kernel<kRank, false>>(config_of(params, "tma_store"), params);
  }
};
template <int kRank>
struct LaunchAdd {
  static void run(const TileParams& params) {
    cuda::launch<&store_kernel<kRank, true>>(config_of(params, "tma_reduce_add"), params);
  }
};

// The driver's own verdict, without the checks that come before it.
int encode(const Tile& tile, bool aligned_map) {
  alignas(128) unsigned char room[2 * sizeof(CUtensorMap)];
  const cuuint32_t steps[] = {1, 1, 1, 1, 1};
  return cuTensorMapEncodeTiled(reinterpret_cast<CUtensorMap*>(room + (aligned_map ? 0 : 32)),
                                cuda::detail::driver_type(element_of(tile.element)),
                                static_cast<cuuint32_t>(tile.sizes.size()), pointer<void>(tile.base), tile.sizes.data(),
                                tile.strides_bytes.data(), tile.box.data(), steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                                cuda::detail::driver_swizzle(static_cast<cuda::TensorMapSwizzle>(tile.swizzle)),
                                CU_TENSOR_MAP_L2_PROMOTION_NONE, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

const Bindings bindings([](pybind11::module_& module) {
  namespace py = pybind11;
  py::class_<Tile>(module, "Tile")
      .def(py::init<std::string, uintptr_t, std::vector<uint64_t>, std::vector<uint64_t>, std::vector<uint32_t>, int,
                    std::vector<int>>(),
           py::kw_only(), py::arg("element"), py::arg("base"), py::arg("sizes"), py::arg("strides_bytes"),
           py::arg("box"), py::arg("swizzle"), py::arg("corner") = std::vector<int>())
      .def("make_map", [](const Tile& tile) { tile.map(); })
      .def("encode", &encode, py::arg("aligned_map") = true)
      .def("load",
           [](const Tile& tile, uintptr_t out) {
             TileParams params = tile.params();
             params.out = pointer<unsigned char>(out);
             for_rank<LaunchLoad>(params, tile.corner.size());
           })
      .def("store", [](const Tile& tile, uintptr_t in, bool adds) {
        TileParams params = tile.params();
        params.in = pointer<const unsigned char>(in);
        adds ? for_rank<LaunchAdd>(params, tile.corner.size()) : for_rank<LaunchStore>(params, tile.corner.size());
      });
  module.def("bulk_copy", [](uintptr_t in, uintptr_t out, int bytes) {
    cuda::launch<&bulk_kernel>(
        cuda::LaunchConfig{.grid = {1}, .threads = 32, .shared_bytes = 16 + 4096, .name = "bulk_copy"},
        pointer<const unsigned char>(in), pointer<unsigned char>(out), bytes);
  });
});

}  // namespace
}  // namespace tokcore::simt
