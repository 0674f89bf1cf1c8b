"""its_hub's own algorithms on a shipped bundle: they pick what `Selector` picks, and scores cost no second pass."""

import asyncio
import dataclasses
import itertools
import subprocess
import sys
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from its_hub import BestOfN, BetaSelfConsistency, SelfConsistency
from its_hub.api import ChatMessage, ChatMessages, GenerationUsage
from its_hub.core.orchestrator import LMOrchestrator
from picks import endless_bundle

from swift_edge import Candidate, Handle, Selection, Selector, its_hub
from swift_edge.answers import ANSWER_TASKS, AnswerTask, answer_task
from swift_edge.errors import InvalidOptionError, PromptError
from swift_edge.its_hub import BatchOrchestrator, SelfScoringModel

ROOT = Path(__file__).parents[2]
SMALL_STEPS = ROOT / "models" / "small-steps"
CARROTS = (
    "One day Theo owns 29 carrots. Theo has 4 carrots more than Odette. As it happens, Odette got 8 fewer carrots "
    "than Teresa. What number of carrots does Teresa have?"
)
TURTLES = "Mira has 12 turtles. Mira has 5 turtles more than Jonas. What number of turtles does Jonas have?"

ABSENT = """
import sys
sys.modules["its_hub"] = None  # as if it were not installed
try:
    import swift_edge.its_hub
except ImportError as error:
    print(error)
"""


class Watched(Selector):
    """A selector that remembers what it was asked for."""

    picks: list[tuple[int, int]]
    """Candidates and seed of every pick that was submitted."""
    tickets: list[Any]
    """Those picks under way."""
    scored: list[int]
    """Texts of every call."""

    def submit(self, prompt: Any, **options: Any) -> Handle:
        self.picks.append((options["options"].n, options["options"].seed))
        handle = super().submit(prompt, **options)
        self.tickets.append(handle.ticket)
        return handle

    def score(self, prompt: Any, texts: Any, **options: Any) -> Selection:
        self.scored.append(len(texts))
        return super().score(prompt, texts, **options)


@pytest.fixture(scope="module")
def opened() -> Watched:
    return Watched(SMALL_STEPS, threads=1)


@pytest.fixture
def selector(opened: Watched) -> Watched:
    """Opened once, with nothing asked for yet."""
    opened.picks, opened.tickets, opened.scored = [], [], []
    return opened


def user(text: str) -> list[ChatMessage]:
    return [ChatMessage("user", text)]


def answered(question: str, text: str) -> list[ChatMessage]:
    return [*user(question), ChatMessage("assistant", text)]


def texts(responses: list[dict[str, str]]) -> list[str]:
    assert all(response["role"] == "assistant" for response in responses)
    return [response["content"] for response in responses]


def written(selection: Selection) -> list[str]:
    return [candidate.text for candidate in selection.candidates]


def test_best_of_n_picks_the_greatest_score_of_one_pick(selector: Watched) -> None:
    model = SelfScoringModel(selector, max_new_tokens=96, seed=3)
    found = BestOfN(model, BatchOrchestrator()).infer(model, CARROTS, budget=8, return_response_only=False)
    assert selector.picks == [(8, 3)]
    assert selector.scored == []
    expected = selector.pick(CARROTS, n=8, max_new_tokens=96, seed=3, strategy="best")
    assert texts(found.responses) == written(expected)
    assert found.scores == [candidate.score for candidate in expected.candidates]
    assert len(set(found.scores)) > 2
    assert found.the_one == {"role": "assistant", "content": expected.best.text}
    assert found.scores[found.selected_index] == expected.best.score == max(found.scores)
    usage = expected.usage
    assert found.usage == GenerationUsage(usage.prompt_tokens, usage.completion_tokens, num_calls=1)


