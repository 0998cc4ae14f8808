// The sweeps of kv_saliency over elements BFloat16, on the CPU.
#include "kv_cache/kv_saliency_sm80.cuh"

namespace tokcore::kv_cache {

template void launch_saliency<BFloat16, true>(const SaliencyWork&, bool, cuda::Stream);
template void launch_saliency<BFloat16, false>(const SaliencyWork&, bool, cuda::Stream);

}  // namespace tokcore::kv_cache
