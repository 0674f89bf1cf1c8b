"""The public class: a prompt in, candidates written and scored in the same pass, the best one out."""

import os
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from types import TracebackType
from typing import Any, Literal, Self, Unpack, overload

from swift_edge.bundle.manifest import Bundle
from swift_edge.bundle.tokenizer import Tokenizer
from swift_edge.checks import expect
from swift_edge.engine.engine import Engine
from swift_edge.engine.model import Prompt
from swift_edge.engine.reading import RESPONSE_CHUNK_TOKENS
from swift_edge.engine.request import Reading
from swift_edge.errors import InvalidOptionError
from swift_edge.handle import Handle, Outbox, begin
from swift_edge.many_prompts import ManyPicks, in_order_of_prompts
from swift_edge.options import MOST_N, PickInput, PickOptions, SignalName
from swift_edge.results import Event, FailedPick, Selection
from swift_edge.scoring.head import Head
from swift_edge.scoring.reading import GivenTexts
from swift_edge.selection.decision import Decision
from swift_edge.selection.pick import select
from swift_edge.selection.planning import Planner
from swift_edge.system.machine import memory_for

_selectors: "weakref.WeakSet[Selector]" = weakref.WeakSet()


class Selector:
    """Opens a bundle on first use and picks the best of N responses; can be pickled, and shared between threads.

    Everything that is asked of it shares one batch, from whichever threads and coroutines it comes.

    >>> with Selector("models/stories260k") as selector:
    ...     selector.pick("Once upon a time", n=8, max_new_tokens=64).best.text
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        head: str | os.PathLike[str] | Head | None = None,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        prefix_cache_bytes: int = 0,
        rows: int | None = None,
    ) -> None:
        """Remember what to open: a bundle, a head instead of the bundle's own, providers (None: CPU) and threads.

        `prefix_cache_bytes` of memory keep what was computed for the beginnings of prompts, in blocks of 128 tokens: a
        system prompt or examples that many prompts share are then read once. Where rows are on a device, none are kept.
        `rows` bounds the candidates that are written side by side; None are 32.
        """
        self._path = _path_text("path", path)
        self._head = head if head is None or isinstance(head, Head) else _path_text("head", head)
        if isinstance(providers, str):
            providers = (providers,)
        named = isinstance(providers, Sequence) and all(isinstance(name, str) for name in providers)
        expect(providers is None or named, "providers", providers, "a list of names, or None for the CPU")
        self._providers = None if providers is None else tuple(providers)
        self._threads = threads
        self._prefix_cache_bytes = prefix_cache_bytes
        self._rows = rows
        self._lock = threading.Lock()
        self._opened: Planner | None = None
        _selectors.add(self)

    def __getstate__(self) -> tuple[Any, ...]:
        """Pickle the path and the options; the copy opens the bundle itself."""
        return self._path, self._head, self._providers, self._threads, self._prefix_cache_bytes, self._rows

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Start over from the path and the options."""
        self.__init__(*state)  # type: ignore[misc]

    def __enter__(self) -> Self:
        """Open it."""
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    @property
    def providers(self) -> tuple[str, ...]:
        """The execution providers that the session really got; opens the bundle."""
        return self._planner().model.session.providers

    @property
    def bundle(self) -> Bundle:
        """The bundle, opened and checked."""
        return self._planner().model.bundle

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to token ids and back, as picks use it; opens the bundle."""
        return self._planner().model.tokenizer

    @property
    def engine(self) -> Engine:
        """The rows and the queue that everything that is asked of it shares; opens the bundle."""
        return self._planner().model.engine

    def open(self) -> Self:
        """Open the bundle now, and not when it is first used; returns the selector. Opens one again that was closed."""
        self._planner()
        return self

    def close(self) -> None:
        """Fail what is under way and let the model go; what is asked of it later opens it again."""
        with self._lock:
            planner, self._opened = self._opened, None
        if planner is not None:
            planner.model.engine.close()

    def token_count(self, prompt: Prompt, *, raw: bool = False) -> int:
        """Tokens of a prompt, the chat template included unless it is taken `raw`; raises `PromptError`."""
        return len(self._planner().model.prompt_ids(prompt, raw=PickOptions(raw=raw).raw, feeds_last=False))

    def pick(self, prompt: Prompt, *, options: PickOptions | None = None, **changes: Unpack[PickInput]) -> Selection:
        """Sample `n` responses to `prompt`, a text or chat messages, and pick the best.

        Options come as `PickOptions`, which says what each of them means, or as keywords, which win. A response ends at
        an EOS id, before a string of `stop`, at `max_new_tokens`, or where the context is full. The same seed gives the
        same candidates, and candidate i does not depend on n, nor on what else is written at the time.

        Raises `InvalidOptionError` for options out of range or n > 1 at temperature 0, `PromptError` for a prompt that
        is empty, too long or refused by the template, `MemoryLimitError` if the rows cannot fit into memory.
        """
        return self._begin(prompt, PickOptions.of(options, changes), watched=False).result()

    def submit(
        self,
        prompt: Prompt,
        *,
        watched: bool = True,
        options: PickOptions | None = None,
        **changes: Unpack[PickInput],
    ) -> Handle:
        """Begin what `pick` does, and return at once: wait for the handle, await it, watch its events, or cancel it.

        Options and prompt are checked before. One that is not `watched` has no events but the last, and takes less
        time.
        """
        expect(isinstance(watched, bool), "watched", watched, "True or False")
        return self._begin(prompt, PickOptions.of(options, changes), watched=watched)

    def stream(
        self, prompt: Prompt, *, options: PickOptions | None = None, **changes: Unpack[PickInput]
    ) -> Iterator[Event]:
        """Do what `pick` does and tell about it: tokens with scores so far, finished candidates, `Picked` at the end.

        Options and prompt are checked before the first event is asked for; leaving early cancels the pick.
        """
        return iter(self.submit(prompt, options=PickOptions.of(options, changes)))

    @overload
    def pick_many(
        self,
        prompts: Iterable[Prompt],
        *,
        in_order: bool = False,
        on_error: Literal["raise"] = "raise",
        options: PickOptions | None = None,
        **changes: Unpack[PickInput],
    ) -> Iterator[Selection]: ...

    @overload
    def pick_many(
        self,
        prompts: Iterable[Prompt],
        *,
        in_order: bool = False,
        on_error: Literal["yield"],
        options: PickOptions | None = None,
        **changes: Unpack[PickInput],
    ) -> Iterator[Selection | FailedPick]: ...

    def pick_many(
        self,
        prompts: Iterable[Prompt],
        *,
        in_order: bool = False,
        on_error: Literal["raise", "yield"] = "raise",
        options: PickOptions | None = None,
        **changes: Unpack[PickInput],
    ) -> Iterator[Selection] | Iterator[Selection | FailedPick]:
        """Pick for every prompt; yields selections as they finish, or in the order of the prompts if `in_order`.

        All prompts share the batch: rows that end are taken over by the candidates that wait. Each selection is what
        `pick` gives for that prompt and the same options, and says by `prompt_index` which prompt it belongs to.
        Options are checked at once, prompts when their turn comes. With `on_error="raise"` no prompt is begun after one
        that fails, and its error is raised when those under way have been given, or in its place if `in_order`: a
        `list` of them would lose what it has gathered. With `"yield"` it is given as a `FailedPick`, the others go on.
        """
        asked = PickOptions.of(options, changes)
        if isinstance(prompts, (str, bytes, Mapping)):
            raise InvalidOptionError("prompts is one text or message; expected a list of prompts, or call pick")
        one_by_one = "a list of prompts, or anything else that gives some"
        expect(_iterator(prompts) is not None, "prompts", prompts, one_by_one)
        expect(isinstance(in_order, bool), "in_order", in_order, "True or False")
        expect(isinstance(on_error, str) and on_error in ("raise", "yield"), "on_error", on_error, "raise or yield")
        answered = ManyPicks(self._planner().planned(asked), prompts, raises=on_error == "raise").answered()
        return in_order_of_prompts(answered) if in_order else answered

    @memory_for("reading the answers")
    def score(
        self, prompt: Prompt, texts: Sequence[str], *, signal: SignalName | None = None, raw: bool = False
    ) -> Selection:
        """Rank given responses to `prompt`, which is read once, and each of them after it.

        The EOS is appended to a text without one if the head was trained with it. Raises as `pick` does.
        """
        asked = PickOptions(signal=signal, raw=raw)
        started = time.perf_counter()
        was_open = self._opened is not None
        planner = self._planner()
        load_s = 0.0 if was_open else time.perf_counter() - started
        model, scorer = planner.model, planner.scorer(asked.signal)
        given: list[Any] = [] if isinstance(texts, str) else list(islice(_iterator(texts) or (), MOST_N + 1))
        whole = 1 <= len(given) <= MOST_N and all(isinstance(text, str) for text in given)
        expect(whole, "texts", texts, f"a list of at least one response to rank, at most {MOST_N}")
        texts = given
        reads = scorer.reads
        prompt_ids = model.prompt_ids(prompt, raw=asked.raw, feeds_last=reads.feeds_last)  # [p]
        responses = [
            model.answer_ids(text, place, len(prompt_ids), with_eos=scorer.counts_eos)
            for place, text in enumerate(texts)
        ]
        model.session.require_memory(
            1,
            len(prompt_ids),
            max(map(len, responses)),
            layers=len(reads.all_layers),
            tokens_per_run=RESPONSE_CHUNK_TOKENS,
        )
        outbox = Outbox()
        reader = GivenTexts(scorer, model.tokenizer, len(texts), outbox.done)

        def finish() -> Selection:
            context = model.session.context_length
            candidates = tuple(
                growing.finish("given", max(0, len(prompt_ids) + len(response) - context), text)
                for growing, response, text in zip(reader.growing, responses, texts, strict=True)
            )
            read = len(prompt_ids) + sum(map(len, responses))
            timings = handle.ticket.watch.timings(load_s, time.perf_counter() - started, read, 0)
            # Texts that were not drawn from the model say nothing together: each stands for itself.
            decision = Decision.by_score(scorer.head)
            return select(planner, scorer, decision, candidates, len(prompt_ids), timings)

        handle = Handle(model.engine, Reading(prompt_ids, responses, reads), reader, outbox, finish)
        return handle.result()

    def _start_over(self) -> None:
        """Forget what is open: a fork has neither the driver's thread nor onnxruntime's."""
        self._lock = threading.Lock()
        self._opened = None

    def _planner(self) -> Planner:
        """Open everything on first use; threads that come meanwhile wait."""
        with self._lock:
            if self._opened is None:
                self._opened = Planner.open(
                    self._path, self._head, self._providers, self._threads, self._prefix_cache_bytes, self._rows
                )
            return self._opened

    def _begin(self, prompt: Prompt, options: PickOptions, *, watched: bool) -> Handle:
        """Check everything, and submit."""
        started = time.perf_counter()
        was_open = self._opened is not None
        planner = self._planner()
        load_s = 0.0 if was_open else time.perf_counter() - started
        was_settled, planning_started = planner.pace.is_settled, time.perf_counter()
        planned = planner.planned(options)
        if planner.pace.is_settled and not was_settled:
            load_s += time.perf_counter() - planning_started
        prompt_ids = planned.prompt_ids(prompt)
        return begin(planned, prompt_ids, watched=watched, started=started, load_s=load_s)


def _path_text(name: str, path: object) -> str:
    """A path as a text; raises `InvalidOptionError` for what no file can be called."""
    text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    try:
        whole = isinstance(text, str) and text != "" and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        whole = False
    expect(whole, name, path, "the path of a file or folder")
    assert isinstance(text, str)
    return text


def _iterator(values: Any) -> Iterator[object] | None:
    """What gives the values one by one; None where nothing does, whatever their type claims, as an array of no axis."""
    try:
        given: Iterator[object] = iter(values)
    except TypeError:
        return None
    return given


def _after_fork() -> None:
    for selector in list(_selectors):
        selector._start_over()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
