#include "simt/tma.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "simt/async.h"
#include "simt/async_proxy.h"
#include "simt/bulk_groups.h"
#include "simt/inclination.h"
#include "simt/mbarrier.h"
#include "simt/memory.h"
#include "simt/tensor_map.h"
#include "simt/tma_reduce.h"
#include "simt/wgmma.h"

namespace tokcore::simt {
namespace {

constexpr uint32_t kTileAlignment = 128;  // of a tile in shared memory
constexpr uint32_t kChunk = 16;           // bytes that a swizzle keeps together

struct Tile {
  TensorMap map;
  std::array<int64_t, kMaxTensorRank> corner;
};

Tile find_tile(const void* map, TileCoordinates corner, const char* primitive) {
  Tile tile{decode_tensor_map(map, primitive), {}};
  if (tile.map.rank != corner.size()) {
    fail(std::string(primitive) + ": " + std::to_string(corner.size()) + " coordinates for a tensor map of rank " +
         std::to_string(tile.map.rank));
  }
  const uint32_t span = tile.map.swizzle_mask == 0 ? 0 : (tile.map.swizzle_mask + 1) * kChunk;
  if (span != 0 && tile.map.row_bytes() != span) {
    fail(std::string(primitive) + ": a box row of " + std::to_string(tile.map.row_bytes()) +
         " bytes under a swizzle of " + std::to_string(span) + " has no emulation");
  }
  size_t i = 0;
  for (int32_t c : corner) tile.corner[i++] = c;
  return tile;
}

// A load: at once, or when the async queue comes to it.
void start(std::function<void()> work, std::string what) {
  if (done_at_issue(AsyncWork::kTmaLoad)) return work();
  async_queue().enqueue(std::move(work), std::move(what));
}

// The part of a box row that lies inside the tensor.
struct Row {
  uint32_t offset;         // of the row in the box, bytes
  unsigned char* address;  // of its element 0 in global memory; may lie outside of the tensor
  uint32_t begin, end;     // bytes of the row that are inside
};

template <class Visit>
void for_each_row(const Tile& tile, const Visit& visit) {
  const TensorMap& map = tile.map;
  const int64_t first = tile.corner[0];
  const int64_t inside_begin = std::clamp<int64_t>(-first, 0, map.box[0]);
  const int64_t inside_end = std::clamp<int64_t>(static_cast<int64_t>(map.size[0]) - first, inside_begin, map.box[0]);
  const uint32_t num_rows = map.num_rows();
  for (uint32_t row = 0; row < num_rows; ++row) {
    bool inside = true;
    uintptr_t address = reinterpret_cast<uintptr_t>(map.base) + first * map.element_bytes();
    uint32_t rest = row;
    for (uint32_t i = 1; i < map.rank; ++i) {
      const int64_t at = tile.corner[i] + rest % map.box[i];
      rest /= map.box[i];
      inside = inside && at >= 0 && at < static_cast<int64_t>(map.size[i]);
      address += at * map.stride_bytes[i];
    }
    visit(Row{row * map.row_bytes(), reinterpret_cast<unsigned char*>(address),
              static_cast<uint32_t>(inside ? inside_begin : 0) * map.element_bytes(),
              static_cast<uint32_t>(inside ? inside_end : 0) * map.element_bytes()});
  }
}

uint32_t offset_of(const void* shared) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(shared) - this_block().shared);
}

// The tile as the box lies in memory without a swizzle.
std::vector<unsigned char> read_global(const Tile& tile) {
  std::vector<unsigned char> box(tile.map.box_bytes());
  for_each_row(tile, [&](const Row& row) {
    if (row.end > row.begin) std::memcpy(&box[row.offset + row.begin], row.address + row.begin, row.end - row.begin);
  });
  return box;
}

void write_shared(Block& block, uint32_t offset, const std::vector<unsigned char>& box, uint32_t swizzle_mask,
                  const char* primitive) {
  auto& view = block.state<AsyncView>();
  if (swizzle_mask == 0) return view.write(block, offset, box.data(), static_cast<uint32_t>(box.size()), primitive);
  // A chunk stays within its row, and so within the tile.
  std::vector<unsigned char> permuted(box.size());
  for (uint32_t i = 0; i < box.size(); i += kChunk) {
    std::memcpy(&permuted[swizzled(offset + i, swizzle_mask) - offset], &box[i], kChunk);
  }
  view.write(block, offset, permuted.data(), static_cast<uint32_t>(permuted.size()), primitive);
}

std::vector<unsigned char> read_shared(Block& block, uint32_t offset, uint32_t bytes, uint32_t swizzle_mask,
                                       const char* primitive) {
  block.state<AsyncView>().check(block, offset, bytes, primitive);
  std::vector<unsigned char> box(bytes);
  for (uint32_t i = 0; i < bytes; i += kChunk) {
    std::memcpy(&box[i], block.shared + swizzled(offset + i, swizzle_mask), kChunk);
  }
  return box;
}

// Whether a load may write there.
void check_target(Block& block, SharedRange target, const char* primitive) {
  block.state<AsyncView>().check(block, target.offset, target.bytes, primitive);
  check_not_read_by_wgmma(block, target.offset, target.bytes, primitive);
  check_not_read_by_bulk_stores(block, target, primitive);
}

