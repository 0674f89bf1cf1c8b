"""What a candidate's tokens add up to: its text, its log-probability, and its score at every prefix.

Knows one candidate at a time and how it is to be ranked. Does not know the model, the rows, or the other candidates.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from swift_edge.decode import Finished, Step, joined_statistics, statistics_of
from swift_edge.head import Head, RunningScore
from swift_edge.results import Candidate, FinishReason
from swift_edge.session import Floats
from swift_edge.signals import TokenStatistics
from swift_edge.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Ranking:
    """By what candidates are ranked, and what that needs from the model: a head, or a signal without one."""

    head: Head | None
    """The head that scores; None for a signal."""
    signal: str | None
    """The label-free signal that ranks; None with a head."""
    uncounted: frozenset[int] = frozenset()
    """Token ids that the head does not score: the EOS ids, where it was trained without them."""

    @classmethod
    def by_head(cls, head: Head, eos_ids: Collection[int]) -> "Ranking":
        """Rank by a head of a model with these EOS ids."""
        return cls(head, None, frozenset(() if head.includes_eos else eos_ids))

    @property
    def layers(self) -> tuple[int, ...]:
        """Hidden states to read, transformers numbering."""
        return self.head.layers if self.head is not None and self.head.feature == "hidden" else ()

    @property
    def keep_logits(self) -> bool:
        """Whether the logits of every response token are read."""
        return self.head is not None and self.head.feature == "logits"

    @property
    def feeds_last(self) -> bool:
        """Whether the last token of a response is fed, because something is read after it."""
        return self.head is not None

    @property
    def counts_eos(self) -> bool:
        """Whether a response is scored with the EOS that ends it."""
        return self.head is not None and self.head.includes_eos

    @property
    def statistics(self) -> tuple[str, ...]:
        """Token statistics to compute beside the log-probability."""
        names = self.head.token_statistics if self.head is not None else (self.signal,)
        return tuple(name for name in ("entropy", "self_certainty") if name in names)

    def states_of(self, hidden_states: Floats | None, logits: Floats | None) -> Floats | None:
        """What the head reads of f fed tokens: hidden states `[l, f, d]`, or logits as one slice `[1, f, v]`."""
        return logits[np.newaxis] if self.keep_logits and logits is not None else hidden_states

    def evaluate(
        self, hidden_states: Floats | None, logits: Floats | None, statistics: TokenStatistics
    ) -> tuple[Floats, Floats]:
        """Gates and rewards `[f]` of the f tokens with hidden states `[l, f, d]`, or logits `[f, v]`; f is 0 without.

        `statistics` are those of the same tokens, and may go on with tokens that were not fed.
        """
        states = self.states_of(hidden_states, logits)
        if self.head is None or states is None:
            return np.zeros(0, np.float32), np.zeros(0, np.float32)
        return self.head.evaluate(states, statistics_of(statistics, slice(states.shape[1])))


class GrowingCandidate:
    """A candidate while its tokens come in, one at a time; `finish` makes it a `Candidate`."""

    def __init__(
        self, index: int, ranking: Ranking, tokenizer: Tokenizer, stop: Sequence[str] = (), *, watched: bool = False
    ) -> None:
        """Start without tokens; the text that `tokenizer` makes of them ends before the first string of `stop`.

        Unless it is `watched` or may have to stop, the text is made at the end, all at once.
        """
        self.index = index
        self.stopped = False
        self.ranking = ranking
        self._tokenizer = tokenizer
        self._stream = tokenizer.stream() if watched or stop else None
        self._stop = tuple(stop)
        self._text = ""
        self._shown = 0
        self._token_ids: list[int] = []
        self._logprob = 0.0
        self._self_certainty: float | None = None
        self._gates: list[Floats] = []
        self._rewards: list[Floats] = []
        self._running = RunningScore() if ranking.head is not None else None

    @property
    def score(self) -> float:
        """Score of the tokens so far."""
        if self._running is not None:
            return self._running.score
        total = self._self_certainty if self.ranking.signal == "self_certainty" else self._logprob
        return math.nan if total is None or not self._token_ids else total / len(self._token_ids)

    def add_tokens(self, token_ids: Sequence[int], statistics: TokenStatistics, rows: slice) -> str:
        """Take tokens and their statistics, rows `rows` of `statistics`; returns the text that is now certain."""
        # Python floats, added one by one: the same sum whether tokens come alone or together.
        self._logprob = sum(statistics.logprob[rows].tolist(), self._logprob)
        if statistics.self_certainty is not None:
            self._self_certainty = sum(statistics.self_certainty[rows].tolist(), self._self_certainty or 0.0)
        return "".join([self._add_text(token_id) for token_id in token_ids])

    def add_rewards(self, token_ids: Sequence[int], gates: Floats, rewards: Floats) -> None:
        """Take what the head made of tokens that were fed, `[t]` each; nothing happens without a head.

        There may be more tokens than gates and rewards: the last one is not always fed.
        """
        if self._running is None:
            return
        counted = [token_id not in self.ranking.uncounted for token_id in token_ids[: len(gates)]]
        gates, rewards = gates[counted], rewards[counted]
        self._gates.append(gates)
        self._rewards.append(rewards)
        for gate, reward in zip(gates.tolist(), rewards.tolist(), strict=True):
            self._running.add(gate, reward)

    @property
    def token_ids(self) -> Sequence[int]:
        """Its tokens so far."""
        return self._token_ids

    def finish(
        self, reason: FinishReason, unscored_tokens: int, text: str | None = None, dropped_because: str | None = None
    ) -> Candidate:
        """Freeze it; `text` where it is known better than from the tokens."""
        if text is None:
            text = self._whole_text()
        return Candidate(
            index=self.index,
            text=text,
            token_ids=tuple(self._token_ids),
            score=self.score,
            logprob=self._logprob,
            finish_reason="stop" if self.stopped else reason,
            unscored_tokens=unscored_tokens,
            self_certainty=None if self._self_certainty is None else self._self_certainty / len(self._token_ids),
            gates=_frozen(self._gates) if self._running is not None else None,
            rewards=_frozen(self._rewards) if self._running is not None else None,
            dropped_because=dropped_because,
        )

    def finish_at(self, end: Finished | None) -> Candidate:
        """Freeze it where the loop ended it; None where a stop string did."""
        return self.finish("stop", 0) if end is None else self.finish(end.finish_reason, end.unscored_tokens)

    def _whole_text(self) -> str:
        if self._stream is None:
            return self._tokenizer.decode_response(self._token_ids)
        return self._text if self.stopped else self._text + self._stream.finish()

    def _add_text(self, token_id: int) -> str:
        """Add a token's text and return what can be shown: nothing that may yet turn out to belong to a stop string."""
        self._token_ids.append(token_id)
        if self._stream is None:
            return ""
        start = max(0, len(self._text) - max(map(len, self._stop), default=0) + 1)
        piece = self._stream.push(token_id)
        self._text += piece
        # The stream may hold back bytes that already spell a stop string.
        text = self._text if piece or not self._stop else self._tokenizer.decode_response(self._token_ids)
        ends = [end for end in (text.find(stop, start) for stop in self._stop) if end >= 0]
        if ends:
            self.stopped = True
            self._text = text[: min(ends)]
            certain = len(self._text)
        else:
            certain = len(self._text) - self._held_back()
        piece = self._text[self._shown : certain]
        self._shown = max(self._shown, certain)
        return piece

    def _held_back(self) -> int:
        """Characters at the end that a stop string could begin with."""
        return max(
            (
                length
                for stop in self._stop
                for length in range(1, min(len(stop), len(self._text) + 1))
                if self._text.endswith(stop[:length])
            ),
            default=0,
        )


