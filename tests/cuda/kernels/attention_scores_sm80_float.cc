// The block statistics of the attention family for elements float, executed on the CPU.
#include "attention/attention_block_scores_sm80.cuh"

namespace tokcore::attention {

template void launch_block_scores_sm80<float, 64>(const BlockScoresTask&, cuda::Stream);
template void launch_block_scores_sm80<float, 128>(const BlockScoresTask&, cuda::Stream);
template void launch_block_scores_sm80<float, 256>(const BlockScoresTask&, cuda::Stream);

}  // namespace tokcore::attention
