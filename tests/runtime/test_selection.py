"""Scores to a pick."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swift_edge.errors import InvalidOptionError
from swift_edge.selection import pick, rank

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


def test_pick_is_the_first_of_the_ranking() -> None:
    assert pick([math.nan, -math.inf, 2.0, 2.0]) == 2
    assert pick([math.nan, -math.inf]) == 1
    assert pick([math.nan, math.nan]) == 0


def test_nothing_to_pick_from_is_an_error() -> None:
    assert rank([]) == []
    with pytest.raises(InvalidOptionError, match="no candidates"):
        pick([])
