"""Features, statistics and scores by heads, gathered while the tokens of a response are fed.

`FeatureReader` takes what the model computed in a step, `GrowingFeatures` gathers it for one candidate. Both serve
decoding and the reading of given texts, so that training and serving see the same states.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from swift_edge.arrays import Floats
from swift_edge.bundle.tokenizer import Tokenizer
from swift_edge.engine.request import Reads, Step
from swift_edge.engine.signals import TokenStatistics, added
from swift_edge.errors import InvalidOptionError
from swift_edge.results import Candidate, FinishReason
from swift_edge.scoring.calibration import PREFIX_TOKENS
from swift_edge.scoring.candidate import GrowingCandidate
from swift_edge.scoring.head import RunningScore
from swift_edge.scoring.known import FIRST_TOKENS, KnownStates, Opening
from swift_edge.scoring.scorer import Scorer
from swift_edge.training.store.format import StoredFeature

READ_STATISTICS: Final = frozenset({"entropy", "self_certainty"})
"""Statistics to ask for besides the log-probability, which is always there."""


@dataclass(frozen=True, slots=True, eq=False)
class FedTokens:
    """Features and scores of f tokens that were fed."""

    states: NDArray[np.float16] | None  # [f, l, w]
    """Features; None if none are kept, or if nothing was fed. Numbers beyond float16 are infinite."""
    scored: Mapping[str, tuple[Floats, Floats]]  # [f] each
    """Gates and rewards, by the head's name."""
    looked_at: Mapping[str, Floats]  # [f, d] each
    """States by which heads tell what is foreign to them, by the head's name; empty where none are handed out."""


