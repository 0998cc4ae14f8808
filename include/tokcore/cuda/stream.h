// The stream that a launcher is given.
#pragma once

namespace tokcore::cuda {

using Stream = void*;  // cudaStream_t; null in the execution on the CPU

}  // namespace tokcore::cuda
