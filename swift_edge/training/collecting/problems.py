"""Problems: prompts with reference answers, read from files and checked row by row before anything is computed.

Rows are read in one way, whatever they are: as JSON lines, as a JSON array, or from the hub. What makes problems of
them is `jsonl`, or a benchmark of `swift_edge.training.collecting.benchmarks`.
"""

import codecs
import functools
import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, Unpack

import numpy as np

from swift_edge.answers import AnswerTask, TaskName, answer_task
from swift_edge.checks import is_number, shown
from swift_edge.engine.model import Prompt
from swift_edge.errors import MIB, DataError, InvalidOptionError, SwiftEdgeError
from swift_edge.options import DataInput, DataOptions
from swift_edge.system.documents import LINES_BYTES, DocumentError, json_lines, opened, opened_lines, parse_json
from swift_edge.system.machine import memory_for, require_memory
from swift_edge.training.collecting.benchmarks import BENCHMARKS, Benchmark
from swift_edge.training.collecting.hub import hub_rows, is_for_datasets

PROMPT_FIELDS = ("prompt", "question", "messages")
_LARGE = 256 * MIB
"""Size of a file from which on it is asked whether its rows fit into memory."""
_ARRAY = re.compile(rb"\[\s*(?:\{|$)")
"""How a line begins that begins an array of rows."""
_MEMORY_PER_BYTE = 2
"""At least how much of it they take: texts hardly more than in the file, numbers of a few digits six times that."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One prompt, and the answer that is right."""

    number: int
    """Place among the problems, from 0."""
    prompt: Prompt
    """A text, or chat messages."""
    answer: str | None
    """The reference as the file holds it; None where there is none."""
    place: str
    """The file and the line it comes from, for messages."""
    row: Mapping[str, Any]
    """The whole row, for graders of your own."""
    bare: str | None = field(default=None, kw_only=True)
    """The question of a benchmark, without the words around it; None where the prompt is asked as it stands."""

    @property
    def question(self) -> Prompt:
        """What is asked, in whichever words: it tells the problem from others."""
        return self.prompt if self.bare is None else self.bare


Grader: TypeAlias = Callable[[Problem, str], bool]
"""Says whether the text of a response is right."""

AnyProblem = TypeVar("AnyProblem", bound=Problem)

PlacedRow: TypeAlias = tuple[str, dict[str, Any]]
"""A row with the file and the line it comes from, as text for messages."""


@dataclass(frozen=True, slots=True)
class Problems:
    """The problems of a file, in the order in which they are asked."""

    path: Path
    """The file."""
    sha256: str
    """SHA-256 of the file; where its first rows were skipped or all were shuffled, of it and how."""
    rows: tuple[Problem, ...]
    """The problems."""
    asking: DataOptions = DataOptions()  # noqa: RUF009  # frozen
    """What the rows are, which of them are asked, and in which words."""

    @property
    def task(self) -> TaskName | None:
        """The task that the benchmark brings; None without one."""
        return None if self.asking.benchmark == "jsonl" else BENCHMARKS[self.asking.benchmark].task

    def first(self, limit: int | None) -> "Problems":
        """The first `limit` problems; all of them for None."""
        return replace(self, rows=first_rows(self.rows, limit))


@memory_for("reading the problems")
def read_problems(
    path: str | os.PathLike[str], *, answers: bool = True, piped: bool = True, **asking: Unpack[DataInput]
) -> Problems:
    """Read problems from JSON lines or a JSON array, as `asking` says, see `DataOptions`.

    Where `path` is no file it may be a name of the hub, such as `openai/gsm8k:test`, if `datasets` is installed.
    A row of `jsonl`, which is the default, has `prompt`, `question` or `messages`, and `answer`, a text or a number;
    without `answers` it may lack its answer. A row of a benchmark has the fields with which that is published, and is
    worded for a model when it is asked. Further fields are kept in `row`. Empty lines at the end are passed over. What
    a shell pipes in will do, unless it is to be read again: then say so with `piped=False`. Raises `DataError`, which
    names file and line, for anything else; `InvalidOptionError` for options that do not fit.

    >>> read_problems("test.jsonl", benchmark="gsm8k").rows[0].answer
    '18'
    """
    options = DataOptions.of(**asking)
    file = Path(path)
    sha256, rows = data_rows(file, piped=piped)
    if options.skip >= len(rows):
        raise InvalidOptionError(f"skip is {options.skip}; expected fewer than the {len(rows)} problems of {file}")
    if options.skip or options.shuffle is not None:
        # Problems of two stores are the same where data and number are.
        rows = _shuffled(rows, options.shuffle)[options.skip :]
        sha256 = hashlib.sha256(f"{sha256} {options.shuffle} {options.skip}".encode()).hexdigest()
    problem_of = _given if options.benchmark == "jsonl" else functools.partial(_posed, BENCHMARKS[options.benchmark])
    problems = [problem_of(number, place, row) for number, (place, row) in enumerate(rows)]
    for problem in problems if answers else ():
        if problem.answer is None:
            raise DataError(f"{problem.place} has no answer; expected the field answer, a text or a number")
    return Problems(file, sha256, tuple(problems), options)


