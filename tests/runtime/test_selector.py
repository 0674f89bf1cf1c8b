"""The whole path: text in, the best candidate out, with figures that a plain computation confirms."""

import dataclasses
import itertools
import json
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swift_edge import (
    CandidateBegun,
    CandidateFinished,
    FailedPick,
    Picked,
    Selection,
    Selector,
    SwiftEdgeError,
    TokenSampled,
)
from swift_edge.bundle import Tokenizer, open_bundle
from swift_edge.engine import ModelSession, token_statistics
from swift_edge.errors import InvalidOptionError, MemoryLimitError, PromptTooLongError
from swift_edge.results import Candidate
from swift_edge.scoring import Head

ROOT = Path(__file__).parents[2]
STORIES = ROOT / "models" / "stories260k"
ADDITION = ROOT / "tests" / "data" / "addition-gpt2-h4_l4"
PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def plain() -> Selector:
    """Without a head: ranked by mean log-probability."""
    return Selector(STORIES, threads=1)


@pytest.fixture(scope="module")
def scoring(stories_head: Head) -> Selector:
    return Selector(STORIES, head=stories_head, threads=1)


@pytest.fixture(scope="module")
def adding() -> Selector:
    return Selector(ADDITION, threads=1)


def without_timings(selection: Selection) -> dict[str, Any]:
    document = selection.to_dict()
    del document["timings"]
    return document


def response_logits(session: ModelSession, prompt_ids: list[int], candidate: Candidate) -> Iterator[np.ndarray]:
    """Logits before every response token [t, v], and hidden states after it [l, t, d], from one full pass."""
    whole = [*prompt_ids, *candidate.token_ids]
    out = session.prefill(session.new_cache(1, len(whole)), whole, logits="all", layers=session.layers)
    assert out.logits is not None
    assert out.hidden_states is not None
    yield out.logits[len(prompt_ids) - 1 : -1]
    yield out.hidden_states[:, len(prompt_ids) :]


def test_the_pick_is_the_candidate_with_the_greatest_score(plain: Selector) -> None:
    picked = plain.pick(PROMPT, n=8, max_new_tokens=30)
    scores = [candidate.score for candidate in picked.candidates]
    assert picked.best is picked.ranked[0] is picked.candidates[int(np.argmax(scores))]
    assert [candidate.score for candidate in picked.ranked] == sorted(scores, reverse=True)
    assert [candidate.index for candidate in picked.candidates] == list(range(8))
    assert len(set(scores)) > 1
    assert (picked.signal, picked.head, picked.p_correct, picked.strategy) == ("mean_logprob", None, None, "best")


@pytest.mark.parametrize("signal", ["mean_logprob", "self_certainty"])
def test_signals_are_those_of_a_full_pass_before_temperature_and_filters(
    plain: Selector, stories: ModelSession, signal: str
) -> None:
    picked = plain.pick(PROMPT, n=4, max_new_tokens=20, temperature=0.7, top_k=20, signal=signal)
    prompt_ids = Tokenizer(open_bundle(STORIES)).encode_prompt(PROMPT)
    assert picked.signal == signal
    for candidate in picked.candidates:
        before, _ = response_logits(stories, prompt_ids, candidate)
        expected = token_statistics(before, np.array(candidate.token_ids), self_certainty=True)
        assert expected.self_certainty is not None
        mean = {"mean_logprob": expected.logprob.mean(), "self_certainty": expected.self_certainty.mean()}
        assert candidate.score == pytest.approx(mean[signal], abs=1e-5)
        assert candidate.logprob == pytest.approx(expected.logprob.sum(), abs=1e-4)
        assert candidate.mean_logprob == pytest.approx(mean["mean_logprob"], abs=1e-5)


