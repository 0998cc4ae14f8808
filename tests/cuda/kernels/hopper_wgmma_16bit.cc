// wgmma of 16-bit types: every swizzle, K- and MN-major, operand a from registers, fp16 sums, negation.
#include "bindings.h"
#include "kernels/hopper_wgmma.h"

namespace tokcore::simt::hopper_wgmma {
namespace {

constexpr Major kK = Major::K, kMN = Major::MN;

template <Major kMajorA, int kSpanA, Major kMajorB, int kSpanB>
using BFloat16 = Case<gmma::MMA_64x64x16_F32BF16BF16_SS<kMajorA, kMajorB>, kMajorA, kSpanA, kMajorB, kSpanB>;
template <Major kMajorB, int kSpanB>
using FromRegisters = Case<gmma::MMA_64x64x16_F32BF16BF16_RS<kK, kMajorB>, kK, 128, kMajorB, kSpanB>;

constexpr Named kCases[] = {
    {"f32_bf16_bf16_n64_k128_k128", &run<BFloat16<kK, 128, kK, 128>>},
    {"f32_bf16_bf16_n64_k64_k32", &run<BFloat16<kK, 64, kK, 32>>},
    {"f32_bf16_bf16_n64_k0_k0", &run<BFloat16<kK, 0, kK, 0>>},
    {"f32_bf16_bf16_n64_mn128_mn128", &run<BFloat16<kMN, 128, kMN, 128>>},
    {"f32_bf16_bf16_n64_mn64_mn32", &run<BFloat16<kMN, 64, kMN, 32>>},
    {"f32_bf16_bf16_n64_mn0_mn0", &run<BFloat16<kMN, 0, kMN, 0>>},
    {"f32_bf16_bf16_n64_k32_mn64", &run<BFloat16<kK, 32, kMN, 64>>},
    {"f32_bf16_bf16_n64_mn32_k64", &run<BFloat16<kMN, 32, kK, 64>>},
    {"f32_bf16_bf16_n64_registers_k128", &run<FromRegisters<kK, 128>>},
    {"f32_bf16_bf16_n64_registers_mn128", &run<FromRegisters<kMN, 128>>},
    {"f32_bf16_bf16_n8_k128_k128", &run<Case<gmma::MMA_64x8x16_F32BF16BF16_SS<kK, kK>, kK, 128, kK, 128>>},
    {"f32_bf16_bf16_n256_k128_mn128", &run<Case<gmma::MMA_64x256x16_F32BF16BF16_SS<kK, kMN>, kK, 128, kMN, 128>>},
    {"f32_f16_f16_n32_k128_k64", &run<Case<gmma::MMA_64x32x16_F32F16F16_SS<kK, kK>, kK, 128, kK, 64>>},
    {"f16_f16_f16_n64_k128_k128", &run<Case<gmma::MMA_64x64x16_F16F16F16_SS<kK, kK>, kK, 128, kK, 128>>},
    {"f16_f16_f16_n16_registers_k128", &run<Case<gmma::MMA_64x16x16_F16F16F16_RS<kK, kK>, kK, 128, kK, 128>>},
    {"negative_f32_bf16_bf16_n16_k128_k128",
     &run<Case<gmma::MMA_64x16x16_F32BF16BF16_SS<kK, kK, gmma::ScaleIn::Neg>, kK, 128, kK, 128>>},
    {"negative_f32_bf16_bf16_n16_registers_k128",
     &run<Case<gmma::MMA_64x16x16_F32BF16BF16_RS<kK, kK, gmma::ScaleIn::One, gmma::ScaleIn::Neg>, kK, 128, kK, 128>>},
};

const Bindings bindings([](pybind11::module_& module) {
  auto cases = pybind11::dict(module.attr("__dict__").attr("setdefault")("hopper_wgmma", pybind11::dict()));
  for (const Named& named : kCases) cases[named.name] = pybind11::cpp_function(named.run, WithoutGil());
});

}  // namespace
}  // namespace tokcore::simt::hopper_wgmma
