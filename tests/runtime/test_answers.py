"""Extraction and equality of answers, on real model text and against every text that hypothesis can think of."""

import json
import pickle
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from swift_edge.answers import ANSWER_TASKS, answer_task
from swift_edge.errors import InvalidOptionError

DATA = Path(__file__).parents[1] / "data" / "answers"
canonical_latex = answer_task("latex").canonical
canonical_literal = answer_task("literal").canonical

TASKS = st.sampled_from(sorted(ANSWER_TASKS))
SPELT = r"""
    \boxed{ } { ( ) [ ] $ \frac \sqrt ^ _ - + / = , . : | ! < > \pm \text{ \begin{pmatrix} \end{pmatrix} \\ & 0 1 12 0.5
    x y i e \pi \sin \log \cup \in \le \infty and or cm yes no A (B) #### The~answer~is Answer: [1, {1:2} 'a' 1e999 ²
    ½ ٣ % \% word:a \binom 10^6 1,000 3,14 $ € - ± ** ` b. Yes. No, doubt but not five hundred million k <answer>
    </answer> assert == 'b' output~is returns St. U.S. ! ? 10:30 to inf
"""
FRAGMENTS = st.sampled_from([*SPELT.split(), "\ud800", "\0", "\u200f", "\u0301", "\n"])
TEXTS = st.one_of(st.text(), st.lists(FRAGMENTS, max_size=14).map(lambda parts: " ".join(parts).replace("~", " ")))


def rows(name: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]
    assert len(lines) >= 50
    return lines


def test_grades_of_solutions_by_language_models() -> None:
    task = answer_task("number")
    for row in rows("gsm8k.jsonl"):
        assert task.correct(row["solution"], row["reference"]) is row["is_correct"], row


def test_grades_of_predicted_python_outputs() -> None:
    task = answer_task("literal")
    for row in rows("cruxeval.jsonl"):
        assert task.correct(row["answer"], row["reference"]) is row["is_correct"], row


def test_worked_solutions_give_their_own_answers_and_nobody_elses() -> None:
    task = answer_task("latex")
    lines = rows("math500.jsonl")
    for row in lines:
        assert task.correct(row["solution"], row["answer"]), row
    distinct = {row["answer"] for row in lines}
    assert len({task.canonical(answer) for answer in distinct}) == len(distinct)


def test_latex_pairs() -> None:
    wrong = [row for row in rows("latex_pairs.jsonl") if answer_task("latex").equal(row["a"], row["b"]) != row["equal"]]
    assert wrong == []


@pytest.mark.parametrize("task", sorted(ANSWER_TASKS.keys() - {"latex"}))
def test_what_responses_say_is_read_as_people_read_it(task: str) -> None:
    used, wrong = answer_task(task), []
    for row in rows("cases.jsonl"):
        if row["task"] == task:
            refused = row["operation"] == "correct" and used.reference(row["b"]) is None
            found = "refused" if refused else getattr(used, row["operation"])(row["a"], row["b"])
            wrong += [(row, found)] if found != row["wanted"] else []
    assert wrong == []


@pytest.mark.parametrize(
    ("task", "text", "answer"),
    [
        ("number", r"so \boxed{3}, no: \boxed{\frac{1}{2}}", "1/2"),
        ("number", r"\boxed{x = 18\text{ dollars}} of 20", "18"),
        ("number", "18 - 5 = 13\n#### 13\n(20 checks)", "13"),
        ("number", "The answer is -$1,234.50. Then 7.", "-$1,234.50"),
        ("number", "The answer is 3 + 4 = 7 apples, 2 left", "7"),
        ("number", "first 5-3", "first 5-3"),  # a range or a difference, and no number
        ("number", "The answer is 1\nNo, the answer is 2.\n", "2"),
        ("number", "nothing", None),
        ("latex", r"\boxed{\left\{\frac{1}{\sqrt{2}}\right\}} is it", r"\left\{\frac{1}{\sqrt{2}}\right\}"),
        ("latex", r"The answer is $\frac{1.5}{2}$. It is $x$.", r"$\frac{1.5}{2}$"),
        ("latex", "The answer is $1$ and $-2$ because $x>3$", "$1$ and $-2$"),
        ("latex", r"\boxed{1} then \boxed{\frac{2}{3", "1"),
        ("latex", r"hence $x$ and \(y+1\)", "y+1"),
        ("letter", r"\boxed{\textbf{(C)}\ 12}", "C"),
        ("letter", "**Answer:** B", "B"),
        ("letter", "The correct option is (d).", "D"),
        ("letter", "The answer is A because D is not", "A"),
        ("letter", "I chose (B) over A) and then C. A bat flies", "C"),
        ("letter", "E", "E"),
        ("letter", "G - T = 46.\nAnswer A is correct option", "A"),
        ("letter", "nothing here", None),
        ("yes-no", "Yes? Let me see. There is no flip, so the answer is Yes, no doubt.", "yes"),
        ("yes-no", "yes ... No", "no"),
        ("yes-no", "nobody knows", None),
        ("literal", "It returns\n[ANSWER]\n[1, 2]\n[/ANSWER]\n", "[1, 2]"),
        ("literal", "The answer is `{'a': 1}`.", "{'a': 1}"),
        ("literal", "assert f(1) == 'a b'", "'a b'"),
        ("literal", "```python\n(1, 2)\n```", "(1, 2)"),
        ("text", "Thinking.\nThe answer is  **New York**.", "New York"),
        ("text", "Thinking.\nParis\n\n", "Paris"),
        ("exact", "Answer: Paris", "Paris"),
        ("exact", " \n", None),
    ],
)
def test_where_answers_are_found(task: str, text: str, answer: str | None) -> None:
    assert answer_task(task).extract(text) == answer