def test_the_head_scores_every_response_token_as_a_full_pass_does(
    scoring: Selector, stories: ModelSession, stories_head: Head
) -> None:
    picked = scoring.pick(PROMPT, n=4, max_new_tokens=20, top_p=0.95)
    prompt_ids = Tokenizer(open_bundle(STORIES)).encode_prompt(PROMPT)
    assert picked.signal is None
    assert picked.head is not None
    for candidate in picked.candidates:
        before, states = response_logits(stories, prompt_ids, candidate)
        shifted = before.astype(np.float64) - before.max(axis=1, keepdims=True)
        logprobs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))  # [t, v]
        entropy = -(np.exp(logprobs) * logprobs).sum(axis=1)
        logprob = logprobs[np.arange(len(logprobs)), candidate.token_ids]
        features = np.concatenate([*states[list(stories_head.layers)], logprob[:, None], entropy[:, None]], axis=1)
        gate_logits, rewards = stories_head.weight @ features.T + stories_head.bias[:, None]
        gates = 1 / (1 + np.exp(-gate_logits))
        assert candidate.gates is not None
        assert candidate.rewards is not None
        np.testing.assert_allclose(candidate.gates, gates, atol=1e-4)
        np.testing.assert_allclose(candidate.rewards, rewards, atol=1e-4)
        assert len(candidate.gates) == candidate.n_tokens
        assert candidate.score == pytest.approx((gates * rewards).sum() / gates.sum(), abs=1e-4)


def test_a_head_changes_the_ranking_and_not_the_candidates(plain: Selector, scoring: Selector) -> None:
    by_signal, by_head = (selector.pick(PROMPT, n=4, max_new_tokens=20) for selector in (plain, scoring))
    assert [each.token_ids for each in by_signal.candidates] == [each.token_ids for each in by_head.candidates]
    assert [each.score for each in by_signal.candidates] != [each.score for each in by_head.candidates]
    asked = scoring.pick(PROMPT, n=4, max_new_tokens=20, signal="mean_logprob")
    assert without_timings(asked) == without_timings(by_signal)
    assert asked.candidates[0].gates is None


def test_a_character_that_broke_off_is_picked_as_it_was_shown(plain: Selector) -> None:
    # At this temperature, single bytes of longer characters come often.
    events = list(plain.stream(PROMPT, n=24, max_new_tokens=3, temperature=1000.0, top_p=1.0))
    assert isinstance(events[-1], Picked)
    candidates = events[-1].selection.candidates
    shown = {event.candidate.index: event.candidate.text for event in events if isinstance(event, CandidateFinished)}
    assert shown == {candidate.index: candidate.text for candidate in candidates}
    assert any(candidate.text.endswith("\ufffd") for candidate in candidates)


def test_a_head_on_logits_reads_the_logits_after_every_token(plain: Selector, stories: ModelSession) -> None:
    weight = np.random.default_rng(0).normal(0, 0.1, (1, stories.vocab_size)).astype(np.float32)
    head = Head(weight, np.zeros(1, np.float32), layers=(), gate=False, feature="logits")
    picked = Selector(STORIES, head=head, threads=1).pick(PROMPT, n=2, max_new_tokens=10)
    prompt_ids = Tokenizer(open_bundle(STORIES)).encode_prompt(PROMPT)
    for candidate in picked.candidates:
        whole = [*prompt_ids, *candidate.token_ids]
        logits = stories.prefill(stories.new_cache(1, len(whole)), whole, logits="all").logits
        assert logits is not None
        assert candidate.score == pytest.approx((logits[len(prompt_ids) :] @ weight[0]).mean(), abs=1e-4)


@pytest.mark.parametrize("n", [1, 4])
def test_candidate_i_does_not_depend_on_n(plain: Selector, n: int) -> None:
    few, many = (plain.pick(PROMPT, n=count, max_new_tokens=40).candidates for count in (n, 8))
    assert [each.token_ids for each in few] == [each.token_ids for each in many[:n]]


def test_counts_are_exact(plain: Selector) -> None:
    picked = plain.pick(PROMPT, n=3, max_new_tokens=17)
    assert [each.n_tokens for each in picked.candidates] == [17] * 3
    assert {each.finish_reason for each in picked.candidates} == {"length"}
    assert (picked.usage.prompt_tokens, picked.usage.completion_tokens) == (5, 51)


def test_an_eos_ends_a_candidate_counts_as_a_token_and_leaves_no_text(plain: Selector) -> None:
    picked = plain.pick(PROMPT, n=4, max_new_tokens=505, seed=5)
    ended = [each for each in picked.candidates if each.finish_reason == "stop"]
    assert ended
    for candidate in ended:
        assert candidate.token_ids[-1] in (1, 2)
        assert not {1, 2} & {*candidate.token_ids[:-1]}
        assert "<s>" not in candidate.text
        assert candidate.n_tokens == len(candidate.token_ids)


