// wgmma of tf32, 8-bit integers and fp8, which are K-major always.
#include "bindings.h"
#include "kernels/hopper_wgmma.h"

namespace tokcore::simt::hopper_wgmma {
namespace {

template <class Instruction, int kSpanA = 128, int kSpanB = 128>
using KMajor = Case<Instruction, Major::K, kSpanA, Major::K, kSpanB>;

constexpr Named kCases[] = {
    {"f32_tf32_tf32_n32_k128_k128", &run<KMajor<gmma::MMA_64x32x8_F32TF32TF32_SS_TN<>>>},
    {"f32_tf32_tf32_n16_registers_k64", &run<KMajor<gmma::MMA_64x16x8_F32TF32TF32_RS_TN<>, 128, 64>>},
    {"s32_s8_s8_n64_k128_k128", &run<KMajor<gmma::MMA_64x64x32_S32S8S8_SS_TN>>},
    {"s32_s8_u8_n32_k64_k128", &run<KMajor<gmma::MMA_64x32x32_S32S8U8_SS_TN, 64, 128>>},
    {"s32_u8_s8_n16_registers_k128", &run<KMajor<gmma::MMA_64x16x32_S32U8S8_RS_TN>>},
    {"s32_u8_u8_n8_k0_k32", &run<KMajor<gmma::MMA_64x8x32_S32U8U8_SS_TN, 0, 32>>},
    {"f32_e4m3_e4m3_n64_k128_k128", &run<KMajor<gmma::MMA_64x64x32_F32E4M3E4M3_SS_TN<>>>},
    {"f32_e4m3_e5m2_n32_registers_k128", &run<KMajor<gmma::MMA_64x32x32_F32E4M3E5M2_RS_TN<>>>},
    {"f32_e5m2_e5m2_n128_k128_k128", &run<KMajor<gmma::MMA_64x128x32_F32E5M2E5M2_SS_TN<>>>},
    {"f16_e4m3_e4m3_n32_k128_k128", &run<KMajor<gmma::MMA_64x32x32_F16E4M3E4M3_SS_TN<>>>},
};

const Bindings bindings([](pybind11::module_& module) {
  auto cases = pybind11::dict(module.attr("__dict__").attr("setdefault")("hopper_wgmma", pybind11::dict()));
  for (const Named& named : kCases) cases[named.name] = pybind11::cpp_function(named.run, WithoutGil());
});

}  // namespace
}  // namespace tokcore::simt::hopper_wgmma
