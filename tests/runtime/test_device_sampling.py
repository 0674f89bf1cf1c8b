"""Logits that stay on a device: what is drawn from the most likely tokens is what is drawn from whole rows.

The device is onnxruntime's CPU; no test here has seen a GPU.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from swift_edge import Selector
from swift_edge.arrays import Ids
from swift_edge.bundle import open_bundle
from swift_edge.engine import ModelSession
from swift_edge.engine.device.logits import MOST_LIKELY, DeviceLogits, LogitReader
from swift_edge.engine.device.memory import Device, DeviceArray
from swift_edge.engine.host import HostLogits
from swift_edge.engine.sampling import sample, sample_most_likely
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
def test_the_most_likely_tokens_are_found_and_what_the_others_come_to(
    laid: Laid, vocab_size: int, dtype: type[np.floating[Any]]
) -> None:
    """Each row at its own temperature."""
    logits = np.random.default_rng(0).normal(0, 3, (4, vocab_size)).astype(dtype)
    exact, temperatures = logits.astype(np.float32), np.array([0.5, 1.0, 1.7, 0.9])
    reader, array = laid(logits)
    found = reader.most_likely(array, temperatures)
    np.testing.assert_array_equal(found.logits, -np.sort(-exact, axis=1)[:, : min(MOST_LIKELY, vocab_size)])
    np.testing.assert_array_equal(np.take_along_axis(exact, found.token_ids, axis=1), found.logits)
    np.testing.assert_allclose(found.log_normalizer, summarize(exact).log_normalizer, atol=1e-5)
    scaled = ((exact - exact.max(axis=1, keepdims=True)) / temperatures[:, np.newaxis]).astype(np.float32)
    np.testing.assert_allclose(found.log_scaled, summarize(scaled).log_normalizer, atol=1e-5)
    summary = summarize(exact, entropy=True, self_certainty=True)
    np.testing.assert_allclose(found.entropy, summary.entropy, atol=1e-5)
    np.testing.assert_allclose(found.self_certainty, summary.self_certainty, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_rows_are_found_in_the_order_they_have_now(laid: Laid, dtype: type[np.floating[Any]]) -> None:
    logits = np.random.default_rng(0).normal(0, 3, (6, 700)).astype(dtype)
    rows = DeviceLogits(*laid(logits), np.array([0, 1, 2, 4]))
    rows.move(3, 1)
    expected = logits[[0, 4, 2]].astype(np.float32)  # [3, v]
    np.testing.assert_array_equal(rows.whole(), expected)
    np.testing.assert_array_equal(rows.whole([2, 1]), expected[[2, 1]])
    greedy = [Drawing(SamplingOptions(temperature=0)) for _ in range(3)]
    assert rows.draw(greedy, entropy=False, self_certainty=False)[0].tolist() == expected.argmax(axis=1).tolist()
    rows.move(2, 2)
    np.testing.assert_array_equal(rows.whole(), expected[:2])
    rows.move(1, 0)
    rows.move(0, 0)
    assert rows.whole().shape == (0, 700)


def test_tokens_that_cannot_come_weigh_nothing(laid: Laid) -> None:
    """Zero times minus infinity would be no number."""
    logits = np.array([[0.0, 1.0, -np.inf, 2.0], [-np.inf, -np.inf, 3.0, -np.inf]], np.float32)
    reader, array = laid(logits)
    found = reader.most_likely(array, np.ones(2))
    summary = summarize(logits, entropy=True, self_certainty=True)
    np.testing.assert_allclose(found.entropy, summary.entropy, atol=1e-6)
    np.testing.assert_array_equal(found.self_certainty, summary.self_certainty)


@dataclass
class Drawing:
    """A row whose next token is due."""

    sampling: SamplingOptions
    seed: int = 0
    seen: Ids = field(default_factory=lambda: np.arange(9))

    def __post_init__(self) -> None:
        self.generator = np.random.default_rng(self.seed)


@given(
    seed=st.integers(0, 2**16),
    spread=st.sampled_from([0.3, 6.0]),
    samplings=st.lists(
        st.builds(
            SamplingOptions,
            temperature=st.sampled_from([0.0, 0.5, 1.0, 1.7]),
            top_p=st.sampled_from([0.3, 0.9, 1.0]),
            top_k=st.sampled_from([None, 1, 20, 600]),
            min_p=st.sampled_from([None, 0.05]),
            repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
        ),
        min_size=1,
        max_size=6,
    ),
)
def test_rows_of_different_options_are_drawn_as_from_whole_rows_and_as_alone(
    laid: Laid, seed: int, spread: float, samplings: list[SamplingOptions]
) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, spread, (len(samplings), 700)).astype(np.float32)
    places = rng.permutation(len(samplings))
    reader, array = laid(logits)

    def drawn_by() -> list[Drawing]:
        return [Drawing(sampling, seed + place) for place, sampling in enumerate(samplings)]

    found, told = DeviceLogits(reader, array, places).draw(drawn_by(), entropy=True, self_certainty=True)
    whole, exact = HostLogits(logits[places]).draw(drawn_by(), entropy=True, self_certainty=True)
    assert found.tolist() == whole.tolist()
    for name in ("logprob", "entropy", "self_certainty"):
        np.testing.assert_allclose(getattr(told, name), getattr(exact, name), atol=1e-4, err_msg=name)
    for place, row in enumerate(drawn_by()):
        alone = DeviceLogits(reader, array, places[place : place + 1])
        token_ids, mine = alone.draw([row], entropy=True, self_certainty=True)
        assert token_ids.tolist() == [found[place]]
        for name in ("logprob", "entropy", "self_certainty"):
            assert getattr(mine, name)[0] == getattr(told, name)[place], name


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


def test_logits_stay_on_the_device_until_they_are_asked_for(
    rows_on_device: None, stories: ModelSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[int] = []
    whole = LogitReader.whole
    monkeypatch.setattr(LogitReader, "whole", lambda self, rows: fetched.append(rows.shape[0]) or whole(self, rows))
    session = ModelSession(open_bundle(STORIES), threads=1)
    found = []
    for each in (session, stories):
        cache = each.new_cache(1, 9)
        each.prefill(cache, [5, 6, 7])
        fetched.clear()
        out = each.decode(cache, [8])
        assert not fetched
        found.append(out.logits)
        assert fetched == [1] * (each is session)
    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.parametrize(
    ("options", "rows_whole"),
    [
        ({"top_p": 0.9}, False),
        ({"top_p": 1.0, "top_k": 20, "temperature": 0.7, "repetition_penalty": 1.1}, False),
        ({"top_p": 0.9, "min_p": 0.05}, True),
        ({"top_p": 1.0}, True),  # any token may come
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
    whole, most_likely = LogitReader.whole, LogitReader.most_likely
    monkeypatch.setattr(LogitReader, "whole", lambda self, rows: fetched.append(rows) or whole(self, rows))
    monkeypatch.setattr(
        LogitReader, "most_likely", lambda self, rows, t: looked.append(len(t)) or most_likely(self, rows, t)
    )
    with Selector(STORIES, threads=1, rows=5) as selector:
        found = list(selector.pick_many(prompts, **options))
    for one, other in zip(expected, found, strict=True):
        assert [each.token_ids for each in other.candidates] == [each.token_ids for each in one.candidates]
        for name in ("logprob", "score"):
            figures = [[getattr(each, name) for each in picked.candidates] for picked in (one, other)]
            np.testing.assert_allclose(figures[1], figures[0], atol=1e-4)
    assert max(looked) <= 5
    # Those after a prompt are read whole in any case, once for each.
    assert (len(fetched) > len(looked)) == rows_whole
    assert len(fetched) >= len(prompts)


@pytest.mark.parametrize("broken", [0, 2])
def test_a_row_that_is_fetched_whole_is_named_by_its_own_number_before_anything_is_drawn(
    laid: Laid, broken: int
) -> None:
    """It was called row 0, whichever it was."""
    logits = np.random.default_rng(0).normal(0, 3, (3, 700)).astype(np.float32)
    logits[broken, 7] = np.nan
    rows = [Drawing(SamplingOptions(top_k=5)) for _ in range(3)]
    with pytest.raises(LogitsError, match=rf"row {broken} of the logits holds NaN"):
        DeviceLogits(*laid(logits), np.arange(3)).draw(rows, entropy=False, self_certainty=False)
    assert [row.generator.random() for row in rows] == [np.random.default_rng(0).random()] * 3


def test_prompts_follow_picks_whose_last_rows_were_dropped(request: pytest.FixtureRequest) -> None:
    """The logits of the rows that left lie on the device still, and are those of no row."""
    prompts = ["Once upon a time", "The dog", "One day"]
    options: dict[str, Any] = {"n": 3, "max_new_tokens": 40, "top_p": 0.9, "budget_tokens": 30, "in_order": True}
    expected = list(Selector(STORIES, threads=1).pick_many(prompts, **options))
    assert all(picked.stopped_because == "budget_tokens" for picked in expected)
    request.getfixturevalue("rows_on_device")
    with Selector(STORIES, threads=1, rows=3) as selector:
        found = list(selector.pick_many(prompts, **options))
    tokens = [[[each.token_ids for each in picked.candidates] for picked in picks] for picks in (expected, found)]
    assert tokens[1] == tokens[0]