def test_scores_are_those_of_the_given_texts(selector: Watched) -> None:
    model = SelfScoringModel(selector, max_new_tokens=96)
    responses = asyncio.run(model.agenerate([user(CARROTS)] * 8))
    scores = model.score([answered(CARROTS, text) for text in texts(responses)])
    given = [candidate.score for candidate in selector.score(CARROTS, texts(responses)).candidates]
    # The activations of int8 are rounded otherwise where a text is read in one go.
    assert scores == pytest.approx(given, abs=0.3)
    assert max(scores) - min(scores) > 3


def test_self_consistency_picks_an_answer_that_most_candidates_give(selector: Watched) -> None:
    answer = answer_task("exact").extract
    model = SelfScoringModel(selector, max_new_tokens=96)
    found = SelfConsistency(answer, orchestrator=BatchOrchestrator()).infer(
        model, CARROTS, budget=8, return_response_only=False
    )
    assert selector.picks == [(8, 0)]
    expected = written(selector.pick(CARROTS, n=8, max_new_tokens=96))
    assert texts(found.responses) == expected
    counts = Counter(map(answer, expected))
    assert found.response_counts == counts
    assert len(counts) > 1
    assert counts[answer(found.the_one["content"])] == max(counts.values())


@pytest.mark.parametrize("name", list(ANSWER_TASKS))
def test_answers_of_every_task_vote_whatever_was_written(selector: Watched, name: str) -> None:
    """A response of a token or two has no answer, which counts as one more that differs from all others."""
    model = SelfScoringModel(selector, max_new_tokens=2, temperature=5.0)
    answer = answer_task(name).extract
    found = SelfConsistency(answer, orchestrator=BatchOrchestrator()).infer(
        model, CARROTS, budget=16, return_response_only=False
    )
    assert found.response_counts == Counter(map(answer, texts(found.responses)))


def test_an_answer_that_raises_reaches_the_caller_and_nothing_stays_under_way(selector: Watched) -> None:
    def failing(text: str) -> str:
        raise ZeroDivisionError(text)

    task = AnswerTask("own", failing, failing, failing)
    model = SelfScoringModel(selector, max_new_tokens=8)
    voting = SelfConsistency(task.extract, orchestrator=BatchOrchestrator())
    with pytest.raises(ZeroDivisionError):
        voting.infer(model, CARROTS, budget=4)
    assert selector.engine.is_idle
    assert selector.engine.failures == 0
    assert len(asyncio.run(model.agenerate([user(CARROTS)] * 2))) == 2


def test_a_special_token_stops_and_is_no_text(tmp_path: Path) -> None:
    """`<|end|>`, given by the call or by the object, where the bundle does not end at it."""
    with Selector(SMALL_STEPS, threads=1) as ending:
        whole = written(ending.pick(CARROTS, n=2, max_new_tokens=96))
    with Selector(endless_bundle(tmp_path), threads=1) as endless:
        given = SelfScoringModel(endless, max_new_tokens=96)
        assert texts(asyncio.run(given.agenerate([user(CARROTS)] * 2, stop="<|end|>"))) == whole
        own = SelfScoringModel(endless, max_new_tokens=96, stop=["<|end|>"])
        found = BestOfN(own, BatchOrchestrator()).infer(own, CARROTS, budget=2, return_response_only=False)
        assert texts(found.responses) == whole
        assert min(found.scores) > -its_hub.CUT_OFF / 2  # none was cut off
        longer = texts(asyncio.run(SelfScoringModel(endless, max_new_tokens=96).agenerate([user(CARROTS)] * 2)))
        assert longer != whole


def test_the_default_orchestrator_gets_the_same_from_a_pick_per_response(selector: Watched) -> None:
    model = SelfScoringModel(selector, max_new_tokens=24, seed=5)
    found = BestOfN(model).infer(model, CARROTS, budget=4, return_response_only=False)
    assert sorted(selector.picks) == [(1, seed) for seed in (5, 6, 7, 8)]
    assert selector.scored == []
    drawn = [selector.pick(CARROTS, n=1, max_new_tokens=24, seed=seed).best for seed in (5, 6, 7, 8)]
    # Its threads decide which response comes first.
    assert sorted(texts(found.responses)) == sorted(each.text for each in drawn)
    assert found.the_one["content"] == max(drawn, key=lambda each: each.score).text


