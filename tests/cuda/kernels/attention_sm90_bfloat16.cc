// The products of the attention family for elements BFloat16 on Hopper, executed on the CPU.
#include "attention/block_sparse_attention_forward_sm90.cuh"

namespace tokcore::attention {

template void launch_forward_sm90<BFloat16, 64>(const ForwardTask&, cuda::Stream);
template void launch_forward_sm90<BFloat16, 128>(const ForwardTask&, cuda::Stream);
template void launch_forward_sm90<BFloat16, 256>(const ForwardTask&, cuda::Stream);

}  // namespace tokcore::attention