def _given(number: int, place: str, row: dict[str, Any]) -> Problem:
    """The problem of a row that says itself how it is asked."""
    return Problem(number, prompt_of(row, place), text_of(row, "answer", place), place, row)


def _posed(benchmark: Benchmark, number: int, place: str, row: dict[str, Any]) -> Problem:
    """The problem of a row of a benchmark."""
    question, answer = benchmark.read(row, place)
    return Problem(number, question, answer, place, row, bare=question)


def _shuffled(rows: list[PlacedRow], seed: int | None) -> list[PlacedRow]:
    """The rows in the order of a seed, which is that of hashes: random generators change with their versions."""
    if seed is None:
        return rows
    order = sorted(range(len(rows)), key=lambda number: hashlib.sha256(f"{seed} {number}".encode()).digest())
    return [rows[number] for number in order]


class Grading:
    """Tells right responses from wrong ones, by a task or by a callable."""

    def __init__(self, task: str | None, grader: Grader | None = None) -> None:
        """Take the name of a task, or a callable, or neither if labels come from elsewhere; not both."""
        if task is not None and grader is not None:
            raise InvalidOptionError(f"task is {task!r} and a grader is given; expected one of them")
        self.task: AnswerTask | None = None if task is None else answer_task(task)
        self._grader = grader

    @property
    def grades(self) -> bool:
        """Whether there is anything to grade by."""
        return self.task is not None or self._grader is not None

    def check(self, problem: Problem) -> None:
        """Raise `DataError` if the task finds no answer in the reference."""
        if self.task is None:
            return
        if problem.answer is None:
            raise DataError(f"{problem.place} has no answer, by which the task {self.task.name!r} grades; add one")
        if self.task.reference(problem.answer) is None:
            raise DataError(
                f"{problem.place} has the answer {shown(problem.answer)}, which holds none of the task "
                f"{self.task.name!r}; correct the row, or choose another --task"
            )

    def answer(self, text: str, *, cut_off: bool = False) -> str | None:
        """The answer that a response gives, by the task; None without one, and where it was cut off."""
        return None if self.task is None or cut_off else self.task.extract(text)

    def correct(self, problem: Problem, text: str, *, cut_off: bool = False) -> bool:
        """Whether a response is right; raises `DataError` if a callable fails or does not return True or False.

        To a task a response that was cut off is wrong; a callable says what it likes.
        """
        if self._grader is None:
            assert self.task is not None
            assert problem.answer is not None
            return not cut_off and self.task.correct(text, problem.answer)
        try:
            label: object = self._grader(problem, text)
        except Exception as error:
            raise DataError(
                f"the grader failed on a response to problem {problem.number} ({problem.place}): "
                f"{type(error).__name__}: {error}; what was collected before stays: correct the grader and go on"
            ) from error
        if not isinstance(label, (bool, np.bool_)):
            raise DataError(
                f"the grader gave {shown(label)} for a response to problem {problem.number} ({problem.place}); "
                "expected True or False"
            )
        return bool(label)


def data_rows(path: Path, *, piped: bool) -> tuple[str, list[PlacedRow]]:
    """Read what `read_rows` does, and where there is no such file, a data set of the hub: see `hub`."""
    return hub_rows(path) if is_for_datasets(path) else read_rows(path, piped=piped)


