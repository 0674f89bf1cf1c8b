"""A bundle in its_hub's algorithms: one object that writes their candidates and scores them in the same pass.

    from its_hub import BestOfN
    from swift_edge import Selector
    from swift_edge.its_hub import BatchOrchestrator, SelfScoringModel
    model = SelfScoringModel(Selector("models/small-steps"), max_new_tokens=96)
    BestOfN(model, BatchOrchestrator()).infer(model, "One day Theo owns 29 carrots. ...", budget=8)["content"]

Needs the extra `its-hub`.
"""

import asyncio
import itertools
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias, Unpack

from swift_edge.engine.model import Prompt
from swift_edge.errors import InvalidOptionError, PromptError
from swift_edge.handle import Handle
from swift_edge.options import PickOptions, SignalName, WritingInput, WritingOptions
from swift_edge.results import Selection
from swift_edge.selector import Selector
from swift_edge.system.extras import import_extra

hub: Any = import_extra("its_hub.api", "swift_edge.its_hub", "its-hub")

CUT_OFF: Final = 1e6
"""Taken off the score of a response that was cut off: it is worse than every whole one."""
KEPT_SCORES: Final = 4096
"""Scores of own responses that are remembered; each holds on to its response's text."""

Turns: TypeAlias = tuple[tuple[str, str], ...]
"""A conversation as role and text of every message."""


