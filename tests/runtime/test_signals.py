"""Log-probability, entropy and self-certainty against their definitions in float64."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swift_edge.engine.signals import summarize, token_statistics
from swift_edge.errors import InvalidOptionError, LogitsError


@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(1, 6),
    size=st.one_of(st.integers(1, 700), st.sampled_from([5, 100_000])),
    spread=st.sampled_from([0.0, 0.1, 3.0, 40.0]),
    offset=st.sampled_from([0.0, -500.0, 500.0]),
)
@settings(max_examples=80, deadline=None)
def test_statistics_follow_their_definitions(seed: int, rows: int, size: int, spread: float, offset: float) -> None:
    random = np.random.default_rng(seed)
    logits = (random.standard_normal((rows, size)) * spread + offset).astype(np.float32)
    token_ids = random.integers(0, size, rows)
    found = token_statistics(logits, token_ids, entropy=True, self_certainty=True)
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    logprobs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(found.logprob, logprobs[np.arange(rows), token_ids], rtol=2e-6, atol=2e-6)
    assert found.entropy is not None
    assert found.self_certainty is not None
    np.testing.assert_allclose(found.entropy, -(np.exp(logprobs) * logprobs).sum(axis=1), rtol=5e-6, atol=1e-5)
    divergence = -math.log(size) - logprobs.mean(axis=1)  # KL(uniform || p)
    np.testing.assert_allclose(found.self_certainty, divergence, rtol=5e-6, atol=1e-4)


@given(seed=st.integers(0, 2**32), rows=st.integers(2, 9), size=st.sampled_from([1, 3, 9, 64, 1000, 40_000]))
@settings(max_examples=60, deadline=None)
def test_row_in_a_batch_is_the_row_alone_bit_for_bit(seed: int, rows: int, size: int) -> None:
    logits = np.random.default_rng(seed).standard_normal((rows, size)).astype(np.float32) * 4
    together = summarize(logits, entropy=True, self_certainty=True)
    for row in range(rows):
        alone = summarize(logits[row : row + 1], entropy=True, self_certainty=True)
        for name in ("log_normalizer", "entropy", "self_certainty"):
            assert getattr(alone, name)[0] == getattr(together, name)[row], name


def test_known_values() -> None:
    logits = np.log(np.array([[0.5, 0.25, 0.25]], np.float32))
    found = token_statistics(logits, np.array([1]), entropy=True, self_certainty=True)
    assert found.logprob[0] == pytest.approx(math.log(0.25), rel=1e-6)
    assert found.entropy is not None
    assert found.entropy[0] == pytest.approx(1.5 * math.log(2), rel=1e-6)
    assert found.self_certainty is not None
    assert found.self_certainty[0] == pytest.approx(5 / 3 * math.log(2) - math.log(3), rel=1e-5)


def test_only_what_is_asked_for_is_computed_and_extras_do_not_change_the_rest() -> None:
    logits = np.random.default_rng(0).standard_normal((3, 2000)).astype(np.float32)
    plain = summarize(logits)
    assert plain.entropy is None
    assert plain.self_certainty is None
    full = summarize(logits, entropy=True, self_certainty=True)
    np.testing.assert_array_equal(plain.log_normalizer, full.log_normalizer)
    ids = np.array([1, 2, 3])
    from_summary = token_statistics(logits, ids, entropy=True, summary=full)
    assert from_summary.self_certainty is None
    np.testing.assert_array_equal(from_summary.logprob, token_statistics(logits, ids).logprob)
    with pytest.raises(InvalidOptionError, match="summary has no entropy"):
        token_statistics(logits, ids, entropy=True, summary=plain)


def test_impossible_tokens_leave_the_entropy_finite() -> None:
    logits = np.array([[0.0, -np.inf, 0.0, -np.inf]], np.float32)
    found = token_statistics(logits, np.array([1]), entropy=True, self_certainty=True)
    assert found.entropy is not None
    assert found.entropy[0] == pytest.approx(math.log(2))
    assert found.logprob[0] == -np.inf
    assert found.self_certainty is not None
    assert found.self_certainty[0] == np.inf


def test_impossible_tokens_of_one_row_change_nothing_about_another() -> None:
    logits = np.random.default_rng(1).standard_normal((3, 700)).astype(np.float32)
    logits[1, ::3] = -np.inf
    together = summarize(logits, entropy=True).entropy
    alone = [summarize(logits[row : row + 1], entropy=True).entropy for row in range(3)]
    assert together is not None
    np.testing.assert_array_equal(together, np.concatenate(alone))
    possible = np.delete(logits[1], np.arange(0, 700, 3))[np.newaxis]
    assert together[1] == pytest.approx(summarize(possible, entropy=True).entropy[0], rel=1e-6)


def test_what_is_kept_for_sampling_is_what_the_logits_say() -> None:
    logits = np.random.default_rng(2).standard_normal((3, 700)).astype(np.float32)
    for entropy in (False, True):
        summary = summarize(logits, entropy=entropy, self_certainty=True)
        np.testing.assert_array_equal(summary.maximum, logits.max(axis=1))
        np.testing.assert_array_equal(summary.exponentials, np.exp(logits - logits.max(axis=1, keepdims=True)))
    assert summarize(np.zeros((40, 20_000), np.float32)).exponentials is None  # more than one chunk


def test_certain_token_has_logprob_zero() -> None:
    logits = np.zeros((1, 50), np.float32)
    logits[0, 7] = 300
    found = token_statistics(logits, np.array([7]), entropy=True)
    assert found.logprob[0] == 0
    assert found.entropy is not None
    assert 0 <= found.entropy[0] < 1e-9


def test_half_precision_is_computed_in_single() -> None:
    logits = (np.random.default_rng(0).standard_normal((2, 5000)) * 8).astype(np.float16)
    half = summarize(logits, entropy=True, self_certainty=True)
    single = summarize(logits.astype(np.float32), entropy=True, self_certainty=True)
    np.testing.assert_array_equal(half.log_normalizer, single.log_normalizer)
    np.testing.assert_array_equal(np.array(half.entropy), np.array(single.entropy))


def test_logits_of_the_caller_are_left_alone() -> None:
    logits = np.random.default_rng(0).standard_normal((2, 90)).astype(np.float32)
    logits.flags.writeable = False
    before = logits.copy()
    summarize(logits, entropy=True, self_certainty=True)
    np.testing.assert_array_equal(logits, before)


def test_rows_without_a_distribution_are_named() -> None:
    logits = np.zeros((40, 20_000), np.float32)  # more than one chunk
    logits[37, 3] = np.nan
    with pytest.raises(LogitsError, match=r"row 37 .*NaN.*fp32"):
        summarize(logits)


@pytest.mark.parametrize("token_ids", [np.array([0, 5]), np.array([-1, 0]), np.array([0])])
def test_token_ids_that_do_not_fit_are_refused(token_ids: np.ndarray) -> None:
    with pytest.raises(InvalidOptionError, match="expected"):
        token_statistics(np.zeros((2, 5), np.float32), token_ids)


def test_no_rows_are_summed_up_to_nothing() -> None:
    empty = token_statistics(np.zeros((0, 5), np.float32), np.zeros(0, np.int64), entropy=True)
    assert empty.logprob.shape == (0,)
