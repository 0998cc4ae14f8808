// Runs a whole grid: the half of tokcore/cuda/launch.h for the execution on the CPU.
#pragma once

#include "simt/launch_shape.h"
#include "tokcore/cuda/launch.h"

namespace tokcore::simt {

// Runs every block of the grid to its end, under the policy. Throws an Error that names the kernel for a shape that no
// GPU takes, for what a kernel does wrong, and for a damaged GuardedBuffer.
void run_grid(const LaunchShape& shape);

}  // namespace tokcore::simt

namespace tokcore::cuda {

// Few, so that a block of a persistent kernel has several tiles to do.
inline int current_multiprocessors() { return 3; }

// Runs Kernel(args...) before it returns; an empty grid is no work.
template <auto Kernel, class... Args>
void launch(const LaunchConfig& config, const Args&... args) {
  if (config.grid.x == 0 || config.grid.y == 0 || config.grid.z == 0) return;
  const auto body = [&] { Kernel(args...); };
  simt::run_grid({.name = config.name,
                  .grid = dim3(config.grid.x, config.grid.y, config.grid.z),
                  .block = dim3(config.threads),
                  .shared_bytes = config.shared_bytes,
                  .cluster = config.cluster,
                  .body = [](const void* context) { (*static_cast<decltype(body)*>(context))(); },
                  .context = &body});
}

}  // namespace tokcore::cuda
