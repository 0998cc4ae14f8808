// The arithmetic of matrix descriptors by itself.
#include <cute/arch/mma_sm90_desc.hpp>

#include "bindings.h"
#include "simt/matrix_descriptor.h"

namespace tokcore::simt {
namespace {

const Bindings bindings([](pybind11::module_& module) {
  namespace py = pybind11;
  // Where a 16-byte chunk lies, by a descriptor that is put together through CuTe's bit fields (bytes, bytes, bytes,
  // rows, CuTe's LayoutType).
  module.def(
      "chunk_offset",
      [](int start, int leading_offset, int stride_offset, int base_offset, int layout, bool k_major, uint32_t row,
         uint32_t chunk) {
        cute::GmmaDescriptor bits;
        bits.bitfield.start_address_ = static_cast<uint16_t>(start >> 4);
        bits.bitfield.leading_byte_offset_ = static_cast<uint16_t>(leading_offset >> 4);
        bits.bitfield.stride_byte_offset_ = static_cast<uint16_t>(stride_offset >> 4);
        bits.bitfield.base_offset_ = static_cast<uint8_t>(base_offset);
        bits.bitfield.layout_type_ = static_cast<uint8_t>(layout);
        const auto matrix = MatrixDescriptor::decode(bits);
        return k_major ? matrix.k_major(row, chunk) : matrix.mn_major(row, chunk);
      },
      py::kw_only(), py::arg("start"), py::arg("leading_offset"), py::arg("stride_offset"), py::arg("base_offset"),
      py::arg("layout"), py::arg("k_major"), py::arg("row"), py::arg("chunk"));
});

}  // namespace
}  // namespace tokcore::simt