class SelfScoringModel(hub.AbstractLanguageModel, hub.AbstractOutcomeRewardModel):  # type: ignore[misc]
    """The language model and the outcome reward model of its_hub's algorithms, on top of one `Selector`.

    Calls that are under way at once share the rows of the selector's batch, and equal conversations of one call are one
    pick, whose candidates share the reading of the prompt too. An algorithm hands several over in one call only with
    `BatchOrchestrator`: its_hub's default calls once per response.

    >>> model = SelfScoringModel(Selector("models/small-steps"), max_new_tokens=96)
    >>> BestOfN(model, BatchOrchestrator()).infer(model, "One day Theo owns 29 carrots. ...", budget=8)
    {'role': 'assistant', 'content': '4 more: 29 - 4 = 25. 8 fewer: 25 + 8 = 33. So: \\\\boxed{33}'}
    """

    def __init__(
        self,
        selector: Selector,
        *,
        signal: SignalName | None = None,
        seed: int = 0,
        **writing: Unpack[WritingInput],
    ) -> None:
        """Take the options of picks that hold unless a call brings its own; its_hub's algorithms bring few.

        The first pick draws with `seed`, each further one with the next number: calls differ from each other, and the
        same calls in the same order give the same responses. `signal` scores by it in place of the head; all others say
        how candidates are written, see `WritingOptions`.
        """
        self._selector = selector
        # its_hub's algorithms compare answers themselves.
        self._options = WritingOptions.of(None, writing).for_pick(signal=signal, seed=seed, strategy="best")
        self._seeds = itertools.count(seed)
        self._kept: dict[tuple[Turns, str], float] = {}
        self._lock = threading.Lock()

    async def agenerate(
        self,
        messages: Any,
        stop: str | Sequence[str] | None = None,
        *,
        max_completion_tokens: int | None = None,
        max_tokens: int | None = None,
        temperature: float | Sequence[float | None] | None = None,
        include_stop_str_in_output: bool | None = None,
        tools: list[dict[str, Any]] | None = None,
        tool_choice: str | dict[str, Any] | None = None,
        response_format: dict[str, Any] | None = None,
        usage_accumulator: Any = None,
    ) -> Any:
        """Write a response to a conversation, or to each of a list of conversations; returns messages as dicts.

        Cancelling the task that waits cancels its picks.

        A conversation is a list of `its_hub.api.ChatMessage`, or a text. `temperature` may be one per conversation.
        `usage_accumulator` is told of every pick once: its prompt was read once, however many responses it has.

        Raises `InvalidOptionError` for what cannot be honored (tools, response formats, stop strings that stay), and
        for several responses at temperature 0; `PromptError` for messages with anything but text, and for a last
        message of the assistant, which would have to be continued; beyond that what `Selector.pick` raises.
        """
        _refuse(
            tools=tools,
            tool_choice=tool_choice,
            response_format=response_format,
            include_stop_str_in_output=include_stop_str_in_output,
        )
        if max_completion_tokens is not None and max_tokens is not None:
            raise InvalidOptionError(
                f"max_completion_tokens is {max_completion_tokens} and max_tokens is {max_tokens}; expected one of them"
            )
        limits = (max_completion_tokens, max_tokens, self._options.max_new_tokens)
        options = replace(
            self._options,
            max_new_tokens=next(limit for limit in limits if limit is not None),
            stop=self._options.stop if stop is None else stop,
        )
        conversations = messages if _is_batch(messages) else [messages]
        temperatures = temperature if isinstance(temperature, Sequence) else [temperature] * len(conversations)
        if len(temperatures) != len(conversations):
            raise InvalidOptionError(
                f"temperature has {len(temperatures)} values for {len(conversations)} conversations; expected one each"
            )
        picks = _picks(
            [_question(conversation) for conversation in conversations],
            [self._options.temperature if value is None else value for value in temperatures],
        )
        # Counted before anything waits: a call that is cancelled meanwhile does not change what later ones draw.
        drawn = [replace(options, temperature=shared, n=n, seed=next(self._seeds)) for shared, n in picks]
        asked = [
            _Asked(prompt, places, each)
            for each, alike in zip(drawn, picks.values(), strict=True)
            for prompt, places in alike.items()
        ]
        responses: list[dict[str, str]] = [{}] * len(conversations)
        # In a thread, as opening the bundle and reading long prompts take their time.
        handles = await asyncio.to_thread(self._submit, asked)
        try:
            for each, handle in zip(asked, handles, strict=True):
                selection = await handle
                self._keep(each.prompt, selection)
                if usage_accumulator is not None:
                    usage_accumulator.add(selection.usage.prompt_tokens, selection.usage.completion_tokens)
                for place, candidate in zip(each.places, selection.candidates, strict=True):
                    responses[place] = {"role": "assistant", "content": candidate.text}
        finally:
            for handle in handles:
                handle.cancel()
        return responses if _is_batch(messages) else responses[0]

    async def agenerate_single(
        self,
        messages: Any,
        stop: str | Sequence[str] | None = None,
        *,
        loop: asyncio.AbstractEventLoop | None = None,  # noqa: ARG002  # its_hub's orchestrator names the running one
        **options: Any,
    ) -> Any:
        """Write one response to one conversation, with the options of `agenerate`."""
        (response,) = await self.agenerate([messages], stop, **options)
        return response

    def score(self, messages: Any) -> Any:
        """Score the last message of a conversation, or of each of a list of conversations, as an answer to the others.

        What this object wrote has the score that it got then: of one text written twice, in different tokens, the
        greater one; a response that was cut off has one less than that of any whole one. Any other text is read, those
        that answer the same conversation in one `Selector.score`.
        Returns floats, larger is better. Raises `PromptError` where there is no such message; else as `Selector.score`.
        """
        conversations = messages if _is_batch(messages) else [messages]
        asked = [_response(conversation) for conversation in conversations]
        with self._lock:
            known = {each: self._kept[each] for each in asked if each in self._kept}
        unread: dict[Turns, list[str]] = {}
        for prompt, text in dict.fromkeys(asked):
            if (prompt, text) not in known:
                unread.setdefault(prompt, []).append(text)
        for prompt, texts in unread.items():
            read = self._selector.score(_prompt(prompt), texts, signal=self._options.signal, raw=self._options.raw)
            known |= {(prompt, candidate.text): candidate.score for candidate in read.candidates}
        scores = [known[each] for each in asked]
        return scores if _is_batch(messages) else scores[0]

    async def ascore(self, messages: Any, orchestrator: Any = None) -> Any:  # noqa: ARG002  # nothing to ask for
        """Do what `score` does while the event loop goes on."""
        return await asyncio.to_thread(self.score, messages)

    def _submit(self, asked: Sequence["_Asked"]) -> list[Handle]:
        """Begin all picks of a call; where one is refused, or nobody waits any more, they are cancelled."""
        handles: list[Handle] = []
        try:
            for each in asked:
                handles.append(self._selector.submit(_prompt(each.prompt), watched=False, options=each.options))
        except BaseException:
            for handle in handles:
                handle.cancel()
            raise
        return handles

    def _keep(self, prompt: Turns, selection: Selection) -> None:
        """Remember the scores, and forget the oldest."""
        with self._lock:
            for candidate in selection.candidates:
                key = prompt, candidate.text
                score = candidate.score - CUT_OFF * candidate.cut_off
                self._kept[key] = max(score, self._kept.pop(key, -math.inf))
            for key in list(self._kept)[:-KEPT_SCORES]:
                del self._kept[key]