@dataclass(frozen=True, slots=True)
class FeatureReader:
    """Which features are kept, and which heads score the tokens."""

    feature: StoredFeature
    """Hidden states, logits, or none."""
    layers: tuple[int, ...]
    """Hidden states that are kept, ascending."""
    scorers: Mapping[str, Scorer]
    """Heads by name, each with the token ids that it does not score."""
    tokens_per_candidate: int | None = None
    """Most tokens per candidate that are kept; None keeps all."""

    @property
    def reads(self) -> Reads:
        """What the engine has to read of every token, for the features and for the heads."""
        weights = tuple(weights for each in self.scorers.values() for weights in each.reads.weights)
        first_tokens = None if self.layers else max((each.tokens for each in self._known.values()), default=None)
        return Reads(self._layers_read, self.feature == "logits", weights, READ_STATISTICS, first_tokens)

    @property
    def _known(self) -> Mapping[str, KnownStates]:
        """What the heads know, of those that say it."""
        return {name: each.known for name, each in self.scorers.items() if each.known is not None}

    @property
    def _layers_read(self) -> tuple[int, ...]:
        """Layers to keep, and those that heads look at."""
        return tuple(sorted({*self.layers, *(each.layer for each in self._known.values())}))

    def read(self, step: Step) -> FedTokens:
        """Features and scores of the fed tokens of a step."""
        scored = {
            name: each.evaluate(products, step.statistics)
            for (name, each), products in zip(self.scorers.items(), step.products, strict=False)
        }
        features, looked_at = None, dict[str, Floats]()
        if step.hidden_states is not None:
            place = {layer: number for number, layer in enumerate(self._layers_read)}
            looked_at = {name: step.hidden_states[place[each.layer]] for name, each in self._known.items()}
            features = step.hidden_states
            if len(self.layers) < len(place):
                features = features[[place[layer] for layer in self.layers]]
        if self.feature == "logits" and step.logits is not None:
            features = step.logits[np.newaxis]
        states: NDArray[np.float16] | None = None
        if self.feature != "none" and features is not None:
            with np.errstate(over="ignore"):  # the store refuses infinity and names its source
                states = np.ascontiguousarray(features.transpose(1, 0, 2), np.float16)
        return FedTokens(states, scored, looked_at)

    def kept_positions(self, tokens: int) -> NDArray[np.int32]:
        """Positions `[m]` of the tokens to keep of `tokens`: evenly spread, the last one always among them.

        Where they are many, the first ones are kept, too: by these a head tells what is foreign to it.
        """
        most = self.tokens_per_candidate
        if most is None or tokens <= most:
            return np.arange(tokens, dtype=np.int32)
        first = FIRST_TOKENS if most >= 4 * FIRST_TOKENS else 0
        spread = np.arange(1, most - first + 1, dtype=np.int64) * (tokens - first) // (most - first) - 1 + first
        return np.concatenate([np.arange(first), spread]).astype(np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class ReadCandidate:
    """A finished response with its features, statistics and scores."""

    candidate: Candidate
    """The response; its `score` is the mean self-certainty."""
    entropy: float
    """Mean entropy of the distributions its tokens were chosen from, in nats."""
    scores: Mapping[str, float]
    """Score by each head, by the head's name."""
    running: Mapping[str, tuple[float, ...]]
    """Running score by each head after each of `PREFIX_TOKENS` tokens that it has."""
    distances: Mapping[str, float]
    """How far it is from what each head knows, of those that say it."""
    positions: NDArray[np.int32]  # [m]
    """Places of the tokens that are kept."""
    statistics: NDArray[np.float32]  # [m, 3]
    """Log-probability, entropy and self-certainty of the tokens that are kept."""
    states: NDArray[np.float16]  # [m, l, w]
    """Their features; `[m, 0, 0]` where none are kept."""

    @property
    def nbytes(self) -> int:
        """Bytes that it holds, tokens and text counted roughly."""
        arrays = self.states.nbytes + self.statistics.nbytes + self.positions.nbytes
        return int(arrays) + 32 * self.candidate.n_tokens


class GrowingFeatures:
    """A response while its tokens come in; `finish` makes it a `ReadCandidate`."""

    def __init__(self, index: int, reader: FeatureReader, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        """Start without tokens; the text ends before the first string of `stop`."""
        self.index = index
        self._reader = reader
        self._growing = GrowingCandidate(index, Scorer(None, "self_certainty"), tokenizer, stop)
        self._entropy = 0.0
        self._tokens = 0
        self._statistics: list[NDArray[np.float32]] = []
        self._states: list[NDArray[np.float16]] = []
        self._running = {name: RunningScore() for name in reader.scorers}
        self._prefixes: dict[str, list[float]] = {name: [] for name in reader.scorers}
        self._openings = {
            name: Opening(each.known, each.uncounted) for name, each in reader.scorers.items() if each.known is not None
        }

    @property
    def stopped(self) -> bool:
        """Whether a stop string has been written."""
        return self._growing.stopped

    def add(self, token_ids: Sequence[int], statistics: TokenStatistics, fed: FedTokens, rows: slice) -> None:
        """Add tokens: rows `rows` of `statistics`, and those of `fed` if they were fed."""
        assert statistics.entropy is not None
        assert statistics.self_certainty is not None
        self._growing.add_tokens(token_ids, statistics, rows)
        before = self._tokens
        self._tokens += len(token_ids)
        self._entropy = added(self._entropy, statistics.entropy[rows])
        columns = (statistics.logprob[rows], statistics.entropy[rows], statistics.self_certainty[rows])
        self._statistics.append(np.stack(columns, axis=1).astype(np.float32))
        if fed.states is not None:
            self._states.append(fed.states[rows].copy())  # a view would keep the rows beside it
        for name, looked_at in fed.looked_at.items():
            self._openings[name].add(token_ids, looked_at[rows])
        for name, (gates, rewards) in fed.scored.items():
            uncounted, running = self._reader.scorers[name].uncounted, self._running[name]
            # Not strict: the last token is not always fed.
            scored = zip(token_ids, gates[rows].tolist(), rewards[rows].tolist(), strict=False)
            for count, (token_id, gate, reward) in enumerate(scored, start=before + 1):
                if token_id not in uncounted:
                    running.add(gate, reward)
                if count in PREFIX_TOKENS:
                    self._prefixes[name].append(running.score)

    def finish(self, reason: FinishReason, unscored_tokens: int, text: str | None = None) -> ReadCandidate:
        """Make it a `ReadCandidate`; `text`, if given, replaces that of the tokens."""
        statistics = np.concatenate(self._statistics)  # [t, 3]
        states = np.empty((len(statistics), 0, 0), np.float16)  # [f, l, w]
        if self._reader.feature != "none":
            states = np.concatenate(self._states)
        self._states = []
        positions = self._reader.kept_positions(len(states))
        return ReadCandidate(
            candidate=self._growing.finish(reason, unscored_tokens, text),
            entropy=self._entropy / self._tokens,
            scores={name: running.score for name, running in self._running.items()},
            running={name: tuple(scores) for name, scores in self._prefixes.items()},
            distances={
                name: distance for name, each in self._openings.items() if (distance := each.distance) is not None
            },
            positions=positions,
            statistics=statistics[positions],
            states=states if len(positions) == len(states) else states[positions],
        )


def check_layers(layers: Sequence[int] | None, exported: tuple[int, ...]) -> tuple[int, ...]:
    """The hidden states to keep, ascending; None keeps all that the bundle gives out.

    Raises `InvalidOptionError` for a layer that it does not give out, and if it gives out none.
    """
    if not exported:
        raise InvalidOptionError(
            "the bundle gives out no hidden states; collect logits with --feature logits, "
            "or export the model with swift-edge export"
        )
    if layers is None:
        return exported
    chosen = tuple(sorted(set(layers)))
    missing = [layer for layer in chosen if layer not in exported]
    if missing or not chosen:
        raise InvalidOptionError(
            f"layers are {', '.join(map(str, chosen)) or 'none'}, but the bundle gives out "
            f"{', '.join(map(str, exported))}; choose among these, or export the model again with other --layers"
        )
    return chosen
