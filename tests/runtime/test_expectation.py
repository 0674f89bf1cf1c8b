"""Expectations over all subsets against going through every order, and the resampling of problems."""

import itertools
import math
import statistics
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swift_edge.evaluation import Estimate
from swift_edge.evaluation.expectation import (
    MOST_SUBSETS,
    SAMPLED_SUBSETS,
    expected_best,
    expected_oracle,
    expected_ranking,
    expected_scaling,
    expected_vote,
    pick_chances,
    subsets_of,
)
from swift_edge.scoring.bootstrap import estimate, resampled_means
from swift_edge.selection.ranking import answer_sums, combine_by_rank, combine_by_scaling, rank

# Few distinct numbers, so that there are ties; and what a score may be that is no number.
numbers = st.sampled_from([0.0, 1.0, 2.0, 3.5, -1.0, 7.25, math.inf, -math.inf, math.nan])


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[float], list[float], list[int], list[bool], int]:
    """Two scores, answers, and labels of one problem's candidates, and how many of them are at hand."""
    n = draw(st.integers(1, 6))
    own, other = (draw(st.lists(numbers, min_size=n, max_size=n)) for _ in range(2))
    answers = draw(st.lists(st.integers(-1, 2), min_size=n, max_size=n))
    right = draw(st.sampled_from([-2, 0, 1, 2]))
    return own, other, answers, [answer == right for answer in answers], draw(st.integers(1, n))


def brute(pick: Callable[[Sequence[int]], list[float]], correct: Sequence[bool], size: int) -> float:
    """Mean over all orders of the first `size` candidates, of whether the first of the greatest scores is right."""
    outcomes = []
    for order in itertools.permutations(range(len(correct)), size):
        # Sums that differ by rounding only are ties.
        scores = [score if math.isinf(score) or math.isnan(score) else round(score, 9) for score in pick(order)]
        outcomes.append(correct[order[rank(scores)[0]]])
    return statistics.fmean(outcomes)


def row(values: Sequence[object], kind: type = float) -> np.ndarray:
    return np.array([values], kind)


@given(problems())
@settings(max_examples=150, deadline=None)
def test_the_pick_by_score_is_the_mean_over_all_orders(problem: tuple) -> None:
    own, _, _, correct, size = problem
    expected = brute(lambda order: [own[index] for index in order], correct, size)
    # Minus infinity is better than NaN, and both are no tie.
    assert expected_best(row(own), row(correct, bool), size)[0] == pytest.approx(expected)
    assert pick_chances(row(own), size).sum() == pytest.approx(1)


@given(problems())
@settings(max_examples=100, deadline=None)
def test_the_oracle_is_the_mean_over_all_orders(problem: tuple) -> None:
    correct, size = problem[3], problem[4]
    expected = statistics.fmean(
        any(correct[index] for index in chosen) for chosen in itertools.combinations(range(len(correct)), size)
    )
    assert expected_oracle(row(correct, bool), size)[0] == pytest.approx(expected)


