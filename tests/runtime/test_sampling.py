"""Sampling against a reference that sorts the whole vocabulary, and the properties that make candidates independent."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from swift_edge.engine.sampling import after_penalty, candidate_generator, kept_weights, sample
from swift_edge.engine.signals import summarize
from swift_edge.errors import InvalidOptionError, LogitsError
from swift_edge.options import SamplingOptions

VOCABULARY = 151_936
DISTANCE = 1e-5  # mass from the nucleus' boundary within which float32 sums may decide differently


def kept(
    logits: NDArray[np.float32], options: SamplingOptions, seen: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Ids that a draw may give, ascending, and their probabilities."""
    row = after_penalty(logits, options.repetition_penalty, seen)
    token_ids, weights = kept_weights(row, row.max(), options)
    return token_ids, weights / weights.sum()


def reference_kept(logits: NDArray[np.float32], options: SamplingOptions) -> tuple[NDArray[np.int64], float]:
    """Kept ids, ascending, and how near the nucleus' boundary lies to a token's edge."""
    scaled = logits.astype(np.float64) / options.temperature  # [v]
    order = np.argsort(-scaled, kind="stable")
    if options.top_k:
        least = scaled[order[min(options.top_k, order.size) - 1]]
        order = order[scaled[order] >= least]
    weights = np.exp(scaled[order] - scaled[order[0]])
    before = np.cumsum(weights / weights.sum()) - weights / weights.sum()
    margin = np.inf
    if options.top_p < 1:
        margin = np.abs(before[1:] - options.top_p).min(initial=np.inf)
        order, weights = order[before < options.top_p], weights[before < options.top_p]
    if options.min_p:
        order = order[weights >= options.min_p * weights.max()]
    return np.sort(order), margin


def peaked_logits(rows: int, seed: int = 0) -> NDArray[np.float32]:
    random = np.random.default_rng(seed)
    logits = random.standard_normal((rows, VOCABULARY)) * 2.2
    for row in logits:
        row[random.integers(0, VOCABULARY, 40)] += np.linspace(8, 14, 40)
    return logits.astype(np.float32)


PROMPT = np.array([5, 7, 5])  # [p]


def generators(count: int, seed: int = 0) -> list[np.random.Generator]:
    return [candidate_generator(seed, index, PROMPT) for index in range(count)]


options_strategy = st.builds(
    SamplingOptions,
    temperature=st.sampled_from([0.1, 0.7, 1.0, 1.7]),
    top_p=st.sampled_from([0.01, 0.35, 0.9, 0.999, 1.0]),
    top_k=st.sampled_from([None, 0, 1, 3, 40, 10_000]),
    min_p=st.sampled_from([None, 0.0, 0.013, 0.4, 1.0]),
)


@given(
    seed=st.integers(0, 2**32),
    size=st.integers(1, 6000),
    spread=st.sampled_from([0.0, 1e-6, 0.1, 1.0, 4.0, 30.0]),
    levels=st.sampled_from([None, 3, 50]),
    options=options_strategy,
)
@settings(max_examples=250, deadline=None)
def test_kept_tokens_are_those_of_a_full_sort(
    seed: int, size: int, spread: float, levels: int | None, options: SamplingOptions
) -> None:
    random = np.random.default_rng(seed)
    logits = (random.standard_normal(size) * spread).astype(np.float32)
    if levels:  # many ties
        logits = np.round(logits * levels / max(spread, 1e-9)).astype(np.float32) / np.float32(levels)
    expected, margin = reference_kept(logits, options)
    token_ids, probabilities = kept(logits, options)
    assert probabilities.sum() == pytest.approx(1, abs=1e-9)
    positive = np.exp((logits[expected].astype(np.float64) - logits.max()) / options.temperature) > 0
    if margin > DISTANCE:
        np.testing.assert_array_equal(token_ids[probabilities > 0], expected[positive])
    else:  # an edge of a token lies on the boundary: one token more or less is as right
        assert abs(token_ids.size - expected.size) <= max(1, 2 * DISTANCE * size)


