"""Adaptive and pruned picks of the shipped model: what they write, that a replay agrees, and how they are asked for."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from swift_edge import Selection, Selector
from swift_edge.bundle import Tokenizer
from swift_edge.evaluation import replay
from swift_edge.explain import explain_page
from swift_edge.options import PickOptions
from swift_edge.results import CandidateDropped, CandidateFinished, Picked
from swift_edge.scoring import load_head
from swift_edge.selection import Decision, Plan
from swift_edge.training import Store, collect

MODEL = Path(__file__).parents[2] / "models" / "small-steps"
QUESTIONS = (
    "Theo has 26 carrots. Theo buys 7 more carrots. How many carrots does Theo have now?",
    "A coin is heads up. Maya flips the coin. Owen does not flip the coin. Is the coin still heads up?",
    "Iris has 31 shells. Iris gives away 4 shells and finds 12 shells. How many shells does Iris have?",
    "What does this program print?\nb = 14 + 5\nprint(b - 6)",
)
PLANS: tuple[dict[str, object], ...] = (
    {"n": "auto"},
    {"n": 16, "prune": "auto"},
    {"n": "auto", "max_n": 12, "prune": "off"},
    {"n": 8, "prune": {16: 6, 32: 2}},
)


@pytest.fixture(scope="module")
def selector() -> Selector:
    return Selector(MODEL)


def swift_edge(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "swift_edge", *arguments], check=False, capture_output=True, encoding="utf-8"
    )


def outcome(selection: Selection) -> tuple[object, ...]:
    return (
        selection.best.index,
        selection.stopped_because,
        [(each.token_ids, each.score, each.finish_reason, each.dropped_because) for each in selection.candidates],
    )


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS)
def test_a_seed_fixes_the_outcome_whatever_is_decoded_beside_it(selector: Selector, plan: dict[str, object]) -> None:
    alone = [selector.pick(question, max_new_tokens=96, **plan) for question in QUESTIONS]  # type: ignore[arg-type]
    together = selector.pick_many(QUESTIONS * 2, in_order=True, max_new_tokens=96, **plan)  # type: ignore[arg-type]
    for number, selection in enumerate(together):
        assert outcome(selection) == outcome(alone[number % len(QUESTIONS)])


@pytest.mark.slow
def test_dropped_candidates_are_beginnings_of_what_they_would_have_been(selector: Selector) -> None:
    dropped = 0
    for question in QUESTIONS:
        whole = selector.pick(question, n=16, max_new_tokens=96)
        pruned = selector.pick(question, n=16, max_new_tokens=96, prune="auto")
        assert len(pruned.candidates) == 16
        for mine, theirs in zip(pruned.candidates, whole.candidates, strict=True):
            assert mine.token_ids == theirs.token_ids[: mine.n_tokens]
            assert (mine.finish_reason == "dropped") == (mine.dropped_because is not None)
            assert mine.dropped_because is not None or mine == theirs
            dropped += mine.dropped_because is not None
        assert pruned.best.dropped_because is None
        finished = sum(each.dropped_because is None for each in pruned.candidates)
        assert all(each.dropped_because is None for each in pruned.ranked[:finished])
        assert sum(answer.support for answer in pruned.answers) <= finished
        assert pruned.usage.completion_tokens == sum(each.n_tokens for each in pruned.candidates)
    assert dropped


@pytest.mark.slow
def test_a_replay_of_what_was_collected_is_the_pick(selector: Selector, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"question": each, "answer": "1"}) + "\n" for each in QUESTIONS))
    head = load_head(MODEL / "head.npz")
    collect(
        MODEL,
        data,
        tmp_path / "store",
        n=16,
        task="exact",
        max_new_tokens=96,
        heads={"default": head},
        store_features=False,
    )
    stored = Store.open(tmp_path / "store").candidates
    decision = Decision.of(head, PickOptions())
    for asked in PLANS[:3]:
        plan = Plan.of(PickOptions.of(None, asked), decision)
        for number, question in enumerate(QUESTIONS):
            replayed = replay(plan, stored[16 * number : 16 * (number + 1)], "default")
            selection = selector.pick(question, max_new_tokens=96, **asked)  # type: ignore[arg-type]
            assert replayed.picked == selection.best.index
            assert replayed.tokens == selection.usage.completion_tokens
            assert [each.token_ids for each in replayed.candidates] == [each.token_ids for each in selection.candidates]


def test_budgets_hold(selector: Selector) -> None:
    for budget in (1, 7, 60, 150, 400):
        found = selector.pick(QUESTIONS[2], n=8, max_new_tokens=96, budget_tokens=budget)
        assert found.usage.completion_tokens <= budget
        assert found.stopped_because in ("budget_tokens", "max_n")
    unfinished = selector.pick(QUESTIONS[2], n=8, max_new_tokens=96, budget_tokens=8, min_confidence=0.1)
    assert (unfinished.p_correct, unfinished.answers, unfinished.abstained) == (None, (), True)
    # An unfinished candidate was picked without a word.
    reason = unfinished.best.dropped_because
    assert unfinished.warnings == (f"no candidate was written to its end, the pick neither: {reason}",)
    written = selector.pick(QUESTIONS[2], n=2, max_new_tokens=96, budget_tokens=400)
    (warning,) = written.warnings  # the one that is meant, as the model is wrong there
    assert warning.startswith("the question is foreign to the head")
    found = selector.pick(QUESTIONS[2], n="auto", max_n=16, max_new_tokens=96, min_confidence=1.0, budget_seconds=1e-6)
    assert found.stopped_because == "budget_seconds"
    assert [each.n_tokens for each in found.candidates] == [1] * 4


def test_rows_of_a_graph_that_concatenates_begin_together() -> None:
    """A candidate that was begun while others went on had no row: it was dropped without a token, and later decoded."""
    selector = Selector(Path(__file__).parents[1] / "data" / "same-model" / "optimum")
    for options in ({"budget_tokens": 100}, {"prune": {3: 2, 6: 1}}, {"budget_tokens": 150, "prune": {3: 2, 6: 1}}):
        alone = selector.pick("Once upon a time", n="auto", max_new_tokens=20, **options)  # type: ignore[arg-type]
        assert all(each.n_tokens for each in alone.candidates)
        prompts = ["Once upon a time"] * 3
        for selection in selector.pick_many(prompts, n="auto", max_new_tokens=20, **options):  # type: ignore[arg-type]
            assert outcome(selection) == outcome(alone)


def test_numbers_of_numpy_are_numbers(selector: Selector) -> None:
    """A number of candidates by NumPy was refused."""
    budgets = {"budget_tokens": np.int32(12), "budget_seconds": np.int64(60)}
    found = selector.pick(QUESTIONS[0], n=np.int64(2), max_new_tokens=8, **budgets)
    assert len(found.candidates) == 2
    assert found.usage.completion_tokens <= 12


def test_a_stream_tells_of_every_candidate_that_is_dropped(selector: Selector) -> None:
    events = list(selector.stream(QUESTIONS[0], n=16, max_new_tokens=96, prune="auto"))
    assert isinstance(events[-1], Picked)
    picked = events[-1].selection
    told = {event.candidate.index: event.candidate for event in events if isinstance(event, CandidateDropped)}
    finished = {event.candidate.index: event.candidate for event in events if isinstance(event, CandidateFinished)}
    assert {each.index: each for each in picked.candidates} == told | finished
    assert told
    for index, candidate in told.items():
        assert candidate.text == picked.candidates[index].text != ""
    assert dataclasses.replace(picked, timings=None) == dataclasses.replace(  # type: ignore[arg-type]
        selector.pick(QUESTIONS[0], n=16, max_new_tokens=96, prune="auto"),
        timings=None,  # type: ignore[arg-type]
    )


def test_a_page_says_how_the_pick_was_made_and_why_a_candidate_was_dropped(selector: Selector) -> None:
    found = selector.pick(QUESTIONS[0], n=16, max_new_tokens=96, prune="auto")
    page = explain_page(QUESTIONS[0], found, Tokenizer(selector.bundle))
    assert "picked by the strategy calibrated" in page
    reasons = [each.dropped_because for each in found.candidates if each.dropped_because is not None]
    assert reasons
    assert all(reason in page for reason in reasons)


def test_the_command_takes_all_of_it_and_says_what_came_of_it() -> None:
    run = swift_edge(
        *("pick", QUESTIONS[0], "-m", str(MODEL), "--n", "auto", "--max-n", "12", "--prune", "off"),
        *("--max-new-tokens", "96", "--budget-tokens", "600", "--budget-seconds", "60", "--json"),
    )
    assert run.returncode == 0, run.stderr
    document = json.loads(run.stdout)
    assert document["stopped_because"] in ("settled", "max_n", "budget_tokens")
    assert document["usage"]["completion_tokens"] <= 600
    assert document["rows"] == 4 < len(document["candidates"])
    assert f"candidates, 4 at a time, ended by {document['stopped_because']}" in run.stderr
    for candidate in document["candidates"]:
        assert (candidate["dropped_because"] is not None) == (candidate["finish_reason"] == "dropped")
        assert (candidate["dropped_because"] or "") in run.stderr


@pytest.mark.parametrize("options", [("-n", "few"), ("--prune", "16"), ("--prune", "a:b")])
def test_words_that_cannot_be_read_are_usage_errors(options: tuple[str, str]) -> None:
    run = swift_edge("pick", "Hello", "-m", str(MODEL), *options)
    assert run.returncode == 2
    assert options[1] in run.stderr
