// The products of paro_attention on int8_t queries and keys and BFloat16 values, executed on the CPU.
#include "attention/paro_attention_sm80.cuh"

namespace tokcore::attention {

template void launch_paro_attention_sm80<int8_t, BFloat16, 64>(const ParoTask&, cuda::Stream);
template void launch_paro_attention_sm80<int8_t, BFloat16, 128>(const ParoTask&, cuda::Stream);
template void launch_paro_attention_sm80<int8_t, BFloat16, 256>(const ParoTask&, cuda::Stream);

}  // namespace tokcore::attention
