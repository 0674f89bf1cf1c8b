"""Fuzzes one target in this process, guided by coverage; `run.py` starts it.

    python tests/fuzz/engine.py TARGET RECORD CORPUS SEEDS FINDINGS [libFuzzer's options]

A finding does not end the run: its input is kept, the first of each place in the code, and the next input follows. What
kills the process (an abort in a library, a minute without an answer) is kept by libFuzzer, and `run.py` starts again.
"""

import contextlib
import importlib
import mmap
import os
import random
import re
import resource
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, Final

import atheris
import mutating

MOST_CPU_S: Final = 20
"""Seconds of processor time for an input; instrumented code takes several times as long as the same without."""
MOST_BYTES: Final = 2 * 2**30
"""Bytes of address space that a target may take beyond what it has when it starts."""
MOST_HANDLES: Final = 64
"""Open files, and threads, beyond those after the first inputs, that tell a leak."""
MOST_FINDINGS: Final = 100
LONGEST_INPUT: Final = 2**18


class Engine:
    """Runs a target on one input after the other, within its limits, and keeps what breaks the promise."""

    def __init__(self, target: Any, record: Path, findings: Path) -> None:
        """Begin with nothing executed."""
        self._target = target
        self._findings = findings
        self._known: set[str] = set()
        self._handles: int | None = None
        self._record = record
        with record.open("r+b") as file:
            self._count = mmap.mmap(file.fileno(), 8)
        self._executions = int.from_bytes(self._count[:], "little")
        signal.signal(signal.SIGPROF, self._stop)

    def run(self, data: bytes) -> None:
        """Run one input."""
        self._executions += 1
        self._count[:] = self._executions.to_bytes(8, "little")
        signal.setitimer(signal.ITIMER_PROF, MOST_CPU_S)
        try:
            self._target(data)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            signal.setitimer(signal.ITIMER_PROF, 0)
            self._keep(data, error)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        if self._executions % 256 == 0:
            self._check_handles(data)

    def _keep(self, data: bytes, error: BaseException) -> None:
        """Keep the first input of each place that breaks."""
        frames = traceback.extract_tb(error.__traceback__)
        packages = {"swift_edge", "swift_edge_export"}
        own = [frame for frame in frames if packages & set(Path(frame.filename).parts)] or frames
        # A broken promise is told apart by its words: all of them are raised in one place.
        words = re.sub(r"[^a-z]+", "-", str(error).lower())[:40] if type(error).__name__ == "BrokenPromiseError" else ""
        key = f"{type(error).__name__}-{words or f'{Path(own[-1].filename).stem}-{own[-1].lineno}'}"
        if key in self._known or len(self._known) >= MOST_FINDINGS:
            return
        path = self._findings / f"{key}.input"
        self._known.add(key)
        path.write_bytes(data)
        told = "\n".join(line[:400] for line in "".join(traceback.format_exception(error)).split("\n"))
        path.with_suffix(".txt").write_text(told, encoding="utf-8", errors="backslashreplace")

    def _check_handles(self, data: bytes) -> None:
        """Tell open files and threads that pile up."""
        handles = threading.active_count()
        with contextlib.suppress(OSError):
            handles += len(os.listdir("/proc/self/fd"))
        if self._handles is None:
            self._handles = handles
        elif handles > self._handles + MOST_HANDLES:
            self._keep(data, ResourceWarning(f"{self._handles} files and threads have become {handles}"))

    def _stop(self, *_: object) -> None:
        # The timer starts again, should the target swallow this.
        signal.setitimer(signal.ITIMER_PROF, 1)
        raise importlib.import_module("promise").TooSlowError(f"more than {MOST_CPU_S} s of processor time")


def main() -> None:
    """Fuzz until libFuzzer's options say that it is enough."""
    name, record, corpus, seeds, findings, *options = sys.argv[1:]
    # Everything that a target uses is imported at its top, so that it is instrumented.
    with atheris.instrument_imports(include=["swift_edge", "swift_edge_export"]):
        module = importlib.import_module(f"fuzz_{name}")
    for each in Path(seeds).iterdir():
        with contextlib.suppress(Exception):  # a seed that breaks a promise is run once more, and told then
            module.target(each.read_bytes())  # what it loads once is loaded before the limits are set
    _limit_memory()
    engine = Engine(module.target, Path(record), Path(findings))
    words = getattr(module, "WORDS", ())

    def mutator(data: bytes, most: int, seed: int) -> bytes:
        number = random.Random(seed)

        def blind(part: bytes) -> bytes:
            return bytes(atheris.Mutate(part, max(len(part), 1) + 64))

        changed = mutating.mutate(data, number, blind, words)
        return changed if 0 < len(changed) <= most else bytes(atheris.Mutate(data, most))

    limits = [
        f"-max_len={LONGEST_INPUT}",
        "-timeout=90",
        "-report_slow_units=1000",
        "-rss_limit_mb=6000",
        f"-artifact_prefix={findings}/",
    ]
    atheris.Setup([name, corpus, seeds, *limits, *options], engine.run, custom_mutator=mutator)
    atheris.Fuzz()


def _limit_memory() -> None:
    used = importlib.import_module("swift_edge.system.machine").process_memory("VmSize")
    if used is not None:
        resource.setrlimit(resource.RLIMIT_AS, (used + MOST_BYTES, used + MOST_BYTES))


if __name__ == "__main__":
    main()
