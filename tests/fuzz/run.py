"""Fuzzes the doors through which data from outside comes in, and prints a table.

    python tests/fuzz/run.py                                 all targets, 60 s each, one per core at a time
    python tests/fuzz/run.py answers pick --seconds 600      some, for longer
    python tests/fuzz/run.py --executions 1000000            until so many inputs were run in all
    python tests/fuzz/run.py --reproduce FILE                one input, with the traceback; needs no fuzzer

A target is a module `fuzz_NAME.py` with a function `target(data)`, which raises where a promise is broken: see
`promise.py`. Inputs that break one are kept below --findings, each with its traceback. Mended, such an input moves to
`corpus/NAME/found-WHAT`, where `test_corpus.py` runs it with all others from then on. Needs atheris: pip install
"swift-edge[fuzz]". The exit status is 1 where anything was found.
"""

from __future__ import annotations

import argparse
import base64
import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from folders import new_folder

HERE: Final = Path(__file__).parent
TARGETS: Final = tuple(sorted(path.stem.removeprefix("fuzz_") for path in HERE.glob("fuzz_*.py")))
NEEDS_TORCH: Final = ("checkpoint", "gguf")
MOST_RESTARTS: Final = 20
"""Deaths of the process after which a target is given up."""
SLICE_S: Final = 30
"""Seconds of a turn where a number of executions is wanted, and time is not what limits."""


@dataclass
class Tally:
    """What became of one target."""

    name: str
    seed: int
    """Of the next run; the same gives the same inputs, as long as code and corpus are the same."""
    executions: int = 0
    seconds: float = 0.0
    deaths: int = 0
    findings: list[Path] = field(default_factory=list)

    def line(self) -> str:
        """The target's line of the table."""
        rate = self.executions / self.seconds if self.seconds else 0
        found = f"{len(self.findings)}" if self.findings else "none"
        return f"| {self.name} | {self.executions:,} | {self.seconds:.0f} | {rate:,.0f} | {self.deaths} | {found} |"


class Fuzzing:
    """Runs of all targets, with a corpus that grows from one to the next."""

    def __init__(self, corpus: Path, findings: Path, scratch: Path, stop: threading.Event) -> None:
        """Name the folders, `scratch` for files of the moment; `stop` ends everything early."""
        self._corpus = corpus
        self._findings = findings
        self._scratch = scratch
        self._stop = stop

    def run(self, tally: Tally, seconds: float) -> None:
        """Fuzz one target for some seconds; a process that dies is started again."""
        corpus, findings = self._corpus / tally.name, self._findings / tally.name
        for folder in (corpus, findings):
            folder.mkdir(parents=True, exist_ok=True)
        record = findings / "executions"
        record.write_bytes(bytes(8))
        started, deaths = time.monotonic(), 0
        while (left := seconds - (time.monotonic() - started)) > 0 and deaths <= MOST_RESTARTS:
            status = self._process(tally, record, corpus, findings, max(1, round(left)))
            tally.seed += 1
            if self._stop.is_set() or status == 0:
                break
            deaths += 1
        tally.deaths += deaths
        tally.seconds += time.monotonic() - started
        tally.executions += int.from_bytes(record.read_bytes(), "little")
        record.unlink()
        kept = {path for path in findings.iterdir() if path.suffix not in (".txt", ".log")}
        tally.findings = sorted(kept)

    def _process(self, tally: Tally, record: Path, corpus: Path, findings: Path, seconds: int) -> int:
        command = [sys.executable, str(HERE / "engine.py"), tally.name, str(record), str(corpus)]
        command += [str(HERE / "corpus" / tally.name), str(findings), f"-max_total_time={seconds}"]
        command += [f"-seed={tally.seed}"]
        environment = os.environ | {"SWIFT_EDGE_CACHE": "off", "PYTHONWARNINGS": "ignore", "PYTHONHASHSEED": "0"}
        environment["TMPDIR"] = str(self._scratch)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
        with (findings / "engine.log").open("ab") as log:
            process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            try:
                while process.poll() is None and not self._stop.wait(0.2):
                    pass
            finally:
                process.kill()
                process.wait()
        return process.returncode