def test_the_default_orchestrator_hands_options_over(selector: Watched) -> None:
    options: dict[str, Any] = {"stop": "-", "temperature": 0.0}
    model = SelfScoringModel(selector)
    found = texts(LMOrchestrator().generate(model, [user(CARROTS)], max_completion_tokens=20, **options))
    expected = selector.pick(CARROTS, n=1, max_new_tokens=20, **options).best
    assert found == [expected.text]
    assert expected.finish_reason == "stop"


def test_calls_differ_and_the_seed_fixes_them_all(selector: Watched) -> None:
    runs = []
    for _ in range(2):
        model = SelfScoringModel(selector, max_new_tokens=16, temperature=2.0, seed=9)
        runs.append([texts(asyncio.run(model.agenerate([user(CARROTS)] * 3))) for _ in range(2)])
    assert [seed for _, seed in selector.picks] == [9, 10, 9, 10]
    assert runs[0] == runs[1]
    assert runs[0][0] != runs[0][1]


def test_different_prompts_share_a_batch_and_equal_ones_a_pick(selector: Watched) -> None:
    model = SelfScoringModel(selector, max_new_tokens=12, seed=2)
    batch = [user(text) for text in (CARROTS, TURTLES, TURTLES, CARROTS, "Why?")]
    found = texts(asyncio.run(model.agenerate(batch)))
    assert selector.picks == [(2, 2), (2, 2), (1, 3)]
    carrots, turtles = (
        written(selector.pick(text, n=2, max_new_tokens=12, seed=2, strategy="best")) for text in (CARROTS, TURTLES)
    )
    (why,) = written(selector.pick("Why?", n=1, max_new_tokens=12, seed=3))
    assert found == [carrots[0], turtles[0], turtles[1], carrots[1], why]
    assert model.score([answered(TURTLES, turtles[1]), answered("Why?", why)]) != []
    assert selector.scored == []
    assert asyncio.run(model.agenerate([])) == []


def test_calls_at_once_have_the_seeds_that_they_have_in_turn(selector: Watched) -> None:
    model = SelfScoringModel(selector, max_new_tokens=4)

    async def both() -> None:
        first = [user(CARROTS), user(CARROTS), user(TURTLES)]
        await asyncio.gather(model.agenerate(first), model.agenerate([user(TURTLES)] * 3))

    asyncio.run(both())
    assert sorted(selector.picks) == [(1, 1), (2, 0), (3, 2)]


def test_each_conversation_may_have_its_own_temperature(selector: Watched) -> None:
    model = SelfScoringModel(selector, max_new_tokens=12, temperature=2.0)
    found = texts(asyncio.run(model.agenerate([user(CARROTS)] * 5, temperature=[0.5, 1.5, 0.5, 1.5, None])))
    picked = itertools.starmap(
        lambda seed, n, temperature: written(
            selector.pick(CARROTS, n=n, max_new_tokens=12, temperature=temperature, seed=seed)
        ),
        [(0, 2, 0.5), (1, 2, 1.5), (2, 1, 2.0)],
    )
    (cold, cold_too), (warm, warm_too), (hot,) = picked
    assert found == [cold, warm, cold_too, warm_too, hot]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"max_new_tokens": 20, "stop": ["fewer"]}),
        ({"max_completion_tokens": 5}, {"max_new_tokens": 5, "stop": ["fewer"]}),
        ({"max_tokens": 6, "stop": ":"}, {"max_new_tokens": 6, "stop": [":"]}),
        ({"stop": [":", "."], "include_stop_str_in_output": False}, {"max_new_tokens": 20, "stop": [":", "."]}),
    ],
)
def test_options_of_a_call_take_the_place_of_those_of_the_object(
    selector: Watched, options: dict[str, Any], expected: dict[str, Any]
) -> None:
    filters: dict[str, Any] = {"top_p": 0.95, "top_k": 12, "min_p": 0.01, "repetition_penalty": 4.0}
    filters["signal"] = "self_certainty"
    model = SelfScoringModel(selector, max_new_tokens=20, stop=["fewer"], seed=4, **filters)
    found = texts(asyncio.run(BatchOrchestrator().agenerate(model, [user(CARROTS)] * 3, **options)))
    picked = selector.pick(CARROTS, n=3, seed=4, strategy="best", **filters, **expected)
    assert found == written(picked)
    assert model.score(answered(CARROTS, picked.best.text)) == told(picked.best)


