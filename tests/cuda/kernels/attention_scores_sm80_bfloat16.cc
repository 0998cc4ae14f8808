// The block statistics of the attention family for elements BFloat16, executed on the CPU.
#include "attention/attention_block_scores_sm80.cuh"

namespace tokcore::attention {

template void launch_block_scores_sm80<BFloat16, 64>(const BlockScoresTask&, cuda::Stream);
template void launch_block_scores_sm80<BFloat16, 128>(const BlockScoresTask&, cuda::Stream);
template void launch_block_scores_sm80<BFloat16, 256>(const BlockScoresTask&, cuda::Stream);

}  // namespace tokcore::attention
