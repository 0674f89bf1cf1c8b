"""Benchmarks as their files are published: from a row to a question and the answer that is right.

    benchmark = BENCHMARKS["gsm8k"]
    benchmark.read({"question": "...", "answer": "... #### 18"}, "test.jsonl line 1")  # ("...", "18")

A benchmark brings its task, and words that ask for the answer in the form that the task finds most surely: in a box.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from swift_edge.answers import TaskName
from swift_edge.checks import is_number, shown
from swift_edge.errors import DataError

Row: TypeAlias = Mapping[str, Any]
"""A row of a file."""

LETTERS: Final = "ABCDEFGHIJ"
"""As many options as the task `letter` tells apart."""
_OPTION: Final = re.compile(r"\s*\(?([A-J])\s*[).:]\s*(.*)", re.DOTALL)
"""An option with its letter: `A)12`."""
_CONDITION: Final = re.compile(r"(?:^|[.!?]\s+)(?:If|When)\s[^.!?]*$")
"""What a text ends in where its last sentence goes on."""
_BOX: Final = re.compile(r"\\(?:boxed|fbox)\b")


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One benchmark: its format, its task, and how its answers are asked for."""

    name: str
    """As `--benchmark` calls it."""
    task: TaskName
    """The task that grades its answers."""
    instruction: str
    """What the model is asked to do with each question."""
    fields: tuple[str, ...]
    """Fields that every row has."""
    split: Callable[[Row, str], tuple[str, str]]
    """From a row and its place: the question and the reference; `DataError` for values that are not of the format."""

    def read(self, row: Row, place: str) -> tuple[str, str]:
        """The question of a row and its reference; raises `DataError`, which names `place`, for another format."""
        missing = next((name for name in self.fields if name not in row), None)
        if missing is not None:
            raise DataError(f"{place} has no {missing}; expected a row of {self.name}, with {', '.join(self.fields)}")
        question, answer = self.split(row, place)
        if not question.strip():
            raise DataError(f"{place} has an empty question; expected a row of {self.name}")
        return question.strip(), answer.strip()


def _gsm8k(row: Row, place: str) -> tuple[str, str]:
    question, answer = _text(row, "question", place), _text(row, "answer", place)
    _, mark, number = answer.rpartition("####")
    if not mark:
        raise DataError(f"{place}: answer is {shown(answer)}; expected a solution that ends in #### and a number")
    return question, number


def _math(row: Row, place: str) -> tuple[str, str]:
    problem = _text(row, "problem", place)
    if row.get("answer") is not None:
        return problem, _text_or_number(row, "answer", place)
    solution = _text(row, "solution", place, "a worked solution with its answer in \\boxed{}, or the field answer")
    if not _BOX.search(solution):
        raise DataError(f"{place}: solution has no \\boxed{{}}; expected the answer in one, or the field answer")
    return problem, solution


def _aqua(row: Row, place: str) -> tuple[str, str]:
    question, correct = _text(row, "question", place), _text(row, "correct", place).strip()
    matches = [_OPTION.fullmatch(text) for text in _texts(row, "options", place)]
    options = [match[2].strip() for match in matches if match is not None]
    named = "".join(match[1] for match in matches if match is not None)
    if len(options) < len(matches) or not LETTERS.startswith(named):
        raise DataError(f"{place}: options is {shown(row['options'])}; expected texts such as A)12, lettered from A on")
    if len(correct) != 1 or correct not in named:
        raise DataError(f"{place}: correct is {shown(correct)}; expected one of the letters {', '.join(named)}")
    return _with_options(question, options), correct