class PendingTokens:
    """Tokens that were fed and are not scored yet, of all candidates at work.

    Many tokens are scored in little more time than one: picks that nobody watches let them gather, up to
    `MOST_STEPS` steps or `MOST_BYTES` of states. The numbers are the same, bit for bit.
    """

    MOST_STEPS: Final = 32
    MOST_BYTES: Final = 4 * 2**20

    def __init__(self, ranking: Ranking, growing: Mapping[int, GrowingCandidate], *, gather: bool) -> None:
        """Give rewards to `growing`, by candidate number; without `gather`, as soon as `add` is called."""
        self._ranking = ranking
        self._growing = growing
        self._most_steps = self.MOST_STEPS if gather else 1
        self._steps: list[tuple[Step, Floats]] = []
        self._bytes = 0

    def add(self, step: Step) -> None:
        """Take the tokens of a step, and score all that wait if it is time."""
        states = self._ranking.states_of(step.hidden_states, step.logits)
        if self._ranking.head is None or states is None:
            return
        self._bytes += states.nbytes
        due = len(self._steps) + 1 >= self._most_steps or self._bytes >= self.MOST_BYTES
        # The loop writes its next states where these are.
        self._steps.append((step, states if due else states.copy()))
        if due:
            self.score()

    def score(self) -> None:
        """Score all tokens that wait."""
        steps, self._steps, self._bytes = self._steps, [], 0
        if not steps or self._ranking.head is None:
            return
        fed = [slice(states.shape[1]) for _, states in steps]
        states = steps[0][1] if len(steps) == 1 else np.concatenate([states for _, states in steps], axis=1)
        statistics = joined_statistics([step.statistics for step, _ in steps], fed)
        gates, rewards = self._ranking.head.evaluate(states, statistics)  # [f], [f]
        token_ids = np.concatenate([step.token_ids[rows] for (step, _), rows in zip(steps, fed, strict=True)])
        numbers = [number for (step, _), rows in zip(steps, fed, strict=True) for number in step.candidates[rows]]
        candidates = np.array(numbers)  # [f]
        for number in dict.fromkeys(numbers):
            mine = np.flatnonzero(candidates == number)
            self._growing[number].add_rewards(token_ids[mine].tolist(), gates[mine], rewards[mine])


def _frozen(parts: list[Floats]) -> Floats:
    """Join the parts to one array `[t]` that cannot be written to."""
    joined = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    joined.setflags(write=False)
    return joined
