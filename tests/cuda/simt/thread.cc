#include "simt/thread.h"

#include "simt/scheduler.h"
#include "simt/thread_report.h"

namespace tokcore::simt {

namespace internal {

thread_local constinit Thread* current = nullptr;

void suspend(const Wait& wait) { this_block().scheduler->suspend(wait, false); }

}  // namespace internal

void fail(const std::string& message) {
  throw Error(in_kernel() ? describe_thread(this_thread()) + ": " + message : message);
}

void unsupported(const char* name) { fail(std::string(name) + " has no emulation"); }

void poll(const char* name, const std::source_location& where) {
  Wait wait;
  wait.name = name;
  wait.where = where;
  this_block().scheduler->suspend(wait, true);
}

}  // namespace tokcore::simt