@given(problems(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_the_vote_is_the_mean_over_all_subsets(problem: tuple, weighted: bool) -> None:
    _, other, answers, correct, size = problem
    weights = [weight if weighted and math.isfinite(weight) else 1.0 for weight in other]
    if weighted:
        weights[0] = math.nan
    shares = []
    for chosen in itertools.combinations(range(len(correct)), size):
        places: dict[int, list[int]] = {}
        for place, index in enumerate(chosen):
            if answers[index] >= 0:
                places.setdefault(answers[index], []).append(place)
        totals = answer_sums(list(places.values()), [weights[index] for index in chosen])
        winners = [group for group, total in zip(places.values(), totals, strict=True) if total == max(totals)]
        shares.append(statistics.fmean(correct[chosen[group[0]]] for group in winners) if winners else 0.0)
    found = expected_vote(row(weights), row(answers, int), row(correct, bool), subsets_of(len(answers), size))[0]
    assert found == pytest.approx(statistics.fmean(shares))


@given(problems())
@settings(max_examples=150, deadline=None)
def test_combinations_are_the_mean_over_all_orders(problem: tuple) -> None:
    own, other, _, correct, size = problem
    for expectation, combine in ((expected_ranking, combine_by_rank), (expected_scaling, combine_by_scaling)):

        def combined(order: Sequence[int], combine: Callable = combine) -> list[float]:
            return combine([own[index] for index in order], [other[index] for index in order])

        found = expectation(row(own), row(other), row(correct, bool), subsets_of(len(own), size))[0]
        assert found == pytest.approx(brute(combined, correct, size)), combine.__name__


def test_scores_that_are_no_numbers_are_worse_than_any_and_share() -> None:
    nothing, least, two = math.nan, -math.inf, subsets_of(2, 2)
    correct = row([1, 0], bool)
    for own, share in (([nothing, nothing], 0.5), ([least, nothing], 1.0), ([nothing, least], 0.0)):
        assert expected_best(row(own), correct, 2)[0] == share
        assert expected_ranking(row(own), row(own), correct, two)[0] == share


def test_problems_do_not_mix() -> None:
    random = np.random.default_rng(0)
    own, other, correct = random.normal(size=(5, 6)), random.normal(size=(5, 6)), random.random((5, 6)) < 0.5
    answers = np.where(correct, 0, random.integers(1, 4, (5, 6)))
    subsets = subsets_of(6, 3)
    for expectation in (
        lambda part: expected_best(own[part], correct[part], 3),
        lambda part: expected_oracle(correct[part], 3),
        lambda part: expected_vote(own[part] ** 2, answers[part], correct[part], subsets),
        lambda part: expected_ranking(own[part], other[part], correct[part], subsets),
        lambda part: expected_scaling(own[part], other[part], correct[part], subsets),
    ):
        alone = np.concatenate([expectation(slice(problem, problem + 1)) for problem in range(5)])
        np.testing.assert_allclose(expectation(slice(None)), alone)
        assert 0 < alone.mean() < 1


def test_an_answer_with_a_negative_sum_beats_one_that_is_not_there() -> None:
    weights, answers, correct = row([-1.0, -2.0]), row([0, 1], int), row([1, 0], bool)
    assert expected_vote(weights, answers, correct, subsets_of(2, 1))[0] == pytest.approx(0.5)
    assert expected_vote(weights, answers, correct, subsets_of(2, 2))[0] == pytest.approx(1.0)


def test_a_vote_counts_an_answer_that_is_right_in_one_candidate_only_as_often_as_it_is_right() -> None:
    found = expected_vote(np.ones((1, 4)), row([0, 0, 0, 1], int), row([1, 0, 0, 0], bool), subsets_of(4, 4))
    assert found[0] == pytest.approx(1 / 3)


def test_too_many_subsets_are_sampled_and_close_to_the_closed_form() -> None:
    assert subsets_of(16, 8).exact
    assert subsets_of(16, 8).members.shape == (16, 12_870)
    assert MOST_SUBSETS >= 12_870
    sampled = subsets_of(32, 8, seed=1)
    assert not sampled.exact
    assert sampled.members.shape == (32, SAMPLED_SUBSETS)
    assert set(sampled.members.sum(axis=0)) == {8.0}
    np.testing.assert_array_equal(sampled.members, subsets_of(32, 8, seed=1).members)
    assert (sampled.members != subsets_of(32, 8, seed=2).members).any()
    random = np.random.default_rng(0)
    own, correct = random.normal(size=(40, 32)), random.random((40, 32)) < 0.4
    # Both ranks the same: the combination is the pick by score. 4,096 draws leave 0.008 per problem at most.
    found = expected_ranking(own, own, correct, sampled)
    np.testing.assert_allclose(found, expected_best(own, correct, 8), atol=0.04)


@pytest.mark.slow
def test_intervals_cover_what_the_normal_distribution_says() -> None:
    random = np.random.default_rng(0)
    values = random.random((900, 2)) < [0.3, 0.5]
    means = resampled_means(values.astype(float), seed=3)
    assert means.shape == (10_000, 2)
    np.testing.assert_array_equal(means, resampled_means(values.astype(float), seed=3))
    for column in range(2):
        share = values[:, column].mean()
        interval = estimate(share, means[:, column])
        half = 1.96 * math.sqrt(share * (1 - share) / 900)
        assert interval.value == share
        assert interval.low == pytest.approx(share - half, abs=0.003)
        assert interval.high == pytest.approx(share + half, abs=0.003)


def test_columns_are_resampled_together() -> None:
    values = np.random.default_rng(0).random((50, 1))
    means = resampled_means(np.concatenate([values, values + 0.25], axis=1), resamples=200)
    np.testing.assert_allclose(means[:, 1] - means[:, 0], 0.25)


def test_resamples_do_not_depend_on_the_size_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random((50, 1))
    whole = resampled_means(values, resamples=64)
    monkeypatch.setattr("swift_edge.scoring.bootstrap._BLOCK_BYTES", 8 * 50 * 7)
    np.testing.assert_allclose(resampled_means(values, resamples=64), whole)


def test_resamples_without_a_value_are_passed_over() -> None:
    assert estimate(0.5, np.array([math.nan, 0.4, 0.4])) == Estimate(0.5, 0.4, 0.4)
    assert math.isnan(estimate(0.5, np.array([math.nan])).low)
