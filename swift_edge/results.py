"""What a pick gives back: candidates, the selection with all that is needed to audit it, and the events on the way.

Data only: nothing here computes a score or knows where one comes from.
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

FinishReason: TypeAlias = Literal["stop", "length", "given", "dropped"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One response to the prompt."""

    index: int
    """Place in sampling order, from 0."""
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

    @property
    def n_tokens(self) -> int:
        """Number of response tokens t."""
        return len(self.token_ids)

    @property
    def mean_logprob(self) -> float:
        """Mean log-probability of the response tokens in nats."""
        return self.logprob / len(self.token_ids)


@dataclass(frozen=True, slots=True)
class Answer:
    """What one or more candidates answer."""

    text: str
    """The answer, as its best candidate wrote it."""
    candidates: tuple[int, ...]
    """Those that give it, by index, the best first."""
    posterior: float | None
    """Probability that it is the right one, given all candidates; None without a head calibrated for answers."""

    @property
    def support(self) -> int:
        """How many candidates give it."""
        return len(self.candidates)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens read and written."""

    prompt_tokens: int
    """Tokens of the prompt, counted once: it is read once whatever the number of candidates is."""
    completion_tokens: int
    """Response tokens of all candidates."""


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


@dataclass(frozen=True, slots=True)
class Selection:
    """The candidates of one prompt, and which one was picked."""

    best: Candidate
    """The candidate that was picked."""
    candidates: tuple[Candidate, ...]
    """All candidates in sampling order."""
    ranked: tuple[Candidate, ...]
    """All candidates, the best first, those that were dropped last; equal ones stay in sampling order."""
    strategy: str
    """How the pick was made from the scores, as `selection.ranking` explains them: `best` is the greatest one."""
    signal: str | None
    """The label-free signal that scored the candidates, `mean_logprob` or `self_certainty`; None with a head."""
    p_correct: float | None
    """Calibrated probability that the pick is correct, given all candidates; None without a calibrated head."""
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
    """Whether `p_correct` is less than the confidence that was asked for: `best` is then a guess."""
    stopped_because: str | None = None
    """Why no further candidate was begun: `settled`, `max_n`, `budget_tokens` or `budget_seconds`; None where all
    candidates were begun at once and none was dropped."""
    rows: int | None = None
    """Candidates that were begun together, and at most written beside each other; None as above."""
    prompt_index: int = 0
    """Place of the prompt among those of `pick_many`, from 0."""
    warnings: tuple[str, ...] = ()
    """What the caller should know, one line each."""

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, ready for JSON; `best` is an index.

        `answers`, `abstained`, `stopped_because`, `rows`, `warnings` and a candidate's `dropped_because` are there only
        where there is something to say.
        """
        document: dict[str, Any] = {
            "best": self.best.index,
            "candidates": [
                {
                    "index": candidate.index,
                    "text": candidate.text,
                    "token_ids": list(candidate.token_ids),
                    "score": _finite(candidate.score),
                    "logprob": _finite(candidate.logprob),
                    "finish_reason": candidate.finish_reason,
                    "n_tokens": candidate.n_tokens,
                }
                | ({} if candidate.dropped_because is None else {"dropped_because": candidate.dropped_because})
                for candidate in self.candidates
            ],
            "strategy": self.strategy,
            "signal": self.signal,
            "p_correct": self.p_correct,
            "usage": asdict(self.usage),
            "timings": asdict(self.timings),
            "seed": self.seed,
            "bundle": self.bundle,
            "head": self.head,
        }
        if self.answers:
            document["answers"] = [asdict(answer) | {"support": answer.support} for answer in self.answers]
        if self.abstained:
            document["abstained"] = True
        if self.stopped_because is not None:
            document["stopped_because"] = self.stopped_because
            document["rows"] = self.rows
        if self.warnings:
            document["warnings"] = list(self.warnings)
        return document


def _finite(number: float) -> float | None:
    """A number as JSON has it: infinity and NaN, as a token of probability zero gives, are null there."""
    return number if math.isfinite(number) else None


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


@dataclass(frozen=True, slots=True)
class CandidateFinished:
    """A candidate is complete."""

    candidate: Candidate
    """The candidate, with its final score."""


@dataclass(frozen=True, slots=True)
class CandidateDropped:
    """A candidate is not written to its end."""

    candidate: Candidate
    """The candidate, with what it had and why it was dropped."""


@dataclass(frozen=True, slots=True)
class Picked:
    """Every candidate is complete or dropped; always the last event."""

    selection: Selection
    """What `Selector.pick` returns."""


Event: TypeAlias = TokenSampled | CandidateFinished | CandidateDropped | Picked
