"""A candidate while its tokens come in: its text, its log-probability, and its score at every prefix."""

import math
from collections.abc import Sequence

import numpy as np

from swift_edge.arrays import Floats
from swift_edge.bundle.tokenizer import TextStream, Tokenizer
from swift_edge.engine.request import Finished
from swift_edge.engine.signals import TokenStatistics, added
from swift_edge.results import Candidate, FinishReason, was_cut_off
from swift_edge.scoring.head import RunningScore
from swift_edge.scoring.known import Opening
from swift_edge.scoring.scorer import Scorer


class GrowingCandidate:
    """A candidate while its tokens come in, one at a time; `finish` makes it a `Candidate`."""

    def __init__(
        self, index: int, scorer: Scorer, tokenizer: Tokenizer, stop: Sequence[str] = (), *, watched: bool = False
    ) -> None:
        """Start without tokens; the text that `tokenizer` makes of them ends before the first string of `stop`.

        Unless it is `watched` or has stop strings, the text is made at the end, all at once.
        """
        self.index = index
        self.stopped = False
        self.scorer = scorer
        self._tokenizer = tokenizer
        self._stream = tokenizer.stream() if watched or stop else None
        self._stop = tuple(stop)
        self._longest_stop = max(map(len, self._stop), default=0)
        # Special tokens leave no text: stop strings that have some are looked for where they are written out.
        special = tuple(each for each in stop if tokenizer.spells_special(each))
        self._spelled = SpelledText(tokenizer, special) if special else None
        self._text = ""
        self._shown = 0
        self._token_ids: list[int] = []
        self._logprob = 0.0
        self._self_certainty: float | None = None
        self._gates: list[Floats] = []
        self._rewards: list[Floats] = []
        self._running = RunningScore() if scorer.head is not None else None
        self._opening = None if scorer.known is None else Opening(scorer.known, scorer.uncounted)

    @property
    def score(self) -> float:
        """Score of the tokens so far."""
        if self._running is not None:
            return self._running.score
        total = self._self_certainty if self.scorer.signal == "self_certainty" else self._logprob
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
        """Take the head's gates and rewards of tokens that were fed, `[t]` each; does nothing without a head.

        There may be more tokens than gates and rewards: the last one is not always fed.
        """
        if self._running is None:
            return
        if self.scorer.uncounted:
            counted = [token_id not in self.scorer.uncounted for token_id in token_ids[: len(gates)]]
            gates, rewards = gates[counted], rewards[counted]
        self._gates.append(gates)
        self._rewards.append(rewards)
        self._running.add_all(gates.tolist(), rewards.tolist())

    def add_states(self, token_ids: Sequence[int], states: Floats) -> None:
        """Take the states of tokens that were fed, `[m, d]`, of the layer by which the head knows what is foreign."""
        if self._opening is not None:
            self._opening.add(token_ids, states)

    @property
    def last_gate_and_reward(self) -> tuple[float | None, float | None]:
        """Gate and reward of the last token; None if it is not scored."""
        if self._running is None or self._running.tokens != len(self._token_ids):
            return None, None
        return float(self._gates[-1][-1]), float(self._rewards[-1][-1])

    @property
    def token_ids(self) -> Sequence[int]:
        """Its tokens so far."""
        return self._token_ids

    def finish(
        self, reason: FinishReason, unscored_tokens: int, text: str | None = None, dropped_because: str | None = None
    ) -> Candidate:
        """Make it a `Candidate`; `text`, if given, replaces that of the tokens."""
        if text is None:
            text = self._whole_text()
        reason = "stop" if self.stopped else reason
        return Candidate(
            index=self.index,
            text=text,
            token_ids=tuple(self._token_ids),
            score=self.score,
            logprob=self._logprob,
            finish_reason=reason,
            unscored_tokens=unscored_tokens,
            self_certainty=None if self._self_certainty is None else self._self_certainty / len(self._token_ids),
            gates=_frozen(self._gates) if self._running is not None else None,
            rewards=_frozen(self._rewards) if self._running is not None else None,
            dropped_because=dropped_because,
            distance=None if self._opening is None else self._opening.distance,
            cut_off=was_cut_off(reason, can_end=bool(self._stop or self._tokenizer.eos_ids)),
        )

    def finish_at(self, end: Finished | None) -> Candidate:
        """Make it a `Candidate` that ended as `end` says; None if a stop string ended it."""
        return self.finish("stop", 0) if end is None else self.finish(end.finish_reason, end.unscored_tokens)

    def _whole_text(self) -> str:
        if self._stream is None:
            return self._tokenizer.decode_response(self._token_ids)
        return self._text if self.stopped else self._text + self._stream.finish()

    def _add_text(self, stream: TextStream, token_id: int) -> str:
        """Add a token's text; returns the text that can be shown, without what may turn out to begin a stop string."""
        self._token_ids.append(token_id)
        start = max(0, len(self._text) - self._longest_stop + 1)
        piece = stream.push(token_id)
        self._text += piece
        # The stream may hold back bytes that already spell a stop string.
        text = self._text if piece or not self._stop else self._tokenizer.decode_response(self._token_ids)
        ends = [end for end in (text.find(stop, start) for stop in self._stop) if end >= 0]
        if self._spelled is not None:
            ends += self._spelled.add(token_id, text)
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
        """Number of characters at the end that may be the beginning of a stop string."""
        held = 0 if self._spelled is None else self._spelled.held_back
        return max(held, longest_beginning(self._text, self._stop))


class SpelledText:
    """A response with its special tokens written out, where stop strings that have some of them are looked for."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        """Start without tokens; `stop` are the strings to look for."""
        self._tokenizer = tokenizer
        self._stop = stop
        self._longest_stop = max(map(len, stop))
        self._spelled = ""
        self._shown: list[int] = [0]  # [characters + 1] how many characters of the response come before each of these

    def add(self, token_id: int, text: str) -> list[int]:
        """Take the next token, with which the response is `text`; returns where the response ends, if it does."""
        start = max(0, len(self._spelled) - self._longest_stop + 1)
        # Text that was incomplete with the last token may have changed since then; only what has grown is looked at.
        self._append(text[self._shown[-1] :], shown=True)
        self._append(self._tokenizer.special_text(token_id), shown=False)
        found = [place for place in (self._spelled.find(stop, start) for stop in self._stop) if place >= 0]
        return [self._shown[place] for place in found]

    @property
    def held_back(self) -> int:
        """Number of characters at the end of the response that may be the beginning of a stop string."""
        return self._shown[-1] - self._shown[len(self._spelled) - longest_beginning(self._spelled, self._stop)]

    def _append(self, text: str, *, shown: bool) -> None:
        self._spelled += text
        last = self._shown[-1]
        self._shown += [last + place * shown for place in range(1, len(text) + 1)]


def longest_beginning(text: str, stop: Sequence[str]) -> int:
    """Number of characters at the end of a text that may be the beginning of one of the stop strings."""
    longest = 0
    for each in stop:
        start = max(0, len(text) - len(each) + 1)
        # The earliest place at which the rest of the text begins the stop string.
        while (start := text.find(each[0], start, len(text) - longest)) >= 0:
            if each.startswith(text[start:]):
                longest = len(text) - start
                break
            start += 1
    return longest


def _frozen(parts: list[Floats]) -> Floats:
    """Join the parts to one read-only array `[t]`."""
    joined = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    joined.setflags(write=False)
    return joined