// Loads into the blocks of the cluster that `ranks` names.
void load(const Tile& tile, const void* barrier, std::vector<int> ranks, void* to, const char* primitive) {
  check_shared(to, tile.map.box_bytes(), kTileAlignment, primitive);
  const uint32_t target = offset_of(to);
  std::vector<uint32_t> barriers;
  for (int rank : ranks) {
    // mapa also for this block: the checks are the same.
    const uint32_t own = shared_address(barrier);
    barriers.push_back(rank == this_block().rank ? own : map_shared(own, static_cast<uint32_t>(rank)));
    check_mbarrier_for_tma(barriers.back(), primitive);
    check_target(this_block().blocks[rank], {target, tile.map.box_bytes()}, primitive);
  }
  start(
      [tile, target, ranks = std::move(ranks), barriers = std::move(barriers), primitive] {
        const std::vector<unsigned char> box = read_global(tile);
        for (size_t i = 0; i < ranks.size(); ++i) {
          write_shared(this_block().blocks[ranks[i]], target, box, tile.map.swizzle_mask, primitive);
          mbarrier_complete_tx(barriers[i], static_cast<uint32_t>(box.size()));
        }
      },
      std::string(primitive) + " to shared offset " + std::to_string(target));
}

void check_bulk(const void* shared, const void* global, int32_t bytes, const char* primitive) {
  if (bytes <= 0 || bytes % 16 != 0) {
    fail(std::string(primitive) + ": the size must be a positive multiple of 16, not " + std::to_string(bytes));
  }
  check_shared(shared, static_cast<size_t>(bytes), 16, primitive);
  check_global(global, 16, primitive);
}

}  // namespace

void tma_load(const void* map, const void* barrier, void* to, TileCoordinates corner) {
  constexpr const char* kName = "TMA load";
  load(find_tile(map, corner, kName), barrier, {this_block().rank}, to, kName);
}

void tma_load_multicast(const void* map, const void* barrier, uint16_t blocks, void* to, TileCoordinates corner) {
  constexpr const char* kName = "TMA multicast load";
  std::vector<int> ranks;
  for (int rank = 0; rank < 16; ++rank) {
    if ((blocks >> rank & 1) == 0) continue;
    if (rank >= this_block().cluster_size)
      fail(std::string(kName) + ": block " + std::to_string(rank) + " of the mask is not in the cluster");
    ranks.push_back(rank);
  }
  if (ranks.empty()) fail(std::string(kName) + ": the mask is empty");
  load(find_tile(map, corner, kName), barrier, std::move(ranks), to, kName);
}

void tma_store(const void* map, const void* from, TileCoordinates corner) {
  constexpr const char* kName = "TMA store";
  const Tile tile = find_tile(map, corner, kName);
  check_shared(from, tile.map.box_bytes(), kTileAlignment, kName);
  const uint32_t source = offset_of(from);
  this_block().state<AsyncView>().check(this_block(), source, tile.map.box_bytes(), kName);
  add_bulk_store(
      {source, tile.map.box_bytes()},
      [tile, source] { return read_shared(this_block(), source, tile.map.box_bytes(), tile.map.swizzle_mask, kName); },
      [tile](const std::vector<unsigned char>& box) {
        for_each_row(tile, [&](const Row& row) {
          if (row.end > row.begin)
            std::memcpy(row.address + row.begin, &box[row.offset + row.begin], row.end - row.begin);
        });
      });
}

void tma_reduce_add(const void* map, const void* from, TileCoordinates corner) {
  constexpr const char* kName = "TMA reduce-add";
  const Tile tile = find_tile(map, corner, kName);
  check_shared(from, tile.map.box_bytes(), kTileAlignment, kName);
  check_reducible(tile.map.type, kName);
  const uint32_t source = offset_of(from);
  this_block().state<AsyncView>().check(this_block(), source, tile.map.box_bytes(), kName);
  add_bulk_store(
      {source, tile.map.box_bytes()},
      [tile, source] { return read_shared(this_block(), source, tile.map.box_bytes(), tile.map.swizzle_mask, kName); },
      [tile](const std::vector<unsigned char>& box) {
        for_each_row(tile, [&](const Row& row) {
          if (row.end > row.begin) {
            reduce_add(tile.map.type, row.address + row.begin, &box[row.offset + row.begin], row.end - row.begin);
          }
        });
      });
}

void bulk_load(const void* from, const void* barrier, void* to, int32_t bytes) {
  constexpr const char* kName = "cp.async.bulk to shared memory";
  check_bulk(to, from, bytes, kName);
  const uint32_t target = offset_of(to);
  const uint32_t address = shared_address(barrier);
  const auto size = static_cast<uint32_t>(bytes);
  check_mbarrier_for_tma(address, kName);
  check_target(this_block(), {target, size}, kName);
  start(
      [from, target, address, size] {
        this_block().state<AsyncView>().write(this_block(), target, from, size, kName);
        mbarrier_complete_tx(address, size);
      },
      std::string(kName) + " at offset " + std::to_string(target));
}

void bulk_store(const void* from, void* to, int32_t bytes) {
  constexpr const char* kName = "cp.async.bulk to global memory";
  check_bulk(from, to, bytes, kName);
  const uint32_t source = offset_of(from);
  const auto size = static_cast<uint32_t>(bytes);
  this_block().state<AsyncView>().check(this_block(), source, size, kName);
  add_bulk_store(
      {source, size}, [source, size] { return read_shared(this_block(), source, size, 0, kName); },
      [to](const std::vector<unsigned char>& data) { std::memcpy(to, data.data(), data.size()); });
}

void tma_prefetch(const void* map, TileCoordinates corner) { find_tile(map, corner, "TMA prefetch"); }

void tma_prefetch_map(const void* map) { decode_tensor_map(map, "prefetch.tensormap"); }

void bulk_prefetch(const void* from, int32_t bytes) {
  if (bytes <= 0 || bytes % 16 != 0) {
    fail("cp.async.bulk.prefetch: the size must be a positive multiple of 16, not " + std::to_string(bytes));
  }
  check_global(from, 16, "cp.async.bulk.prefetch");
}

}  // namespace tokcore::simt