@pytest.mark.parametrize("stop", [["."], ["her frie", " a little"], ["zzz"]])
def test_stop_strings_cut_the_text_and_nothing_else(plain: Selector, stop: list[str]) -> None:
    free, stopped = (plain.pick(PROMPT, n=4, max_new_tokens=60, stop=each).candidates for each in ([], stop))
    for whole, cut in zip(free, stopped, strict=True):
        ends = [whole.text.find(text) for text in stop if text in whole.text]
        assert cut.token_ids == whole.token_ids[: cut.n_tokens]
        assert cut.text == (whole.text[: min(ends)] if ends else whole.text)
        assert cut.finish_reason == ("stop" if ends else whole.finish_reason)
        if ends:
            # The token that completed the stop string is the last one.
            tokenizer = Tokenizer(open_bundle(STORIES))
            assert any(text in tokenizer.decode(cut.token_ids) for text in stop)
            assert not any(text in tokenizer.decode(cut.token_ids[:-1]) for text in stop)


def test_one_stop_string_may_come_alone(plain: Selector) -> None:
    alone, listed = (plain.pick(PROMPT, n=2, max_new_tokens=40, stop=each) for each in ("was", ["was"]))
    assert without_timings(alone) == without_timings(listed)


def test_the_stream_ends_in_what_pick_returns(scoring: Selector) -> None:
    events = list(scoring.stream(PROMPT, n=4, max_new_tokens=40, stop=["little girl"]))
    last = events[-1]
    assert isinstance(last, Picked)
    picked = scoring.pick(PROMPT, n=4, max_new_tokens=40, stop=["little girl"])
    assert without_timings(last.selection) == without_timings(picked)
    finished = [event.candidate for event in events if isinstance(event, CandidateFinished)]
    assert sorted(finished, key=lambda each: each.index) == list(picked.candidates)
    for candidate in picked.candidates:
        tokens = [event for event in events if isinstance(event, TokenSampled) and event.index == candidate.index]
        assert tuple(event.token_id for event in tokens) == candidate.token_ids
        assert candidate.text.startswith("".join(event.text for event in tokens))
        assert tokens[-1].score == candidate.score
    assert events[:4] == [CandidateBegun(index) for index in range(4)]
    assert len(events) == picked.usage.completion_tokens + 4 + 4 + 1


def test_scores_do_not_depend_on_how_many_tokens_are_scored_together(scoring: Selector) -> None:
    """What is watched is scored at every step, what nobody watches many steps at a time."""
    options: dict[str, Any] = {"n": 3, "max_new_tokens": 75, "seed": 2}
    whole = scoring.pick(PROMPT, **options)
    (parts,) = (event.selection for event in scoring.stream(PROMPT, **options) if isinstance(event, Picked))
    assert without_timings(parts) == without_timings(whole)
    for one, other in zip(parts.candidates, whole.candidates, strict=True):
        np.testing.assert_array_equal(one.gates, other.gates)
        np.testing.assert_array_equal(one.rewards, other.rewards)
        assert one.gates is not None
        assert len(one.gates) == one.n_tokens


def test_a_greedy_pick_adds(adding: Selector) -> None:
    picked = adding.pick("331970", n=1, temperature=0)
    assert picked.best.text == "1301"
    assert picked.best.finish_reason == "length"
    assert picked.best.unscored_tokens == 1


def test_the_edge_of_the_context_is_exact(adding: Selector) -> None:
    for max_new_tokens, n_tokens, unscored in ((2, 2, 0), (3, 3, 0), (4, 4, 1), (512, 4, 1)):
        for candidate in adding.pick("331970", n=3, max_new_tokens=max_new_tokens).candidates:
            assert (candidate.n_tokens, candidate.unscored_tokens) == (n_tokens, unscored)
            assert candidate.finish_reason == "length"
    assert adding.pick("123456789", n=2).usage.completion_tokens == 2
    with pytest.raises(PromptTooLongError, match=r"10 tokens, .* holds 9"):
        adding.pick("1234567891", n=2)


