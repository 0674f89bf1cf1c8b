"""What is asked of the engine, what it answers step by step, and what it is told in return."""

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
    """Hidden states, in the order in which they are wanted."""
    logits: bool = False
    """Whether the logits after each token are wanted."""
    weights: tuple[StateWeights, ...] = ()
    """What states are to be multiplied with; the products are given in this order."""
    statistics: frozenset[str] = frozenset()
    """`entropy`, `self_certainty`, both or none."""

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
        """Whether whole logits of every token are needed, to give them out or to multiply them."""
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
    """Rows that are its own until no candidate is left: those that begin, begin together. None takes rows as they
    become free, and no further candidates can be begun."""
    key: object = None
    """Whose it is: keys take turns, requests of one key are served in the order of their arrival. None stands alone."""
    key_rows: int | None = None
    """Rows that the requests of its key may have beside each other; None for as many as there are."""
    priority: int = 0
    """The greater is served first, whatever its key."""
    deadline: float | None = None
    """When it fails if it has no row by then, as `time.monotonic` counts."""


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
    """As in `Generation`, like what follows."""
    priority: int = 0
    """See there."""
    deadline: float | None = None
    """See there."""


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
    """Tokens of a request's candidates, and what the model computed when they were fed.

    A decode step has one token of each of m candidates; a chunk of a given response has m tokens of one. Hidden states
    and logits are views: they hold until the consumer returns.
    """

    candidates: tuple[int, ...]  # [m]
    """Whose tokens these are; the first f of them have been fed."""
    token_ids: Ids  # [m]
    """The tokens, int64."""
    statistics: TokenStatistics  # [m]
    """What the logits said about each token, before temperature and filters."""
    products: tuple[NDArray[np.floating], ...]  # [g, f] each
    """What the fed tokens' states come to with each of `Reads.weights`."""
    hidden_states: Floats | None  # [l, f, d]
    """Hidden states of `Reads.layers`, float32; None where none were asked for, or nothing was fed."""
    logits: Floats | None  # [f, v]
    """Logits after the fed tokens, float32; None where they were not asked for, or nothing was fed."""
    finished: tuple[Finished, ...]
    """The candidates that ended with this token."""
    batch_rows: int = 1
    """Rows that the engine decoded in this step, those of other requests included."""
    seconds: float = 0.0
    """What the whole step took."""


@dataclass(slots=True)
class Orders:
    """What a consumer wants done before the next step."""

    drop: dict[int, str] = field(default_factory=dict)
    """Candidates to drop, each with the reason; one that has ended already is no mistake."""
    begin: int = 0
    """Further candidates to begin; only for a request with rows of its own."""
    most_rows: int | None = None
    """Rows of its own that it still needs at most; None for as many as before."""


class Consumer:
    """What becomes of a request's tokens. Called by the engine's driver, one call at a time.

    What it raises fails its request, and no other.
    """

    ticket: "Ticket"
    """Its request under way; there from its submission on."""

    def begun(self, candidates: Sequence[int]) -> None:
        """Candidates are given rows, for the first time."""

    def step(self, step: Step) -> Orders | None:
        """Tokens have been written or read; None orders nothing."""
        raise NotImplementedError

    def closed(self, error: BaseException | None) -> None:
        """Nothing more will come: no candidate is left, or it failed or was cancelled, as `error` says. Called once."""


TicketState: TypeAlias = Literal["queued", "reading", "waiting", "decoding", "closed"]


class Ticket:
    """A request under way: what the caller can ask of it, and what the engine keeps of it.

    >>> ticket = engine.submit(generation, consumer)
    >>> ticket.cancel()
    """

    def __init__(
        self, request: Request, consumer: Consumer, number: int, obey: Callable[["Ticket"], None], key: object
    ) -> None:
        """Begin in the queue; `obey` tells the engine that it was cancelled."""
        self.request = request
        self.consumer = consumer
        self.number = number
        """Place in the order of arrival."""
        self.key = key
        """Whose turn it takes."""
        self.state: TicketState = "queued"
        """Where it is. Written by the driver alone."""
        self.cancelled = False
        """Whether somebody wants it ended."""
        self.watch = Stopwatch()
        """Seconds spent on it so far; a step's are shared equally by its rows."""
        self.seated_at: float | None = None
        """When its first candidate was given a row, as `time.perf_counter` counts."""
        self.waiting: Sequence[int] = range(request.candidates if isinstance(request, Generation) else 0)
        """Candidates without a row, in the order in which they will get one."""
        self.num_candidates = len(self.waiting)
        """Candidates so far, waiting ones included."""
        self.live: set[int] = set()
        """Candidates with a row."""
        self.prompt: Prefilled | None = None
        """Its prompt, as far as it has been read."""
        self.overtaken = 0
        """Rows given to others while it was first in line and its own did not fit."""
        self.chunks: Iterator[Step] | None = None
        """What is still to be read, of given responses."""
        self._obey = obey

    def cancel(self) -> None:
        """End it, from any thread and in every state: before the next step or chunk its rows are free.

        Nothing happens if it is closed already.
        """
        if self.state != "closed":
            self.cancelled = True
            self._obey(self)

    @property
    def kept_rows(self) -> int | None:
        """Rows of its own; None where it takes what is free."""
        return self.request.kept_rows if isinstance(self.request, Generation) else None

    @property
    def is_read(self) -> bool:
        """Whether its candidates can be given rows."""
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
