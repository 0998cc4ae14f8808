// The products of linear_logprobs for elements Float16 on Hopper, executed on the CPU.
#include "cross_entropy/linear_logprobs_backward_sm90.cuh"
#include "cross_entropy/linear_logprobs_forward_sm90.cuh"

namespace tokcore::cross_entropy {

template void launch_forward_sweep_sm90<Float16>(const ForwardSweep<Float16>&, cuda::Stream);
template void launch_differentiate_sm90<Float16>(const DifferentiateSweep<Float16>&, cuda::Stream);
template void launch_classifier_product_sm90<Float16>(const ClassifierProduct<Float16>&, cuda::Stream);
template void launch_hidden_product_sm90<Float16>(const HiddenProduct<Float16>&, cuda::Stream);

}  // namespace tokcore::cross_entropy
