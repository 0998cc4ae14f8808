#include "simt/thread_report.h"

#include <map>

#include "simt/scheduler.h"

namespace tokcore::simt {
namespace {

std::string triple(const uint3& index) {
  return "(" + std::to_string(index.x) + "," + std::to_string(index.y) + "," + std::to_string(index.z) + ")";
}

std::string describe_wait(Thread& thread) {
  const Warp& warp = *thread.warp_state;
  const unsigned lane = 1u << thread.lane;
  if ((warp.exited & lane) != 0) return "exited";
  if ((warp.ready & lane) != 0) return "can run";
  std::string text = describe_site(thread.wait->name, thread.wait->where);
  if (thread.wait->describe != nullptr) {
    internal::current = &thread;
    text = thread.wait->describe(thread.wait->context);
  }
  return ((warp.polling & lane) != 0 ? "poll in " : "wait in ") + text;
}

// "0-31,64" of ascending numbers.
std::string ranges(const std::vector<int>& numbers) {
  std::string text;
  for (size_t i = 0; i < numbers.size(); ++i) {
    size_t last = i;
    while (last + 1 < numbers.size() && numbers[last + 1] == numbers[last] + 1) ++last;
    text += (text.empty() ? "" : ",") + std::to_string(numbers[i]);
    if (last > i) text += "-" + std::to_string(numbers[last]);
    i = last;
  }
  return text;
}

}  // namespace

std::string describe_site(const char* name, const std::source_location& where) {
  if (where.line() == 0) return name;
  std::string file = where.file_name();
  file.erase(0, file.find_last_of('/') + 1);
  return std::string(name) + " (" + file + ":" + std::to_string(where.line()) + ")";
}

std::string describe_thread(const Thread& thread) {
  return std::string("kernel ") + thread.block->scheduler->kernel_name() + ", block " + triple(thread.block->index) +
         ", thread " + triple(thread.index);
}

std::string report_deadlock(const std::vector<Block>& blocks, const char* kernel) {
  std::string text = std::string("kernel ") + kernel + ": deadlock";
  for (const Block& block : blocks) {
    std::map<std::string, std::vector<int>> groups;
    for (int i = 0; i < block.num_threads; ++i) groups[describe_wait(block.threads[i])].push_back(i);
    text += "; block " + triple(block.index) + ":";
    const char* separator = " ";
    for (const auto& [wait, threads] : groups) {
      text += separator + ("threads " + ranges(threads)) + " " + wait;
      separator = ", ";
    }
  }
  return text;
}

}  // namespace tokcore::simt
