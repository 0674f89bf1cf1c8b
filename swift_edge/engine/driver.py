"""The thread that runs the engine's turns: it starts when there is work, and ends when there is none."""

import atexit
import os
import threading
import weakref
from collections.abc import Callable
from typing import Final

_drivers: "weakref.WeakSet[Driver]" = weakref.WeakSet()

_left_behind: "list[Driver]" = []

IDLE_S: Final = 1.0
"""Seconds without work after which the thread ends."""


class Driver:
    """Runs turns in a thread of its own, which exists only while there is work.

    >>> driver = Driver(engine.turn, engine.has_mail)
    >>> driver.wake()
    """

    def __init__(self, turn: Callable[[], bool], has_mail: Callable[[], bool]) -> None:
        """Call `turn` after each `wake`, and again as long as it returns that something is left to do."""
        self._turn = turn
        self._has_mail = has_mail
        self._changed = threading.Condition()
        self._woken = False
        self._leaves = False
        self._quits = False
        self._thread: threading.Thread | None = None
        _drivers.add(self)

    @property
    def is_current(self) -> bool:
        """Whether the caller runs in this thread."""
        return threading.current_thread() is self._thread

    def wake(self, *, only_if_running: bool = False) -> None:
        """Let the thread look for mail; starts it if needed, unless `only_if_running`."""
        with self._changed:
            self._woken = True
            if self._thread is not None:
                self._changed.notify()
            elif not only_if_running:
                self._thread = threading.Thread(target=self._run, name="swift-edge engine", daemon=True)
                try:
                    self._thread.start()
                except (RuntimeError, MemoryError):
                    self._thread = None  # the next one that wakes it tries again
                    raise

    def join(self, *, at_once: bool = False) -> None:
        """Wait for the thread to end: once nothing is left to do, or `at_once`, after its current turn."""
        with self._changed:
            thread, self._leaves, self._quits = self._thread, True, at_once
            self._changed.notify()
        if thread is not None and thread is not threading.current_thread():
            thread.join()
            with self._changed:
                if self._thread is thread:  # it left with work to do: the next one that wakes it starts another
                    self._thread = None
        self._leaves = self._quits = False

    def forget(self) -> None:
        """Take note that this is a fork, which the thread is not part of."""
        self._changed, self._thread = threading.Condition(), None

    def _run(self) -> None:
        try:
            while not self._quits:
                if self._turn():
                    continue
                with self._changed:
                    if not self._woken and not self._leaves:
                        self._changed.wait(IDLE_S)
                    if not self._woken and not self._has_mail():
                        self._thread = None
                        return
                    self._woken = False
        except BaseException:
            self._thread = None  # the next one that wakes it starts another
            raise


def _end_all() -> None:
    # The process aborts if a run is under way when onnxruntime is torn down.
    for driver in list(_drivers):
        driver.join(at_once=True)


def _forget_all() -> None:
    # The threads stayed behind, maybe with locks in their hands.
    for driver in list(_drivers):
        driver.forget()
        # onnxruntime's threads stayed behind, too: a session that is let go here would wait for them for ever.
        _left_behind.append(driver)
    _drivers.clear()


atexit.register(_end_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
