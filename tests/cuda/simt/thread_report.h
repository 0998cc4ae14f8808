// Threads and their waits in words.
#pragma once

#include <string>
#include <vector>

#include "simt/thread.h"

namespace tokcore::simt {

// "kernel NAME, block (x,y,z), thread (x,y,z)"
std::string describe_thread(const Thread& thread);

// Every thread of every block: who waits where, who exited.
std::string report_deadlock(const std::vector<Block>& blocks, const char* kernel);

}  // namespace tokcore::simt
