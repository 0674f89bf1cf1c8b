"""Scores to a pick."""

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from swift_edge.selection import answer_sums, combine_by_rank, combine_by_scaling, rank

scores_strategy = st.lists(st.one_of(st.floats(), st.sampled_from([0.0, 1.0, -1.0, math.nan])), max_size=12)


@given(scores_strategy)
def test_ranking_descends_with_ties_by_index_and_nan_last(scores: list[float]) -> None:
    order = rank(scores)
    assert sorted(order) == list(range(len(scores)))
    for better, worse in itertools.pairwise(order):
        if math.isnan(scores[better]):
            assert math.isnan(scores[worse])
            assert better < worse
        elif not math.isnan(scores[worse]):
            assert scores[better] > scores[worse] or (scores[better] == scores[worse] and better < worse)


def test_the_first_of_the_ranking_is_the_pick() -> None:
    assert rank([math.nan, -math.inf, 2.0, 2.0])[0] == 2
    assert rank([math.nan, -math.inf])[0] == 1
    assert rank([math.nan, math.nan])[0] == 0
    assert rank([]) == []


def test_the_worse_of_two_ranks_decides() -> None:
    assert combine_by_rank([0.9, 0.5, 0.1], [1.0, 2.0, 3.0]) == [-2, -1, -2]
    # Equals have equal ranks; a score that is no number is worse than minus infinity.
    assert combine_by_rank([1.0, 1.0, math.nan, -math.inf], [0.0] * 4) == [0, 0, -3, -2]
    assert combine_by_rank([math.nan, math.nan], [math.nan, math.nan]) == [0, 0]


def test_scaled_scores_lie_between_the_least_and_the_greatest() -> None:
    assert combine_by_scaling([0.0, 5.0, 10.0], [3.0, 3.0, 3.0]) == [0.5, 0.75, 1.0]
    assert combine_by_scaling([-4.0, -2.0], [1e6, 0.0]) == [0.5, 0.5]
    assert combine_by_scaling([1.0, math.nan, math.inf, -math.inf], [0.0] * 4) == [1.0, 0.5, 1.0, 0.5]


def test_votes_of_equal_answers_are_added_up() -> None:
    assert answer_sums([[0, 3], [1]], [0.25, 0.375, 9.0, 0.25]) == [0.5, 0.375]
    assert answer_sums([[0, 1]], [math.nan, 2.0]) == [2.0]
