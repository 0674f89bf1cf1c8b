"""Ranking within problems against the same figures counted pair by pair."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swift_edge.errors import InvalidOptionError
from swift_edge.scoring import pick_accuracy, within_problem_auroc
from swift_edge.selection import rank

candidates = st.lists(
    st.tuples(st.sampled_from([-1.0, 0.0, 0.5, 2.0, math.nan, -math.inf, math.inf]), st.booleans(), st.integers(0, 4)),
    max_size=25,
)


def above(score: float, other: float) -> float:
    """1 if a score outranks another, one half if they tie; NaN counts as the lowest."""
    first, second = (-math.inf if math.isnan(each) else each for each in (score, other))
    return 0.5 if first == second else float(first > second)


@given(candidates)
def test_auroc_is_the_mean_over_problems_of_the_pairs_in_order(given: list[tuple[float, bool, int]]) -> None:
    shares = []
    for problem in range(5):
        right = [score for score, correct, number in given if number == problem and correct]
        wrong = [score for score, correct, number in given if number == problem and not correct]
        if right and wrong:
            shares.append(np.mean([above(a, b) for a in right for b in wrong]))
    scores, correct, problems = ([each[place] for each in given] for place in range(3))
    found = within_problem_auroc(scores, correct, problems)
    assert found == pytest.approx(np.mean(shares)) if shares else math.isnan(found)


def test_a_problem_with_more_pairs_does_not_weigh_more() -> None:
    scores = [1, 0, *range(10)]
    correct = [True, False, *[place < 5 for place in range(10)]]  # right, then all wrong
    assert within_problem_auroc(scores, correct, [7] * 2 + [3] * 10) == 0.5


def test_order_of_candidates_and_scale_of_scores_do_not_matter() -> None:
    random = np.random.default_rng(0)
    scores, correct, problems = random.normal(size=60), random.random(60) < 0.5, random.integers(0, 9, 60)
    order = random.permutation(60)
    found = within_problem_auroc(scores, correct, problems)
    assert found == within_problem_auroc(np.exp(scores[order]), correct[order], problems[order])
    assert within_problem_auroc(-scores, correct, problems) == pytest.approx(1 - found)
    # Another level in each problem changes the global order, not the one within.
    assert within_problem_auroc(scores + 100 * problems, correct, problems) == pytest.approx(found)


@given(
    st.lists(
        st.lists(
            st.tuples(st.sampled_from([0.0, 1.0, math.nan]), st.booleans(), st.sampled_from(["a", "b", "c", None])),
            min_size=1,
            max_size=6,
        ),
        min_size=1,
        max_size=6,
    )
)
def test_picks_are_those_of_each_problem_alone(given: list[list[tuple[float, bool, str | None]]]) -> None:
    flat = [(*candidate, number) for number, problem in enumerate(given) for candidate in problem]
    scores, correct, answers, problems = (list(column) for column in zip(*flat, strict=True))
    found = pick_accuracy(scores, correct, problems, answers)
    expected: dict[str, list[float]] = {"pass_at_1": [], "best": [], "majority": [], "oracle": []}
    for problem in given:
        labels, said = [each[1] for each in problem], [each[2] for each in problem if each[2] is not None]
        expected["pass_at_1"].append(sum(labels) / len(labels))
        expected["best"].append(labels[rank([each[0] for each in problem])[0]])
        commonest = max(said, key=lambda answer: (said.count(answer), -said.index(answer)), default=None)
        first = next((place for place, each in enumerate(problem) if each[2] == commonest), 0) if said else 0
        expected["majority"].append(labels[first])
        expected["oracle"].append(any(labels))
    assert found.to_dict() == pytest.approx({name: float(np.mean(each)) for name, each in expected.items()})


def test_without_problems_there_are_no_figures() -> None:
    assert set(pick_accuracy([], [], [], []).to_dict().values()) == {None}
    assert math.isnan(within_problem_auroc([], [], []))


def test_lengths_that_differ_are_refused() -> None:
    with pytest.raises(InvalidOptionError, match=r"shapes \[2\], \[1\], \[2\]"):
        within_problem_auroc([1, 2], [True], [0, 0])