def test_a_head_on_a_full_context_scores_all_but_the_last_token(adding: Selector) -> None:
    head = Head(np.ones((2, 128), np.float32), np.zeros(2, np.float32), layers=(4,), includes_eos=False)
    selector = Selector(ADDITION, head=head, threads=1)
    for candidate in selector.pick("331970", n=2).candidates:
        assert candidate.gates is not None
        assert (len(candidate.gates), candidate.n_tokens, candidate.unscored_tokens) == (3, 4, 1)
    # A prompt that leaves no room to feed one token has nothing that the head could judge.
    with pytest.raises(PromptTooLongError):
        selector.pick("123456789", n=2)
    assert adding.pick("123456789", n=2).best.unscored_tokens == 1


def test_given_texts_score_as_they_did_when_they_were_decoded(adding: Selector, stories_head: Head) -> None:
    rng = np.random.default_rng(1)
    weight = rng.normal(0, 0.1, (2, 5 * 128 + 1)).astype(np.float32)
    head = Head(weight, np.zeros(2, np.float32), tuple(range(5)), ("logprob",), includes_eos=False)
    for selector in (adding, Selector(ADDITION, head=head, threads=1)):
        for max_new_tokens in (1, 3, 4):
            written = selector.pick("573968", n=6, max_new_tokens=max_new_tokens, temperature=10.0).candidates
            texts = ["".join(map(str, each.token_ids)) for each in written]
            assert len(set(texts)) > 1
            read = selector.score("573968", texts)
            assert read.seed is None
            for old, new in zip(written, read.candidates, strict=True):
                assert (new.text, new.finish_reason) == (texts[new.index], "given")
                assert (new.token_ids, new.unscored_tokens) == (old.token_ids, old.unscored_tokens)
                assert new.score == pytest.approx(old.score, abs=1e-4)
                assert new.logprob == pytest.approx(old.logprob, abs=1e-4)
                if old.gates is not None and new.gates is not None:
                    np.testing.assert_allclose(new.gates, old.gates, atol=1e-4)


def test_given_texts_get_the_eos_that_the_head_counts(scoring: Selector, plain: Selector) -> None:
    assert scoring.score(PROMPT, ["there was", "x"]).best.token_ids[-1] == 1
    assert plain.score(PROMPT, ["there was", "x"]).best.token_ids[-1] != 1


def test_a_long_given_text_is_read_in_parts_with_the_same_figures(scoring: Selector, stories: ModelSession) -> None:
    text = "there was a girl. She had a red ball and a big dog. " * 8
    (candidate,) = scoring.score(PROMPT, [text]).candidates
    assert candidate.n_tokens > 130
    before, _ = response_logits(stories, Tokenizer(open_bundle(STORIES)).encode_prompt(PROMPT), candidate)
    expected = token_statistics(before, np.array(candidate.token_ids)).logprob.sum()
    assert candidate.logprob == pytest.approx(expected, abs=1e-3)


def test_to_dict_has_these_names_and_is_json(plain: Selector) -> None:
    document = json.loads(json.dumps(plain.pick(PROMPT, n=2, max_new_tokens=4).to_dict(), allow_nan=False))
    assert list(document) == [
        *("best", "ranked", "candidates", "answers", "strategy", "signal", "p_correct", "abstained"),
        *("stopped_because", "rows", "warnings", "usage", "timings", "seed", "bundle", "head", "prompt_index"),
    ]
    assert list(document["candidates"][0]) == [
        *("index", "text", "token_ids", "score", "logprob", "finish_reason", "n_tokens", "unscored_tokens"),
        *("self_certainty", "dropped_because", "distance"),
    ]
    assert list(document["usage"]) == ["prompt_tokens", "completion_tokens"]
    assert list(document["timings"]) == [
        *("load_s", "prefill_s", "decode_s", "sample_s", "head_s", "total_s", "prefill_tps", "decode_tps")
    ]
    assert document["bundle"] == str(STORIES)


def test_a_head_of_another_precision_is_a_warning_in_the_result(stories_head: Head) -> None:
    head = dataclasses.replace(stories_head, precision="int4")
    picked = Selector(STORIES, head=head, threads=1).pick(PROMPT, n=2, max_new_tokens=2)
    assert any("swift-edge recalibrate" in warning for warning in picked.to_dict()["warnings"])


def test_a_selector_survives_pickling_opened_or_not(scoring: Selector) -> None:
    picked = scoring.pick(PROMPT, n=2, max_new_tokens=8)
    copy = pickle.loads(pickle.dumps(scoring))  # noqa: S301
    assert without_timings(copy.pick(PROMPT, n=2, max_new_tokens=8)) == without_timings(picked)


