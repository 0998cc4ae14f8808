// Loads, stores, atomics and fences of CUDA. Cache hints change nothing that a test could see.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>

#include "simt/thread.h"

template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldca(const T* p) {
  return *p;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
T __ldlu(const T* p) {
  return *p;
}
template <class T>
void __stcg(T* p, T value) {
  *p = value;
}
template <class T>
void __stcs(T* p, T value) {
  *p = value;
}
template <class T>
void __stwt(T* p, T value) {
  *p = value;
}

// Threads of a block take turns on one host thread, blocks may run on several.
inline void __threadfence_block() {}
inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline void __threadfence_system() { std::atomic_thread_fence(std::memory_order_seq_cst); }

namespace tokcore::simt::internal {
template <class T, class Combine>
T atomic_update(T* p, const Combine& combine) {
  const std::atomic_ref<T> cell(*p);
  T old = cell.load();
  while (!cell.compare_exchange_weak(old, combine(old))) {
  }
  return old;
}
}  // namespace tokcore::simt::internal

template <class T>
T atomicAdd(T* p, std::type_identity_t<T> value) {
  return tokcore::simt::internal::atomic_update(p, [value](T old) { return static_cast<T>(old + value); });
}
template <class T>
T atomicMax(T* p, std::type_identity_t<T> value) {
  return tokcore::simt::internal::atomic_update(p, [value](T old) { return std::max(old, value); });
}
template <class T>
T atomicMin(T* p, std::type_identity_t<T> value) {
  return tokcore::simt::internal::atomic_update(p, [value](T old) { return std::min(old, value); });
}
template <class T>
T atomicOr(T* p, std::type_identity_t<T> value) {
  return tokcore::simt::internal::atomic_update(p, [value](T old) { return old | value; });
}
template <class T>
T atomicAnd(T* p, std::type_identity_t<T> value) {
  return tokcore::simt::internal::atomic_update(p, [value](T old) { return old & value; });
}
template <class T>
T atomicExch(T* p, std::type_identity_t<T> value) {
  return tokcore::simt::internal::atomic_update(p, [value](T) { return value; });
}
template <class T>
T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  return tokcore::simt::internal::atomic_update(p, [=](T old) { return old == expected ? value : old; });
}

// A thread that reads the clock polls for something.
inline long long clock64(const std::source_location& where = std::source_location::current()) {
  tokcore::simt::poll("clock64", where);
  return std::chrono::steady_clock::now().time_since_epoch().count();
}
inline void __nanosleep(unsigned, const std::source_location& where = std::source_location::current()) {
  tokcore::simt::poll("__nanosleep", where);
}

[[noreturn]] inline void __trap(const std::source_location& where = std::source_location::current()) {
  tokcore::simt::fail(tokcore::simt::describe_site("__trap", where));
}
