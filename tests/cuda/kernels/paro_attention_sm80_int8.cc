// The products of paro_attention on int8_t queries and keys and int8_t values, executed on the CPU.
#include "attention/paro_attention_sm80.cuh"

namespace tokcore::attention {

template void launch_paro_attention_sm80<int8_t, int8_t, 64>(const ParoTask&, cuda::Stream);
template void launch_paro_attention_sm80<int8_t, int8_t, 128>(const ParoTask&, cuda::Stream);
template void launch_paro_attention_sm80<int8_t, int8_t, 256>(const ParoTask&, cuda::Stream);

}  // namespace tokcore::attention
