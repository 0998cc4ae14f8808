// The block statistics of the attention family for elements Float16, executed on the CPU.
#include "attention/attention_block_scores_sm80.cuh"

namespace tokcore::attention {

template void launch_block_scores_sm80<Float16, 64>(const BlockScoresTask&, cuda::Stream);
template void launch_block_scores_sm80<Float16, 128>(const BlockScoresTask&, cuda::Stream);
template void launch_block_scores_sm80<Float16, 256>(const BlockScoresTask&, cuda::Stream);

}  // namespace tokcore::attention
