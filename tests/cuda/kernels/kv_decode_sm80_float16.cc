// The splits of decode_attention for queries of Float16, on the CPU.
#include "kv_cache/decode_attention_sm80.cuh"

namespace tokcore::kv_cache {

template void launch_decode_splits<Float16, 1>(const DecodeWork&, cuda::Stream);
template void launch_decode_splits<Float16, 2>(const DecodeWork&, cuda::Stream);

}  // namespace tokcore::kv_cache
