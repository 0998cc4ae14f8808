#include "simt/fault.h"

#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <array>
#include <cstdint>
#include <new>

#include "simt/memory.h"
#include "simt/scheduler.h"
#include "simt/thread_report.h"

namespace tokcore::simt {
namespace {

constexpr size_t kSignalStackBytes = 64 << 10;
constexpr std::array kSignals = {SIGSEGV, SIGBUS, SIGFPE};
std::array<struct sigaction, kSignals.size()> previous_actions;

std::string describe_fault(const Scheduler& scheduler, int signal, const void* address, bool write) {
  if (signal == SIGFPE) return "integer division by zero or overflow";
  if (scheduler.is_stack_guard(address)) return "the thread's local memory is used up";
  if (scheduler.shared_memory().is_guard(address)) {
    return std::string("invalid ") + (write ? "write" : "read") + " beside shared memory";
  }
  return std::string("invalid ") + (write ? "write" : "read") + ", " + describe_address(address);
}

// Where the faulting fiber continues, on its own stack from the top on: nothing returns into its frames.
[[noreturn]] void continue_after_fault(int signal, const void* address, uint64_t write) {
  Scheduler& scheduler = *Scheduler::active();
  scheduler.abandon(describe_thread(this_thread()) + ": " + describe_fault(scheduler, signal, address, write != 0));
}

void handle(int signal, siginfo_t* info, void* raw_context) {
  auto& registers = static_cast<ucontext_t*>(raw_context)->uc_mcontext.gregs;
  const Scheduler* scheduler = Scheduler::active();
  unsigned char* top = scheduler == nullptr ? nullptr : scheduler->running_stack_top();
  if (top == nullptr) {  // not a kernel: let the previous handler see the same fault again
    for (size_t i = 0; i < kSignals.size(); ++i) {
      if (kSignals[i] == signal) sigaction(signal, &previous_actions[i], nullptr);
    }
    return;
  }
  constexpr uint64_t kWriteBit = 2;  // of the page fault's error code
  registers[REG_RDI] = signal;
  registers[REG_RSI] = reinterpret_cast<greg_t>(info->si_addr);
  registers[REG_RDX] = static_cast<greg_t>(static_cast<uint64_t>(registers[REG_ERR]) & kWriteBit);
  registers[REG_RSP] = static_cast<greg_t>((reinterpret_cast<uintptr_t>(top) & ~uintptr_t{63}) - 8);
  registers[REG_RIP] = reinterpret_cast<greg_t>(&continue_after_fault);
}

}  // namespace

FaultHandlers::FaultHandlers() {
  struct sigaction action{};
  action.sa_sigaction = &handle;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  for (size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &action, &previous_actions[i]);
}

FaultHandlers::~FaultHandlers() {
  for (size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &previous_actions[i], nullptr);
}

SignalStack::SignalStack() : previous_(new stack_t) {
  memory_ = mmap(nullptr, kSignalStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory_ == MAP_FAILED) throw std::bad_alloc();
  const stack_t stack = {memory_, 0, kSignalStackBytes};
  sigaltstack(&stack, static_cast<stack_t*>(previous_));
}

SignalStack::~SignalStack() {
  sigaltstack(static_cast<stack_t*>(previous_), nullptr);
  munmap(memory_, kSignalStackBytes);
  delete static_cast<stack_t*>(previous_);
}

}  // namespace tokcore::simt