@pytest.mark.parametrize("spread", [0.0, 1e-7, 0.01, 0.5])
def test_nucleus_of_flat_logits_is_exact_at_full_vocabulary(spread: float) -> None:
    logits = (np.random.default_rng(1).standard_normal(VOCABULARY) * spread).astype(np.float32)
    token_ids, _ = kept(logits, SamplingOptions(top_p=0.9))
    expected, _ = reference_kept(logits, SamplingOptions(top_p=0.9))
    assert abs(token_ids.size - expected.size) <= 2  # each token holds 7e-6 of the mass
    by_value = np.argsort(-logits, kind="stable")
    np.testing.assert_array_equal(token_ids, np.sort(by_value[: token_ids.size]))
    assert token_ids.size > 100_000


def test_nucleus_of_values_packed_at_every_scale_is_exact() -> None:
    # Every level of the histogram finds almost all values in one bucket.
    logits = -np.logspace(-30, 1, 20_000).astype(np.float32)
    token_ids, _ = kept(logits, SamplingOptions(top_p=0.9))
    expected, _ = reference_kept(logits, SamplingOptions(top_p=0.9))
    np.testing.assert_array_equal(token_ids, np.arange(token_ids.size))
    assert abs(token_ids.size - expected.size) <= 1


def test_ties_at_the_edge_of_the_nucleus_keep_the_lowest_ids() -> None:
    token_ids, _ = kept(np.zeros(10, np.float32), SamplingOptions(top_p=0.35))
    np.testing.assert_array_equal(token_ids, [0, 1, 2, 3])
    many, _ = kept(np.zeros(100_000, np.float32), SamplingOptions(top_p=0.35001))
    np.testing.assert_array_equal(many, np.arange(many.size))
    assert many.size == pytest.approx(35_001, abs=1)


def test_ties_at_the_edge_of_top_k_are_all_kept() -> None:
    logits = np.array([1, 5, 3, 3, 3, 0], np.float32)
    np.testing.assert_array_equal(kept(logits, SamplingOptions(top_k=2))[0], [1, 2, 3, 4])
    tall = np.repeat(np.array([0, 2, 1], np.float32), [5000, 3, 9])
    np.testing.assert_array_equal(kept(tall, SamplingOptions(top_k=4))[0], np.arange(5000, 5012))


def test_top_k_beyond_the_vocabulary_keeps_every_token() -> None:
    assert kept(np.arange(7, dtype=np.float32), SamplingOptions(top_k=50))[0].size == 7


@pytest.mark.parametrize(
    "options", [SamplingOptions(), SamplingOptions(top_p=0.9), SamplingOptions(top_k=5), SamplingOptions(min_p=0.1)]
)
def test_impossible_tokens_are_never_drawn(options: SamplingOptions) -> None:
    logits = np.full((400, 5), -np.inf, np.float32)
    logits[:, 1] = 0
    logits[:, 3] = -1
    assert set(sample(logits, options, generators(400)).tolist()) == {1, 3}


@pytest.mark.parametrize("options", [SamplingOptions(), SamplingOptions(top_p=0.9), SamplingOptions(temperature=0.5)])
def test_one_hot_logits_give_their_token(options: SamplingOptions) -> None:
    logits = np.zeros((3, VOCABULARY), np.float32)
    for row, token in enumerate((0, 70_000, VOCABULARY - 1)):
        logits[row, token] = 200
    np.testing.assert_array_equal(sample(logits, options, generators(3)), [0, 70_000, VOCABULARY - 1])


@pytest.mark.parametrize("size", [4, 1500])
@pytest.mark.parametrize(
    "options",
    [
        SamplingOptions(),
        SamplingOptions(top_p=0.8),
        SamplingOptions(temperature=0.5, top_k=3),
        SamplingOptions(min_p=0.2),
    ],
)
def test_draws_follow_the_kept_probabilities(options: SamplingOptions, size: int) -> None:
    logits = np.full(size, -8, np.float32)
    logits[-4:] = np.log(np.array([0.5, 0.25, 0.15, 0.1], np.float32))
    draws = 4000
    ids = sample(np.tile(logits, (draws, 1)), options, generators(draws, seed=3))
    token_ids, probabilities = kept(logits, options)
    assert set(ids.tolist()) <= set(token_ids.tolist())
    found = np.array([(ids == token).mean() for token in token_ids])
    np.testing.assert_allclose(found, probabilities, atol=5 * math.sqrt(0.25 / draws))


