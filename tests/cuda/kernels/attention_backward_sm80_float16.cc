// The backward of block_sparse_attention for elements Float16, executed on the CPU.
#include "attention/block_sparse_attention_backward_sm80.cuh"

namespace tokcore::attention {

template void launch_statistics_sm80<Float16, 64>(const BackwardTask&, cuda::Stream);
template void launch_statistics_sm80<Float16, 128>(const BackwardTask&, cuda::Stream);
template void launch_statistics_sm80<Float16, 256>(const BackwardTask&, cuda::Stream);
template void launch_backward_sm80<Float16, 64, true>(const BackwardTask&, cuda::Stream);
template void launch_backward_sm80<Float16, 64, false>(const BackwardTask&, cuda::Stream);
template void launch_backward_sm80<Float16, 128, true>(const BackwardTask&, cuda::Stream);
template void launch_backward_sm80<Float16, 128, false>(const BackwardTask&, cuda::Stream);
template void launch_backward_sm80<Float16, 256, true>(const BackwardTask&, cuda::Stream);
template void launch_backward_sm80<Float16, 256, false>(const BackwardTask&, cuda::Stream);

}  // namespace tokcore::attention
