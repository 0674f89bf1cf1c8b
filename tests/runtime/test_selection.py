"""Scores to a pick."""

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from swift_edge.selection import rank

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
