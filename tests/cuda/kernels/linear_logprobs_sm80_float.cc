// The products of linear_logprobs for elements float, executed on the CPU.
#include "cross_entropy/linear_logprobs_backward_sm80.cuh"
#include "cross_entropy/linear_logprobs_forward_sm80.cuh"

namespace tokcore::cross_entropy {

template void launch_forward_sweep_sm80<float, true>(const ForwardSweep<float>&, cuda::Stream);
template void launch_forward_sweep_sm80<float, false>(const ForwardSweep<float>&, cuda::Stream);
template void launch_differentiate_sm80<float, true>(const DifferentiateSweep<float>&, cuda::Stream);
template void launch_differentiate_sm80<float, false>(const DifferentiateSweep<float>&, cuda::Stream);
template void launch_classifier_product_sm80<float>(const ClassifierProduct<float>&, cuda::Stream);
template void launch_hidden_product_sm80<float, true>(const HiddenProduct<float>&, cuda::Stream);
template void launch_hidden_product_sm80<float, false>(const HiddenProduct<float>&, cuda::Stream);

}  // namespace tokcore::cross_entropy
