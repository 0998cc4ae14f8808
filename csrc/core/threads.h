// torch's thread pool as kernels see it.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "tokcore/cpu/threads.h"

namespace tokcore::core {

inline cpu::Threads torch_threads() {
  return {static_cast<int>(torch::stable::get_num_threads()),
          [](int count, void (*body)(void* context, int worker), void* context) {
            torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
              for (int64_t worker = begin; worker < end; ++worker) body(context, static_cast<int>(worker));
            });
          }};
}

}  // namespace tokcore::core
