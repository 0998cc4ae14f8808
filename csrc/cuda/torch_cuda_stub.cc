// Stands in for libtorch_cuda.so when tokcore_cuda is linked; never shipped. Every function fails.
#include <cstdint>

extern "C" {

int32_t aoti_torch_get_current_cuda_stream(int32_t /*device_index*/, void** /*stream*/) { return 1; }

}  // extern "C"