def _hellaswag(row: Row, place: str) -> tuple[str, str]:
    context = row.get("activity_and_ctx")  # as some copies join it
    if context is None:
        context = _text(row, "ctx", place)
        activity = row.get("activity_label")
        context = f"{activity}: {context}" if isinstance(activity, str) else context
    elif not isinstance(context, str):
        raise DataError(f"{place}: activity_and_ctx is {shown(context)}; expected a text")
    endings = _texts(row, "endings", place)
    label = row.get("label")
    number = int(label) if isinstance(label, str) and re.fullmatch("[0-9]", label) else label
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < len(endings):
        raise DataError(f"{place}: label is {shown(label)}; expected the place of an ending, 0 to {len(endings) - 1}")
    return _with_options(f"{context.strip()} ...\n\nWhich ending is the most likely one?", endings), LETTERS[number]


def _coinflip(row: Row, place: str) -> tuple[str, str]:
    question, answer = _text(row, "question", place), _text(row, "answer", place)
    if answer.strip().lower() not in ("yes", "no"):
        raise DataError(f"{place}: answer is {shown(answer)}; expected yes or no")
    return question, answer


def _svamp(row: Row, place: str) -> tuple[str, str]:
    body, question = _text(row, "Body", place).strip(), _text(row, "Question", place).strip()
    # A third of the bodies have no end, because their last sentence goes on in the question, or by mistake.
    if body and body[-1] not in ".,;:!?":
        conditional = _CONDITION.search(body) is not None
        body, question = (f"{body},", question[:1].lower() + question[1:]) if conditional else (f"{body}.", question)
    return f"{body} {question}", _text_or_number(row, "Answer", place)


def _cruxeval(row: Row, place: str) -> tuple[str, str]:
    code, call, output = (_text(row, name, place) for name in ("code", "input", "output"))
    return f"```python\n{code.strip()}\n```\n\nWhat does this call return?\n\n```python\nf({call.strip()})\n```", output


def _text(row: Row, name: str, place: str, expected: str = "a text") -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise DataError(f"{place}: {name} is {shown(value)}; expected {expected}")
    return value


def _text_or_number(row: Row, name: str, place: str) -> str:
    value = row.get(name)
    if is_number(value) or (isinstance(value, int) and not isinstance(value, bool)):
        return str(value)
    return _text(row, name, place, "a text or a number")


def _texts(row: Row, name: str, place: str) -> list[str]:
    value = row.get(name)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise DataError(f"{place}: {name} is {shown(value)}; expected a list of texts")
    if not 2 <= len(value) <= len(LETTERS):
        raise DataError(f"{place}: {name} has {len(value)} texts; expected 2 to {len(LETTERS)}")
    return value


def _with_options(question: str, options: Sequence[str]) -> str:
    lines = [f"({letter}) {text.strip()}" for letter, text in zip(LETTERS, options, strict=False)]
    return "\n".join([question.strip(), "", *lines])


_STEPS: Final = "Please reason step by step, and put your final answer within \\boxed{}."
_LETTER: Final = "Please reason step by step, and put the letter of your final answer within \\boxed{}."
_YES_NO: Final = "Please reason step by step, and put your final answer, yes or no, within \\boxed{}."
_LITERAL: Final = "Please reason step by step, and put your final answer, a Python literal, within \\boxed{}."

BENCHMARKS: Final = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark("gsm8k", "number", _STEPS, ("question", "answer"), _gsm8k),
        Benchmark("math", "latex", _STEPS, ("problem",), _math),
        Benchmark("aqua", "letter", _LETTER, ("question", "options", "correct"), _aqua),
        Benchmark("hellaswag", "letter", _LETTER, ("endings", "label"), _hellaswag),
        Benchmark("coinflip", "yes-no", _YES_NO, ("question", "answer"), _coinflip),
        Benchmark("svamp", "number", _STEPS, ("Body", "Question", "Answer"), _svamp),
        Benchmark("cruxeval", "literal", _LITERAL, ("code", "input", "output"), _cruxeval),
    )
}
"""Every benchmark by its name: grade-school mathematics (`gsm8k`, `svamp`), competitions (`math`), multiple choice
(`aqua`, `hellaswag`), whether a coin is still heads up (`coinflip`), what a Python function returns (`cruxeval`)."""