def test_draw_is_the_inverse_of_the_running_sum_in_ascending_id() -> None:
    logits = np.log(np.array([[0.2, 0.5, 0.3]], np.float32))

    class Fixed(np.random.Generator):
        def __init__(self, value: float) -> None:
            super().__init__(np.random.Philox(0))
            self.value = value

        def random(self) -> float:
            return self.value

    largest = float(np.nextafter(1, 0))
    for options in (SamplingOptions(), SamplingOptions(top_p=0.99)):
        for uniform, token in ((0.0, 0), (0.19, 0), (0.21, 1), (0.69, 1), (0.71, 2), (largest, 2)):
            assert sample(logits, options, [Fixed(uniform)]).tolist() == [token]
    impossible = np.array([[-np.inf, 0, 0, -np.inf]], np.float32)  # weight zero at both ends
    for options in (SamplingOptions(), SamplingOptions(top_k=3)):
        assert sample(impossible, options, [Fixed(0.0)]).tolist() == [1]
        assert sample(impossible, options, [Fixed(largest)]).tolist() == [2]


@given(seed=st.integers(0, 2**64 - 1), rows=st.integers(1, 6), size=st.integers(1, 900), options=options_strategy)
@settings(deadline=None)
def test_row_in_a_batch_is_the_row_alone(seed: int, rows: int, size: int, options: SamplingOptions) -> None:
    logits = np.random.default_rng(seed).standard_normal((rows, size)).astype(np.float32) * 3
    together = sample(logits, options, generators(rows, seed), summary=summarize(logits))
    alone = [
        int(sample(logits[row : row + 1], options, generators(rows, seed)[row : row + 1])[0]) for row in range(rows)
    ]
    assert together.tolist() == alone


def test_square_logits_are_rows_of_a_vocabulary() -> None:
    logits = np.zeros((5, 5), np.float32)
    logits[np.arange(5), [4, 0, 3, 1, 2]] = 60
    assert sample(logits, SamplingOptions(top_p=0.9), generators(5)).tolist() == [4, 0, 3, 1, 2]


def test_summary_saves_a_pass_and_changes_nothing() -> None:
    logits = peaked_logits(4)
    for options in (SamplingOptions(top_p=0.9), SamplingOptions(temperature=0.7, top_p=0.9), SamplingOptions()):
        given_summary = sample(logits, options, generators(4), summary=summarize(logits))
        assert given_summary.tolist() == sample(logits, options, generators(4)).tolist()
    penalized = SamplingOptions(top_p=0.9, repetition_penalty=3.0)
    seen = [np.argsort(row)[-50:] for row in logits]
    with_summary = sample(logits, penalized, generators(4), seen, summary=summarize(logits))
    assert with_summary.tolist() == sample(logits, penalized, generators(4), seen).tolist()


def test_candidate_does_not_depend_on_how_many_there_are() -> None:
    logits = np.tile(np.random.default_rng(0).standard_normal(500).astype(np.float32), (8, 1))
    streams = {count: generators(count, seed=7) for count in (4, 8)}
    for _ in range(20):
        eight = sample(logits, SamplingOptions(), streams[8])
        four = sample(logits[:4], SamplingOptions(), streams[4])
        assert eight[:4].tolist() == four.tolist()
    assert len(set(eight.tolist())) > 4  # the candidates differ among themselves


def test_seed_index_and_prompt_key_different_streams() -> None:
    firsts = {candidate_generator(seed, index, PROMPT).random() for seed in range(20) for index in range(20)}
    assert len(firsts) == 400
    # One seed for many prompts must not make candidate 0 lucky, or unlucky, on all of them.
    prompts = [np.array(ids) for ids in ([5, 7, 5], [5, 7], [7, 5, 5], [5, 7, 6])]
    assert len({candidate_generator(0, 0, prompt).random() for prompt in prompts}) == 4
    for seed, index in ((-1, 0), (2**64, 0), (0, -1)):
        with pytest.raises(InvalidOptionError, match="from 0 to"):
            candidate_generator(seed, index, PROMPT)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_one_number_is_drawn_per_token_and_none_when_greedy(temperature: float) -> None:
    generator, untouched = candidate_generator(1, 2, PROMPT), candidate_generator(1, 2, PROMPT)
    sample(np.zeros((1, 9), np.float32), SamplingOptions(temperature), [generator])
    if temperature:
        untouched.random()
    assert generator.random() == untouched.random()


