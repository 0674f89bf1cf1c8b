"""What a pick gives back: candidates, the selection with all that is needed to audit it, and the events on the way.

They are data only. `repr` fits a screen; `help` shows what each field says.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from swift_edge.field_texts import show_field_texts
from swift_edge.records import finite_or_none

FinishReason: TypeAlias = Literal["stop", "length", "given", "dropped"]


def was_cut_off(finish_reason: str, *, can_end: bool) -> bool:
    """Whether the limit of tokens or a full context ended a response before its end: it is then no answer.

    `can_end` says whether it could have ended by itself, by an EOS id or a stop string: without either, the limit is
    the only end there is. Picks, stores and tests all go by this rule.
    """
    return finish_reason == "length" and can_end


def is_foreign(distance: float | None) -> bool:
    """Whether a response is too far from what a head knows for its P(correct) to mean anything; None is not known."""
    return distance is not None and distance > 1


_WIDTH = 120
"""Characters of a line of a `repr`."""
_MOST_CANDIDATES = 7
"""Candidates that the `repr` of a selection shows, the best ones."""
_MOST_OTHERS = 2
"""Answers, and warnings, that it shows."""


@show_field_texts
@dataclass(frozen=True, slots=True, repr=False)
class Candidate:
    """One response to the prompt."""

    index: int
    """Place in sampling order, from 0, as data counts; `number` is for people."""
    text: str
    """The response as text, without special tokens and without the stop string that ended it."""
    token_ids: tuple[int, ...]  # [t]
    """Every response token that was sampled, those of a stop string and the EOS included."""
    score: float
    """What it is ranked by, larger is better: the head's score, or the signal without a head."""
    logprob: float
    """Sum of the response tokens' log-probabilities in nats, at temperature 1 and before any filter."""
    finish_reason: FinishReason
    """`stop` for an EOS id or a stop string, `length` for the limit or a full context, `given` for a text to score,
    `dropped` for one that was not written to its end."""
    unscored_tokens: int = 0
    """1 if the context was full, so that the last token was never fed and the head has not seen it; else 0."""
    self_certainty: float | None = None
    """Mean self-certainty of the response tokens in nats; None where the ranking did not need it."""
    gates: NDArray[np.float32] | None = field(default=None, compare=False)  # [t]
    """Gate of every token that was scored, in (0, 1), float32; None without a head."""
    rewards: NDArray[np.float32] | None = field(default=None, compare=False)  # [t]
    """Reward of every token that was scored, float32; None without a head."""
    dropped_because: str | None = None
    """Why it was dropped; None for one that was written to its end."""
    cut_off: bool = False
    """Whether it ended by `length` though it could have ended by itself: such a response is no answer. Without EOS ids
    and stop strings, `length` is an end as good as any."""
    distance: float | None = None
    """How far its first tokens' states are from those of the head's own problems: above 1 they are foreign, as one in
    twenty of its own is. None without a head that knows."""

    @property
    def number(self) -> int:
        """Place in sampling order as people count, from 1: what reports, pages and messages call candidate 1."""
        return self.index + 1

    @property
    def is_whole(self) -> bool:
        """Whether it was written to its end: neither dropped nor cut off."""
        return self.dropped_because is None and not self.cut_off

    @property
    def is_foreign(self) -> bool:
        """Whether it is too far from what the head knows for its P(correct) to mean anything."""
        return is_foreign(self.distance)

    @property
    def n_tokens(self) -> int:
        """Number of response tokens t."""
        return len(self.token_ids)

    @property
    def mean_logprob(self) -> float:
        """Mean log-probability of the response tokens in nats."""
        return self.logprob / len(self.token_ids)

    def to_dict(self, *, tokens: bool = False) -> dict[str, Any]:
        """Everything as plain data, ready for JSON; gates and rewards with `tokens` only."""
        document: dict[str, Any] = {
            "index": self.index,
            "text": self.text,
            "token_ids": list(self.token_ids),
            "score": finite_or_none(self.score),
            "logprob": finite_or_none(self.logprob),
            "finish_reason": self.finish_reason,
            "n_tokens": self.n_tokens,
            "unscored_tokens": self.unscored_tokens,
            "self_certainty": None if self.self_certainty is None else finite_or_none(self.self_certainty),
            "dropped_because": self.dropped_because,
            "distance": None if self.distance is None else finite_or_none(self.distance),
        }
        if tokens:
            document |= {"gates": _listed(self.gates), "rewards": _listed(self.rewards)}
        return document

    def __repr__(self) -> str:
        """One line: no token ids, and the text cut short, or why it was dropped."""
        facts = f"Candidate(index={self.index}, score={self.score:.6g}, n_tokens={self.n_tokens}, "
        facts += f"finish_reason={self.finish_reason!r}, " if self.dropped_because is None else ""
        name, text = ("text", self.text) if self.dropped_because is None else ("dropped_because", self.dropped_because)
        return f"{facts}{name}={_shortened(text, _WIDTH - 7 - len(facts) - len(name))})"