def test_the_filters_of_the_object_are_used(selector: Watched) -> None:
    plain = SelfScoringModel(selector, max_new_tokens=20, temperature=2.0)
    expected = selector.pick(CARROTS, n=1, max_new_tokens=20, temperature=0.0).best.text
    assert set(texts(asyncio.run(plain.agenerate([user(CARROTS)] * 4)))) != {expected}
    for option in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        narrow = SelfScoringModel(selector, max_new_tokens=20, temperature=2.0, **option)
        assert set(texts(asyncio.run(narrow.agenerate([user(CARROTS)] * 4)))) == {expected}, option


def told(candidate: Candidate) -> float:
    """Its score as its_hub hears of it."""
    return candidate.score - its_hub.CUT_OFF * candidate.cut_off


def test_the_best_of_a_batch_is_a_whole_response(selector: Watched) -> None:
    # At 37 tokens one kind of response is just whole, the other lacks its end.
    picked = selector.pick(CARROTS, n=8, max_new_tokens=37)
    assert {each.cut_off for each in picked.candidates} == {False, True}
    model = SelfScoringModel(selector, max_new_tokens=37)
    found = BestOfN(model, BatchOrchestrator()).infer(model, CARROTS, budget=8, return_response_only=False)
    assert not picked.candidates[found.selected_index].cut_off
    assert found.scores == [told(each) for each in picked.candidates]


def test_texts_of_others_are_read_prompt_by_prompt(selector: Watched) -> None:
    model = SelfScoringModel(selector, max_new_tokens=12)
    own = asyncio.run(model.agenerate(user(CARROTS)))["content"]
    asked = [(CARROTS, "So: 33"), (TURTLES, "So: 7"), (CARROTS, own), (CARROTS, "So: 41"), (CARROTS, "So: 33")]
    scores = asyncio.run(model.ascore([answered(*each) for each in asked], orchestrator=BatchOrchestrator()))
    assert selector.scored == [2, 1]
    carrots = selector.score(CARROTS, ["So: 33", "So: 41"]).candidates
    turtles = selector.score(TURTLES, ["So: 7"]).best
    live = selector.pick(CARROTS, n=1, max_new_tokens=12).best
    assert scores == [carrots[0].score, turtles.score, told(live), carrots[1].score, carrots[0].score]
    assert model.score(ChatMessages(answered(TURTLES, "So: 7"))) == turtles.score
    assert model.score([]) == []


def test_scores_of_texts_without_a_head_are_those_of_the_signal(selector: Watched) -> None:
    model = SelfScoringModel(selector, signal="mean_logprob")
    expected = selector.score(CARROTS, ["So: 33"], signal="mean_logprob").best.score
    assert model.score(answered(CARROTS, "So: 33")) == expected < 0


