"""The signals that stop a program."""

import contextlib
import os
import signal
import threading
import time

STOPPING = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]


class StopSignals:
    """Ctrl-C, SIGTERM and, when a terminal is closed, SIGHUP.

    While `graceful` is set, the first signal is only recorded in `received`, so that the run can
    stop after its current step. Before that, and from the second signal on, it ends the program at
    once. Under nohup, SIGHUP stays ignored.

    Attributes:
        graceful: whether the run checks `received` and stops by itself.
        received: number of the signal, or 0.
    """

    ECHO_SECONDS = 2.0  # torchrun repeats a Ctrl-C that the terminal has sent to all processes

    def __init__(self):
        self.graceful, self.received, self.since = False, 0, 0.0

    def __enter__(self):
        self.old = {}
        if threading.current_thread() is threading.main_thread():  # only this one may set handlers
            hung_up = getattr(signal, "SIGHUP", None)  # Windows has none
            ignored = hung_up and signal.getsignal(hung_up) is signal.SIG_IGN
            numbers = [number for number in STOPPING if not (ignored and number == hung_up)]
            self.old = {number: signal.signal(number, self._receive) for number in numbers}
        return self

    def __exit__(self, kind, error, traceback):
        for number, handler in self.old.items():
            signal.signal(number, handler)

    def _receive(self, number, frame):
        if self.graceful and not self.received:
            self.received, self.since = number, time.monotonic()
        elif not self.received or time.monotonic() - self.since > self.ECHO_SECONDS:
            with contextlib.suppress(OSError):  # print may be in use
                os.write(2, f"ended at once by signal {number}\n".encode())
            raise SystemExit(128 + number)


def ignore_stop_signals(worker=None):
    """Leave Ctrl-C and the like to the process that started this one."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def stop_signals_blocked():
    """A block in which no stop signal arrives; processes started in it inherit that."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