def test_greedy_takes_the_lowest_id_of_the_greatest_logits() -> None:
    logits = np.array([[0, 3, 3], [5, 1, 5]], np.float32)
    assert sample(logits, SamplingOptions(temperature=0), generators(2)).tolist() == [1, 0]


def test_narrowest_nucleus_is_greedy() -> None:
    logits = np.round(np.random.default_rng(0).standard_normal((50, 3000))).astype(np.float32)  # ties at the top
    greedy = sample(logits, SamplingOptions(temperature=0), generators(50))
    assert sample(logits, SamplingOptions(top_p=1e-9), generators(50)).tolist() == greedy.tolist()


def test_low_temperature_does_not_overflow() -> None:
    logits = np.array([[1e30, -1e30, 0.5]], np.float32)
    assert sample(logits, SamplingOptions(temperature=1e-6, top_p=0.5), generators(1)).tolist() == [0]


def test_repetition_penalty_lowers_seen_tokens_once_and_passes_over_unknown_ids() -> None:
    logits = np.array([[2.0, -1.0, 1.5, -1.5]], np.float32)
    seen = [np.array([0, 1, 0, 9_999])]
    greedy = SamplingOptions(temperature=0, repetition_penalty=2.0)
    assert sample(logits, greedy, generators(1), seen).tolist() == [2]
    _, probabilities = kept(logits[0], SamplingOptions(repetition_penalty=2.0), seen[0])
    expected = np.exp([1.0, -2.0, 1.5, -1.5])
    np.testing.assert_allclose(probabilities, expected / expected.sum(), rtol=1e-6)


def test_repetition_penalty_without_seen_ids_is_refused() -> None:
    with pytest.raises(InvalidOptionError, match="pass `seen`"):
        sample(np.zeros((1, 3), np.float32), SamplingOptions(repetition_penalty=1.1), generators(1))


@pytest.mark.parametrize(
    "options",
    [
        SamplingOptions(),
        SamplingOptions(temperature=0, repetition_penalty=1.5),
        SamplingOptions(temperature=0.5, top_k=3, top_p=0.5, min_p=0.1, repetition_penalty=1.5),
    ],
)
def test_logits_of_the_caller_are_left_alone(options: SamplingOptions) -> None:
    logits = np.random.default_rng(0).standard_normal((2, 600)).astype(np.float32)
    before = logits.copy()
    logits.flags.writeable = False
    sample(logits, options, generators(2), [np.arange(5), np.arange(9)])
    np.testing.assert_array_equal(logits, before)


def test_half_precision_logits_are_sampled_as_their_values() -> None:
    logits = np.random.default_rng(0).standard_normal((3, 600)).astype(np.float16)
    for options in (SamplingOptions(), SamplingOptions(top_p=0.5), SamplingOptions(temperature=0.3, top_k=20)):
        whole = sample(logits.astype(np.float32), options, generators(3))
        assert sample(logits, options, generators(3), summary=summarize(logits)).tolist() == whole.tolist()


@pytest.mark.parametrize(("bad", "name"), [(np.nan, "NaN"), (np.inf, r"\+inf"), (-np.inf, "nothing but -inf")])
@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
def test_logits_without_a_distribution_are_an_error_that_names_the_row(
    bad: float, name: str, temperature: float
) -> None:
    logits = np.zeros((3, 4), np.float32)
    logits[1] = bad if bad == -np.inf else [0, bad, 0, 0]
    with pytest.raises(LogitsError, match=f"row 1 .*{name}"):
        sample(logits, SamplingOptions(temperature), generators(3))


def test_rows_and_generators_must_match() -> None:
    with pytest.raises(InvalidOptionError, match="2 generators"):
        sample(np.zeros((3, 4), np.float32), SamplingOptions(), generators(2))


def test_no_rows_give_no_tokens() -> None:
    assert sample(np.zeros((0, 4), np.float32), SamplingOptions(), []).shape == (0,)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 1e-9),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("top_k", -1),
        ("top_k", 2.5),
        ("min_p", -0.01),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", math.nan),
    ],
)
def test_options_out_of_range_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(InvalidOptionError, match=f"^{name} is .*expected"):
        SamplingOptions(**{name: value})
