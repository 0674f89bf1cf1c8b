"""Answers: what a response says, whether two say the same, and whether one is right.

    from swift_edge.answers import answer_task
    task = answer_task("number")
    task.extract("She has 3 + 4 = 7 apples left. The answer is 7.")  # "7"
    task.equal("1,234.50", "$1234.5")  # True
    task.correct("... so it is \\\\boxed{7}", "7")  # True

Two answers are equal when their canonical texts are: equality is an equivalence, and votes over many candidates group
by a dictionary. Grading may be wider: for `latex`, 0.333333 is right for 1/3 (see `swift_edge.answers.latex`), though a
vote counts them apart. Nothing is ever evaluated as code, and all work is bounded by the length of the text, so nothing
needs to be timed or stopped.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from swift_edge.answers import choice, literal, number, plain
from swift_edge.answers.latex import canonical_latex
from swift_edge.answers.mathematics import extract_latex, grade_latex, reference_latex
from swift_edge.errors import InvalidOptionError

__all__ = ["ANSWER_TASKS", "AnswerTask", "TaskName", "answer_task"]

TaskName: TypeAlias = Literal["number", "latex", "letter", "yes-no", "literal", "text", "exact"]
"""Names of the tasks, for type checkers and options; a test holds them equal to `ANSWER_TASKS`."""


@dataclass(frozen=True, slots=True)
class AnswerTask:
    """One kind of answer. Its functions take any text.

    They raise nothing, but that `correct` refuses a reference, and a caller's own `extract` may fail: both are an
    `InvalidOptionError`.
    """

    name: str
    """As `answer_task` and `--task` call it."""
    extract: Callable[[str], str | None]
    """From a whole response: the answer as it was written, or None."""
    canonical: Callable[[str], str]
    """From an answer: a text that it shares with all that are equal to it, and with no other."""
    reference: Callable[[str], str | None]
    """From a reference as data sets hold it, bare or at the end of a worked solution: the answer, or None."""
    grade: Callable[[str, str], bool] | None = None
    """From a whole response and the answer of a reference: whether it is right. None where that is equality."""

    def equal(self, a: str, b: str) -> bool:
        """Tell whether two answers are the same."""
        return self.canonical(a) == self.canonical(b)

    def correct(self, text: str, reference: str) -> bool:
        """Tell whether a response gives the reference's answer; `InvalidOptionError` where the reference has none."""
        expected = self.reference(reference)
        if expected is None:
            shown = reference if len(reference) <= 60 else reference[:57] + "..."
            raise InvalidOptionError(
                f"the reference {shown!r} holds no answer of the task {self.name!r}; "
                f"correct the row, or choose another of the tasks {', '.join(ANSWER_TASKS)}"
            )
        if self.grade is not None:
            return self.grade(text, expected)
        answer = self.extract(text)
        return answer is not None and self.equal(answer, expected)

    def groups(self, answers: Iterable[str | None]) -> list[list[int]]:
        """Return the indices of equal answers, the largest group first, then the earliest; None is in no group."""
        members: dict[str, list[int]] = {}
        for index, answer in enumerate(answers):
            if answer is not None:
                members.setdefault(self.canonical(answer), []).append(index)
        return sorted(members.values(), key=len, reverse=True)


def answer_task(name: str) -> AnswerTask:
    """Return the task of that name, one of `ANSWER_TASKS`; `InvalidOptionError` for another."""
    if name not in ANSWER_TASKS:
        raise InvalidOptionError(f"there is no task {name!r}; expected one of {', '.join(ANSWER_TASKS)}")
    return ANSWER_TASKS[name]


def _whole(text: str) -> str | None:
    return text.strip() or None


ANSWER_TASKS: Final = {
    task.name: task
    for task in (
        AnswerTask("number", number.extract_number, number.canonical_number, number.reference_number),
        AnswerTask("latex", extract_latex, canonical_latex, reference_latex, grade_latex),
        AnswerTask("letter", choice.extract_letter, choice.canonical_letter, choice.reference_letter),
        AnswerTask("yes-no", choice.extract_yes_no, choice.canonical_yes_no, choice.reference_yes_no),
        AnswerTask("literal", literal.extract_literal, literal.canonical_literal, _whole),
        AnswerTask("text", plain.extract_text, plain.canonical_text, _whole),
        AnswerTask("exact", plain.extract_text, plain.canonical_exact, _whole),
    )
}
"""Every task by its name: `number` (GSM8K), `latex` (MATH), `letter` (AQuA, HellaSwag), `yes-no` (CoinFlip), `literal`
(what Python code prints), `text` (words, without case and punctuation), `exact` (every character counts).

References are read by the rules of responses. A response that leaves several answers open (`5 or 6`, `A and C`) gives
none of them, and a reference that does is refused; so are ranges, dates and times where a number is asked for."""
