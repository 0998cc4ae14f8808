// The products of linear_logprobs for elements BFloat16, executed on the CPU.
#include "cross_entropy/linear_logprobs_backward_sm80.cuh"
#include "cross_entropy/linear_logprobs_forward_sm80.cuh"

namespace tokcore::cross_entropy {

template void launch_forward_sweep_sm80<BFloat16, true>(const ForwardSweep<BFloat16>&, cuda::Stream);
template void launch_forward_sweep_sm80<BFloat16, false>(const ForwardSweep<BFloat16>&, cuda::Stream);
template void launch_differentiate_sm80<BFloat16, true>(const DifferentiateSweep<BFloat16>&, cuda::Stream);
template void launch_differentiate_sm80<BFloat16, false>(const DifferentiateSweep<BFloat16>&, cuda::Stream);
template void launch_classifier_product_sm80<BFloat16>(const ClassifierProduct<BFloat16>&, cuda::Stream);
template void launch_hidden_product_sm80<BFloat16, true>(const HiddenProduct<BFloat16>&, cuda::Stream);
template void launch_hidden_product_sm80<BFloat16, false>(const HiddenProduct<BFloat16>&, cuda::Stream);

}  // namespace tokcore::cross_entropy