def fuzz(tallies: Sequence[Tally], seconds: float, executions: int | None, jobs: int, fuzzing: Fuzzing) -> None:
    """Fuzz targets side by side, and again until there are so many executions, if that is asked for."""
    with ThreadPoolExecutor(jobs) as side_by_side:
        if executions is None:
            list(side_by_side.map(lambda tally: fuzzing.run(tally, seconds), tallies))
        else:
            # Every target has the same time, not the same number: some open a model for each input.
            before, done = -1, 0
            while before < done < executions:
                print(f"{done:,} of {executions:,} executions", flush=True)
                list(side_by_side.map(lambda tally: fuzzing.run(tally, SLICE_S), tallies))
                before, done = done, sum(tally.executions for tally in tallies)


def reproduce(path: Path, name: str) -> None:
    """Run one input in this process: what it breaks shows as a traceback."""
    importlib.import_module(f"fuzz_{name}").target(path.read_bytes())
    print(f"{path}: {name} keeps its promise")


def target_of(path: Path, name: str | None) -> str:
    """The target of a kept input: the name of its folder, unless it is given."""
    name = name or path.resolve().parent.name
    if name not in TARGETS:
        sys.exit(f"{path} does not lie in a target's folder; name the target: --reproduce FILE TARGET")
    return name


def main() -> None:
    """Do what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=float, default=60.0, help="seconds of each target (60)")
    parser.add_argument("--executions", type=int, help="go on until all targets together have run so many inputs")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="targets at a time")
    parser.add_argument("--seed", type=int, default=1, help="other inputs")
    parser.add_argument("--corpus", type=Path, metavar="DIR", help="keep what the corpus grows by, to go on with it")
    parser.add_argument("--findings", type=Path, metavar="DIR", help="where findings are kept (a temporary folder)")
    parser.add_argument("--reproduce", type=Path, metavar="FILE", help="run one input in this process")
    arguments = parser.parse_args()
    if arguments.reproduce is not None:
        reproduce(arguments.reproduce, target_of(arguments.reproduce, next(iter(arguments.targets), None)))
        return
    unknown = set(arguments.targets) - set(TARGETS)
    if unknown:
        parser.error(f"there is no target {min(unknown)}; expected some of {', '.join(TARGETS)}")
    names = arguments.targets or [
        name for name in TARGETS if name not in NEEDS_TORCH or importlib.util.find_spec("torch") is not None
    ]
    temporary, scratch = Path(tempfile.mkdtemp(prefix="swift-edge-fuzzing-")), new_folder()
    findings = arguments.findings or temporary / "findings"
    stop = threading.Event()
    fuzzing = Fuzzing(arguments.corpus or temporary / "corpus", findings, scratch, stop)
    tallies = [Tally(name, arguments.seed) for name in names]
    clean = False
    try:
        fuzz(tallies, arguments.seconds, arguments.executions, arguments.jobs, fuzzing)
    finally:
        stop.set()
        clean = report(tallies, findings)  # also of what was done when it was interrupted
        shutil.rmtree(scratch, ignore_errors=True)
        if clean:
            shutil.rmtree(temporary)
    sys.exit(0 if clean else 1)


def report(tallies: Sequence[Tally], findings: Path) -> bool:
    """Print the table and the findings; whether there were none."""
    print("| target | executions | seconds | per second | deaths | findings |\n|---|---:|---:|---:|---:|---:|")
    for tally in tallies:
        print(tally.line())
    print(f"{sum(tally.executions for tally in tallies):,} executions")
    clean = True
    for tally in tallies:
        for path in tally.findings:
            clean = False
            text = path.with_suffix(".txt")
            last = text.read_text(encoding="utf-8").splitlines()[-1] if text.exists() else "the process died"
            print(f"{path}\n    {last[:300]}\n    python tests/fuzz/run.py --reproduce {path}\n    {_as_text(path)}")
        if tally.executions == 0 or tally.deaths > MOST_RESTARTS:
            clean = False
            log = findings / tally.name / "engine.log"
            told = log.read_text(encoding="utf-8", errors="replace")[-2000:] if log.exists() else "it was not begun"
            print(f"{tally.name} did not run:\n{told}")
    return clean


def _as_text(path: Path) -> str:
    """An input as a line that makes it again, where it is short: a machine of CI is gone when its log is read."""
    text = base64.b64encode(zlib.compress(path.read_bytes(), 9)).decode()
    return f"zlib, base64: {text}" if len(text) <= 4000 else "too long to print"


if __name__ == "__main__":
    main()
