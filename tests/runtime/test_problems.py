"""Data files: every row that cannot be used is named by its line, before anything is computed."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swift_edge.errors import DataError, InvalidOptionError
from swift_edge.training import Grading, Problem, read_problems, read_responses

GOOD = b'{"prompt": "1+1", "answer": "2"}'


def file_of(folder: Path, *lines: bytes | dict[str, Any]) -> Path:
    path = folder / "data.jsonl"
    rows = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"".join(row + b"\n" for row in rows))
    return path


def test_problems_are_read_in_order_with_everything_that_a_grader_may_need(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "1+1"}]
    path = file_of(
        tmp_path,
        {"prompt": "1+1", "answer": "2", "tests": ["x"]},
        {"question": "1+2", "answer": 3},
        {"messages": messages, "answer": 3.5},
    )
    problems = read_problems(path)
    assert problems.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [problem.prompt for problem in problems.rows] == ["1+1", "1+2", tuple(messages)]
    assert [problem.answer for problem in problems.rows] == ["2", "3", "3.5"]
    assert [problem.number for problem in problems.rows] == [0, 1, 2]
    assert problems.rows[0].row["tests"] == ["x"]
    assert problems.rows[1].place == f"{path} line 2"
    assert [problem.number for problem in problems.first(2).rows] == [0, 1]
    assert problems.first(9).rows == problems.first(None).rows == problems.rows


def test_line_ends_and_marks_of_other_systems_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "windows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD + b"\r\n" + GOOD + b"\r\n\r\n  \n\n")
    assert len(read_problems(path).rows) == 2
    path.write_bytes(GOOD)  # no line end at all
    assert len(read_problems(path).rows) == 1


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"", "line 2 is empty"),
        (b"   ", "line 2 is empty"),
        (b"{", "line 2 is not JSON"),
        (b'{"prompt": "x", "answer": "\xff"}', "line 2 is not UTF-8 .*0xff"),
        (b'{"prompt": "x", "answer": NaN}', "line 2: answer is nan; expected a text or a number"),
        (b"[" * 100_000, "line 2 is not JSON"),
        (b"[1]", r"line 2 is \[1\]; expected a JSON object"),
        (b"null", "line 2 is None; expected a JSON object"),
        ({"answer": "2"}, "line 2 has no prompt; expected one of prompt, question, messages"),
        ({"prompt": "x", "question": "y", "answer": "2"}, "line 2 has prompt and question; expected one of"),
        ({"prompt": 5, "answer": "2"}, "line 2: prompt is 5; expected a text"),
        ({"question": None, "answer": "2"}, "line 2: question is None; expected a text"),
        ({"messages": [], "answer": "2"}, r"line 2: messages is \[\]"),
        ({"messages": "x", "answer": "2"}, "line 2: messages is 'x'"),
        ({"messages": ["x"], "answer": "2"}, "line 2: messages is"),
        ({"messages": [{"role": "user"}], "answer": "2"}, "line 2: messages holds .*; expected a role and a content"),
        ({"messages": [{"role": "user", "content": 1}], "answer": "2"}, "line 2: messages holds"),
        (
            {"messages": [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}], "answer": "2"},
            "line 2: messages ends with the assistant's turn",
        ),
        ({"prompt": "x"}, "line 2 has no answer"),
        ({"prompt": "x", "answer": None}, "line 2 has no answer"),
        ({"prompt": "x", "answer": True}, "line 2: answer is True; expected a text or a number"),
        ({"prompt": "x", "answer": ["2"]}, "line 2: answer is"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, row: bytes | dict[str, Any], reason: str) -> None:
    path = file_of(tmp_path, GOOD, row, GOOD)
    with pytest.raises(DataError, match=f"data.jsonl {reason}") as caught:
        read_problems(path)
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


def test_answers_may_be_absent_where_nobody_needs_them(tmp_path: Path) -> None:
    path = file_of(tmp_path, {"prompt": "x"})
    assert read_problems(path, answers=False).rows[0].answer is None


def test_an_answer_of_400_digits_is_taken_digit_by_digit(tmp_path: Path) -> None:
    digits = "1" * 400
    row = f'{{"prompt": "x", "answer": {digits}}}'.encode()
    assert read_problems(file_of(tmp_path, row)).rows[0].answer == digits


@pytest.mark.parametrize("answer", [b"Infinity", b"-Infinity", b"1e999", b"NaN"])
def test_an_answer_that_is_no_number_is_named(tmp_path: Path, answer: bytes) -> None:
    path = file_of(tmp_path, b'{"prompt": "x", "answer": ' + answer + b"}")
    with pytest.raises(DataError, match=r"data.jsonl line 1: answer is .*; expected a text or a number"):
        read_problems(path)


def test_files_without_rows_are_refused(tmp_path: Path) -> None:
    for content in (b"", b"\n \n"):
        (tmp_path / "empty.jsonl").write_bytes(content)
        with pytest.raises(DataError, match=r"empty.jsonl is empty"):
            read_problems(tmp_path / "empty.jsonl")
    with pytest.raises(DataError, match=r"absent.jsonl cannot be read"):
        read_problems(tmp_path / "absent.jsonl")
    with pytest.raises(InvalidOptionError, match="limit is 0"):
        read_problems(file_of(tmp_path, GOOD)).first(0)


@settings(max_examples=25)
@given(data=st.one_of(st.binary(max_size=40), st.text('{}[]":,0 tru\n', max_size=40).map(str.encode)))
def test_no_file_at_all_makes_it_stumble(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("data") / "any.jsonl"
    path.write_bytes(data)
    for read in (read_problems, read_responses):
        try:
            read(path)
        except DataError as error:
            assert "any.jsonl" in str(error)  # noqa: PT017


def problem_of(answer: str | None) -> Problem:
    return Problem(4, "1+1", answer, "data.jsonl line 5", {})


def always(problem: Problem, text: str) -> bool:
    return True


def test_references_are_checked_before_anything_is_written() -> None:
    grading = Grading("number")
    grading.check(problem_of("#### 2"))
    with pytest.raises(DataError, match=r"line 5 has the answer 'some apples', .*'number'.*--task"):
        grading.check(problem_of("some apples"))
    with pytest.raises(DataError, match=r"line 5 has no answer"):
        grading.check(problem_of(None))
    Grading(None, always).check(problem_of(None))


def test_a_task_grades_and_extracts() -> None:
    grading = Grading("number")
    assert grading.correct(problem_of("2"), "The answer is 2.")
    assert not grading.correct(problem_of("2"), "The answer is 3.")
    assert grading.answer("The answer is 3.") == "3"
    assert grading.grades


def test_a_callable_grades_in_its_own_way() -> None:
    grading = Grading(None, lambda problem, text: problem.prompt in text)
    assert grading.correct(problem_of(None), "1+1 it is")
    assert not grading.correct(problem_of(None), "no")
    assert grading.answer("The answer is 3.") is None
    assert not Grading(None).grades
    with pytest.raises(InvalidOptionError, match="expected one of them"):
        Grading("number", always)
    with pytest.raises(InvalidOptionError, match="there is no task 'sums'"):
        Grading("sums")


def test_a_callable_that_fails_is_named_with_its_problem() -> None:
    def fail(problem: Problem, text: str) -> bool:
        raise KeyError("tests")

    with pytest.raises(DataError, match=r"problem 4 \(data.jsonl line 5\): KeyError: 'tests'"):
        Grading(None, fail).correct(problem_of(None), "")

    def vague(problem: Problem, text: str) -> Any:
        return "yes"

    with pytest.raises(DataError, match=r"the grader gave 'yes' .*problem 4"):
        Grading(None, vague).correct(problem_of(None), "")


ROLLOUTS = {
    "prompt": "1+1",
    "reference": 2,
    "completions": ["2", "3"],
    "correctness": [True, 0],
    "steps": [["2"], ["3"]],
    "token_ids": [[5, 2], [6, 2]],
}


def test_given_responses_are_read_in_the_released_layout(tmp_path: Path) -> None:
    responses = read_responses(file_of(tmp_path, ROLLOUTS, {"question": "x", "completions": ["y"]}))
    first, second = responses.rows
    assert (first.prompt, first.answer, first.completions) == ("1+1", "2", ("2", "3"))
    assert (first.correctness, first.token_ids) == ((True, False), ((5, 2), (6, 2)))
    assert (second.answer, second.correctness, second.token_ids) == (None, None, None)
    (note,) = responses.notes
    assert "steps" in note
    assert len(responses.first(1).rows) == 1
    assert read_responses(file_of(tmp_path, {"prompt": "x", "completions": ["y"]})).notes == ()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"completions": None}, "completions is missing; expected a list"),
        ({"completions": "2"}, "completions is '2'; expected a list"),
        ({"completions": []}, "completions is not a list of texts; expected at least one text"),
        ({"completions": ["2", 3]}, "completions is not a list of texts"),
        ({"correctness": [True]}, "correctness has 1 entries for 2 completions"),
        ({"correctness": [True, "no"]}, "correctness holds .*expected true or false"),
        ({"correctness": [True, 0.5]}, "correctness holds"),
        ({"correctness": [True, 2]}, "correctness holds"),
        ({"correctness": 1}, "correctness is 1; expected a list"),
        ({"token_ids": [[1]]}, "token_ids has 1 entries for 2 completions"),
        ({"token_ids": [[1], []]}, "token_ids holds"),
        ({"token_ids": [[1], [True]]}, "token_ids holds"),
        ({"token_ids": [[1], "2"]}, "token_ids holds"),
        ({"reference": [2]}, "reference is"),
        ({"messages": []}, "has prompt and messages"),
    ],
)
def test_a_row_of_responses_that_cannot_be_used_is_named(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=f"data.jsonl line 2:? {reason}"):
        read_responses(file_of(tmp_path, ROLLOUTS, ROLLOUTS | change))
