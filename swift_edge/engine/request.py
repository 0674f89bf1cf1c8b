"""Requests to the engine, the steps that it answers with, and the orders that it gets back."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from swift_edge.arrays import Floats, Ids
from swift_edge.engine.kv_cache import KVCache
from swift_edge.engine.signals import TokenStatistics
from swift_edge.engine.states import StateWeights
from swift_edge.engine.stopwatch import Stopwatch
from swift_edge.options import SamplingOptions


@dataclass(frozen=True, slots=True)
class Reads:
    """What is read of every response token, beside its log-probability."""

    layers: tuple[int, ...] = ()
    """Layers whose hidden states are read, in this order."""
    logits: bool = False
    """Whether the logits after each token are read."""
    weights: tuple[StateWeights, ...] = ()
    """Weights to multiply states with; products come in this order."""
    statistics: frozenset[str] = frozenset()
    """`entropy`, `self_certainty`, both or none."""
    first_tokens: int | None = None
    """Tokens of a written response after which its `layers` need not be handed out any more; None for all."""

    @property
    def feeds_last(self) -> bool:
        """Whether the last token of a response is fed, because something is read after it."""
        return bool(self.layers or self.logits or self.weights)

    @property
    def all_layers(self) -> tuple[int, ...]:
        """Every hidden state that is needed, ascending."""
        return tuple(sorted(set(self.layers).union(*(each.layers for each in self.weights))))

    @property
    def needs_logits(self) -> bool:
        """Whether all logits of every token are needed, to hand them out or to multiply them."""
        return self.logits or any(not each.layers for each in self.weights)


@dataclass(frozen=True, slots=True)
class Generation:
    """A prompt and the candidates to write for it."""

    prompt_ids: Ids  # [p]
    """The prompt, int64."""
    sampling: SamplingOptions
    """How tokens are drawn."""
    candidates: int
    """Candidates to begin with, numbered from 0; candidate i draws the random numbers of `(seed, i)`."""
    seed: int
    """Seed of the random numbers."""
    max_new_tokens: int
    """Most tokens of a candidate."""
    stop_ids: frozenset[int]
    """Token ids that end a candidate."""
    reads: Reads = field(default_factory=Reads)
    """What is read of every token."""
    kept_rows: int | None = None
    """Rows that it keeps until it ends, so that candidates begin together. With None candidates take rows as these
    become free, and `Orders.begin` is not possible."""
    key: object = None
    """Owner: keys take turns, and requests of one key are served in order of arrival. None is a key of its own."""
    key_rows: int | None = None
    """Most rows that the requests of its key have at a time; None for no limit."""
    priority: int = 0
    """Greater ones are served first, whatever their keys."""
    deadline: float | None = None
    """Time by `time.monotonic` at which it fails if it has no row yet."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A prompt and given responses to read after it, each in chunks, one after the other."""

    prompt_ids: Ids  # [p]
    """The prompt, int64."""
    responses: Sequence[Sequence[int]]  # [t] each
    """Token ids of each response."""
    reads: Reads = field(default_factory=Reads)
    """What is read of every token."""
    key: object = None
    """See `Generation`."""
    priority: int = 0
    """See `Generation`."""
    deadline: float | None = None
    """See `Generation`."""


Request: TypeAlias = Generation | Reading


@dataclass(frozen=True, slots=True)
class Finished:
    """A candidate that has sampled its last token."""

    candidate: int
    """Its number in its request."""
    finish_reason: Literal["stop", "length"]
    """`stop` for a stop id, `length` for `max_new_tokens` or a full context."""
    unscored_tokens: int
    """1 if the context was full, so that the last token could not be fed; else 0."""