def test_threads_share_a_selector_and_do_not_disturb_each_other(stories_head: Head) -> None:
    shared = Selector(STORIES, head=stories_head, threads=1)
    alone = [
        Selector(STORIES, head=stories_head, threads=1).pick(PROMPT, n=3, max_new_tokens=30, seed=seed)
        for seed in range(4)
    ]
    with ThreadPoolExecutor(2) as pool:  # the first two open the bundle at the same time
        together = list(pool.map(lambda seed: shared.pick(PROMPT, n=3, max_new_tokens=30, seed=seed), range(4)))
    assert [without_timings(each) for each in together] == [without_timings(each) for each in alone]


def test_a_drawn_seed_is_told_and_repeats(plain: Selector) -> None:
    first = plain.pick(PROMPT, n=2, max_new_tokens=8, seed=None)
    assert first.seed != plain.pick(PROMPT, n=2, max_new_tokens=8, seed=None).seed
    again = plain.pick(PROMPT, n=2, max_new_tokens=8, seed=first.seed)
    assert without_timings(again) == without_timings(first)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"n": 0}, "n is 0; expected an integer from 1 to 10000"),
        ({"n": 2.0}, r"n is 2\.0; expected an integer"),
        ({"temperature": 0}, "n is 8 at temperature 0.*expected n=1, or a temperature above 0"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": True}, "max_new_tokens is True; expected an integer from 1 to"),
        ({"top_k": True}, "top_k is True; expected an integer"),
        ({"stop": ["a", ""]}, "stop is .*expected a text or a list of up to 256 texts"),
        ({"seed": -1}, "seed is -1"),
        ({"signal": "vibes"}, "'vibes'.*mean_logprob, self_certainty"),
    ],
)
def test_bad_options_are_refused_at_the_call_by_all_three(
    plain: Selector, options: dict[str, Any], complaint: str
) -> None:
    for call in (lambda: plain.pick(PROMPT, **options), lambda: plain.stream(PROMPT, **options)):
        with pytest.raises(InvalidOptionError, match=complaint):
            call()
    with pytest.raises(InvalidOptionError, match=complaint):
        plain.pick_many([PROMPT], **options)


def test_requests_that_cannot_be_served_are_refused_before_the_first_event(
    plain: Selector, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PromptTooLongError, match="512"):
        plain.stream("word " * 600)
    with pytest.raises(SwiftEdgeError, match="empty"):
        plain.stream("  ")
    monkeypatch.setattr(type(plain.engine), "budget", lambda _: 2**24)
    with pytest.raises(MemoryLimitError, match="keeping 10000 candidates of up to 10 tokens"):
        plain.stream(PROMPT, n=10_000, max_new_tokens=10)


@pytest.mark.parametrize(
    ("texts", "complaint"),
    [
        ([], "at least one"),
        ("one text", "expected a list"),
        (None, "texts is None; expected a list"),
        (5, "texts is 5; expected a list"),
        (np.array("a"), "texts is array.*; expected a list"),
        (["fine", None], "expected a list"),
        (["a"] * 10_001, "at most 10000"),
        (itertools.repeat("a"), "texts is repeat.'a'.; expected a list"),
        (["word " * 2_000_000], "text 1 has 10000000 bytes or more, at least .* holds 512"),
        (["fine", ""], "text 2 has no tokens"),
        (["word " * 600], "text 1 has .* tokens after a prompt of 5, .* holds 512"),
    ],
)
def test_texts_that_cannot_be_scored_are_refused(plain: Selector, texts: Any, complaint: str) -> None:
    with pytest.raises(InvalidOptionError, match=complaint):
        plain.score(PROMPT, texts)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"path": 5}, "path is 5; expected the path"),
        ({"path": ""}, "path is ''; expected the path"),
        ({"path": "a\0b"}, "path is .*; expected the path"),
        ({"path": "\ud800"}, "path is .*; expected the path"),
        ({"path": b"models"}, "path is b'models'; expected the path"),
        ({"head": 5}, "head is 5; expected the path"),
        ({"providers": 5}, "providers is 5; expected a list of names"),
        ({"providers": [5]}, "providers is .5.; expected a list of names"),
        ({"threads": 10**400}, "threads is an integer of 1329 bits; expected at least 1"),
        ({"threads": 100_000}, "threads is 100000; expected at least 1, .* at most .*, 8 for each"),
        ({"threads": True}, "threads is True; expected"),
        ({"rows": 10**400}, "rows is an integer of 1329 bits; expected an integer of at least 1"),
        ({"rows": 1025}, "rows is 1025; .* at most 1024"),
        ({"prefix_cache_bytes": -1}, "prefix_cache_bytes is -1"),
    ],
)
def test_what_no_model_can_be_opened_with_is_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidOptionError, match=complaint):
        Selector(**{"path": STORIES} | options).open()


