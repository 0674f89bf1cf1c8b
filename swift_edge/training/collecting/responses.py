"""Ready-made responses with labels, read from JSONL in the layout of SWIFT's released rollouts.

    {"prompt": "", "reference": "", "completions": [""], "correctness": [true], "steps": [[""]], "token_ids": [[0]]}

`steps` are ignored: steps joined again need not be the response as it was written.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swift_edge.errors import DataError
from swift_edge.system.machine import memory_for
from swift_edge.training.collecting.problems import Problem, first_rows, prompt_of, read_rows, text_of


@dataclass(frozen=True, slots=True)
class AnsweredProblem(Problem):
    """A problem with its responses."""

    completions: tuple[str, ...]
    """The responses as text, at least one."""
    correctness: tuple[bool, ...] | None
    """Their labels; None where they are to be graded."""
    token_ids: tuple[tuple[int, ...], ...] | None
    """Their tokens, the EOS included where there was one; None where the text is to be encoded."""


@dataclass(frozen=True, slots=True)
class Responses:
    """All problems of a file with their responses, in its order."""

    path: Path
    """The file."""
    sha256: str
    """SHA-256 of the file."""
    rows: tuple[AnsweredProblem, ...]
    """The problems."""
    notes: tuple[str, ...]
    """What the caller should know, one line each."""

    def first(self, limit: int | None) -> "Responses":
        """The first `limit` problems; all of them for None."""
        return Responses(self.path, self.sha256, first_rows(self.rows, limit), self.notes)


@memory_for("reading the responses")
def read_responses(path: str | os.PathLike[str]) -> Responses:
    """Read responses from JSONL: each row has a prompt, `completions`, and `correctness` or `reference` or both.

    Raises `DataError`, which names file and line, for lists of different lengths and for anything of another type.
    """
    file = Path(path)
    sha256, rows = read_rows(file, piped=True)
    problems = [_answered(number, place, row) for number, (place, row) in enumerate(rows)]
    notes = []
    if any("steps" in row for _, row in rows):
        notes.append("steps are passed over: responses are read as they were written, never joined from steps")
    return Responses(file, sha256, tuple(problems), tuple(notes))


def _answered(number: int, place: str, row: Mapping[str, Any]) -> AnsweredProblem:
    completions = _list(row, "completions", place, None)
    if not completions or not all(isinstance(text, str) for text in completions):
        raise DataError(f"{place}: completions is not a list of texts; expected at least one text")
    correctness = token_ids = None
    if row.get("correctness") is not None:
        labels = _list(row, "correctness", place, len(completions))
        # 1.0 equals 1, but floats may be shares of passed tests.
        if not all(isinstance(label, (bool, int)) and label in (0, 1) for label in labels):
            raise DataError(f"{place}: correctness holds {labels!r:.60}; expected true or false, or 1 or 0, for each")
        correctness = tuple(bool(label) for label in labels)
    if row.get("token_ids") is not None:
        token_ids = tuple(_ids(ids, place) for ids in _list(row, "token_ids", place, len(completions)))
    return AnsweredProblem(
        number=number,
        prompt=prompt_of(row, place),
        answer=text_of(row, "reference", place),
        place=place,
        row=row,
        completions=tuple(completions),
        correctness=correctness,
        token_ids=token_ids,
    )


def _ids(ids: Any, place: str) -> tuple[int, ...]:
    if not isinstance(ids, list) or not ids or not all(type(each) is int for each in ids):
        raise DataError(f"{place}: token_ids holds {ids!r:.60}; expected a list of at least one integer per response")
    return tuple(ids)


def _list(row: Mapping[str, Any], name: str, place: str, length: int | None) -> list[Any]:
    value = row.get(name)
    if not isinstance(value, list):
        raise DataError(f"{place}: {name} is {'missing' if value is None else f'{value!r:.60}'}; expected a list")
    if length is not None and len(value) != length:
        raise DataError(f"{place}: {name} has {len(value)} entries for {length} completions; expected one for each")
    return value
