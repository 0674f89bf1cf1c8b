"""What a pick gives back, as text for people and as data for programs, whatever there is to say."""

import copy
import json
import math
import pickle
import pydoc
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import swift_edge
from swift_edge import Answer, Candidate, Selection, Timings, Usage

texts = st.text(max_size=40) | st.sampled_from(["word " * 5000, "'" * 300, "\"'" * 90, "\n" * 300, "\x1b[2J" * 90])
numbers = st.floats()


def candidate(index: int = 0, **changes: Any) -> Candidate:
    told: dict[str, Any] = {"text": "7", "token_ids": (5, 2), "score": 0.5, "logprob": -1.5, "finish_reason": "stop"}
    return Candidate(index, **told | changes)


def selection(*candidates: Candidate, **changes: Any) -> Selection:
    told: dict[str, Any] = {
        "strategy": "best",
        "signal": None,
        "p_correct": None,
        "usage": Usage(3, 2 * len(candidates)),
        "timings": Timings(*[0.25] * 8),
        "seed": 0,
        "bundle": "models/x",
        "head": "head.npz",
    }
    return Selection(candidates[0], candidates, tuple(reversed(candidates)), **told | changes)


candidates_strategy = st.builds(
    candidate,
    st.integers(0, 10**6),
    text=texts,
    token_ids=st.integers(0, 3000).map(lambda count: (7,) * count),
    score=numbers,
    logprob=numbers,
    finish_reason=st.sampled_from(["stop", "length", "given", "dropped"]),
    self_certainty=st.none() | numbers,
    dropped_because=st.none() | texts,
    gates=st.none() | st.just(np.ones(500, np.float32)),
)


@given(
    some=st.lists(candidates_strategy, min_size=1, max_size=4),
    times=st.sampled_from([1, 100]),
    answers=st.lists(st.builds(Answer, texts, st.just(tuple(range(500))), st.none() | st.floats(0, 1)), max_size=40),
    warnings=st.lists(texts, max_size=20),
    chance=st.none() | st.floats(0, 1),
    bundle=texts,
)
def test_a_repr_fits_a_screen(
    some: list[Candidate], times: int, answers: list[Answer], warnings: list[str], chance: float | None, bundle: str
) -> None:
    whole = selection(
        *some * times,
        answers=tuple(answers),
        warnings=tuple(warnings),
        p_correct=chance,
        bundle=bundle,
        head=bundle,
        seed=2**64 - 1,
        stopped_because="budget_seconds",
        rows=100_000,
        prompt_index=10**9,
        usage=Usage(10**9, 10**12),
    )
    for shown in (repr(whole), *map(repr, some), *map(repr, answers)):
        lines = shown.split("\n")
        assert len(lines) <= 20
        assert max(map(len, lines)) <= 120
        assert "array" not in shown
        assert "7, 7" not in shown


def test_a_repr_tells_the_pick_and_how_many_are_left_out() -> None:
    many = selection(*(candidate(index, text=f"answer {index}") for index in range(30)))
    shown = repr(many)
    assert shown.startswith("Selection(best=0, ")
    assert "Candidate(index=29, score=0.5, n_tokens=2, finish_reason='stop', text='answer 29')" in shown
    assert "23 more" in shown
    dropped = candidate(finish_reason="dropped", dropped_because="behind")
    assert repr(dropped) == "Candidate(index=0, score=0.5, n_tokens=2, dropped_because='behind')"


def test_the_shape_of_the_data_is_the_same_whatever_there_is_to_say() -> None:
    plain = selection(candidate())
    full = selection(
        candidate(self_certainty=math.inf, unscored_tokens=1),
        candidate(1, finish_reason="dropped", dropped_because="behind", score=math.nan),
        answers=(Answer("7", (0, 1), 0.9),),
        p_correct=0.9,
        abstained=True,
        stopped_because="settled",
        rows=4,
        warnings=("careful",),
        prompt_index=3,
    )
    documents = [json.loads(json.dumps(each.to_dict(), allow_nan=False)) for each in (plain, full)]
    assert list(documents[0]) == list(documents[1])
    assert set(documents[0]) == {each.name for each in fields(Selection)}
    for document in documents:
        for each in document["candidates"]:
            assert set(each) == {field.name for field in fields(Candidate)} - {"gates", "rewards", "cut_off"} | {
                "n_tokens"
            }
    assert documents[1]["ranked"] == [1, 0]
    assert documents[1]["candidates"][1]["score"] is documents[1]["candidates"][0]["self_certainty"] is None
    assert documents[1]["answers"] == [{"text": "7", "candidates": [0, 1], "posterior": 0.9, "support": 2}]
    assert (documents[0]["answers"], documents[0]["rows"], documents[0]["abstained"]) == ([], None, False)


def test_gates_and_rewards_come_when_they_are_asked_for() -> None:
    scored = candidate(gates=np.array([0.5, 0.25], np.float32), rewards=np.array([1.0, -np.inf], np.float32))
    first, second = selection(scored, candidate(1)).to_dict(tokens=True)["candidates"]
    assert (first["gates"], first["rewards"]) == ([0.5, 0.25], [1.0, None])
    assert (second["gates"], second["rewards"]) == (None, None)


@pytest.mark.parametrize("name", [name for name in swift_edge.__all__ if name[0].isupper()])
def test_help_shows_what_each_field_says(name: str) -> None:
    kind = getattr(swift_edge, name)
    if not hasattr(kind, "__dataclass_fields__"):
        return
    shown = pydoc.render_doc(kind, renderer=pydoc.plaintext)
    for field in fields(kind):
        assert f"\n |  {field.name}\n |      " in shown, field.name
    if kind is Timings:
        assert " |  prefill_tps\n |      Tokens read per second of `prefill_s`.\n" in shown


def test_results_are_pickled_and_copied() -> None:
    whole = selection(candidate(), candidate(1))
    for again in (pickle.loads(pickle.dumps(whole)), copy.deepcopy(whole), copy.copy(whole)):  # noqa: S301
        assert again == whole
