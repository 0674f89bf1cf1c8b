"""A stage of the export, as its report tells it: how long it took, and meanwhile how far it is."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

SECONDS_BETWEEN_LINES = 15.0
"""A stage that takes longer says so, again and again."""


@contextlib.contextmanager
def stage(name: str, report: Callable[[str], None]) -> Iterator[Callable[[float], None]]:
    """Report a line with the seconds once the block has ended, and others until then if it takes long.

    Gives a function to be told which share of the work is done (0 to 1), where that is known. `report` is called from
    another thread until the block ends, because tracers and onnxruntime do not come back before they are done.
    """
    started = time.perf_counter()
    ended = threading.Event()
    share = 0.0

    def note(done: float) -> None:
        nonlocal share
        share = done

    def tell() -> None:
        # What keeps one line from being written will meet the stage's last line as well, where it can be handled.
        with contextlib.suppress(Exception):
            while not ended.wait(SECONDS_BETWEEN_LINES):
                seconds = time.perf_counter() - started
                report(f"  {name}: {seconds:.0f} s so far" + (f", {share:.0%} done" if share else ""))

    teller = threading.Thread(target=tell, name=f"report of {name}", daemon=True)
    teller.start()
    try:
        yield note
    finally:
        ended.set()
        teller.join()
    report(f"{name:28}{time.perf_counter() - started:8.1f} s")
