"""Collecting with a model: the store is what plain decoding gives, whatever rows, interruptions and timing do."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swift_edge import Selector
from swift_edge.answers import answer_task
from swift_edge.engine import OpenedModel, TokenStatistics, token_statistics
from swift_edge.errors import (
    HeadMismatchError,
    StoreError,
)
from swift_edge.scoring import Head
from swift_edge.training import CollectProgress, Store, collect, read_problems

ROOT = Path(__file__).parents[2]
STORIES = ROOT / "models" / "stories260k"
ADDITION = ROOT / "tests" / "data" / "addition-gpt2-h1_l1"
CONCATENATED = ROOT / "tests" / "data" / "same-model" / "optimum"
SUMS = {"task": "number", "n": 4, "max_new_tokens": 4}
OPENINGS = ("Once upon a time", "Lily saw a dog", "The sun", "Tom was sad because his mom said no", "One day")
TALES: dict[str, Any] = {"grader": lambda _, text: "the" in text, "n": 3, "max_new_tokens": 24, "temperature": 1.2}


def content(path: Path) -> dict[str, bytes]:
    """Everything but the timings."""
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name != "timings.json"}


def test_candidates_are_those_of_a_pick_and_labels_those_of_the_task(
    adding: OpenedModel, sums: Path, tmp_path: Path
) -> None:
    found = collect(adding, sums, tmp_path, **SUMS)
    opened = Store.open(tmp_path)
    assert opened.complete
    assert (found.problems, found.candidates, found.tokens) == (20, 80, 80 * 4)
    selector, task = Selector(ADDITION, threads=1), answer_task("number")
    problems = read_problems(sums).rows
    for number, problem in enumerate(problems):
        picked = selector.pick(problem.prompt, n=4, max_new_tokens=4, signal="self_certainty")
        for candidate, stored in zip(picked.candidates, opened.candidates[4 * number :], strict=False):
            assert (stored.problem, stored.index) == (number, candidate.index)
            assert (stored.text, stored.token_ids) == (candidate.text, candidate.token_ids)
            assert (stored.logprob, stored.mean_logprob) == (candidate.logprob, candidate.mean_logprob)
            assert (stored.self_certainty, stored.finish_reason) == (candidate.score, candidate.finish_reason)
            # The context holds nine tokens: the fourth digit is sampled and cannot be fed.
            assert (stored.tokens, stored.n_tokens, stored.unscored_tokens) == (3, 4, 1)
            assert stored.correct == task.correct(stored.text, problem.answer or "")
            assert stored.answer == task.extract(stored.text)
    labels = np.array([stored.correct for stored in opened.candidates]).reshape(20, 4)
    assert found.correct == labels.sum()
    assert found.share_correct == labels.mean()
    assert found.mixed == ((labels.sum(axis=1) > 0) & (labels.sum(axis=1) < 4)).sum() > 0
    assert found.notes == ()


def test_features_are_the_states_of_a_full_pass(telling: OpenedModel, tales: Path, tmp_path: Path) -> None:
    collect(telling, tales, tmp_path, **TALES, layers=(4, 1))
    opened = Store.open(tmp_path)
    assert opened.info.layers == (1, 4)
    session = telling.session
    for shard in opened.shards:
        for place, candidate in enumerate(shard.candidates):
            prompt_ids = telling.tokenizer.encode_prompt(OPENINGS[candidate.problem])
            whole = [*prompt_ids, *candidate.token_ids]
            out = session.prefill(session.new_cache(1, len(whole)), whole, logits="all", layers=(1, 4))
            assert out.hidden_states is not None
            assert out.logits is not None
            part = slice(shard.starts[place], shard.starts[place + 1])
            expected = out.hidden_states[:, len(prompt_ids) :].transpose(1, 0, 2)
            scale = np.abs(expected).max(axis=2, keepdims=True)
            assert (np.abs(shard.states[part] - expected) / scale).max() < 1e-3
            assert list(shard.token_ids[part]) == list(candidate.token_ids)
            assert list(shard.positions[part]) == list(range(candidate.n_tokens))
            before = out.logits[len(prompt_ids) - 1 : -1]
            statistics = token_statistics(before, np.array(candidate.token_ids), entropy=True, self_certainty=True)
            columns = np.stack([statistics.logprob, statistics.entropy, statistics.self_certainty], axis=1)  # type: ignore[list-item]
            np.testing.assert_allclose(shard.statistics[part], columns, atol=1e-4)
            assert candidate.entropy == pytest.approx(columns[:, 1].mean(), abs=1e-4)


def test_logits_are_features_too(telling: OpenedModel, tales: Path, tmp_path: Path) -> None:
    collect(telling, tales, tmp_path, **TALES, feature="logits", limit=1)
    (shard,) = Store.open(tmp_path).shards
    session, candidate = telling.session, shard.candidates[0]
    whole = [*telling.tokenizer.encode_prompt(OPENINGS[0]), *candidate.token_ids]
    logits = session.prefill(session.new_cache(1, len(whole)), whole, logits="all").logits
    assert logits is not None
    assert shard.states.shape[1:] == (1, session.vocab_size)
    np.testing.assert_allclose(shard.states[: shard.starts[1], 0], logits[-candidate.n_tokens :], rtol=1e-3, atol=0.02)


def test_the_eos_is_fed_and_stored(telling: OpenedModel, tales: Path, tmp_path: Path) -> None:
    collect(telling, tales, tmp_path, **TALES | {"max_new_tokens": 500, "seed": 5, "n": 4}, limit=1, layers=(5,))
    (shard,) = Store.open(tmp_path).shards
    ended = [each for each in shard.candidates if each.finish_reason == "stop"]
    assert ended
    for candidate in ended:
        assert candidate.token_ids[-1] in telling.bundle.manifest.tokens.eos_ids
        assert candidate.tokens == candidate.n_tokens


@pytest.mark.parametrize("rows", [1, 4, 16])
def test_the_store_does_not_depend_on_the_rows(telling: OpenedModel, tales: Path, tmp_path: Path, rows: int) -> None:
    collect(telling, tales, tmp_path / "seven", **TALES, rows=7, shard_bytes=60_000)
    collect(telling, tales, tmp_path / "rows", **TALES, rows=rows, shard_bytes=60_000)
    assert content(tmp_path / "rows") == content(tmp_path / "seven")
    assert len(Store.open(tmp_path / "rows").shards) > 1


def test_rows_are_refilled_from_the_problems_that_follow(telling: OpenedModel, tales: Path, tmp_path: Path) -> None:
    states: list[CollectProgress] = []
    collect(telling, tales, tmp_path, **TALES, rows=4, progress=states.append)
    busy = [state.rows for state in states]
    # Fifteen candidates of about equal length on four rows; the last three have nobody to follow them.
    assert max(busy) == 4
    assert busy.count(4) > 0.5 * len(busy)
    assert [state.problems for state in states] == sorted(state.problems for state in states)
    assert (states[-1].problems, states[-1].total, states[-1].candidates) == (5, 5, 15)
    assert states[-1].tokens == sum(each.n_tokens for each in Store.open(tmp_path).candidates)


def test_positions_are_evenly_spread_and_hold_the_last_one(telling: OpenedModel, tales: Path, tmp_path: Path) -> None:
    collect(telling, tales, tmp_path / "all", **TALES, limit=2, layers=(5,))
    collect(telling, tales, tmp_path / "few", **TALES, limit=2, layers=(5,), tokens_per_candidate=5)
    (every,), (few,) = Store.open(tmp_path / "all").shards, Store.open(tmp_path / "few").shards
    for place, candidate in enumerate(few.candidates):
        kept = few.positions[few.starts[place] : few.starts[place + 1]]
        assert len(kept) == 5
        assert kept[-1] == candidate.n_tokens - 1
        gaps = np.diff(np.concatenate([[-1], kept]))
        assert gaps.max() - gaps.min() <= 1
        rows = every.starts[place] + kept
        np.testing.assert_array_equal(few.states[few.starts[place] : few.starts[place + 1]], every.states[rows])
        np.testing.assert_array_equal(few.statistics[few.starts[place] : few.starts[place + 1]], every.statistics[rows])
    shorter = collect(telling, tales, tmp_path / "many", **TALES, limit=2, layers=(5,), tokens_per_candidate=999)
    (many,) = Store.open(tmp_path / "many").shards
    np.testing.assert_array_equal(many.states, every.states)
    assert shorter.nbytes > 0


@pytest.mark.slow
@pytest.mark.parametrize("includes_eos", [True, False])
def test_heads_score_live_as_a_pick_does_bit_for_bit(
    telling: OpenedModel, tales: Path, tmp_path: Path, stories_head: Head, includes_eos: bool
) -> None:
    head = replace(stories_head, includes_eos=includes_eos)
    weight = np.random.default_rng(1).normal(0, 0.1, (1, telling.session.vocab_size)).astype(np.float32)
    on_logits = Head(weight, np.zeros(1, np.float32), layers=(), gate=False, feature="logits", base_model="stories")
    lines: list[str] = []
    options = TALES | {"max_new_tokens": 300, "seed": 5}
    found = collect(
        telling,
        tales,
        tmp_path,
        **options,
        limit=2,
        heads={"plain": head, "logits": on_logits},
        store_features=False,
        report=lines.append,
    )
    assert any("warning: logits: the head does not say" in line for line in lines)
    opened = Store.open(tmp_path)
    assert (opened.info.feature, opened.info.layers, opened.info.width) == ("none", (), 0)
    assert not list(tmp_path.glob("*states*"))
    assert found.head_s > 0
    for name, scorer in (("plain", head), ("logits", on_logits)):
        selector = Selector(STORIES, head=scorer, threads=1)
        for number, opening in enumerate(OPENINGS[:2]):
            picked = selector.pick(opening, n=3, max_new_tokens=300, temperature=1.2, seed=5)
            stored = opened.candidates[3 * number : 3 * number + 3]
            assert [each.scores[name] for each in stored] == [each.score for each in picked.candidates]
    ends = {each.finish_reason for each in opened.candidates}
    assert "stop" in ends
    # Without features nothing needs to be fed, and every token has its statistics.
    (shard,) = opened.shards
    assert [each.tokens for each in shard.candidates] == [each.n_tokens for each in shard.candidates]


def test_features_and_heads_share_a_run(telling: OpenedModel, tales: Path, tmp_path: Path, stories_head: Head) -> None:
    collect(telling, tales, tmp_path / "alone", **TALES, limit=2, layers=(2, 5))
    collect(telling, tales, tmp_path / "both", **TALES, limit=2, layers=(2, 5), heads={"plain": stories_head})
    (alone,), (both,) = Store.open(tmp_path / "alone").shards, Store.open(tmp_path / "both").shards
    np.testing.assert_array_equal(alone.states, both.states)
    assert [dict(each.scores) for each in alone.candidates] == [{}] * 6
    # The stored float16 states of layers that the head reads would give nearly its score.
    collect(telling, tales, tmp_path / "own", **TALES, limit=2, layers=stories_head.layers)
    (own,) = Store.open(tmp_path / "own").shards
    for place, candidate in enumerate(both.candidates):
        part = slice(own.starts[place], own.starts[place + 1])
        statistics = TokenStatistics(*own.statistics[part].T.astype(np.float64))
        gates, rewards = stories_head.evaluate(own.states[part].transpose(1, 0, 2), statistics)
        assert np.average(rewards, weights=gates) == pytest.approx(candidate.scores["plain"], abs=1e-2)
    with pytest.raises(StoreError, match="collected with heads"):
        collect(telling, tales, tmp_path / "both", **TALES, limit=2, layers=(2, 5))


def test_a_head_of_another_model_does_not_score(
    adding: OpenedModel, sums: Path, tmp_path: Path, stories_head: Head
) -> None:
    with pytest.raises(HeadMismatchError):
        collect(adding, sums, tmp_path, **SUMS, heads={"plain": stories_head})
    assert not list(tmp_path.iterdir())


def test_a_stop_string_ends_a_candidate(telling: OpenedModel, tales: Path, tmp_path: Path) -> None:
    collect(telling, tales, tmp_path, **TALES, limit=1, stop=" a", layers=(5,))
    picked = Selector(STORIES, threads=1).pick(OPENINGS[0], n=3, max_new_tokens=24, temperature=1.2, stop=" a")
    stored = Store.open(tmp_path).candidates
    assert [each.text for each in stored] == [each.text for each in picked.candidates]
    assert "stop" in {each.finish_reason for each in stored}
    assert [each.tokens for each in stored] == [each.n_tokens for each in picked.candidates]


def test_a_graph_that_concatenates_takes_one_problem_at_a_time(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "a b"}\n{"prompt": "a b c d"}\n', encoding="utf-8")
    found = [
        collect(
            CONCATENATED,
            data,
            tmp_path / str(rows),
            grader=lambda _, text: len(text) > 3,
            n=3,
            max_new_tokens=6,
            store_features=False,
            rows=rows,
            threads=1,
        )
        for rows in (2, 16)
    ]
    assert [each.candidates for each in found] == [6, 6]
    few, many = (Store.open(tmp_path / str(rows)) for rows in (2, 16))
    assert [each.token_ids for each in few.candidates] == [each.token_ids for each in many.candidates]


@pytest.mark.slow
def test_few_problems_are_held(telling: OpenedModel, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    # They end sooner or later: those that have ended wait for the first.
    data.write_text("".join(json.dumps({"prompt": f"{k} cat"}) + "\n" for k in range(40)), encoding="utf-8")

    def most_held(out: str, **limits: int) -> tuple[int, int]:
        """The most problems held at a time, and the most rows at work in the second half."""
        states: list[CollectProgress] = []
        collect(
            telling,
            data,
            tmp_path / out,
            grader=lambda *_: True,
            n=1,
            max_new_tokens=400,
            layers=(5,),
            rows=4,
            progress=states.append,
            limit=12,
            **limits,
        )
        assert states[-1].held == 0
        return max(state.held for state in states), max(state.rows for state in states[len(states) // 2 :])

    free, rows = most_held("free")
    assert (free > 6, rows) == (True, 4)
    assert most_held("few", held_problems=4)[0] <= 4
    held, rows = most_held("bytes", held_bytes=1)
    assert held <= 6  # four at work, two read ahead
    # What was given out is not held any more.
    assert rows > 1
    assert content(tmp_path / "free") == content(tmp_path / "few") == content(tmp_path / "bytes")


def test_a_store_tells_one_prompt_from_another(adding: OpenedModel, tmp_path: Path) -> None:
    prompts = ["123456", "123457", "123456"]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"prompt": prompt, "answer": "0579"}) + "\n" for prompt in prompts))
    collect(adding, data, tmp_path / "store", task="exact", n=1, max_new_tokens=4)
    first, second, third = (each.prompt_hash for each in Store.open(tmp_path / "store").candidates)
    assert first == third != second
    assert first is not None
