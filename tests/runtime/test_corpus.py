"""The corpus of the shipped model: its problems have the answers that it says, and its splits are new to each other."""

import contextlib
import io
import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "models" / "recipe"))

from corpus import FAMILIES, VOICES, documents, draw_problem
from solvers import Impossible, Problem, draw_care, response, results, right_answer
from words import HELD_OUT_NUMBERS, Draw, pattern_split

KINDS = [kind for family in FAMILIES for kind in family]


def some(split: str, count: int, family: str | None = None) -> list[Problem]:
    rng = random.Random(3)
    problems: list[Problem] = []
    while len(problems) < count:
        problem = draw_problem(rng, split)  # type: ignore[arg-type]
        if family in (None, problem.family):
            problems.append(problem)
    return problems


def test_python_prints_what_the_careful_solver_answers() -> None:
    for problem in some("train", 300, "code output"):
        program = problem.question.partition("\n")[2]
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(program, {})
        assert printed.getvalue().strip() == right_answer(problem), program


def test_a_coin_ends_where_the_sentences_leave_it() -> None:
    for problem in some("train", 300, "coin flip"):
        assert problem.states is not None
        first, *sentences = problem.question.split(". ")
        changes = 0
        for sentence, step in zip(sentences, problem.steps, strict=False):
            assert step.label.split()[0] in sentence
            still = any(words in sentence for words in ("does not touch", "alone", "only looks", "walks past"))
            changes += not still and "twice" not in sentence and "two times" not in sentence
        (begun,) = [state for state in (0, 1) if problem.states[state] in first]
        assert right_answer(problem) == problem.states[(begun + changes) % 2], problem.question


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_misconceptions_lead_elsewhere_and_neither_length_nor_signs_give_a_solver_away(
    kind: Callable[[Draw], Problem],
) -> None:
    rng = random.Random(5)
    right_lengths, wrong_lengths, surplus = [], [], Counter[str]()
    while len(right_lengths) < 600:
        problem = draw_problem(rng, "train", (kind,))
        careful, *others = (response(problem, care, random.Random(1)) for care in VOICES)
        assert right(problem, careful)
        astray = [not right(problem, other) for other in others]
        assert any(astray) if problem.states else all(astray)
        for other in others:
            right_lengths.append(len(careful))
            wrong_lengths.append(len(other))
            surplus.update({sign: other.count(sign) - careful.count(sign) for sign in "+-*/%"})
    # Lines are as many and as long: a few digits or letters more here, a few fewer there.
    difference = np.array(right_lengths) - np.array(wrong_lengths)
    assert abs(difference.mean()) < 1.0
    # What one misconception has too much of, the other has too little of.
    assert all(abs(count) / len(right_lengths) < 0.35 for count in surplus.values()), surplus


def test_splits_are_new_to_each_other() -> None:
    for problem in some("train", 500):
        assert not problem.numbers & HELD_OUT_NUMBERS, problem.question
        assert all(pattern_split(pattern) == "train" for pattern in problem.templates)
    for problem in some("test", 500):
        assert problem.numbers & HELD_OUT_NUMBERS or not problem.numbers, problem.question
        assert any(pattern_split(pattern) == "test" for pattern in problem.templates)


def test_every_kind_has_its_share_of_problems_and_of_solvers() -> None:
    families = Counter(problem.family for problem in some("test", 1200))
    assert set(families) == {"word problem", "coin flip", "code output", "multiple choice"}
    assert min(families.values()) > 200
    rng = random.Random(1)
    for problem in some("train", 5):
        drawn = Counter(draw_care(problem.shares, rng) for _ in range(2000))
        assert drawn["mistaken"] / 2000 == pytest.approx(problem.shares.mistaken, abs=0.05)


def test_sloppy_solvers_slip_and_others_do_not() -> None:
    rng = random.Random(2)
    slips = {"careful": 0, "sloppy": 0, "mistaken": 0, "contrary": 0}
    for problem in some("train", 300):
        for care in slips:
            with contextlib.suppress(Impossible):
                slips[care] += results(problem, care, rng) != results(problem, care, rng)  # type: ignore[arg-type]
    assert slips.pop("sloppy") > 150
    assert not any(slips.values())


def test_the_same_seed_gives_the_same_documents_wherever_reading_starts() -> None:
    whole = list(documents(7, 0, 20))
    assert whole[12:] == list(documents(7, 12, 8))
    assert whole != list(documents(8, 0, 20))


def test_documents_begin_with_careful_responses_and_end_with_those_of_all_solvers() -> None:
    def share_right(mixed: float) -> float:
        drawn = list(documents(7, 0, 300, mixed=mixed))
        written = [right(each.problem, text) for each in drawn for text in each.responses]
        assert len(written) == (600 if mixed else 300)
        return sum(written) / len(written)

    assert share_right(0.0) == 1.0
    assert 0.35 < share_right(1.0) < 0.55 < share_right(0.5) < 0.85


def test_a_verdict_is_that_of_the_solver() -> None:
    verdicts = Counter()
    for each in documents(7, 0, 400):
        verdicts[each.verdict] += 1
        if each.verdict != "sloppy":
            assert right(each.problem, each.judged) or each.verdict != "careful"
            assert not right(each.problem, each.judged) or each.verdict == "careful" or each.problem.states
    assert min(verdicts[care] for care in ("careful", "sloppy", "mistaken", "contrary")) > 20


def right(problem: Problem, text: str) -> bool:
    return text.endswith(f"\\boxed{{{right_answer(problem)}}}")