@pytest.mark.parametrize(
    ("task", "a", "b", "equal"),
    [
        ("number", "$1,234.50", "2469/2", True),
        ("number", "1 1/2", "1.5", True),
        ("number", "50%", "50", True),
        ("number", "50%", "0.5", False),  # no tolerance for a factor of 100
        ("number", "5", "500", False),
        ("number", "0.333", "1/3", False),
        ("number", "1e3", "1000", True),
        ("number", "-5", "5", False),
        ("number", "9" * 400, "9" * 400, True),
        ("letter", "(b)", "B.", True),
        ("letter", "A", "B", False),
        ("yes-no", "YES", "yes.", True),
        ("yes-no", "yes", "no", False),
        ("literal", "[1.0, True, {2, 3}]", "[1, 1, {3, 2}]", True),
        ("literal", "{'a': 1, 'b': 2}", '{"b": 2, "a": 1}', True),
        ("literal", "(1, 2)", "[1, 2]", False),
        ("literal", "(1,)", "1", False),
        ("literal", "{}", "set()", False),
        ("literal", "'1'", "1", False),
        ("literal", "b'a'", "'a'", False),
        ("literal", "9007199254740993", "9007199254740992.0", False),
        ("literal", "'a' + str(1)", "'a1'", False),  # never evaluated
        ("text", "“New  York.”", r"\text{new york}", True),
        ("text", "New York", "York", False),
        ("exact", " a b ", "a b", True),
        ("exact", "a B", "a b", False),
    ],
)
def test_which_answers_are_equal(task: str, a: str, b: str, equal: bool) -> None:
    assert answer_task(task).equal(a, b) is equal


PHRASINGS = (
    "So \\boxed{{{0}}}.", "1 and 2, yes (A) no.\n#### {0}", "Perhaps 7. The answer is {0}.", "**Answer:** {0}",
    "The final answer is: {0}\n\nThat took 99 steps.", "A: {0}", "Thus the answer would be {0}.",
    "first \\boxed{{8}} then \\fbox{{{0}}}",
)  # fmt: skip


@given(
    task_and_answer=st.one_of(
        st.tuples(st.just("number"), st.one_of(st.integers().map(str), st.decimals(-9999, 9999, places=2).map(str))),
        st.tuples(st.just("number"), st.integers(0, 10**12).map(lambda value: f"${value:,}")),
        st.tuples(st.just("latex"), st.sampled_from([row["a"] for row in rows("latex_pairs.jsonl")])),
        st.tuples(st.just("letter"), st.sampled_from([*"ABCDE", "(A)", "(e)"])),
        st.tuples(st.just("yes-no"), st.sampled_from(["yes", "No", "YES"])),
        st.tuples(st.just("literal"), st.recursive(st.integers() | st.booleans(), st.lists, max_leaves=5).map(repr)),
        st.tuples(st.just("text"), st.from_regex(r"[a-z]{1,8}( [a-z]{1,8})?", fullmatch=True)),
    ),
    phrasing=st.sampled_from(PHRASINGS),
)
def test_a_right_answer_is_right_in_every_phrasing(task_and_answer: tuple[str, str], phrasing: str) -> None:
    name, answer = task_and_answer
    # After a phrasing, mathematics stands between dollar signs.
    shown = f"${answer}$" if name == "latex" and "boxed" not in phrasing and "fbox" not in phrasing else answer
    assume(not (name == "latex" and shown.startswith(r"$\$")))  # a dollar sign between dollar signs
    text = phrasing.format(shown)
    assert answer_task(name).correct(text, answer), text


