// The backward of block_sparse_attention for elements float, executed on the CPU.
#include "attention/block_sparse_attention_backward_sm80.cuh"

namespace tokcore::attention {

template void launch_statistics_sm80<float, 64>(const BackwardTask&, cuda::Stream);
template void launch_statistics_sm80<float, 128>(const BackwardTask&, cuda::Stream);
template void launch_statistics_sm80<float, 256>(const BackwardTask&, cuda::Stream);
template void launch_backward_sm80<float, 64, true>(const BackwardTask&, cuda::Stream);
template void launch_backward_sm80<float, 64, false>(const BackwardTask&, cuda::Stream);
template void launch_backward_sm80<float, 128, true>(const BackwardTask&, cuda::Stream);
template void launch_backward_sm80<float, 128, false>(const BackwardTask&, cuda::Stream);
template void launch_backward_sm80<float, 256, true>(const BackwardTask&, cuda::Stream);
template void launch_backward_sm80<float, 256, false>(const BackwardTask&, cuda::Stream);

}  // namespace tokcore::attention