def test_a_prompt_that_cannot_fit_is_refused_by_its_length(plain: Selector) -> None:
    for prompt in ("1" * 10_000_000, "word " * 2_000_000, " " * 10_000_000, "\ud800" * 10_000_000):
        for ask in (lambda: plain.pick(prompt, raw=True), lambda: plain.score(prompt, ["a"], raw=True)):  # noqa: B023
            with pytest.raises(PromptTooLongError, match="has 10000000 bytes or more, which are at least") as refused:
                ask()
            assert refused.value.prompt_tokens > 10_000
    (failed,) = plain.pick_many(["1" * 10_000_000], on_error="yield")
    assert isinstance(failed, FailedPick)
    assert isinstance(failed.error, PromptTooLongError)


def test_given_texts_are_the_tokens_that_pick_wrote_of_them(plain: Selector, scoring: Selector) -> None:
    # A tokenizer that puts a space before the first word of a text must not put one before a response.
    for selector in (plain, scoring):
        written = selector.pick(PROMPT, n=6, max_new_tokens=40, seed=3).candidates
        read = selector.score(PROMPT, [candidate.text for candidate in written]).candidates
        for old, new in zip(written, read, strict=True):
            assert new.token_ids[: old.n_tokens] == old.token_ids
        if selector is plain:
            np.testing.assert_allclose([c.score for c in read], [c.score for c in written], rtol=0, atol=1e-4)


def test_a_head_trained_without_eos_does_not_score_it(stories_head: Head) -> None:
    options = {"n": 8, "max_new_tokens": 400, "temperature": 1.0, "seed": 1}
    without = dataclasses.replace(stories_head, includes_eos=False)
    counting = Selector(STORIES, head=stories_head, threads=1).pick(PROMPT, **options)
    skipping = Selector(STORIES, head=without, threads=1).pick(PROMPT, **options)
    pairs = list(zip(counting.candidates, skipping.candidates, strict=True))
    ended = [pair for pair in pairs if pair[0].finish_reason == "stop"]
    assert ended
    for one, other in ended:
        assert one.token_ids == other.token_ids
        assert one.gates is not None
        assert other.gates is not None
        np.testing.assert_array_equal(other.gates, one.gates[:-1])
        assert other.score != one.score
    for one, other in pairs:
        assert one.finish_reason == "stop" or one.score == other.score


@pytest.mark.parametrize("raw", [None, "yes", np.array([1, 2])])
def test_whether_a_prompt_is_raw_is_told_by_a_truth_value(plain: Selector, raw: Any) -> None:
    for count in (lambda: plain.token_count("Once", raw=raw), lambda: plain.score("Once", [" a"], raw=raw)):
        with pytest.raises(InvalidOptionError, match=r"raw is .*; expected"):
            count()


def test_texts_to_score_have_to_be_a_list_of_texts(plain: Selector) -> None:
    assert len(plain.score(PROMPT, (text for text in ("a", "b"))).candidates) == 2  # type: ignore[arg-type]
    for texts in ([5], [], "one text", [b"bytes"]):
        with pytest.raises(InvalidOptionError, match="expected a list"):
            plain.score(PROMPT, texts)  # type: ignore[arg-type]


def test_numbers_that_json_does_not_have_are_null(plain: Selector) -> None:
    selection = plain.pick(PROMPT, n=2, max_new_tokens=2)
    first, second = selection.candidates
    odd = dataclasses.replace(first, score=float("inf"), logprob=float("-inf"))
    document = dataclasses.replace(selection, candidates=(odd, second)).to_dict()
    assert (document["candidates"][0]["score"], document["candidates"][0]["logprob"]) == (None, None)
    assert document["candidates"][1]["score"] == second.score
    json.dumps(document, allow_nan=False)