def test_the_oldest_scores_are_forgotten(selector: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(its_hub, "KEPT_SCORES", 2)
    model = SelfScoringModel(selector, max_new_tokens=24)
    found = [asyncio.run(model.agenerate(user(CARROTS), max_tokens=tokens))["content"] for tokens in (8, 16, 24)]
    assert len(set(found)) == 3
    model.score([answered(CARROTS, text) for text in found[1:]])
    assert selector.scored == []
    model.score([answered(CARROTS, text) for text in found])
    assert selector.scored == [1]


def test_a_text_that_was_written_twice_has_the_greater_score(
    selector: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter((1.0, 2.0, 4.0, 3.0))

    class Alike:
        def __init__(self, handle: Handle) -> None:
            self.handle = handle

        def __await__(self) -> Generator[Any, None, Selection]:
            selection = yield from self.handle.__await__()
            same = (
                dataclasses.replace(each, text="same", score=next(scores), cut_off=False)
                for each in selection.candidates
            )
            return dataclasses.replace(selection, candidates=tuple(same))

        def cancel(self) -> None:
            self.handle.cancel()

    monkeypatch.setattr(
        Watched, "submit", lambda self, *prompt, **options: Alike(Selector.submit(self, *prompt, **options))
    )
    model = SelfScoringModel(selector, max_new_tokens=4)
    for greatest in (2.0, 4.0):
        asyncio.run(model.agenerate([user(CARROTS)] * 2))
        assert model.score(answered(CARROTS, "same")) == greatest


def test_a_conversation_goes_through_the_template(selector: Watched) -> None:
    messages = [ChatMessage("system", "Be brief."), ChatMessage("user", [{"type": "text", "text": CARROTS}])]
    model = SelfScoringModel(selector, max_new_tokens=12)
    found = asyncio.run(model.agenerate(messages))["content"]
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": CARROTS}]
    expected = selector.pick(prompt, n=1, max_new_tokens=12).best
    assert found == expected.text != selector.pick(CARROTS, n=1, max_new_tokens=12).best.text
    assert model.score([*messages, ChatMessage("assistant", found)]) == told(expected)
    assert selector.scored == []


def test_a_bundle_without_a_template_takes_a_question_as_a_text() -> None:
    selector = Selector(ROOT / "models" / "stories260k", threads=1)
    model = SelfScoringModel(selector, max_new_tokens=8)
    found = BestOfN(model, BatchOrchestrator()).infer(model, "Once upon a time", budget=3)
    assert found["content"] == selector.pick("Once upon a time", n=3, max_new_tokens=8).best.text


def test_calls_that_are_cancelled_are_not_written_to_their_end(selector: Watched) -> None:
    model = SelfScoringModel(selector, max_new_tokens=24)
    # To the vote they are all the same: after four of them it has seen enough.
    algorithm = BetaSelfConsistency(0.95, lambda text: text[:0], orchestrator=BatchOrchestrator())
    found = algorithm.infer(model, CARROTS, budget=80, return_response_only=False)
    # All that have rows may come at once.
    assert 4 <= len(found.responses) <= 64
    assert any(ticket.cancelled for ticket in selector.tickets)
    # What is drawn later does not depend on how many that were.
    asyncio.run(model.agenerate(user(CARROTS)))
    assert selector.picks[-1] == (1, 80)
    # The engine obeyed before it took in that one.
    assert {ticket.state for ticket in selector.tickets} == {"closed"}
    assert selector.engine.live_rows == 0


def test_calls_at_once_share_the_batch(selector: Watched) -> None:
    model = SelfScoringModel(selector, max_new_tokens=24, seed=5)

    async def at_once() -> list[Any]:
        return await asyncio.gather(*[model.agenerate(user(CARROTS)) for _ in range(8)])

    selector.open()
    begun = selector.engine.steps
    found = texts(asyncio.run(at_once()))
    together, begun = selector.engine.steps - begun, selector.engine.steps
    one_by_one = [selector.pick(CARROTS, n=1, max_new_tokens=24, seed=seed).best.text for seed in range(5, 13)]
    assert found == one_by_one
    assert together < (selector.engine.steps - begun) / 2


def test_a_task_that_is_cancelled_cancels_its_picks(selector: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    awaited: list[Any] = []
    original = Handle.__await__

    def noted(handle: Handle) -> Generator[Any, None, Selection]:
        awaited.append(handle.ticket)
        return original(handle)

    monkeypatch.setattr(Handle, "__await__", noted)
    model = SelfScoringModel(selector, max_new_tokens=400, temperature=3.0)

    async def gives_up() -> None:
        task = asyncio.create_task(model.agenerate([user(CARROTS), user(CARROTS), user(TURTLES)]))
        while not (awaited and selector.engine.live_rows):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # The engine obeys before it takes in what comes later.
        await model.agenerate(user(CARROTS), max_tokens=1)

    asyncio.run(gives_up())
    assert [ticket.cancelled for ticket in selector.tickets] == [True, True, False]
    assert {ticket.state for ticket in selector.tickets} == {"closed"}
    assert selector.engine.live_rows == 0


def test_one_that_is_refused_cancels_those_of_its_call(selector: Watched) -> None:
    model = SelfScoringModel(selector, max_new_tokens=400, temperature=3.0)
    with pytest.raises(PromptError, match="the prompt is empty"):
        asyncio.run(model.agenerate([user(CARROTS), user(" ")]))
    assert [ticket.cancelled for ticket in selector.tickets] == [True]


@pytest.mark.parametrize(
    ("messages", "options", "complaint"),
    [
        (user("Why?"), {"tools": [{"type": "function"}]}, "tools is given"),
        (user("Why?"), {"tool_choice": "auto"}, "tool_choice is given"),
        (user("Why?"), {"response_format": {"type": "json_object"}}, "response_format is given"),
        (user("Why?"), {"include_stop_str_in_output": True}, "include_stop_str_in_output is given"),
        (user("Why?"), {"max_tokens": 3, "max_completion_tokens": 3}, "expected one of them"),
        (user("Why?"), {"temperature": [1.0, 2.0]}, "2 values for 1 conversations"),
        ([user("Why?")] * 2, {"temperature": 0.0}, "n is 2 at temperature 0"),
        ([user("Why?")], {"max_tokens": 0}, "max_new_tokens is 0"),
    ],
)
def test_what_cannot_be_honored_is_refused(
    selector: Watched, messages: Any, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InvalidOptionError, match=complaint):
        asyncio.run(SelfScoringModel(selector).agenerate(messages, **options))


def test_an_option_that_is_not_known_is_refused(selector: Watched) -> None:
    with pytest.raises(TypeError, match="logit_bias"):
        asyncio.run(SelfScoringModel(selector).agenerate_single(user("Why?"), logit_bias={}))


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        (answered("Why?", "Because"), "would have to be continued"),
        ([ChatMessage("user", [{"type": "image_url", "image_url": {}}])], "message 0 holds more than text"),
        ([*user("Why?"), ChatMessage("tool", "4", tool_call_id="a")], "message 1 holds more than text"),
        ([*user("Why?"), ChatMessage("assistant", None, tool_calls=[{}])], "message 1 holds more than text"),
        ([[]], "no messages"),
        (user(" "), "the prompt is empty"),
    ],
)
def test_conversations_that_cannot_be_answered_are_refused(selector: Watched, messages: Any, complaint: str) -> None:
    with pytest.raises(PromptError, match=complaint):
        asyncio.run(SelfScoringModel(selector).agenerate(messages))


@pytest.mark.parametrize("messages", [user("Why?") * 2, [ChatMessage("assistant", "Because")], [user("Why?")]])
def test_conversations_without_a_response_are_not_scored(selector: Watched, messages: Any) -> None:
    with pytest.raises(PromptError, match="expected the assistant's response after at least one message"):
        SelfScoringModel(selector).score(messages)


def test_where_its_hub_is_absent_the_error_says_how_to_get_it() -> None:
    done = subprocess.run([sys.executable, "-c", ABSENT], check=True, capture_output=True, text=True)
    assert done.stdout == (
        "swift_edge.its_hub needs the package 'its_hub', which is not installed; "
        'run: pip install "swift-edge[its-hub]"\n'
    )