@show_field_texts
@dataclass(frozen=True, slots=True, repr=False)
class Answer:
    """What one or more candidates answer."""

    text: str
    """The answer, as its best candidate wrote it."""
    candidates: tuple[int, ...]
    """Those that give it, by index, the best first."""
    posterior: float | None
    """Probability that it is the right one, given all candidates; None without a head calibrated for answers, and where
    the question is foreign to it."""

    @property
    def support(self) -> int:
        """How many candidates give it."""
        return len(self.candidates)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, ready for JSON."""
        return {
            "text": self.text,
            "candidates": list(self.candidates),
            "posterior": self.posterior,
            "support": self.support,
        }

    def __repr__(self) -> str:
        """One line: the number of its candidates only, and the text cut short."""
        posterior = "None" if self.posterior is None else f"{self.posterior:.6g}"
        return f"Answer(text={_shortened(self.text, 50)}, support={self.support}, posterior={posterior})"


@show_field_texts
@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens read and written."""

    prompt_tokens: int
    """Tokens of the prompt, counted once: it is read once whatever the number of candidates is."""
    completion_tokens: int
    """Response tokens of all candidates."""


@show_field_texts
@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went, in seconds, and tokens per second.

    Where prompts are answered side by side, a step's time is shared out equally to its rows.
    """

    load_s: float
    """Opening the bundle; 0 where it was open already."""
    prefill_s: float
    """Reading the prompt; the given texts too when texts are scored."""
    decode_s: float
    """Running the graph, token by token."""
    sample_s: float
    """Drawing tokens and their statistics."""
    head_s: float
    """Gates and rewards."""
    total_s: float
    """From the call to its result."""
    prefill_tps: float
    """Tokens read per second of `prefill_s`."""
    decode_tps: float
    """Response tokens of all candidates per second of `decode_s`, `sample_s` and `head_s`; 0 for given texts."""


@show_field_texts
@dataclass(frozen=True, slots=True, repr=False)
class Selection:
    """The candidates of one prompt, and which one was picked."""

    best: Candidate
    """The candidate that was picked."""
    candidates: tuple[Candidate, ...]
    """All candidates in sampling order."""
    ranked: tuple[Candidate, ...]
    """All candidates, the best first, after the whole ones those that were cut off, and those that were dropped last;
    equal ones stay in sampling order."""
    strategy: str
    """How the pick was made from the scores, as `selection.ranking` explains them: `best` is the greatest one."""
    signal: str | None
    """The label-free signal that scored the candidates, `mean_logprob` or `self_certainty`; None with a head."""
    p_correct: float | None
    """Calibrated probability that the pick is correct, given all candidates that were written to their ends; None
    without such a candidate, without a calibrated head, and where the question is foreign to the head (`warnings` say
    so). 0 where a task finds no answer in the pick."""
    usage: Usage
    """Tokens read and written."""
    timings: Timings
    """Where the time went."""
    seed: int | None
    """Seed of the random numbers; None where given texts were scored."""
    bundle: str
    """The bundle, as the caller named it."""
    head: str | None
    """The head that scored, as the caller named it, or its file name in the bundle; None where a signal did."""
    answers: tuple[Answer, ...] = ()
    """What the candidates answer, that of the pick first; empty where no task says how to find answers."""
    abstained: bool = False
    """Whether `p_correct` is None or less than the confidence that was asked for: `best` is then a guess."""
    stopped_because: str | None = None
    """Why no further candidate was begun: `settled`, `max_n`, `budget_tokens` or `budget_seconds`; None where all
    candidates were begun at once and none was dropped."""
    rows: int | None = None
    """Candidates that were begun together, and at most written beside each other; None as above."""
    prompt_index: int = 0
    """Place of the prompt among those of `pick_many`, from 0."""
    warnings: tuple[str, ...] = ()
    """What the caller should know, one line each."""

    def to_dict(self, *, tokens: bool = False) -> dict[str, Any]:
        """Everything as plain data, ready for JSON: always the same names, whatever there is to say.

        `best` and `ranked` are indices of `candidates`. Gates and rewards of the tokens come with `tokens` only.
        """
        return {
            "best": self.best.index,
            "ranked": [candidate.index for candidate in self.ranked],
            "candidates": [candidate.to_dict(tokens=tokens) for candidate in self.candidates],
            "answers": [answer.to_dict() for answer in self.answers],
            "strategy": self.strategy,
            "signal": self.signal,
            "p_correct": self.p_correct,
            "abstained": self.abstained,
            "stopped_because": self.stopped_because,
            "rows": self.rows,
            "warnings": list(self.warnings),
            "usage": asdict(self.usage),
            "timings": asdict(self.timings),
            "seed": self.seed,
            "bundle": self.bundle,
            "head": self.head,
            "prompt_index": self.prompt_index,
        }

    def __repr__(self) -> str:
        """At most a screen: the best candidates, a line each."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        chance = "None" if self.p_correct is None else f"{self.p_correct:.6g}"
        yield f"Selection(best={self.best.index}, p_correct={chance}, abstained={self.abstained}, ranked=("
        yield from (f"    {candidate!r}," for candidate in self.ranked[:_MOST_CANDIDATES])
        if len(self.ranked) > _MOST_CANDIDATES:
            yield f"    ... {len(self.ranked) - _MOST_CANDIDATES} more"
        for name, values in (
            ("answers", [repr(answer) for answer in self.answers[:_MOST_OTHERS]]),
            ("warnings", [_shortened(warning, _WIDTH - 7) for warning in self.warnings[:_MOST_OTHERS]]),
        ):
            more = len(getattr(self, name)) - len(values)
            yield f"  ), {name}=("
            yield from (f"    {value}," for value in values)
            if more:
                yield f"    ... {more} more"
        yield (
            f"  ), strategy={self.strategy!r}, signal={self.signal!r}, stopped_because={self.stopped_because!r}, "
            f"rows={self.rows},"
        )
        yield f"  {self.usage!r}, total_s={self.timings.total_s:.6g}, prompt_index={self.prompt_index},"
        head = None if self.head is None else _shortened(self.head, 30)
        yield f"  seed={self.seed}, bundle={_shortened(self.bundle, 30)}, head={head})"


