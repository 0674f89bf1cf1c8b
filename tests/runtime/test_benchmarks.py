"""Benchmarks: official files are read as they are, worded for the model, and graded by their own task."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swift_edge.answers import answer_task
from swift_edge.errors import DataError
from swift_edge.training import Store, read_problems

ROOT = Path(__file__).parents[2]
STORIES = str(ROOT / "models" / "stories260k")
Run = Callable[..., Any]

ROWS: dict[str, dict[str, Any]] = {
    "gsm8k": {
        "question": "Rosa has 3 boxes of 4 pens. How many pens has she?",
        "answer": "Rosa has 3*4 = <<3*4=12>>12 pens.\n#### 12",
    },
    "math": {
        "problem": "What is $\\frac{1}{2} + \\frac{1}{4}$?",
        "solution": "The sum is $\\frac{2}{4} + \\frac{1}{4} = \\boxed{\\frac{3}{4}}$.",
        "answer": "\\frac{3}{4}",
        "subject": "Prealgebra",
        "level": 1,
        "unique_id": "test/prealgebra/1.json",
    },
    "aqua": {
        "question": "What is 15% of 40?",
        "options": ["A)4", "B)5", "C)6", "D)7", "E)8"],
        "rationale": "0.15 * 40 = 6. Answer: C",
        "correct": "C",
    },
    "hellaswag": {
        "ind": 24,
        "activity_label": "Roof shingle removal",
        "ctx_a": "A man is sitting on a roof.",
        "ctx_b": "he",
        "ctx": "A man is sitting on a roof. he",
        "split": "val",
        "endings": ["flies off.", "rips tiles off.", "is a roof.", "sings a ladder."],
        "label": 1,
    },
    "coinflip": {"question": "A coin is heads up. Ann flips the coin. Is the coin still heads up?", "answer": "no"},
    "svamp": {
        "ID": "chal-1",
        "Body": "A pack costs 76 dollars. If there is a discount of 25 dollars",
        "Question": "How much is a pack?",
        "Equation": "( 76.0 - 25.0 )",
        "Answer": 51.0,
        "Type": "Subtraction",
    },
    "cruxeval": {"code": "def f(a):\n    return {a: a + 1}", "input": "1", "output": "{1: 2}", "id": "sample_0"},
}
"""A row of each benchmark, in the shape of its official file."""


def file_of(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "question", "answer"),
    [
        ("gsm8k", "Rosa has 3 boxes of 4 pens. How many pens has she?", "12"),
        ("math", "What is $\\frac{1}{2} + \\frac{1}{4}$?", "\\frac{3}{4}"),
        ("aqua", "What is 15% of 40?\n\n(A) 4\n(B) 5\n(C) 6\n(D) 7\n(E) 8", "C"),
        (
            "hellaswag",
            "Roof shingle removal: A man is sitting on a roof. he ...\n\nWhich ending is the most likely one?\n\n"
            "(A) flies off.\n(B) rips tiles off.\n(C) is a roof.\n(D) sings a ladder.",
            "B",
        ),
        ("coinflip", "A coin is heads up. Ann flips the coin. Is the coin still heads up?", "no"),
        ("svamp", "A pack costs 76 dollars. If there is a discount of 25 dollars, how much is a pack?", "51.0"),
        (
            "cruxeval",
            "```python\ndef f(a):\n    return {a: a + 1}\n```\n\nWhat does this call return?\n\n```python\nf(1)\n```",
            "{1: 2}",
        ),
    ],
)
def test_an_official_row_becomes_a_question_and_a_reference(
    tmp_path: Path, name: Any, question: str, answer: str
) -> None:
    problems = read_problems(file_of(tmp_path, ROWS[name]), benchmark=name)
    (problem,) = problems.rows
    assert (problem.question, problem.answer) == (question, answer)
    assert problem.row == ROWS[name]
    assert problems.task is not None
    task = answer_task(problems.task)
    assert task.reference(answer) is not None
    assert task.correct(f"So it is \\boxed{{{answer}}}.", answer)
    assert not task.correct("So it is \\boxed{9999}.", answer)


def test_a_store_says_which_benchmark_was_asked_and_how(run: Run, tmp_path: Path) -> None:
    data = file_of(tmp_path, ROWS["gsm8k"], ROWS["gsm8k"] | {"question": "What is 3 times 4?"})
    model = ("-m", STORIES, "--threads", "1", "-n", "2", "--max-new-tokens", "4", "--layers", "last:1", "--shots", "0")
    outcome = run("collect", *model, "--data", data, "--benchmark", "gsm8k", "--skip", "1", "--out", tmp_path / "store")
    assert outcome.status == 0, outcome.err
    info = Store.open(tmp_path / "store").info
    assert (info.task, info.problems) == ("number", 1)
    assert info.asked is not None
    assert (info.asked.benchmark, info.asked.shots, info.asked.form) == ("gsm8k", 0, "text")
    assert (info.asked.skip, info.asked.shuffle) == (1, None)


def test_a_row_of_another_format_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.jsonl line 2 has no options; expected a row of aqua, with question, op"):
        read_problems(file_of(tmp_path, ROWS["aqua"], ROWS["gsm8k"]), benchmark="aqua")
