"""What a candidate's tokens add up to: its text, its log-probability, and its score at every prefix.

Knows one candidate at a time and how it is to be ranked. Does not know the model, the rows, or the other candidates.
"""

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from swift_edge.arrays import Floats, Ids
from swift_edge.bundle.tokenizer import TextStream, Tokenizer
from swift_edge.engine.device.states import StateWeights
from swift_edge.engine.rows import Finished, Step, joined_statistics, statistics_of
from swift_edge.engine.signals import TokenStatistics, added
from swift_edge.results import Candidate, FinishReason
from swift_edge.scoring.head import RMS_EPSILON, Head, RunningScore


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

    @property
    def weights(self) -> StateWeights | None:
        """What hidden states are multiplied with where they lie; None where none are read."""
        head = self.head
        if head is None or head.feature != "hidden":
            return None
        return StateWeights(head.layers, head.state_weight, RMS_EPSILON if head.norm == "rms" else None)

    def states_of(
        self, hidden_states: Floats | None, logits: Floats | None, products: Floats | None = None
    ) -> Floats | None:
        """What the head reads of f fed tokens: hidden states `[l, f, d]`, or logits as one slice `[1, f, v]`.

        Products `[g, f]` of states that stayed on a device take their place.
        """
        if products is not None:
            return products
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
        self._logprob = added(self._logprob, statistics.logprob[rows])
        if statistics.self_certainty is not None:
            self._self_certainty = added(self._self_certainty or 0.0, statistics.self_certainty[rows])
        if self._stream is None:
            self._token_ids += token_ids
            return ""
        return "".join([self._add_text(self._stream, token_id) for token_id in token_ids])

    def add_rewards(self, token_ids: Sequence[int], gates: Floats, rewards: Floats) -> None:
        """Take what the head made of tokens that were fed, `[t]` each; nothing happens without a head.

        There may be more tokens than gates and rewards: the last one is not always fed.
        """
        if self._running is None:
            return
        if self.ranking.uncounted:
            counted = [token_id not in self.ranking.uncounted for token_id in token_ids[: len(gates)]]
            gates, rewards = gates[counted], rewards[counted]
        self._gates.append(gates)
        self._rewards.append(rewards)
        self._running.add_all(gates.tolist(), rewards.tolist())

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

    def _add_text(self, stream: TextStream, token_id: int) -> str:
        """Add a token's text and return what can be shown: nothing that may yet turn out to belong to a stop string."""
        self._token_ids.append(token_id)
        start = max(0, len(self._text) - max(map(len, self._stop), default=0) + 1)
        piece = stream.push(token_id)
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
    """Tokens of all candidates at work that are not counted yet, and states of theirs that are not scored.

    Many are counted and scored in little more time than one: picks that nobody watches let them gather, up to
    `MOST_STEPS` steps or `MOST_BYTES` of states. The numbers are the same, bit for bit. Where one step has as many
    bytes, copying them would take longer than what scoring them together saves.
    """

    MOST_STEPS: Final = 32
    MOST_BYTES: Final = 2**19

    def __init__(
        self, ranking: Ranking, growing: Mapping[int, GrowingCandidate], *, gather: bool, with_tokens: bool
    ) -> None:
        """Give rewards to `growing`, by candidate number; without `gather`, as soon as `add` is called.

        `with_tokens` gives the tokens, too; without, that is up to the caller, who needs their texts at once.
        """
        self.head_s = 0.0
        self._ranking = ranking
        self._growing = growing
        self._with_tokens = with_tokens
        self._most_steps = self.MOST_STEPS if gather else 1
        self._steps: list[tuple[Step, Floats | None]] = []
        self._bytes = 0

    def add(self, step: Step) -> None:
        """Take the tokens of a step, and count and score all that wait if it is time."""
        due = len(self._steps) + 1 >= self._most_steps
        states = None
        if self._ranking.head is not None:
            begun = time.perf_counter()
            states = self._ranking.states_of(step.hidden_states, step.logits, step.products)
            if states is not None:
                self._bytes += states.nbytes
                due = due or self._bytes >= self.MOST_BYTES
                # The loop writes its next states where these are.
                states = states if due else states.copy()
            self.head_s += time.perf_counter() - begun
        self._steps.append((step, states))
        if due:
            self.count()

    def count(self) -> None:
        """Count and score all tokens that wait."""
        steps, self._steps, self._bytes = self._steps, [], 0
        sampled = [len(step.candidates) for step, _ in steps]
        tokens = None
        if steps and self._with_tokens:
            tokens = _Gathered([step for step, _ in steps], sampled)
            for number, mine in tokens.by_candidate:
                self._growing[number].add_tokens(tokens.token_ids[mine].tolist(), tokens.statistics, mine)
        parts = [states for _, states in steps if states is not None]  # [l, f, d] or [g, f] each
        if not parts or self._ranking.head is None:
            return
        begun = time.perf_counter()
        fed = [states.shape[1] for states in parts]
        if tokens is None or fed != sampled:
            tokens = _Gathered([step for step, states in steps if states is not None], fed)
        states = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)  # [l, f, d] or [g, f]
        head = self._ranking.head
        evaluate = head.evaluate_products if states.ndim == 2 else head.evaluate
        gates, rewards = evaluate(states, tokens.by_step)
        gates, rewards = gates[tokens.order], rewards[tokens.order]  # [f], [f]
        for number, mine in tokens.by_candidate:
            self._growing[number].add_rewards(tokens.token_ids[mine].tolist(), gates[mine], rewards[mine])
        self.head_s += time.perf_counter() - begun


class _Gathered:
    """Tokens of several steps, put in the order of their candidates."""

    def __init__(self, steps: Sequence[Step], counts: Sequence[int]) -> None:
        """Take the first tokens of each step, as many as `counts` says; there are m in all."""
        taken = list(zip(steps, counts, strict=True))
        numbers = np.array([number for step, count in taken for number in step.candidates[:count]])  # [m]
        token_ids = np.concatenate([step.token_ids[:count] for step, count in taken])  # [m]
        self.order: Ids = numbers.argsort(kind="stable")  # [m]
        """Their places when they are taken step by step."""
        self.token_ids: Ids = token_ids[self.order]  # [m]
        """The tokens, int64."""
        self.by_step = joined_statistics([step.statistics for step in steps], [slice(count) for count in counts])
        """Their statistics step by step, `[m]` each."""
        self.statistics = statistics_of(self.by_step, self.order)
        """Their statistics, `[m]` each."""
        numbers = numbers[self.order]
        bounds = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
        self.by_candidate = [(int(numbers[first]), slice(first, last)) for first, last in pairwise(bounds)]
        """Each candidate's number, and which of the tokens are its own."""


def _frozen(parts: list[Floats]) -> Floats:
    """Join the parts to one array `[t]` that cannot be written to."""
    joined = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    joined.setflags(write=False)
    return joined