def alike(candidates: Iterable[Candidate]) -> list[list[Candidate]]:
    """Candidates that say the same and ended alike, put together, in the order of the first of each."""
    groups: dict[tuple[str, str, str | None], list[Candidate]] = {}
    for each in candidates:
        groups.setdefault((each.text, each.finish_reason, each.dropped_because), []).append(each)
    return list(groups.values())


def _listed(values: NDArray[np.float32] | None) -> list[float | None] | None:
    return None if values is None else [finite_or_none(value) for value in values.tolist()]


def _shortened(text: str, most: int) -> str:
    """The text in quotes, at most so many characters of it."""
    shown = repr(text[:most])
    return shown if len(text) <= most and len(shown) <= most else f"{shown[: most - 4]}...{shown[0]}"


@show_field_texts
@dataclass(frozen=True, slots=True)
class CandidateBegun:
    """A candidate is given a row."""

    index: int
    """Which candidate."""


@show_field_texts
@dataclass(frozen=True, slots=True)
class TokenSampled:
    """A candidate got one more token."""

    index: int
    """Which candidate."""
    token_id: int
    """The token."""
    text: str
    """What the text grew by; empty while a character or a possible stop string is incomplete."""
    score: float
    """The candidate's score so far."""
    logprob: float = math.nan
    """The token's log-probability in nats, at temperature 1 and before any filter."""
    gate: float | None = None
    """Its gate, in (0, 1); None without a head, and where the head has not seen it."""
    reward: float | None = None
    """Its reward; None as above."""


@show_field_texts
@dataclass(frozen=True, slots=True)
class CandidateFinished:
    """A candidate is complete."""

    candidate: Candidate
    """The candidate, with its final score."""


@show_field_texts
@dataclass(frozen=True, slots=True)
class CandidateDropped:
    """A candidate is not written to its end."""

    candidate: Candidate
    """The candidate, with what it had and why it was dropped."""


@show_field_texts
@dataclass(frozen=True, slots=True)
class Picked:
    """Every candidate is complete or dropped; always the last event."""

    selection: Selection
    """What `Selector.pick` returns."""


@show_field_texts
@dataclass(frozen=True, slots=True)
class FailedPick:
    """What `pick_many` gives for a prompt that could not be answered, where it is asked to go on."""

    prompt_index: int
    """Place of the prompt, from 0."""
    error: Exception
    """What was wrong."""


Event: TypeAlias = CandidateBegun | TokenSampled | CandidateFinished | CandidateDropped | Picked
