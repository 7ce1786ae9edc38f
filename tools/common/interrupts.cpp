// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include "interrupts.hpp"

#include <laconic/core/error.hpp>
#include <laconic/io/partial.hpp>

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <mutex>
#include <thread>

namespace {

/// Holds what the waiting thread and `FinishOnInterrupt` share.
struct Finishing {
  std::mutex mutex;
  int wake = -1;  ///< end of a pipe; negative: nobody finishes
  bool requested = false;
};
Finishing& finishing() {
  static Finishing& only = *new Finishing;  // outlives main, as the thread does
  return only;
}

/// Says whether the work finishes by itself, and tells it to.
bool lets_finish(int signal) {
  const std::lock_guard lock(finishing().mutex);
  if (finishing().wake < 0 || finishing().requested || signal == SIGHUP) return false;
  finishing().requested = true;
  return ::write(finishing().wake, "x", 1) == 1;
}

void wait_for(sigset_t signals) {
  while (true) {
    int signal = 0;
    if (sigwait(&signals, &signal) != 0 || lets_finish(signal)) continue;
    laconic::abandon_writing();
    ::signal(signal, SIG_DFL);
    sigset_t only;
    sigemptyset(&only);
    sigaddset(&only, signal);
    pthread_sigmask(SIG_UNBLOCK, &only, nullptr);
    ::raise(signal);
    ::_exit(128 + signal);  // process 1 of a container does not end by a signal
  }
}

}  // namespace

void watch_interrupts() {
  sigset_t signals;
  sigemptyset(&signals);
  bool any = false;
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction now {};
    if (sigaction(signal, nullptr, &now) != 0 || now.sa_handler == SIG_IGN) continue;
    sigaddset(&signals, signal);
    any = true;
  }
  if (!any || pthread_sigmask(SIG_BLOCK, &signals, nullptr) != 0) return;
  std::thread(wait_for, signals).detach();
}

FinishOnInterrupt::FinishOnInterrupt() {
  laconic::require(::pipe2(ends_, O_CLOEXEC) == 0, "interrupts: cannot make a pipe");
  const std::lock_guard lock(finishing().mutex);
  finishing().wake = ends_[1];
  finishing().requested = false;
}
FinishOnInterrupt::~FinishOnInterrupt() {
  {
    const std::lock_guard lock(finishing().mutex);
    finishing().wake = -1;
  }
  ::close(ends_[0]);
  ::close(ends_[1]);
}
