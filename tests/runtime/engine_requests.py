"""Requests to an `Engine`, as its tests make them: what came of each is written down, step by step."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from swift_edge.engine import (
    Consumer,
    Engine,
    Finished,
    Generation,
    ModelSession,
    Orders,
    Reading,
    Reads,
    Request,
    Step,
)
from swift_edge.options import SamplingOptions

PROMPT = (1, 403, 407, 261, 378)  # "Once upon a time", for stories260k
OTHER = (1, 410, 469, 347, 398, 432, 383, 286)
SAMPLING = SamplingOptions(temperature=1.0, top_p=0.95)
WAIT_S = 60.0
"""Longer than anything here takes: what is still not there has got stuck."""


@dataclass
class Written:
    """What an engine gave for one candidate."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    self_certainties: list[float] = field(default_factory=list)
    hidden_states: list[NDArray[np.float32]] = field(default_factory=list)  # [l, d] each
    logits: list[NDArray[np.float32]] = field(default_factory=list)  # [v] each
    products: list[NDArray[Any]] = field(default_factory=list)  # [g] each, one after the other for each of the weights
    finished: Finished | None = None

    def assert_same(self, other: "Written", *, products_atol: float = 0.0) -> None:
        """Every number is the same, bit for bit; products up to a tolerance, where there is one."""
        assert (self.token_ids, self.finished) == (other.token_ids, other.finished)
        for name in ("logprobs", "entropies", "self_certainties", "hidden_states", "logits", "products"):
            mine, theirs = getattr(self, name), getattr(other, name)
            assert len(mine) == len(theirs), name
            if mine and name == "products" and products_atol:
                np.testing.assert_allclose(np.stack(mine), np.stack(theirs), rtol=0, atol=products_atol)
            elif mine:
                np.testing.assert_array_equal(np.stack(mine), np.stack(theirs), err_msg=name)


class Recorder(Consumer):
    """Writes down what becomes of a request; `acts` may order something after a step, `begins` sees who begins."""

    def __init__(
        self,
        acts: Callable[[Step], Orders | None] | None = None,
        begins: Callable[[Sequence[int]], None] | None = None,
    ) -> None:
        """Begin with nothing written."""
        self.acts = acts
        self.begins = begins
        self.written: dict[int, Written] = {}
        self.steps: list[tuple[int, ...]] = []
        """The candidates of each step."""
        self.batch_rows: list[int] = []
        """All rows at each step, those of other requests included."""
        self.began: list[tuple[int, ...]] = []
        """The candidates that were given rows together."""
        self.thread: threading.Thread | None = None
        """The thread that calls."""
        self.error: BaseException | None = None
        self.ends = 0
        self.ended = threading.Event()

    def begun(self, candidates: Sequence[int]) -> None:
        """Write down who begins."""
        self.thread = threading.current_thread()
        self.began.append(tuple(candidates))
        if self.begins is not None:
            self.begins(candidates)

    def step(self, step: Step) -> Orders | None:
        """Write down every token."""
        self.steps.append(step.candidates)
        self.batch_rows.append(step.batch_rows)
        fed = 0 if step.hidden_states is None else step.hidden_states.shape[1]
        for place, candidate in enumerate(step.candidates):
            into = self.written.setdefault(candidate, Written())
            assert into.finished is None
            into.token_ids.append(int(step.token_ids[place]))
            into.logprobs.append(float(step.statistics.logprob[place]))
            if step.statistics.entropy is not None:
                into.entropies.append(float(step.statistics.entropy[place]))
            if step.statistics.self_certainty is not None:
                into.self_certainties.append(float(step.statistics.self_certainty[place]))
            if step.hidden_states is not None and place < fed:
                into.hidden_states.append(step.hidden_states[:, place].copy())
            if step.logits is not None and place < len(step.logits):
                into.logits.append(step.logits[place].copy())
            into.products += [each[:, place].copy() for each in step.products if place < each.shape[1]]
        for end in step.finished:
            assert self.written[end.candidate].finished is None
            self.written[end.candidate].finished = end
        return None if self.acts is None else self.acts(step)

    def closed(self, error: BaseException | None) -> None:
        """Write down how it ended."""
        self.error = error
        self.ends += 1
        self.ended.set()

    def result(self) -> dict[int, Written]:
        """What was written, once all is; raises what it failed with."""
        assert self.ended.wait(WAIT_S), "the request has got stuck"
        assert self.ends == 1
        if self.error is not None:
            raise self.error
        return self.written

    @property
    def token_ids(self) -> list[list[int]]:
        """Tokens of every candidate, by number."""
        return [self.written[candidate].token_ids for candidate in sorted(self.written)]


class Held(Recorder):
    """Never ends by itself, and holds the engine in its first step: what is submitted meanwhile is there all at once.

    >>> with Held.on(engine, 2) as held:
    ...     recorder = submitted(engine, generation())
    >>> held.ticket.cancel()
    """

    def __init__(self) -> None:
        """Hold nothing yet."""
        super().__init__()
        self.holds = threading.Event()
        self._let_go = threading.Event()

    @classmethod
    def on(cls, engine: Engine, rows: int = 1) -> "Held":
        """Give it some rows of an engine."""
        held = cls()
        engine.submit(generation(n=rows, kept_rows=rows), held)
        return held

    def step(self, step: Step) -> Orders | None:
        """Wait, and begin anew what has ended."""
        if not self.holds.is_set():
            self.holds.set()
            assert self._let_go.wait(WAIT_S)
        super().step(step)
        return Orders(begin=len(step.finished))

    def __enter__(self) -> "Held":
        """Wait until the engine is held."""
        assert self.holds.wait(WAIT_S)
        return self

    def __exit__(self, *_: object) -> None:
        """Let it go on."""
        self._let_go.set()


def generation(
    prompt: Sequence[int] = PROMPT,
    n: int = 4,
    *,
    max_new_tokens: int = 24,
    stop_ids: frozenset[int] | set[int] = frozenset(),
    seed: int = 0,
    sampling: SamplingOptions = SAMPLING,
    reads: Reads | None = None,
    **more: Any,
) -> Generation:
    """A generation of small things; `more` are the other fields."""
    ids = np.array(prompt, np.int64)
    return Generation(ids, sampling, n, seed, max_new_tokens, frozenset(stop_ids), reads or Reads(), **more)


def reading(
    prompt: Sequence[int], responses: Sequence[Sequence[int]], reads: Reads | None = None, **more: Any
) -> Reading:
    """A reading of given responses; `more` are the other fields."""
    return Reading(np.array(prompt, np.int64), responses, reads or Reads(), **more)


def submitted(
    engine: Engine,
    request: Request,
    acts: Callable[[Step], Orders | None] | None = None,
    begins: Callable[[Sequence[int]], None] | None = None,
) -> Recorder:
    """Submit a request whose steps are written down."""
    recorder = Recorder(acts, begins)
    engine.submit(request, recorder)
    return recorder


def alone(session: ModelSession, request: Request, *, chunk: int = 8) -> dict[int, Written]:
    """What a request gives on an engine of its own, one candidate after the other."""
    engine = Engine(session, rows=1, chunk=chunk)
    try:
        return submitted(engine, request).result()
    finally:
        engine.close()
