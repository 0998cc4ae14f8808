// The products of linear_logprobs for elements BFloat16 on Hopper, executed on the CPU.
#include "cross_entropy/linear_logprobs_backward_sm90.cuh"
#include "cross_entropy/linear_logprobs_forward_sm90.cuh"

namespace tokcore::cross_entropy {

template void launch_forward_sweep_sm90<BFloat16>(const ForwardSweep<BFloat16>&, cuda::Stream);
template void launch_differentiate_sm90<BFloat16>(const DifferentiateSweep<BFloat16>&, cuda::Stream);
template void launch_classifier_product_sm90<BFloat16>(const ClassifierProduct<BFloat16>&, cuda::Stream);
template void launch_hidden_product_sm90<BFloat16>(const HiddenProduct<BFloat16>&, cuda::Stream);

}  // namespace tokcore::cross_entropy
