"""Signals that reach a process while its main thread is anywhere: in a wait of gloo or NCCL, in a large import.

Python runs a handler between two bytecodes of the main thread, which may be an hour from now. Its C handler, though,
writes the signal's number to the wake-up descriptor at once, and a thread of ours reads it there. (Blocking signals
and `sigwait` would do too, but every child process would start with them blocked.) Nothing happens on import.
"""

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psutil

SAME_SIGNAL_SECONDS = 0.5
"""Two of a kind within this time are one: the handler and the thread both see it, and a terminal's Ctrl-C reaches a
process directly and through its parent."""

_active: list["_Watch"] = []
_told_to_stop = False
_ending = threading.Lock()


class _Watch:
    """Calls `action(number)` in a thread for every one of `numbers` that comes."""

    def __init__(self, action: Callable[[int], None], numbers: Sequence[int]) -> None:
        self.action, self.pid = action, os.getpid()
        self.lock, self.last = threading.RLock(), dict.fromkeys(numbers, float("-inf"))
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.writer, False)
        threading.Thread(target=self._read, name="nemo-tvkd signals", daemon=True).start()
        self.descriptor = signal.set_wakeup_fd(self.writer, warn_on_full_buffer=False)
        self.handlers = {number: signal.signal(number, self._handle) for number in numbers}

    def _read(self) -> None:
        while numbers := os.read(self.reader, 64):
            for number in numbers:
                if number in self.last:
                    self._act(number)
        os.close(self.reader)

    def _handle(self, number: int, frame: Any) -> None:
        if os.getpid() == self.pid:
            self._act(number)  # in case a library has taken the wake-up descriptor for itself
        else:  # a worker forked from here, which has no thread that reads
            os._exit(128 + number)

    def _act(self, number: int) -> None:
        with self.lock:
            now = time.monotonic()
            again = now - self.last[number] < SAME_SIGNAL_SECONDS
            self.last[number] = now
        if not again:
            self.action(number)

    def stop(self) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self.descriptor)
        os.close(self.writer)


@contextmanager
def acting(action: Callable[[int], None], numbers: Sequence[int]) -> Iterator[None]:
    """Within the block `action(number)` is called for each of the signals `numbers`, in a thread, whatever the main
    thread does. May be nested: the innermost acts. Only the main thread can do this; elsewhere nothing happens."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    watch = _Watch(action, numbers)
    _active.append(watch)
    try:
        yield
    finally:
        if watch in _active:  # else this process was forked from within the block
            _active.remove(watch)
            watch.stop()


def take_over(handler: Callable[[int, Any], None], numbers: Sequence[int]) -> Callable[[], None]:
    """Give signals to a handler of Python's kind, which waits for the main thread, until the result is called."""

    def note(number: int, frame: Any) -> None:
        global _told_to_stop
        _told_to_stop = _told_to_stop or number == signal.SIGUSR1
        handler(number, frame)

    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    handlers = {number: signal.signal(number, note) for number in numbers}
    descriptors = [signal.set_wakeup_fd(-1)] if _active else []

    def give_back() -> None:
        while descriptors:
            signal.set_wakeup_fd(descriptors.pop())
        while handlers:
            signal.signal(*handlers.popitem())

    return give_back


def told_to_stop() -> bool:
    """Whether a handler of :func:`take_over` was given SIGUSR1. (SIGTERM also comes because another rank failed.)"""
    return _told_to_stop


def end(code: int, line: str) -> None:
    """End this process now, and those it has started; `line` goes to stderr unless nobody takes it."""
    if not _ending.acquire(blocking=False):
        return  # on another signal, in another thread
    try:
        for child in psutil.Process().children(recursive=True):
            child.kill()
    except psutil.Error:
        pass  # it has ended by itself
    try:
        if line and select.select([], [2], [], 1.0)[1]:
            clear = "\r\x1b[2K" if os.isatty(2) else ""  # of a line of progress that stands there
            os.write(2, f"{clear}{line}\n".encode())
    finally:
        os._exit(code)


def ignore(numbers: Sequence[int]) -> None:
    """Let these signals do nothing any more, where they would kill the process."""
    for number in numbers:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, signal.SIG_IGN)


def _forget_in_child() -> None:
    """A forked process must not write its signals into its parent's pipe."""
    if _active:
        signal.set_wakeup_fd(-1)
        if signal.SIGINT in _active[-1].handlers:
            signal.signal(signal.SIGINT, _active[-1].handlers[signal.SIGINT])
        _active.clear()


os.register_at_fork(after_in_child=_forget_in_child)