@given(task=TASKS, text=TEXTS)
def test_no_text_makes_extraction_or_equality_raise(task: str, text: str) -> None:
    used = answer_task(task)
    answer = used.extract(text)
    assert answer is None or used.equal(answer, answer)
    assert used.equal(text, text)
    assert used.reference(text) is None or isinstance(used.correct(text, text), bool)


@given(task=TASKS.filter(lambda name: name != "latex"), text=TEXTS)
def test_what_a_reference_gives_is_a_reference_and_reads_as_itself(task: str, text: str) -> None:
    used = answer_task(task)
    reference, canonical = used.reference(text), used.canonical(text)
    if reference is not None:
        assert used.equal(reference, used.reference(reference) or "")
        if task in ("number", "letter", "yes-no"):
            assert not used.canonical(reference).startswith("text:")
            assert used.correct(text, text)
    if task != "literal" and not canonical.startswith("text:"):
        assert used.canonical(canonical) == canonical


def grouped(digits: str, separator: str) -> str:
    first = len(digits) % 3 or 3
    return separator.join([digits[:first], *(digits[at : at + 3] for at in range(first, len(digits), 3))])


@given(
    value=st.integers(-(10**15), 10**15),
    separator=st.sampled_from(["", ",", " ", "\u00a0", "\u2009", "\u202f", "'", "\u2019", "_", r"\,", "{,}", r",\!"]),
    minus=st.sampled_from(["-", "- ", "\u2212", "\uff0d", "minus ", "negative "]),
    zero=st.sampled_from([ord("0"), 0xFF10, 0x0660, 0x0966, 0x1D7CE]),
    currency=st.sampled_from(["", "$", "\u20ac", r"\$", "USD "]),
    unit=st.sampled_from(["", " cm^2", " km/h", "%", r"\%", r"\text{ m}^3", " dollars", " \u20ac", " cm\u00b2"]),
    phrasing=st.sampled_from(
        ["The answer is {}.", r"So \boxed{{{}}}", "#### {}", "{}", "<answer>{}</answer>", "**Answer:** {}"]
    ),
)
def test_a_number_is_itself_in_every_spelling(
    value: int, separator: str, minus: str, zero: int, currency: str, unit: str, phrasing: str
) -> None:
    digits = grouped(str(abs(value)), separator)
    written = (
        (minus if value < 0 else "")
        + currency
        + digits.translate({48 + digit: zero + digit for digit in range(10)})
        + unit
    )
    text, task = phrasing.format(written), answer_task("number")
    assert task.canonical(written) == str(value), written
    assert task.correct(text, str(value)), text
    assert task.correct(str(value), written), written
    assert not task.correct(text, str(value + 1)), text


