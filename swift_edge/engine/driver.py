"""The thread that turns the engine: started when there is something to do, ended when there is nothing."""

import threading
from collections.abc import Callable
from typing import Final

IDLE_S: Final = 1.0
"""Seconds without work after which the thread ends."""


class Driver:
    """One thread, or none.

    >>> driver = Driver(engine.turn, engine.has_mail)
    >>> driver.wake()
    """

    def __init__(self, turn: Callable[[], bool], has_mail: Callable[[], bool]) -> None:
        """Call `turn` as long as it says that something is left, and after each `wake`."""
        self._turn = turn
        self._has_mail = has_mail
        self._changed = threading.Condition()
        self._woken = False
        self._leaves = False
        self._thread: threading.Thread | None = None

    @property
    def is_current(self) -> bool:
        """Whether this is the thread."""
        return threading.current_thread() is self._thread

    def wake(self, *, only_if_running: bool = False) -> None:
        """See that there is mail; starts the thread unless it is to be woken `only_if_running`."""
        with self._changed:
            self._woken = True
            if self._thread is not None:
                self._changed.notify()
            elif not only_if_running:
                self._thread = threading.Thread(target=self._run, name="swift-edge engine", daemon=True)
                self._thread.start()

    def join(self) -> None:
        """End the thread once nothing is left to do, and wait for that."""
        with self._changed:
            thread, self._leaves = self._thread, True
            self._changed.notify()
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        self._leaves = False

    def _run(self) -> None:
        while True:
            if self._turn():
                continue
            with self._changed:
                if not self._woken and not self._leaves:
                    self._changed.wait(IDLE_S)
                if not self._woken and not self._has_mail():
                    self._thread = None
                    return
                self._woken = False