@dataclass(frozen=True, slots=True)
class _Asked:
    """A pick of a call."""

    prompt: Turns
    """What is to be answered."""
    places: list[int]
    """Where the responses belong, one for each candidate."""
    options: PickOptions
    """How they are drawn."""


class BatchOrchestrator(hub.AbstractOrchestrator):  # type: ignore[misc]
    """Hands a language model all conversations of an algorithm's step at once, where its_hub's default calls for each.

    >>> SelfConsistency(orchestrator=BatchOrchestrator()).infer(model, "One day Theo owns 29 carrots. ...", budget=8)
    """

    async def agenerate(self, lm: Any, messages_lst: list[Any], stop: str | None = None, **options: Any) -> Any:
        """Let `lm` write a response to each conversation, with the options of its own `agenerate`."""
        return await lm.agenerate(messages_lst, stop, **options)


def _is_batch(messages: Any) -> bool:
    return isinstance(messages, list) and (not messages or isinstance(messages[0], list))


def _refuse(**options: Any) -> None:
    """Raise `InvalidOptionError` for the first option that asks for something."""
    for name, value in options.items():
        if value:
            raise InvalidOptionError(
                f"{name} is given, but a bundle writes free text, calls no tools and ends before a stop string; "
                f"leave {name} out"
            )


def _picks(
    prompts: list[Turns], temperatures: Sequence[float | None]
) -> dict[tuple[float | None, int], dict[Turns, list[int]]]:
    """Sort the places of a batch by what draws with one seed, temperature and number of responses, then by prompt."""
    alike: dict[tuple[Turns, float | None], list[int]] = {}
    for place, key in enumerate(zip(prompts, temperatures, strict=True)):
        alike.setdefault(key, []).append(place)
    picks: dict[tuple[float | None, int], dict[Turns, list[int]]] = {}
    for (prompt, temperature), places in alike.items():
        picks.setdefault((temperature, len(places)), {})[prompt] = places
    return picks


def _turns(messages: Any) -> Turns:
    """Check the messages of a conversation and keep what a bundle can read, as something that can be looked up."""
    turns = []
    for place, message in enumerate(hub.ChatMessages.from_prompt_or_messages(messages).to_chat_messages()):
        parts = message.content if isinstance(message.content, list) else []
        if message.tool_calls or message.tool_call_id or any(part.get("type") != "text" for part in parts):
            raise PromptError(f"message {place} holds more than text; a bundle reads text alone: leave the rest out")
        turns.append((message.role, message.extract_text_content()))
    if not turns:
        raise PromptError("a conversation has no messages; expected at least one")
    return tuple(turns)


def _question(messages: Any) -> Turns:
    """Take a conversation that waits for a response."""
    turns = _turns(messages)
    if turns[-1][0] == "assistant":
        raise PromptError(
            "the last message is the assistant's, which would have to be continued; expected the user's last: "
            "algorithms that go on from unfinished responses cannot run on a bundle"
        )
    return turns


def _response(messages: Any) -> tuple[Turns, str]:
    """Take the response off the end of a conversation."""
    *prompt, (role, text) = _turns(messages)
    if role != "assistant" or not prompt:
        raise PromptError(
            f"a conversation to score ends with the {role}'s message after {len(prompt)} others; "
            "expected the assistant's response after at least one message"
        )
    return tuple(prompt), text


def _prompt(turns: Turns) -> Prompt:
    # As a text, a lone question also suits a bundle that has no chat template.
    if len(turns) == 1 and turns[0][0] == "user":
        return turns[0][1]
    return [{"role": role, "content": text} for role, text in turns]
