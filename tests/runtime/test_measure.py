"""Figures out of arrays against their definitions: rules, AUROC, reliability, and scores from elsewhere."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swift_edge.errors import DataError, InvalidOptionError
from swift_edge.evaluation import (
    HeadScores,
    Sampled,
    binned_calibration_error,
    expected_accuracies,
    expected_by_size,
    measure,
    problem_aurocs,
    read_external,
    reliability,
)
from swift_edge.scoring import calibration_error, within_problem_auroc
from swift_edge.selection import combine_by_rank, combine_by_scaling, rank, rank_by_answer


def sampled(seed: int = 0, problems: int = 30, n: int = 6, **changes: Any) -> Sampled:
    """Candidates out of thin air, with a calibrated head and one that is not."""
    random = np.random.default_rng(seed)
    correct = random.random((problems, n)) < random.random((problems, 1))
    answers = np.where(correct, 0, random.choice([-1, 1, 2, 3], (problems, n)))
    scores = random.normal(size=(2, problems, n)) + correct
    everything: dict[str, Any] = {
        "correct": correct,
        "answers": answers,
        "n_tokens": random.integers(3, 9, (problems, n)),
        "mean_logprob": random.normal(size=(problems, n)) + correct,
        "self_certainty": random.normal(size=(problems, n)),
        "heads": {
            "default": HeadScores(scores[0], 1 / (1 + np.exp(-scores[0])), scores[0] - 0.5),
            "plain": HeadScores(scores[1], None),
        },
    }
    return Sampled(**everything | changes)


def measured(found: Sampled, sizes: Sequence[int], *families: Any, **options: Any) -> dict[str, Any]:
    return measure(found, expected_by_size(found, sizes), *families, **options)


def direct(found: Sampled) -> dict[str, float]:
    """Share of right picks out of all candidates, as the runtime makes them; without ties among the picks."""
    outcomes: dict[str, list[float]] = {}
    for problem, correct in enumerate(found.correct):
        members = (np.flatnonzero(found.answers[problem] == answer).tolist() for answer in range(4))
        groups = [group for group in members if group]
        scores = {
            "mean_logprob": found.mean_logprob[problem],
            "self_certainty": found.self_certainty[problem],
            **{name: head.scores[problem] for name, head in found.heads.items()},
        }
        default, plain = found.heads["default"], found.heads["plain"]
        for name, head, weights in (
            ("default vote", default, default.probabilities[problem]),
            ("default calibrated", default, default.ratios[problem]),
            ("plain vote", plain, 1 / (1 + np.exp(-plain.scores[problem]))),
        ):
            picked = rank_by_answer(groups, weights, head.scores[problem])[0]
            outcomes.setdefault(name, []).append(float(correct[picked]) if groups else 0.0)
        for name, values in scores.items():
            picked = rank(list(values))[0]
            outcomes.setdefault(name, []).append(float(correct[picked]) if not np.isnan(values).all() else 0.0)
        own, other = list(found.heads["default"].scores[problem]), list(found.mean_logprob[problem])
        for name, combine in (("ranking", combine_by_rank), ("scaling", combine_by_scaling)):
            values = np.array(combine(own, other))
            tied = np.isclose(values, values.max(), rtol=0, atol=1e-9)
            outcomes.setdefault(f"default+mean_logprob {name}", []).append(correct[tied].mean())
    return {name: float(np.mean(values)) for name, values in outcomes.items()}


def test_all_candidates_at_hand_give_what_the_runtime_picks() -> None:
    found = sampled()
    expected = expected_accuracies(found, found.n)
    for name, value in direct(found).items():
        assert expected[name].mean() == pytest.approx(value), name
    assert expected["oracle"].mean() == pytest.approx(found.correct.any(axis=1).mean())
    assert list(expected)[:6] == ["pass@1", "oracle", "majority", "shortest", "mean_logprob", "self_certainty"]
    assert len(expected) == 13


def test_one_candidate_at_hand_leaves_no_choice_but_between_answers_and_none() -> None:
    found = sampled()
    for name, chances in expected_accuracies(found, 1).items():
        np.testing.assert_allclose(chances, found.correct.mean(axis=1), err_msg=name)


def test_an_external_score_takes_the_place_of_the_log_probability() -> None:
    found = sampled()
    perfect = replace(found, external=found.correct.astype(float))
    expected = expected_accuracies(perfect, 4)
    np.testing.assert_allclose(expected["external"], expected["oracle"])
    assert {"default+external ranking", "default+external scaling"} <= set(expected)
    assert not [name for name in expected if "+mean_logprob" in name]


def test_a_shorter_answer_is_the_shortest() -> None:
    found = sampled()
    found = replace(found, n_tokens=np.where(found.correct, 2, 5))
    expected = expected_accuracies(found, 3)
    np.testing.assert_allclose(expected["shortest"], expected["oracle"])


@given(st.integers(0, 2**20), st.booleans())
@settings(max_examples=30, deadline=None)
def test_auroc_is_that_of_the_training(seed: int, coarse: bool) -> None:
    random = np.random.default_rng(seed)
    scores = random.normal(size=(7, 5))
    scores = np.round(scores) if coarse else scores
    scores[0, 0] = math.nan
    correct = random.random((7, 5)) < 0.5
    problems = np.repeat(np.arange(7), 5)
    expected = within_problem_auroc(scores.ravel(), correct.ravel(), problems)
    found = problem_aurocs(scores, correct)
    mixed = correct.any(axis=1) & ~correct.all(axis=1)
    np.testing.assert_array_equal(np.isnan(found), ~mixed)
    if mixed.any():
        assert np.nanmean(found) == pytest.approx(expected)


def test_figures_are_their_definitions() -> None:
    found = sampled(problems=80)
    families = ["a"] * 50 + ["b"] * 29 + [None]
    results = measured(found, [1, 2, 4], {"family": families}, resamples=500)
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    assert (results["problems"], results["candidates"], results["main_size"]) == (80, 6, 4)
    accuracy = {name: figures["4"]["value"] for name, figures in results["accuracy"].items()}
    for name, others in results["difference"].items():
        for other, figures in others.items():
            assert figures["4"]["value"] == pytest.approx(accuracy[name] - accuracy[other])
    assert set(results["difference"]) == {"default", "default vote", "default calibrated", "plain", "plain vote"}
    gap = results["gap_closed"]["default"]["4"]
    expected = (accuracy["default"] - accuracy["pass@1"]) / (accuracy["oracle"] - accuracy["pass@1"])
    assert gap["value"] == pytest.approx(expected)
    assert gap["low"] < expected < gap["high"]
    # There is no gap to close with one candidate.
    assert results["gap_closed"]["default"]["1"] == {"value": None, "low": None, "high": None}
    for figures in results["accuracy"].values():
        assert figures["4"]["low"] <= figures["4"]["value"] <= figures["4"]["high"]
    by_family = results["families"]["family"]
    assert [by_family[name]["problems"] for name in ("a", "b")] == [50, 29]
    assert by_family["a"]["accuracy"]["oracle"]["value"] == pytest.approx(
        expected_accuracies(found, 4)["oracle"][:50].mean()
    )
    assert set(results["auroc"]) == {"default", "plain", "mean_logprob", "self_certainty", "length"}
    assert results["auroc"]["default"]["value"] == pytest.approx(
        np.nanmean(problem_aurocs(found.heads["default"].scores, found.correct))
    )
    assert results["subsets_sampled_at"] == []


def test_a_paired_difference_is_narrower_than_its_parts() -> None:
    found = sampled(problems=200)
    nearly = found.heads["default"].scores + np.random.default_rng(1).normal(0, 0.1, found.correct.shape)
    found = replace(found, heads={**found.heads, "nearly": HeadScores(nearly, None)})
    results = measured(found, [4], resamples=500)
    difference, accuracy = results["difference"]["nearly"]["default"]["4"], results["accuracy"]["nearly"]["4"]
    assert difference["high"] - difference["low"] < 0.5 * (accuracy["high"] - accuracy["low"])


def test_without_a_head_the_baselines_stand_alone() -> None:
    results = measured(sampled(heads={}), [1, 2], resamples=50)
    assert results["difference"] == results["calibration"] == {}
    assert len(results["accuracy"]) == 6


def test_a_head_that_saw_no_token_picks_at_random() -> None:
    found = sampled()
    unseen = HeadScores(np.full(found.correct.shape, math.nan), np.full(found.correct.shape, math.nan))
    blind = measured(replace(found, heads={"blind": unseen}), [1, 6], resamples=20)
    assert json.loads(json.dumps(blind, allow_nan=False)) == blind
    assert blind["accuracy"]["blind"]["6"]["value"] == pytest.approx(found.correct.mean())
    assert blind["calibration"] == {"blind": None}


def test_many_candidates_are_sampled_and_said_so() -> None:
    results = measured(sampled(problems=3, n=24), [2, 12], resamples=50)
    assert results["subsets_sampled_at"] == [12]


@pytest.mark.parametrize("sizes", [[], [0], [7], [1, 7]])
def test_sizes_beyond_the_candidates_are_refused(sizes: list[int]) -> None:
    with pytest.raises(InvalidOptionError, match="from 1 to 6"):
        measured(sampled(), sizes, resamples=10)


class TestReliability:
    def test_bins_are_tenths_with_their_means(self) -> None:
        probabilities = np.linspace(0, 1, 100)
        correct = np.arange(100) % 2 == 0
        bins = reliability(probabilities, correct, np.ones(100))
        assert len(bins) == 10
        for number, each in enumerate(bins):
            part = slice(10 * number, 10 * number + 10)
            assert each.probability == pytest.approx(probabilities[part].mean())
            assert each.correct == pytest.approx(correct[part].mean())
        assert binned_calibration_error(bins) == pytest.approx(calibration_error(probabilities, correct))

    @given(st.lists(st.tuples(st.sampled_from([0.1, 0.25, 0.9]), st.booleans(), st.integers(0, 3)), min_size=1))
    @settings(max_examples=60, deadline=None)
    def test_a_weight_is_as_many_candidates_and_the_order_does_not_matter(self, rows: Sequence[tuple]) -> None:
        probabilities, correct, weights = (np.array(column) for column in zip(*rows, strict=True))
        bins = reliability(probabilities, correct, weights.astype(float))
        assert (np.diff([each.probability for each in bins]) > -1e-9).all()
        repeated = reliability(
            np.repeat(probabilities, weights)[::-1], np.repeat(correct, weights)[::-1], np.ones(weights.sum())
        )
        assert len(bins) == len(repeated) == (10 if weights.sum() else 0)
        for one, other in zip(bins, repeated, strict=True):
            assert one.correct == pytest.approx(other.correct)

    def test_what_has_no_probability_is_left_out(self) -> None:
        probabilities = np.array([0.5, math.nan, 0.5])
        bins = reliability(probabilities, np.array([True, False, True]), np.ones(3))
        assert [each.correct for each in bins] == pytest.approx([1.0] * 10)
        assert binned_calibration_error(bins) == pytest.approx(0.5)
        assert math.isnan(binned_calibration_error(reliability(probabilities[1:2], np.array([True]), np.ones(1))))

    def test_picks_out_of_all_candidates_are_the_best_ones(self) -> None:
        found = sampled(problems=100)
        calibration = measured(found, [6], resamples=10)["calibration"]["default"]
        head = found.heads["default"]
        assert head.probabilities is not None
        best = head.scores.argmax(axis=1)
        rows = np.arange(100)
        expected = reliability(head.probabilities[rows, best], found.correct[rows, best], np.ones(100))
        assert calibration["picks"]["error"] == pytest.approx(binned_calibration_error(expected))
        assert calibration["picks_out_of"] == 6
        assert calibration["candidates"]["error"] != calibration["picks"]["error"]


class TestExternal:
    def write(self, path: Path, rows: list[Any]) -> Path:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def test_scores_come_in_any_order(self, tmp_path: Path) -> None:
        rows = [{"problem": i, "index": j, "score": 10 * i + j} for i in (1, 0) for j in (1, 0)]
        np.testing.assert_array_equal(read_external(self.write(tmp_path / "x", rows), 2, 2), [[0, 1], [10, 11]])

    @pytest.mark.parametrize(
        ("row", "hint"),
        [
            ({"problem": 1, "index": 0, "score": 1}, "from 0 to 0"),
            ({"problem": 0, "index": 2, "score": 1}, "from 0 to 1"),
            ({"problem": 0, "index": True, "score": 1}, "index true"),
            ({"problem": 0, "index": 1}, "score null"),
            ({"problem": 0, "index": 1, "score": "1"}, "finite score"),
            ({"problem": 0, "index": 0, "score": 1}, "second row about candidate 0"),
        ],
    )
    def test_a_row_that_is_no_score_is_named(self, tmp_path: Path, row: dict[str, Any], hint: str) -> None:
        path = self.write(tmp_path / "x", [{"problem": 0, "index": 0, "score": 1}, row])
        with pytest.raises(DataError, match="line 2") as caught:
            read_external(path, 1, 2)
        assert hint in str(caught.value)

    def test_a_missing_score_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no score of candidate 1 of problem 0 and 2 more"):
            read_external(self.write(tmp_path / "x", [{"problem": 0, "index": 0, "score": 1}]), 2, 2)
