// The products of linear_logprobs for elements Float16, executed on the CPU.
#include "cross_entropy/linear_logprobs_backward_sm80.cuh"
#include "cross_entropy/linear_logprobs_forward_sm80.cuh"

namespace tokcore::cross_entropy {

template void launch_forward_sweep_sm80<Float16, true>(const ForwardSweep<Float16>&, cuda::Stream);
template void launch_forward_sweep_sm80<Float16, false>(const ForwardSweep<Float16>&, cuda::Stream);
template void launch_differentiate_sm80<Float16, true>(const DifferentiateSweep<Float16>&, cuda::Stream);
template void launch_differentiate_sm80<Float16, false>(const DifferentiateSweep<Float16>&, cuda::Stream);
template void launch_classifier_product_sm80<Float16>(const ClassifierProduct<Float16>&, cuda::Stream);
template void launch_hidden_product_sm80<Float16, true>(const HiddenProduct<Float16>&, cuda::Stream);
template void launch_hidden_product_sm80<Float16, false>(const HiddenProduct<Float16>&, cuda::Stream);

}  // namespace tokcore::cross_entropy
