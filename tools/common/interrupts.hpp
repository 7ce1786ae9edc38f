// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

// What the programs do when they are told to end (SIGINT, SIGTERM, SIGHUP). A thread waits for these signals; all other
// threads have them blocked. It removes what is being written (`laconic::abandon_writing`) and ends the process by the
// same signal, so that whoever started it sees why it ended.

/// Begins to wait for signals. Called once, before any other thread is started. Signals that the parent has told this
/// process to ignore (nohup, a shell's background) stay ignored.
void watch_interrupts();

/// While one lives, the first SIGINT or SIGTERM does not end the process: the work sees `descriptor()` and
/// finishes what it has begun. The second one ends the process as ever. One at a time.
class FinishOnInterrupt {
 public:
  FinishOnInterrupt();
  FinishOnInterrupt(const FinishOnInterrupt&) = delete;
  FinishOnInterrupt& operator=(const FinishOnInterrupt&) = delete;
  ~FinishOnInterrupt();

  /// Returns a descriptor that can be read once the process was told to end. A thread that waits for input polls it,
  /// too, for signals interrupt no read.
  int descriptor() const { return ends_[0]; }

 private:
  int ends_[2];
};
