#include "simt/ldmatrix.h"

#include <cstring>
#include <utility>

#include "simt/memory.h"
#include "simt/thread.h"

namespace tokcore::simt {
namespace {

struct Slot {
  const void* row;
  uint32_t* registers;
};

constexpr const char* kNames[2][3] = {{"ldmatrix.x1", "ldmatrix.x2", "ldmatrix.x4"},
                                      {"ldmatrix.x1.trans", "ldmatrix.x2.trans", "ldmatrix.x4.trans"}};

void load_matrix(void* const* lanes, int matrix, bool transposed) {
  uint16_t elements[8][8];
  for (int row = 0; row < 8; ++row) {
    std::memcpy(elements[row], static_cast<const Slot*>(lanes[matrix * 8 + row])->row, sizeof elements[row]);
  }
  if (transposed) {
    for (int row = 0; row < 8; ++row) {
      for (int column = 0; column < row; ++column) std::swap(elements[row][column], elements[column][row]);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {  // two neighbours of row lane / 4
    std::memcpy(&static_cast<const Slot*>(lanes[lane])->registers[matrix], &elements[lane / 4][lane % 4 * 2], 4);
  }
}

}  // namespace

void ldmatrix(int num_matrices, bool transposed, const void* row, uint32_t* registers) {
  const char* const& name = kNames[transposed ? 1 : 0][num_matrices / 2];
  if (this_thread().lane < 8 * num_matrices) check_shared(row, 16, 16, name);
  Slot slot{row, registers};
  warp_collective(&name, name, kFullMask, &slot, [=](void* const* lanes) {
    for (int matrix = 0; matrix < num_matrices; ++matrix) load_matrix(lanes, matrix, transposed);
  });
}

}  // namespace tokcore::simt
