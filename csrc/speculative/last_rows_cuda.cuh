// Rows written into a table so that of several rows of one place the last one stays, whichever thread comes first:
// places are forgotten, then claimed by the greatest row, then written by their owners.
#pragma once

#include "tokcore/cuda/kernel.h"
#include "tokcore/cuda/launch_over.h"

namespace tokcore::speculative {

// Rows has: int64_t num_rows, num_columns; place(row), -1 where a row is left out; write(row, place, column).
template <class Rows>
struct LastRows {
  Rows rows;
  int32_t* owners;  // [places]
};

inline constexpr unsigned kRowsThreads = 256;

TOKCORE_DEVICE int64_t thread_of_grid() { return int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }

// Grid: a thread for each row.
template <class Rows>
__global__ void forget_rows_kernel(const LastRows<Rows> call) {
  const int64_t row = thread_of_grid();
  if (row >= call.rows.num_rows) return;
  const int64_t place = call.rows.place(row);
  if (place >= 0) call.owners[place] = -1;
}
template <class Rows>
__global__ void claim_rows_kernel(const LastRows<Rows> call) {
  const int64_t row = thread_of_grid();
  if (row >= call.rows.num_rows) return;
  const int64_t place = call.rows.place(row);
  if (place >= 0) atomicMax(&call.owners[place], static_cast<int32_t>(row));
}
// Grid: a thread for each number of each row.
template <class Rows>
__global__ void write_rows_kernel(const LastRows<Rows> call) {
  const int64_t row = thread_of_grid() / call.rows.num_columns;
  if (row >= call.rows.num_rows) return;
  const int64_t place = call.rows.place(row);
  if (place >= 0 && call.owners[place] == row) call.rows.write(row, place, thread_of_grid() % call.rows.num_columns);
}

template <class Rows>
void launch_last_rows(const LastRows<Rows>& call, cuda::Stream stream) {
  const int64_t rows = call.rows.num_rows, numbers = rows * call.rows.num_columns;
  if (numbers == 0) return;
  cuda::launch<forget_rows_kernel<Rows>>(cuda::launch_over(rows, kRowsThreads, kRowsThreads, stream, "forget_rows"),
                                         call);
  cuda::launch<claim_rows_kernel<Rows>>(cuda::launch_over(rows, kRowsThreads, kRowsThreads, stream, "claim_rows"),
                                        call);
  cuda::launch<write_rows_kernel<Rows>>(cuda::launch_over(numbers, kRowsThreads, kRowsThreads, stream, "write_rows"),
                                        call);
}

}  // namespace tokcore::speculative
