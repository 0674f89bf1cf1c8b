"""Losses and scores against their formulas written as loops, and every gradient against finite differences."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from swift_edge.errors import InvalidOptionError
from swift_edge.scoring.head import LEAST_GATE_SUM
from swift_edge.training.fitting.descent import Objective, Standard, Weights
from swift_edge.training.fitting.examples import Candidates, Examples
from swift_edge.training.fitting.inputs import ArrayRows
from swift_edge.training.fitting.objectives import (
    LOSSES,
    Loss,
    contrasts,
    cut,
    loss_sums,
    prefix_gradients,
    prefix_scores,
)

# Candidates per problem, with their labels: mixed ones, one all correct, one all wrong, one alone.
LABELS = ((1, 0, 0), (1, 1), (0, 1, 1, 0), (0, 0, 0), (1,), (0, 1))
CORRECT = np.array([label for problem in LABELS for label in problem], bool)
STARTS = np.cumsum([0, *map(len, LABELS)])


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def formula(loss: Loss, problem: list[float], labels: tuple[int, ...]) -> float:
    """The loss of one problem, a sum over its candidates for bce and hinge, word by word."""
    right = [score for score, label in zip(problem, labels, strict=True) if label]
    wrong = [score for score, label in zip(problem, labels, strict=True) if not label]
    if loss == "bce":
        return -sum(math.log(sigmoid(score)) for score in right) - sum(math.log(sigmoid(-score)) for score in wrong)
    if loss == "hinge":
        return sum(max(0.0, 1 - score) for score in right) + sum(max(0.0, 1 + score) for score in wrong)
    if not right or not wrong:
        return 0.0
    if loss == "pairwise":
        return -sum(math.log(sigmoid(a - b)) for a in right for b in wrong) / (len(right) * len(wrong))
    rewards = [math.exp(label / 0.01 - 100) for label in labels]
    targets = [reward / sum(rewards) for reward in rewards]
    if loss == "infonca":
        total = sum(math.exp(score) for score in problem)
        return -sum(p * math.log(math.exp(score) / total) for p, score in zip(targets, problem, strict=True))
    return -sum(
        p * math.log(sigmoid(score)) + math.log(sigmoid(-score)) / len(problem)
        for p, score in zip(targets, problem, strict=True)
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_follow_their_formulas(loss: Loss) -> None:
    scores = np.random.default_rng(0).normal(0, 2, (len(CORRECT), 3))
    sums, _ = loss_sums(loss, scores, CORRECT, STARTS)
    for prefix in range(3):
        parts = np.split(scores[:, prefix], STARTS[1:-1])
        expected = sum(formula(loss, part.tolist(), labels) for part, labels in zip(parts, LABELS, strict=True))
        assert sums[prefix] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_of_parts_add_up(loss: Loss) -> None:
    scores = np.random.default_rng(1).normal(0, 2, (len(CORRECT), 2))
    whole = loss_sums(loss, scores, CORRECT, STARTS)
    parts = [
        loss_sums(loss, scores[STARTS[a] : STARTS[b]], CORRECT[STARTS[a] : STARTS[b]], STARTS[a : b + 1] - STARTS[a])
        for a, b in ((0, 1), (1, 2), (2, 6))
    ]
    np.testing.assert_allclose(sum(part[0] for part in parts), whole[0], rtol=1e-12)
    np.testing.assert_allclose(np.concatenate([part[1] for part in parts]), whole[1], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_of_losses_are_finite_differences(loss: Loss) -> None:
    scores = np.random.default_rng(2).normal(0, 2, (len(CORRECT), 2))
    _, gradient = loss_sums(loss, scores, CORRECT, STARTS)
    for place in np.ndindex(scores.shape):
        step = np.zeros_like(scores)
        step[place] = 1e-5
        up, down = (loss_sums(loss, scores + sign * step, CORRECT, STARTS)[0][place[1]] for sign in (1, -1))
        assert gradient[place] == pytest.approx((up - down) / 2e-5, abs=1e-8)


@pytest.mark.parametrize("loss", LOSSES)
def test_extreme_scores_neither_overflow_nor_lose_their_sign(loss: Loss) -> None:
    scores = np.where(CORRECT, -1e5, 1e5)[:, np.newaxis]
    sums, gradient = loss_sums(loss, scores, CORRECT, STARTS)
    assert 1e5 <= sums[0] < 1e7
    both = np.repeat(contrasts(CORRECT, STARTS), np.diff(STARTS))
    assert (gradient[both & CORRECT] < 0).all()
    assert (gradient[both & ~CORRECT] >= 0).all()


def test_contrasts_are_the_problems_with_both_labels() -> None:
    assert contrasts(CORRECT, STARTS).tolist() == [True, False, True, False, False, True]
    assert contrasts(CORRECT[:0], STARTS[:1]).tolist() == []


counts = st.lists(st.integers(1, 7), min_size=1, max_size=8)


@given(tokens=counts, prefixes=st.integers(0, 3), seed=st.integers(0, 2**32))
def test_pieces_are_prefixes_of_at_least_one_token_and_end_with_the_whole(
    tokens: list[int], prefixes: int, seed: int
) -> None:
    fractions = np.random.default_rng(seed).uniform(0.1, 1, (len(tokens), prefixes))
    ends = np.cumsum(cut(np.array(tokens), fractions), axis=1)
    assert (ends[:, -1] == tokens).all()
    assert (ends >= 1).all()
    assert (np.diff(ends, axis=1) >= 0).all()
    expected = np.ceil(np.sort(fractions, axis=1) * np.array(tokens)[:, np.newaxis])
    np.testing.assert_array_equal(ends[:, :-1], expected)
    assert cut(np.array([3]), np.array([[0.0]])).tolist() == [[1, 2]]


def test_a_candidate_without_tokens_is_refused() -> None:
    with pytest.raises(InvalidOptionError, match="without tokens"):
        cut(np.array([2, 0]), np.zeros((2, 0)))


@given(tokens=counts, prefixes=st.integers(0, 3), gate=st.booleans(), seed=st.integers(0, 2**32))
def test_scores_of_prefixes_are_those_that_the_runtime_gives(
    tokens: list[int], prefixes: int, gate: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    gates = random.random(sum(tokens)) ** 8 if gate else np.ones(sum(tokens))
    rewards = random.normal(0, 3, sum(tokens))
    pieces = cut(np.array(tokens), random.uniform(0.1, 1, (len(tokens), prefixes)))
    scores, _ = prefix_scores(gates, rewards, pieces)
    begins = np.cumsum([0, *tokens])
    for candidate, ends in enumerate(np.cumsum(pieces, axis=1)):
        for prefix, end in enumerate(ends):
            part = slice(begins[candidate], begins[candidate] + end)
            score = gates[part] @ rewards[part] / max(gates[part].sum(), LEAST_GATE_SUM)
            assert scores[candidate, prefix] == pytest.approx(score, rel=1e-9, abs=1e-12)


def test_tiny_gates_after_large_ones_are_not_lost_in_a_running_sum() -> None:
    gates, rewards = np.array([1.0] * 50 + [1e-7, 2e-7]), np.array([5.0] * 50 + [1.0, 4.0])
    scores, _ = prefix_scores(gates, rewards, np.array([[50], [2]]))
    np.testing.assert_allclose(scores[:, 0], [5.0, 3.0], rtol=1e-12)


@given(tokens=counts, prefixes=st.integers(0, 3), shut=st.booleans(), seed=st.integers(0, 2**32))
def test_gradients_of_scores_are_finite_differences(tokens: list[int], prefixes: int, shut: bool, seed: int) -> None:
    random = np.random.default_rng(seed)
    gates, rewards = random.uniform(0.1, 1, sum(tokens)), random.normal(0, 2, sum(tokens))
    if shut:
        gates *= 1e-10  # the divisor is held at 1e-8
    pieces = cut(np.array(tokens), random.uniform(0.1, 1, (len(tokens), prefixes)))
    slopes = random.normal(size=pieces.shape)  # of a loss that is linear in the scores
    scores, gate_sums = prefix_scores(gates, rewards, pieces)
    by_gate, by_reward = prefix_gradients(gates, rewards, pieces, scores, gate_sums, slopes)

    def loss(changed_gates: NDArray[np.float64], changed_rewards: NDArray[np.float64]) -> float:
        return float((slopes * prefix_scores(changed_gates, changed_rewards, pieces)[0]).sum())

    width = 1e-14 if shut else 1e-6
    for token in range(sum(tokens)):
        step = np.zeros(sum(tokens))
        step[token] = 1.0
        gate_slope = (loss(gates + width * step, rewards) - loss(gates - width * step, rewards)) / (2 * width)
        reward_slope = (loss(gates, rewards + 1e-6 * step) - loss(gates, rewards - 1e-6 * step)) / 2e-6
        assert by_gate[token] == pytest.approx(gate_slope, rel=1e-5, abs=1e-2 if shut else 1e-7)
        assert by_reward[token] == pytest.approx(reward_slope, rel=1e-5, abs=1e-7)


def objective(
    seed: int,
    tokens: list[int],
    inputs: int,
    prefixes: int,
    dtype: Any = np.float64,
    block_rows: int = 10**6,
    **options: Any,
) -> Objective:
    """An objective over made-up tokens of the candidates of `LABELS`, with means far from zero."""
    random = np.random.default_rng(seed)
    lengths = np.resize(tokens, len(CORRECT))
    raw = (random.normal(0, 1, (lengths.sum(), inputs)) * np.geomspace(0.1, 30, inputs) + 20).astype(dtype)
    candidates = Candidates(
        CORRECT,
        (None,) * len(CORRECT),
        np.repeat(np.arange(len(LABELS)), np.diff(STARTS)),
        np.zeros(len(CORRECT), np.int64),
        np.zeros(len(CORRECT), np.int64),
        lengths,
        (None,) * len(LABELS),
        np.zeros(len(CORRECT), bool),
        0,
        np.zeros((len(CORRECT), 2)),
    )
    examples = replace(Examples.of(candidates, ArrayRows(raw), 2**30), block_rows=block_rows)
    standard = Standard(raw.mean(axis=0, dtype=np.float64), raw.std(axis=0, dtype=np.float64) + 0.5)
    fractions = random.uniform(0.1, 1, (len(CORRECT), prefixes))
    pieces = cut(lengths, fractions) if prefixes else None
    return Objective(examples, range(len(LABELS)), standard, pieces=pieces, dtype=dtype, **options)


def vector_of(seed: int, inputs: int, gate: bool) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(0, 0.5, (1 + gate) * (inputs + 1))


@pytest.mark.parametrize("prefixes", [0, 2])
@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("loss", LOSSES)
@given(tokens=counts, seed=st.integers(0, 2**32), pairwise_weight=st.sampled_from([0.0, 0.7]), block=st.integers(1, 40))
@settings(max_examples=10)
def test_gradient_over_weights_is_a_finite_difference(
    loss: Loss, gate: bool, prefixes: int, tokens: list[int], seed: int, pairwise_weight: float, block: int
) -> None:
    inputs = 3
    described = objective(
        seed, tokens, inputs, prefixes, block_rows=block, gate=gate, loss=loss, pairwise_weight=pairwise_weight
    )
    vector = vector_of(seed, inputs, gate)
    gradient = described.measure(vector, gradient=True).gradient
    width = 1e-5
    for place in range(len(vector)):
        step = np.zeros(len(vector))
        step[place] = width
        up, down = (described.measure(vector + sign * step, gradient=False).loss for sign in (1, -1))
        # Where a hinge has its kink, the slope is one of those on either side.
        tolerance = 1e-7 if loss != "hinge" else 1e-3
        assert gradient[place] == pytest.approx((up - down) / (2 * width), rel=1e-4, abs=tolerance)


@pytest.mark.parametrize("gate", [True, False])
def test_float32_products_come_close_to_float64(gate: bool) -> None:
    exact, rounded = (
        objective(5, [4, 1, 9], 6, 2, dtype, gate=gate, pairwise_weight=1.0) for dtype in (np.float64, np.float32)
    )
    vector = vector_of(5, 6, gate)
    ours, theirs = (each.measure(vector, gradient=True) for each in (rounded, exact))
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-4)
    np.testing.assert_allclose(ours.gradient, theirs.gradient, atol=1e-5)


@pytest.mark.parametrize("prefixes", [0, 2])
def test_blocks_do_not_change_the_result(prefixes: int) -> None:
    vector = vector_of(0, 4, True)
    whole = objective(0, [3, 5, 1], 4, prefixes, gate=True, pairwise_weight=0.5).measure(vector, gradient=True)
    for block_rows in (1, 2, 7, 11, 30):
        described = objective(0, [3, 5, 1], 4, prefixes, block_rows=block_rows, gate=True, pairwise_weight=0.5)
        parts = described.measure(vector, gradient=True)
        assert parts.loss == pytest.approx(whole.loss, rel=1e-12)
        np.testing.assert_allclose(parts.scores, whole.scores, rtol=1e-12)
        np.testing.assert_allclose(parts.gradient, whole.gradient, rtol=1e-9, atol=1e-12)


def test_loss_is_the_weighted_mean_over_prefixes_and_the_whole() -> None:
    described = objective(3, [6, 2], 3, 1, gate=True, prefix_weight=0.25)
    vector = vector_of(3, 3, True)
    assert described.pieces is not None
    rows = described.examples.rows.read(0, 10**6)
    weight, bias = Weights.of(vector, 3).folded(described.standard, np.float64)
    outputs = rows @ weight.T + bias
    scores, _ = prefix_scores(1 / (1 + np.exp(-outputs[:, 0])), outputs[:, 1], described.pieces)
    losses = [np.mean(np.logaddexp(0, np.where(CORRECT, -column, column))) for column in scores.T]
    assert described.measure(vector, gradient=False).loss == pytest.approx((0.25 * losses[0] + losses[1]) / 1.25)


def test_zero_gate_row_gives_the_mean_of_the_rewards() -> None:
    described = objective(4, [5, 3], 4, 0, gate=True)
    row = vector_of(4, 4, False)
    gated = Weights.of(row, 4).gated().flat()
    plain = replace(described, gate=False).measure(row, gradient=False)
    np.testing.assert_allclose(described.measure(gated, gradient=False).scores, plain.scores, rtol=1e-12)


def test_folded_weights_score_raw_inputs_alike() -> None:
    random = np.random.default_rng(0)
    standard = Standard(random.normal(0, 100, 5), random.uniform(0.1, 9, 5))
    weights = Weights(random.normal(size=(2, 5)), random.normal(size=2))
    raw = random.normal(0, 1, (7, 5)) * standard.scale + standard.mean
    weight, bias = weights.folded(standard, np.float64)
    expected = (raw - standard.mean) / standard.scale @ weights.weight.T + weights.bias
    np.testing.assert_allclose(raw @ weight.T + bias, expected, rtol=1e-10, atol=1e-10)
    # The bias belongs to the rounded weights: inputs at their mean score the bias and nothing else.
    weight, bias = weights.folded(standard)
    np.testing.assert_allclose(weight.astype(np.float64) @ standard.mean + bias, weights.bias, rtol=1e-10)
