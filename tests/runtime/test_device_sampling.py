"""Logits that stay on a device: what is drawn from the most likely tokens is what is drawn from whole rows.

The device is onnxruntime's CPU; no test here has seen a GPU.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from swift_edge import Selector
from swift_edge.bundle.folder import open_bundle
from swift_edge.engine.device.logits import MOST_LIKELY, DeviceLogits, LogitReader
from swift_edge.engine.device.memory import Device, DeviceArray
from swift_edge.engine.host import HostLogits
from swift_edge.engine.sampling import sample, sample_most_likely
from swift_edge.engine.session import ModelSession
from swift_edge.engine.signals import summarize
from swift_edge.errors import LogitsError
from swift_edge.options import SamplingOptions

STORIES = Path(__file__).parents[2] / "models" / "stories260k"
Laid = Callable[[NDArray[Any]], tuple[LogitReader, DeviceArray]]


@pytest.fixture(scope="module")
def laid() -> Laid:
    """Put logits `[n, v]` onto the device."""
    device = Device("cpu")

    def lay(logits: NDArray[Any]) -> tuple[LogitReader, DeviceArray]:
        array = device.empty(logits.shape, logits.dtype)
        array.memory.update_inplace(logits)
        return LogitReader(device, logits.dtype), array

    return lay


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("vocab_size", [9, 700])
def test_rows_are_found_in_the_order_they_have_now(laid: Laid, vocab_size: int, dtype: type[np.floating[Any]]) -> None:
    logits = np.random.default_rng(0).normal(0, 3, (5, vocab_size)).astype(dtype)
    rows = DeviceLogits(*laid(logits), np.arange(4))
    rows.move(3, 1)
    expected = logits[[0, 3, 2]].astype(np.float32)  # [3, v]
    np.testing.assert_array_equal(rows.whole(), expected)
    found = rows.most_likely([0.5, 0.5, 1.0])
    count = min(MOST_LIKELY, vocab_size)
    np.testing.assert_array_equal(found.logits, -np.sort(-expected, axis=1)[:, :count])
    np.testing.assert_array_equal(np.take_along_axis(expected, found.token_ids, axis=1), found.logits)
    np.testing.assert_allclose(found.log_normalizer, summarize(expected).log_normalizer, atol=1e-5)
    scaled = (expected - expected.max(axis=1, keepdims=True)) / np.array([[0.5], [0.5], [1.0]], np.float32)
    np.testing.assert_allclose(found.log_scaled, summarize(scaled).log_normalizer, atol=1e-5)
    summary = summarize(expected, entropy=True, self_certainty=True)
    np.testing.assert_allclose(found.entropy, summary.entropy, atol=1e-5)
    np.testing.assert_allclose(found.self_certainty, summary.self_certainty, atol=1e-5)


def test_tokens_that_cannot_come_weigh_nothing(laid: Laid) -> None:
    """Zero times minus infinity would be no number."""
    logits = np.array([[0.0, 1.0, -np.inf, 2.0], [-np.inf, -np.inf, 3.0, -np.inf]], np.float32)
    found = DeviceLogits(*laid(logits), np.arange(2)).most_likely([1.0, 1.0])
    summary = summarize(logits, entropy=True, self_certainty=True)
    np.testing.assert_allclose(found.entropy, summary.entropy, atol=1e-6)
    np.testing.assert_array_equal(found.self_certainty, summary.self_certainty)


@given(
    seed=st.integers(0, 2**16),
    spread=st.sampled_from([0.3, 2.0, 6.0]),
    count=st.sampled_from([1, 20, 64, 300]),
    ties=st.booleans(),
    temperature=st.sampled_from([0.0, 0.5, 1.0, 1.7]),
    top_p=st.sampled_from([0.3, 0.9, 0.999, 1.0]),
    top_k=st.sampled_from([None, 1, 10, 40, 300]),
    min_p=st.sampled_from([None, 0.01, 0.3]),
    penalty=st.sampled_from([1.0, 1.3, 0.8]),
)
def test_a_draw_from_the_most_likely_is_the_draw_from_all_or_none(
    seed: int,
    spread: float,
    count: int,
    ties: bool,
    temperature: float,
    top_p: float,
    top_k: int | None,
    min_p: float | None,
    penalty: float,
) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, spread, 300).astype(np.float32)
    logits = np.round(logits) if ties else logits
    options = SamplingOptions(temperature, top_p, top_k, min_p, penalty)
    seen = rng.integers(0, 300, 30)
    ids = np.argsort(-logits, kind="stable")[:count]
    scaled = (logits.astype(np.float64) - logits.max()) / (temperature or 1)
    generator, other = np.random.default_rng(seed), np.random.default_rng(seed)
    drawn = sample_most_likely(logits[ids], ids, 300, options, generator, seen, float(np.log(np.exp(scaled).sum())))
    if drawn is None:
        assert generator.random() == other.random()
    else:
        assert [drawn] == sample(logits[None], options, [other], [seen]).tolist()


@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {"top_k": 20, "repetition_penalty": 1.2}, {"top_p": 0.9}, {"min_p": 0.2}]
)
def test_few_tokens_are_enough_where_few_are_kept(options: dict[str, Any]) -> None:
    logits = np.random.default_rng(1).normal(0, 4, 1000).astype(np.float32)
    ids = np.argsort(-logits)[:200]
    rng, seen = np.random.default_rng(0), np.arange(9)
    log_scaled = float(summarize(logits[None]).log_normalizer[0] - logits.max())
    assert sample_most_likely(logits[ids], ids, 1000, SamplingOptions(**options), rng, seen, log_scaled) is not None


def test_ties_of_the_kth_that_are_not_given_count() -> None:
    """Found by hypothesis: they take part in the mass of which the nucleus is a share."""
    logits = np.array([2.0] + [1.0] * 99, np.float32)
    options = SamplingOptions(top_p=0.04, top_k=3)
    rng, log_scaled = np.random.default_rng(0), float(np.log(1 + 99 / np.e))
    for given_logits, enough in ((logits[:50], False), (logits, True)):
        ids = np.arange(len(given_logits))
        assert (sample_most_likely(given_logits, ids, 100, options, rng, None, log_scaled) is not None) == enough


def test_a_flat_tail_that_is_not_given_counts() -> None:
    """Half of the mass lies in tokens that are each too unlikely to be looked at, and most of them are not given."""
    logits = np.zeros(200_000, np.float32)
    logits[0] = np.log(200_000)
    ids, log_scaled = np.arange(256), math.log(2)
    options, rng = SamplingOptions(top_p=0.9), np.random.default_rng(0)
    assert sample_most_likely(logits[:256], ids, 200_000, options, rng, None, log_scaled) is None


def test_logits_stay_on_the_device_and_come_back_where_they_are_asked_for(
    rows_on_device: None, stories: ModelSession
) -> None:
    session = ModelSession(open_bundle(STORIES), threads=1)
    rows = []
    for each in (session, stories):
        cache = each.new_cache(1, 9)
        each.prefill(cache, [5, 6, 7])
        rows.append(each.decode(cache, [8]).row_logits)
    assert [type(each) for each in rows] == [DeviceLogits, HostLogits]
    np.testing.assert_array_equal(rows[0].whole(), rows[1].whole())


@pytest.mark.parametrize(
    ("options", "rows_whole"),
    [
        ({"top_p": 0.9}, False),
        ({"top_p": 1.0, "top_k": 20, "temperature": 0.7, "repetition_penalty": 1.1}, False),
        ({"top_p": 0.9, "min_p": 0.05}, True),
        ({"top_p": 1.0}, True),
        ({"top_p": 0.9, "signal": "self_certainty"}, False),
        ({"top_p": 0.9, "min_p": 0.05, "signal": "self_certainty"}, True),
    ],
)
def test_picks_are_those_of_whole_rows(
    options: dict[str, Any], rows_whole: bool, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    prompts = ["Once upon a time", "The dog", "One day"]
    options = {"n": 4, "max_new_tokens": 60, "in_order": True, **options}
    expected = list(Selector(STORIES, threads=1).pick_many(prompts, **options))
    request.getfixturevalue("rows_on_device")
    fetched, looked = [], []
    whole, most_likely = DeviceLogits.whole, DeviceLogits.most_likely
    monkeypatch.setattr(DeviceLogits, "whole", lambda self, rows=None: fetched.append(rows) or whole(self, rows))
    monkeypatch.setattr(DeviceLogits, "most_likely", lambda self, t: looked.append(t) or most_likely(self, t))
    found = list(Selector(STORIES, threads=1, rows=5).pick_many(prompts, **options))
    for one, other in zip(expected, found, strict=True):
        assert [each.token_ids for each in other.candidates] == [each.token_ids for each in one.candidates]
        for name in ("logprob", "score"):
            figures = [[getattr(each, name) for each in picked.candidates] for picked in (one, other)]
            np.testing.assert_allclose(figures[1], figures[0], atol=1e-4)
    assert looked
    assert any(rows is not None for rows in fetched) == rows_whole  # all rows are those of a prompt


class Drawing:
    """A row whose next token is due."""

    def __init__(self, sampling: SamplingOptions, seed: int = 0) -> None:
        self.sampling = sampling
        self.generator = np.random.default_rng(seed)
        self.seen = np.arange(3)


def test_a_row_that_is_no_distribution_is_named_by_its_own_number_before_anything_is_drawn(laid: Laid) -> None:
    """It was called row 0, whichever it was."""
    logits = np.random.default_rng(0).normal(0, 3, (3, 700)).astype(np.float32)
    logits[2, 7] = np.nan
    rows = [Drawing(SamplingOptions(top_k=5)) for _ in range(3)]
    with pytest.raises(LogitsError, match=r"row 2 of the logits holds NaN"):
        DeviceLogits(*laid(logits), np.arange(3)).draw(rows, entropy=False, self_certainty=False)
    assert {row.generator.random() for row in rows} == {np.random.default_rng(0).random()}


@given(seed=st.integers(0, 2**16), alone=st.integers(0, 4))
def test_rows_with_options_of_their_own_are_drawn_as_each_is_alone(laid: Laid, seed: int, alone: int) -> None:
    samplings = (
        SamplingOptions(temperature=0),
        SamplingOptions(),
        SamplingOptions(temperature=0.7, top_p=0.9),
        SamplingOptions(temperature=1.5, top_k=20, repetition_penalty=1.3),
        SamplingOptions(min_p=0.3),
    )
    logits = np.random.default_rng(seed).normal(0, 3, (5, 700)).astype(np.float32)
    reader, array = laid(logits)
    together, together_statistics = DeviceLogits(reader, array, np.arange(5)).draw(
        [Drawing(sampling, place) for place, sampling in enumerate(samplings)], entropy=True, self_certainty=True
    )
    drawn, statistics = DeviceLogits(reader, array, np.array([alone])).draw(
        [Drawing(samplings[alone], alone)], entropy=True, self_certainty=True
    )
    assert drawn.tolist() == [together[alone]]
    for name in ("logprob", "entropy", "self_certainty"):
        assert getattr(statistics, name)[0] == getattr(together_statistics, name)[alone]
    expected, exact = HostLogits(logits).draw(
        [Drawing(sampling, place) for place, sampling in enumerate(samplings)], entropy=True, self_certainty=True
    )
    assert expected.tolist() == together.tolist()
    np.testing.assert_allclose(together_statistics.logprob, exact.logprob, atol=1e-5)


def test_prompts_follow_picks_whose_last_rows_were_dropped(request: pytest.FixtureRequest) -> None:
    """The logits of the rows that left lie on the device still, and are those of no row."""
    prompts = ["Once upon a time", "The dog", "One day"]
    options: dict[str, Any] = {"n": 3, "max_new_tokens": 40, "top_p": 0.9, "budget_tokens": 30, "in_order": True}
    expected = list(Selector(STORIES, threads=1).pick_many(prompts, **options))
    assert all(picked.stopped_because == "budget_tokens" for picked in expected)
    request.getfixturevalue("rows_on_device")
    found = list(Selector(STORIES, threads=1, rows=3).pick_many(prompts, **options))
    tokens = [[[each.token_ids for each in picked.candidates] for picked in picks] for picks in (expected, found)]
    assert tokens[1] == tokens[0]
