// Turns an invalid access of a fiber into the outcome of its launch, so that a wrong kernel does not end the tests.
#pragma once

namespace tokcore::simt {

// Catches SIGSEGV, SIGBUS and SIGFPE of kernels while it lives. Faults of other code go to who handled them before.
class FaultHandlers {
 public:
  FaultHandlers();
  ~FaultHandlers();
  FaultHandlers(const FaultHandlers&) = delete;
  FaultHandlers& operator=(const FaultHandlers&) = delete;
};

// The stack on which this host thread handles signals, for as long as it lives: a fiber's own may be used up.
class SignalStack {
 public:
  SignalStack();
  ~SignalStack();
  SignalStack(const SignalStack&) = delete;
  SignalStack& operator=(const SignalStack&) = delete;

 private:
  void* memory_;
  void* previous_;
};

}  // namespace tokcore::simt
