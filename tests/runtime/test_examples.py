"""Examples: read the same however they are held, measured and pooled block by block, and dealt by problem."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from head_scores import scores_of
from hypothesis import given
from hypothesis import strategies as st

from swift_edge.errors import StoreError
from swift_edge.scoring import within_problem_auroc
from swift_edge.training import FitOptions, Store, fit_head
from swift_edge.training.fitting.examples import (
    Candidates,
    Examples,
    check_stores,
    read_candidates,
    read_examples,
    split_problems,
    survey,
)
from swift_edge.training.fitting.inputs import ArrayRows, Inputs, Runs, TokenRows, starts_of
from swift_edge.training.fitting.objectives import contrasts

MakeStore = Callable[..., Store]
QUICK = FitOptions(weight_decay=0.03, max_iterations=40, patience=10)


@pytest.fixture(scope="module")
def store(make_store: MakeStore) -> Store:
    return make_store(problems=60, n=6, shard_bytes=20_000)


def test_rows_are_the_same_whether_held_as_float32_or_float16_or_read_anew(make_store: MakeStore) -> None:
    store = make_store(problems=10, shard_bytes=5_000)
    inputs = Inputs((1, 3), ("entropy", "logprob"), "rms", includes_eos=False)
    candidates = read_candidates([store], inputs.includes_eos)
    candidates = candidates.arranged(np.array([7, 2, 3, 9]))
    places = check_stores([store], inputs)
    read = [
        read_examples([store], candidates, inputs, places, memory).rows.read(3, 40) for memory in (2**30, 2**12, 1000)
    ]
    for other in read[1:]:
        np.testing.assert_array_equal(other, read[0])
    expected = []
    for problem in (7, 2, 3, 9):
        for shard in store.shards:
            for place, candidate in enumerate(shard.candidates):
                if candidate.problem == problem:
                    rows = slice(shard.starts[place], shard.starts[place + 1] - 1)  # without the EOS
                    states = np.array(shard.states[rows], np.float64)
                    states /= np.sqrt((states**2).mean(axis=2, keepdims=True) + 1e-6)
                    statistics = np.array(shard.statistics[rows])[:, [1, 0]]
                    expected.append(np.column_stack([states.reshape(len(states), 12), statistics]))
    np.testing.assert_allclose(read[0], np.concatenate(expected)[3:40], rtol=1e-6)


def test_rows_that_follow_each_other_in_different_shards_are_not_one_run(make_store: MakeStore) -> None:
    store = make_store(problems=10, shard_bytes=3_000)
    runs = Runs(np.array([0, 1, 1, 0]), np.array([0, 3, 5, 6]), np.array([3, 2, 1, 2]))
    rows = TokenRows(store.shards, runs, Inputs((1, 3)), (0, 1))
    expected = [store.shards[shard].states[a:b] for shard, a, b in ((0, 0, 3), (1, 3, 6), (0, 6, 8))]
    np.testing.assert_array_equal(rows.read(0, 8), np.concatenate(expected).reshape(8, 12))
    assert [rows.place_of(row) for row in (0, 2, 3, 5, 6, 7)] == [(0, 0), (0, 2), (1, 3), (1, 5), (0, 6), (0, 7)]


def test_an_input_that_varies_by_rounding_alone_is_not_blown_up() -> None:
    # One token in fifty is a step of float16 off; the others are constant.
    rows = np.column_stack([np.where(np.arange(200) % 50, 2048.0, 2050.0), np.arange(200) % 2, np.full(200, 7.0)])
    ones = np.ones(200, np.int64)
    signals = np.zeros((200, 2))
    candidates = Candidates(
        ones > 0, (None,) * 200, np.arange(200), 0 * ones, 0 * ones, ones, (None,) * 200, ones < 0, 0, signals
    )
    examples = Examples.of(candidates, ArrayRows(rows.astype(np.float32)), 2**20)
    found = survey(examples, range(200), [], pool=False)
    np.testing.assert_allclose(found.scale, [found.mean[0] / 4096, 0.5, 1.0])
    assert rows[:, 0].std() < 0.3 < found.scale[0]


def test_survey_measures_the_training_tokens_and_pools_all(make_store: MakeStore) -> None:
    store = make_store(problems=12, shard_bytes=5_000)
    inputs = Inputs((3,), ("logprob",))
    candidates = read_candidates([store], True)
    for block_rows in (10_000, 7):
        examples = read_examples([store], candidates, inputs, check_stores([store], inputs), 2**30)
        examples = replace(examples, block_rows=block_rows)
        found = survey(examples, range(3, 9), [store], pool=True)
        rows = examples.rows.read(0, 10_000).astype(np.float64)
        inside = rows[examples.starts[examples.problem_starts[3]] : examples.starts[examples.problem_starts[9]]]
        np.testing.assert_allclose(found.mean, inside.mean(axis=0), rtol=1e-6, atol=1e-6)
        expected = np.maximum(inside.std(axis=0), np.abs(inside.mean(axis=0)) / 4096)
        expected[3] = 1  # the constant input
        np.testing.assert_allclose(found.scale, expected, rtol=1e-5)
        assert found.pooled is not None
        means = [rows[a:b].mean(axis=0) for a, b in zip(examples.starts[:-1], examples.starts[1:], strict=True)]
        np.testing.assert_allclose(found.pooled.rows.read(0, 10_000), means, rtol=1e-5, atol=1e-5)


@given(
    both=st.lists(st.booleans(), min_size=2, max_size=60),
    validation=st.sampled_from([0.0, 0.15, 0.4]),
    seed=st.integers(0, 2**32),
)
def test_split_deals_every_problem_once_and_starves_no_part(both: list[bool], validation: float, seed: int) -> None:
    order, split = split_problems(np.array(both), validation, 0.15, seed)
    assert sorted(order) == list(range(len(both)))
    assert split.train.start == 0
    assert split.train.stop == split.validation.start
    assert split.validation.stop == split.calibration.start
    assert split.calibration.stop == len(both)
    contrasting = [
        sum(both[order[place]] for place in part) for part in (split.train, split.validation, split.calibration)
    ]
    assert contrasting[0] >= min(2, sum(both))
    if validation and sum(both) >= 3:
        assert contrasting[1] >= 1
    if not validation:
        assert len(split.validation) == 0
    if sum(both) >= 4:
        assert contrasting[2] >= 1
    if sum(both) >= 20:
        assert contrasting[1] == pytest.approx(validation * sum(both), abs=1)
    for part in (split.train, split.validation, split.calibration):
        assert (np.diff(order[part.start : part.stop]) > 0).all()
    again, _ = split_problems(np.array(both), validation, 0.15, seed)
    assert (again == order).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fingerprint": "cd" * 32}, "has fingerprint"),
        ({"precision": "int4"}, "has precision 'fp32', .* has 'int4'"),
        ({"layers": (1, 2)}, "has layers"),
        ({"width": 7}, "has width"),
        ({"eos_ids": (1, 2)}, "has eos_ids"),
        ({"seed": 0}, "the same candidates"),
    ],
)
def test_stores_that_do_not_belong_together_are_refused(
    make_store: MakeStore, changes: dict[str, Any], message: str
) -> None:
    store = make_store(problems=60)
    other = make_store(**({"problems": 60 if "seed" in changes else 4, "seed": 2} | changes))
    with pytest.raises(StoreError, match=message):
        check_stores([store, other], Inputs((1, 3)))


@pytest.mark.parametrize("options", [{}, {"gate": False}, {"norm": "rms"}, {"includes_eos": False}], ids=str)
def test_the_folded_head_scores_as_the_fit_did(store: Store, options: dict[str, Any]) -> None:
    found = fit_head(store, replace(QUICK, **options))
    labels = np.array([each.correct for each in store.candidates])
    problems = np.array([each.problem for each in store.candidates])
    scores = scores_of(found, store)
    candidates = read_candidates([store], found.includes_eos)
    both = contrasts(candidates.correct, starts_of(np.bincount(candidates.problems)))
    order, split = split_problems(both, 0.15, 0.15, 0)
    counted = np.isfinite(scores)
    names = np.unique(problems[counted])[order]
    for name, part in (("train", split.train), ("validation", split.validation)):
        inside = counted & np.isin(problems, names[part.start : part.stop])
        ranked = within_problem_auroc(scores[inside], labels[inside], problems[inside])
        assert found.summary[name]["within_problem_auroc"] == pytest.approx(ranked, abs=1e-3)
    inside = counted & np.isin(problems, names[split.calibration.start : split.calibration.stop])
    assert found.calibration is not None
    assert found.calibration.candidates == inside.sum()
    assert found.calibration.base_rate == pytest.approx(labels[inside].mean())


def test_the_convex_start_is_logistic_regression_on_the_mean_states(store: Store) -> None:
    # One iteration of the gated fit begins where logistic regression ended; nothing has moved far.
    plain = fit_head(store, replace(QUICK, gate=False, prefixes=0, pairwise_weight=0.0, validation_share=0.0))
    inputs = Inputs((1, 3), ("logprob", "entropy"))
    candidates = read_candidates([store], True)
    both = contrasts(candidates.correct, starts_of(np.bincount(candidates.problems)))
    order, split = split_problems(both, 0.0, 0.15, 0)
    examples = read_examples([store], candidates.arranged(order), inputs, check_stores([store], inputs), 2**30)
    found = survey(examples, split.train, [store], pool=True)
    assert found.pooled is not None
    members = examples.members(split.train)
    means = (found.pooled.rows.read(0, members.stop) - found.mean) / found.scale
    labels = examples.candidates.correct[members]
    weight = plain.weight[0].astype(np.float64) * found.scale
    bias = float(plain.bias[0]) + float(plain.weight[0].astype(np.float64) @ found.mean)
    chances = 1 / (1 + np.exp(-(means @ weight + bias)))
    # At the minimum the gradient is zero.
    np.testing.assert_allclose(means.T @ (chances - labels) / len(labels) + 0.03 * weight, 0, atol=2e-4)
    assert (chances - labels).mean() == pytest.approx(0, abs=2e-4)


def test_stores_of_the_same_data_are_joined_by_problem(make_store: MakeStore) -> None:
    first = make_store(problems=30, seed=0)
    second = make_store(problems=30, seed=5, data_sha256=first.info.data_sha256)
    joined = read_candidates([first, second, make_store(problems=30, seed=6)], True)
    assert joined.problems[-1] + 1 == 60
    assert np.bincount(joined.problems).tolist().count(12) == 30