@dataclass(frozen=True, slots=True)
class Step:
    """New tokens of a request's candidates, and what the model computed for them.

    A decode step has one token of each of m candidates; a chunk of a given response has m tokens of one. Hidden states
    and logits are views: they hold until the consumer returns.
    """

    candidates: tuple[int, ...]  # [m]
    """The candidate of each token; the first f tokens have been fed."""
    token_ids: Ids  # [m]
    """The tokens, int64."""
    statistics: TokenStatistics  # [m]
    """What the logits said about each token, before temperature and filters."""
    products: tuple[NDArray[np.floating], ...]  # [g, f] each
    """Products of the fed tokens' states with each of `Reads.weights`."""
    hidden_states: Floats | None  # [l, f, d]
    """Hidden states of `Reads.layers`, float32; None if not asked for or no longer, or if nothing was fed."""
    logits: Floats | None  # [f, v]
    """Logits after the fed tokens, float32; None if not asked for, or if nothing was fed."""
    finished: tuple[Finished, ...]
    """The candidates that ended with this token."""
    batch_rows: int = 1
    """Rows that the engine decoded in this step, those of other requests included."""
    seconds: float = 0.0
    """Seconds that the whole step took."""


@dataclass(slots=True)
class Orders:
    """What a consumer wants done before the next step."""

    drop: dict[int, str] = field(default_factory=dict)
    """Candidates to drop, each with the reason; they may have ended already."""
    begin: int = 0
    """Further candidates to begin; only for a request with `kept_rows`."""
    most_rows: int | None = None
    """Most rows that it still needs to keep; None for as many as before."""


class Consumer:
    """Receives the steps of a request. The engine's driver makes the calls, one at a time.

    An exception that it raises fails its own request only.
    """

    ticket: "Ticket"
    """The ticket of its request, set when the request is submitted."""

    def begun(self, candidates: Sequence[int]) -> None:
        """Candidates are given rows, for the first time."""

    def step(self, step: Step) -> Orders | None:
        """Tokens have been written or read; returns orders for the engine, if any."""
        raise NotImplementedError

    def closed(self, error: BaseException | None) -> None:
        """Nothing more will come: no candidate is left, or it failed or was cancelled, as `error` says. Called once."""


TicketState: TypeAlias = Literal["queued", "reading", "waiting", "decoding", "closed"]


class Ticket:
    """A submitted request: `cancel` for the caller, and the state that the engine keeps.

    >>> ticket = engine.submit(generation, consumer)
    >>> ticket.cancel()
    """

    def __init__(
        self, request: Request, consumer: Consumer, number: int, obey: Callable[["Ticket"], None], key: object
    ) -> None:
        """Start in the queue; `obey` is called to tell the engine of a cancellation."""
        self.request = request
        self.consumer = consumer
        self.number = number
        """Place in the order of arrival."""
        self.key = key
        """The key that takes turns with others."""
        self.state: TicketState = "queued"
        """Changed by the driver alone."""
        self.cancelled = False
        """Whether `cancel` was called."""
        self.watch = Stopwatch()
        """Seconds spent on it so far; those of a step are divided equally among its rows."""
        self.seated_at: float | None = None
        """Time by `time.perf_counter` at which its first candidate was given a row."""
        self.waiting: Sequence[int] = range(request.candidates if isinstance(request, Generation) else 0)
        """Candidates without a row, in the order in which they will get one."""
        self.num_candidates = len(self.waiting)
        """Number of its candidates so far, including those that wait."""
        self.live: set[int] = set()
        """Candidates with a row."""
        self.prompt: Prefilled | None = None
        """Its prompt, as far as it has been read."""
        self.overtaken = 0
        """Rows given to others while it was first in line but did not fit."""
        self.chunks: Iterator[Step] | None = None
        """The steps still to come, of given responses."""
        self._obey = obey

    def cancel(self) -> None:
        """End the request, from any thread: its rows are free before the next step or chunk.

        Does nothing if it is closed already.
        """
        if self.state != "closed":
            self.cancelled = True
            self._obey(self)

    @property
    def kept_rows(self) -> int | None:
        """Rows that it keeps; None if it takes free ones."""
        return self.request.kept_rows if isinstance(self.request, Generation) else None

    @property
    def is_read(self) -> bool:
        """Whether its prompt has been read, so that candidates can be given rows."""
        return self.prompt is not None and self.prompt.cache.longest >= len(self.request.prompt_ids)


@dataclass(frozen=True, slots=True)
class Prefilled:
    """A prompt that has been read, ready to be copied into rows."""

    cache: KVCache
    """One row with the keys and values of the prompt."""
    logits: Floats  # [1, v]
    """Logits after the last prompt token, float32."""
    token_ids: Ids  # [p]
    """The prompt, int64."""
