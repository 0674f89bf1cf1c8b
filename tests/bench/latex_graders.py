"""Compare the LaTeX task with Math-Verify: agreement by kind, time per pair, and hostile input.

    pip install math-verify && python tests/bench/latex_graders.py

Math-Verify runs in a process of its own, which is killed and started again when a pair takes longer than `LIMIT`.
"""

import importlib.util
import json
import multiprocessing
import queue
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from swift_edge.answers import answer_task

ROOT = Path(__file__).parents[2]
CASES = [ROOT / "tests" / "data" / "answers" / f"latex_{name}.jsonl" for name in ("kinds", "unseen")]
LIMIT = 10.0
"""Seconds that a pair may take."""
MEMORY = 4 << 30
"""Bytes of address space of the process."""


def work(pairs: Any, results: Any) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    from math_verify import parse, verify

    while True:
        answer, reference = pairs.get()
        began = time.perf_counter()
        try:
            gold, given = parse(reference, parsing_timeout=None), parse(answer, parsing_timeout=None)
            right = bool(verify(gold, given, timeout_seconds=None))
        except (Exception, RecursionError, MemoryError):
            right = False
        results.put((right, time.perf_counter() - began))


class MathVerify:
    """The process, and how often it had to be killed."""

    def __init__(self) -> None:
        self.killed = 0
        self._start()

    def _start(self) -> None:
        self._pairs: Any = multiprocessing.Queue()
        self._results: Any = multiprocessing.Queue()
        self._process = multiprocessing.Process(target=work, args=(self._pairs, self._results), daemon=True)
        self._process.start()

    def __call__(self, answer: str, reference: str) -> tuple[bool, float]:
        self._pairs.put((_delimited(answer), _delimited(reference)))
        try:
            return self._results.get(timeout=LIMIT)
        except queue.Empty:
            self.killed += 1
            self._process.kill()
            self._start()
            return False, LIMIT


def _delimited(text: str) -> str:
    return text if "$" in text or "boxed" in text or len(text.split()) > 4 else f"${text}$"


def own(answer: str, reference: str) -> tuple[bool, float]:
    began = time.perf_counter()
    right = answer_task("latex").correct(answer, reference)
    return right, time.perf_counter() - began


def hostile() -> dict[str, str]:
    """The inputs of the tests."""
    place = ROOT / "tests" / "runtime" / "test_latex_answers.py"
    spec = importlib.util.spec_from_file_location("test_latex_answers", place)
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return dict(module.HOSTILE)


def judge(name: str, grade: Callable[[str, str], tuple[bool, float]]) -> None:
    grade("1", "1")  # what is loaded once
    for file in CASES:
        compare(f"{name}, {file.name}", grade, file)
    taken = [(which, *grade(text, "7 or 8")) for which, text in hostile().items()]
    slow = [which for which, _, seconds in taken if seconds > 2]
    print(f"{name}, hostile: {len(slow)} of {len(taken)} take more than 2 s ({', '.join(slow)})")


def compare(name: str, grade: Callable[[str, str], tuple[bool, float]], file: Path) -> None:
    cases = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    graded = [grade(case["a"], case["b"]) for case in cases]
    times = sorted(seconds for _, seconds in graded)
    wrong = [case for case, (right, _) in zip(cases, graded, strict=True) if right != case["wanted"]]
    print(
        f"{name}: {len(cases) - len(wrong)} of {len(cases)} as wanted, {sum(not case['wanted'] for case in wrong)} "
        f"wrongly right; ms per pair {1e3 * statistics.median(times):.2f}, at most {1e3 * times[-1]:.0f}"
    )


def main() -> None:
    judge("the task latex", own)
    if importlib.util.find_spec("math_verify") is None:
        sys.exit("math-verify is not installed; run: pip install math-verify")
    other = MathVerify()
    judge("Math-Verify", other)
    print(f"killed {other.killed} times after {LIMIT:g} s")


if __name__ == "__main__":
    main()