@pytest.mark.slow
@pytest.mark.parametrize("task", sorted(ANSWER_TASKS.keys() - {"latex"}))
def test_repetitions_of_anything_cost_no_more_than_their_length(task: str) -> None:
    used = answer_task(task)
    parts = [
        "1", "1,", "1 ", "1.000.", "1/", "10^", "- 5 ", "5 or ", "[", "(", "**", "**a", "`", "'", "'\\", "$", "$1$. ",
        r"\boxed{", r"\frac{1", r"\boxed{5} or ", "{1}", "\n- ", "A:\n", "answer is ", "answer is 5 ", "answer to ",
        "yes or no ", "no doubt ", "A or ", "(A) ", "not ", "==", "5=", "output is ", "returns [", "\u00bd", "\u2075",
        "\u0663", "\ufdfa", "\u0301\u0327", "\ud800", "\0", " ", "U.S. ", "! A", "<a", "five ", "->", "_", "x^2", "5, ",
        "= ", "\u201c", "\\",
    ]  # fmt: skip
    for part in parts:
        text = "The answer is " + part * (30_000 // len(part))
        answer = used.extract(text)
        assert answer is None or used.equal(answer, answer)
        assert used.equal(text, text)


@given(task=TASKS, texts=st.tuples(TEXTS, TEXTS, TEXTS))
def test_equality_is_an_equivalence(task: str, texts: tuple[str, str, str]) -> None:
    used = answer_task(task)
    a, b, c = texts
    assert used.equal(a, b) == used.equal(b, a) == (used.canonical(a) == used.canonical(b))
    assert not (used.equal(a, b) and used.equal(b, c)) or used.equal(a, c)


@given(st.text(alphabet="{}\\ab ", max_size=30))
def test_the_box_ends_where_its_brace_closes(inside: str) -> None:
    depth = 0
    for index, character in enumerate(inside):
        escaped = (index - len(inside[:index].rstrip("\\"))) % 2
        depth += ((character == "{") - (character == "}")) * (not escaped)
        assume(depth >= 0)
    assume(depth == 0 and (len(inside) - len(inside.rstrip("\\"))) % 2 == 0)
    found = answer_task("latex").extract(rf"a \boxed{{b}} \boxed{{{inside}}} c }} {{")
    assert found == inside.strip() if inside.strip() else found != "b"


@given(a=st.fractions(-(10**9), 10**9, max_denominator=10**6), b=st.fractions(-(10**9), 10**9, max_denominator=10**6))
def test_rational_answers_are_compared_exactly(a: Fraction, b: Fraction) -> None:
    def latex(value: Fraction) -> str:
        return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"

    assert canonical_latex(latex(a)) == str(a)
    assert (canonical_latex(latex(a)) == canonical_latex(latex(b))) == (a == b)
    assert canonical_latex(f"{latex(a)} + {latex(b)}") == str(a + b)
    assert canonical_latex(f"({latex(a)})({latex(b)})") == str(a * b)


@given(n=st.integers(0, 10**4), m=st.integers(1, 10**4), degree=st.integers(2, 7))
def test_roots_and_powers_of_integers(n: int, m: int, degree: int) -> None:
    assert canonical_latex(rf"(\sqrt[{degree}]{{{n}}})^{{{degree}}}") == str(n)
    assert canonical_latex(rf"\sqrt[{degree}]{{{m}^{{{degree}}}}}") == str(m)
    assert canonical_latex(rf"\sqrt{{{n}}}\sqrt{{{m}}}") == canonical_latex(rf"\sqrt{{{n * m}}}")


@pytest.mark.parametrize(
    "answer",
    [
        "9^{9^{9^{9^9}}}", "10^{10^{10}}!", "(x+y+z)^{99999}", r"\binom{10^9}{10^8}", "(" * 1000 + "1" + ")" * 1000,
        "x^" + "-" * 1900 + "1", r"\sqrt" * 390 + "2", "1" * 1999, "9" * 100_000, "{" * 1999, r"\frac1" * 300,
        r"\text{" * 300,
    ],
)  # fmt: skip
def test_costly_answers_are_only_as_costly_as_they_are_long(answer: str) -> None:
    for task in ANSWER_TASKS.values():
        assert task.equal(answer, answer)
        assert not task.equal(answer, "7 or 8")


def test_deep_and_long_literals_are_text() -> None:
    deep = "[" * 100_000 + "]" * 100_000
    assert canonical_literal(deep) == "text:" + deep
    assert canonical_literal("[" * 41 + "]" * 41).startswith("text:")
    assert canonical_literal("[" * 40 + "]" * 40).startswith("[")
    assert canonical_literal("-" * 5000 + "1").startswith("text:")
    assert canonical_literal("[" + "1," * 9000 + "]").startswith("[0x1, ")


def test_a_reference_may_be_bare_or_a_worked_solution() -> None:
    assert answer_task("number").correct("It is 18.", "2 * 9 = 18\n#### 18")
    assert answer_task("latex").correct(r"\boxed{0.5}", r"Halving gives \boxed{\frac12}.")
    assert answer_task("text").correct("It is\nThe answer is blue", "Blue")
    assert not answer_task("text").correct("", "Blue")


@pytest.mark.parametrize("task", ["number", "latex", "letter", "yes-no", "literal", "text", "exact"])
def test_a_reference_without_an_answer_is_an_error(task: str) -> None:
    with pytest.raises(InvalidOptionError, match=f"holds no answer of the task '{task}'"):
        answer_task(task).correct("7, yes, A", " ")


def test_an_unknown_task_is_an_error() -> None:
    with pytest.raises(InvalidOptionError, match="no task 'sums'; expected one of number, latex"):
        answer_task("sums")


def test_votes_group_equal_answers_and_tasks_can_be_pickled() -> None:
    task = pickle.loads(pickle.dumps(answer_task("latex")))  # noqa: S301
    assert task.groups(["0.5", None, "2", r"\frac12", "2", "3", r"\frac{2}{4}"]) == [[0, 3, 6], [2, 4], [5]]