def read_rows(path: Path, *, piped: bool) -> tuple[str, list[PlacedRow]]:
    """Read JSON lines, or a JSON array: the SHA-256 of the file, and each row with its place as text for messages.

    Raises `DataError` for a file that is absent, empty or no file, or a pipe unless `piped`, for a row that is not
    UTF-8, not JSON or not an object, and for more than `LINES_BYTES`; `MemoryLimitError` where the rows do not fit into
    memory.
    """
    digest = hashlib.sha256()
    rows: list[PlacedRow] = []
    array: list[bytes] = []  # the lines of a file that is one
    empty: str | None = None  # the first of the empty lines that came last
    read = 0
    try:
        with opened_lines(path) if piped else opened(path, LINES_BYTES) as (stream, size):
            room = _LARGE  # bytes from which on it is asked for memory
            if size is not None:
                _require_room(path, size)
                room = LINES_BYTES
            for place, line in json_lines(stream, path):
                digest.update(line)
                read += len(line)
                if read > room:  # nobody knows how much a pipe will bring
                    _require_room(path, _LARGE + 1)
                    room += _LARGE
                text = line.removeprefix(codecs.BOM_UTF8).strip()
                if array or (not rows and _ARRAY.match(text)):
                    array.append(line)
                    continue
                if not text:
                    empty = empty or place
                    continue
                if empty is not None:
                    raise DataError(f"{empty} is empty; expected a JSON object: empty lines may stand at the end only")
                rows.append((place, _row(parse_json(line, place, strict=False), place)))
        if array:
            rows = _array_rows(b"".join(array), path)
    except DocumentError as error:
        raise DataError(f"{error}: correct the file, or name another one") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); expected a file of JSON lines") from error
    if not rows:
        raise DataError(f"{path} is empty; expected one JSON object per line")
    return digest.hexdigest(), rows


def prompt_of(row: Mapping[str, Any], place: str) -> Prompt:
    """The prompt of a row, from whichever of `PROMPT_FIELDS` it has; `DataError` unless it has exactly one."""
    present = [name for name in PROMPT_FIELDS if name in row]
    if len(present) != 1:
        raise DataError(
            f"{place} has {' and '.join(present) or 'no prompt'}; expected one of prompt, question, messages"
        )
    (name,) = present
    value = row[name]
    if name != "messages":
        if not isinstance(value, str):
            raise DataError(f"{place}: {name} is {shown(value)}; expected a text")
        return value
    whole = isinstance(value, list) and all(isinstance(message, dict) for message in value)
    if not whole or not value:
        raise DataError(f"{place}: messages is {shown(value)}; expected a list of at least one role and content")
    for message in value:
        if not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise DataError(f"{place}: messages holds {shown(message)}; expected a role and a content, both texts")
    if value[-1]["role"] == "assistant":
        raise DataError(
            f"{place}: messages ends with the assistant's turn; expected one to answer: leave that turn out, what is "
            "right belongs into the field answer"
        )
    return tuple(value)


def text_of(row: Mapping[str, Any], name: str, place: str) -> str | None:
    """A field that is a text or a number, as text; None where it is missing or null."""
    value = row.get(name)
    if value is None or isinstance(value, str):
        return value
    # A whole number is exact at any length: as a text it need not fit into a float.
    if not (is_number(value) or (isinstance(value, int) and not isinstance(value, bool))):
        raise DataError(f"{place}: {name} is {shown(value)}; expected a text or a number")
    return str(value)


def first_rows(rows: Sequence[AnyProblem], limit: int | None) -> tuple[AnyProblem, ...]:
    """The first `limit` rows; raises `InvalidOptionError` for a limit below 1."""
    if limit is not None and limit < 1:
        raise InvalidOptionError(f"limit is {limit}; expected at least 1, or None for all problems")
    return tuple(rows[:limit])


def naming(problem: Problem, error: SwiftEdgeError) -> DataError:
    """The same error as a `DataError` that names the row."""
    return DataError(f"{problem.place}: {error}")


def _require_room(path: Path, size: int) -> None:
    if size > _LARGE:
        require_memory(size * _MEMORY_PER_BYTE, f"reading {path}", "free some memory, or split the file")


def _array_rows(text: bytes, path: Path) -> list[PlacedRow]:
    """The rows of a JSON array, which is a whole file."""
    places = ((f"{path} row {number}", row) for number, row in enumerate(parse_json(text, str(path), strict=False), 1))
    return [(place, _row(row, place)) for place, row in places]


def _row(row: object, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{place} is {shown(row)}; expected a JSON object")
    return row
