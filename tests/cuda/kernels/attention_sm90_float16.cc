// The products of the attention family for elements Float16 on Hopper, executed on the CPU.
#include "attention/block_sparse_attention_forward_sm90.cuh"

namespace tokcore::attention {

template void launch_forward_sm90<Float16, 64>(const ForwardTask&, cuda::Stream);
template void launch_forward_sm90<Float16, 128>(const ForwardTask&, cuda::Stream);
template void launch_forward_sm90<Float16, 256>(const ForwardTask&, cuda::Stream);

}  // namespace tokcore::attention
