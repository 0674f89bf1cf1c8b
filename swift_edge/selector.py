"""The whole path on one page: a prompt in, candidates decoded and scored in the same pass, the best one out.

What happens between the two is `picking.pick_each`, for one prompt or many; `stream` shows it, `pick` folds it.
"""

import os
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from swift_edge.bundle.manifest import Bundle
from swift_edge.engine.model import OpenedModel, Options, Prompt
from swift_edge.engine.stopwatch import Stopwatch
from swift_edge.errors import InvalidOptionError
from swift_edge.results import Event, Picked, Selection
from swift_edge.scoring.candidate import GrowingCandidate
from swift_edge.scoring.head import Head
from swift_edge.scoring.reading import CHUNK_TOKENS, read_answer
from swift_edge.selection.decision import Decision, ExternalScorer, Extractor
from swift_edge.selection.pick import Request, Work, pick_each, select


class Selector:
    """Opens a bundle on first use and picks the best of N responses; can be pickled, and shared between threads.

    >>> selector = Selector("models/stories260k")
    >>> selector.pick("Once upon a time", n=8, max_new_tokens=64).best.text
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        head: str | os.PathLike[str] | Head | None = None,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        prefix_cache_bytes: int = 0,
    ) -> None:
        """Remember what to open: a bundle, a head instead of the bundle's own, providers (None: CPU) and threads.

        `prefix_cache_bytes` of memory keep what was computed for the beginnings of prompts, in blocks of 128 tokens: a
        system prompt or examples that many prompts share are then read once. Where rows are on a device, none are kept.
        """
        self._path = os.fspath(path)
        self._head = head if head is None or isinstance(head, Head) else os.fspath(head)
        if isinstance(providers, str):
            providers = (providers,)
        self._providers = None if providers is None else tuple(providers)
        self._threads = threads
        self._prefix_cache_bytes = prefix_cache_bytes
        self._lock = threading.Lock()
        self._opened: OpenedModel | None = None

    def __getstate__(self) -> tuple[Any, ...]:
        """Pickle the path and the options; the copy opens the bundle itself."""
        return self._path, self._head, self._providers, self._threads, self._prefix_cache_bytes

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Start over from the path and the options."""
        self.__init__(*state)  # type: ignore[misc]

    @property
    def providers(self) -> tuple[str, ...]:
        """The execution providers that the session really got; opens the bundle."""
        return self._open().session.providers

    @property
    def bundle(self) -> Bundle:
        """The bundle, opened and checked."""
        return self._open().bundle

    def pick(
        self,
        prompt: Prompt,
        *,
        n: int | Literal["auto"] = 8,
        max_new_tokens: int = 512,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        stop: Sequence[str] = (),
        seed: int | None = 0,
        signal: str | None = None,
        strategy: str = "auto",
        task: str | Extractor | None = None,
        external: ExternalScorer | None = None,
        min_confidence: float | None = None,
        max_n: int | None = None,
        prune: str | Mapping[int, int] | None = None,
        budget_tokens: int | None = None,
        budget_seconds: float | None = None,
        raw: bool = False,
    ) -> Selection:
        """Sample `n` responses to `prompt`, a text or chat messages, and pick the best.

        Sampling options that are None are the bundle's own; 0 (top_k, min_p) and 1 (top_p, repetition_penalty) switch a
        filter off. A response ends at an EOS id, before a string of `stop`, at `max_new_tokens`, or where the context
        is full. The same seed gives the same candidates, and candidate i does not depend on n; None draws a seed.
        Candidates are scored by the head; `signal` scores them by `mean_logprob` or `self_certainty` instead. `raw`
        takes the prompt as it is, without the chat template.

        `strategy` says how the pick is made from the scores: `STRATEGIES` lists them. `auto` is `ranking` with external
        scores; `calibrated` with a calibrated head where answers can be found, `best-of-majority` where they can and
        the head is not calibrated; else `best`. `task` says how answers are found: one of `answers.ANSWER_TASKS`, or a
        function from a text to its answer or None; None is the task that the head was trained on. `external` is a
        function from the candidates' texts to one score each. With `min_confidence` the selection says whether the
        pick is less likely to be right than that.

        With `n="auto"` four candidates are begun, or as many as take hardly longer on this machine, and more, up to
        `max_n` (16), until an answer is as likely as `min_confidence`; without that, until what more of them could
        change is not worth their tokens. `prune` drops rows while they are written: `auto` those that the head
        calibrated on prefixes finds much less likely than the best, a schedule such as `{16: 8, 32: 4}` all but the
        best 8 at 16 tokens and all but 4 at 32, `off` none. None is `auto` with `n="auto"`, where tokens are to be
        saved, and `off` with a number. `budget_tokens` bounds the response tokens of all candidates, `budget_seconds`
        the time, but for one step and the reading of the prompt. Candidates that are dropped are in the selection, with
        the reason.

        Raises `InvalidOptionError` for options out of range or n > 1 at temperature 0, `PromptError` for a prompt that
        is empty, too long or refused by the template, `MemoryLimitError` if the rows cannot fit into memory.
        """
        options = _options(
            n=n,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            stop=stop,
            seed=seed,
            signal=signal,
            strategy=strategy,
            task=task,
            external=external,
            min_confidence=min_confidence,
            max_n=max_n,
            prune=prune,
            budget_tokens=budget_tokens,
            budget_seconds=budget_seconds,
            raw=raw,
        )
        return _last(self._events(prompt, options, watched=False))

    def pick_many(
        self,
        prompts: Iterable[Prompt],
        *,
        in_order: bool = False,
        n: int | Literal["auto"] = 8,
        max_new_tokens: int = 512,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        stop: Sequence[str] = (),
        seed: int | None = 0,
        signal: str | None = None,
        strategy: str = "auto",
        task: str | Extractor | None = None,
        external: ExternalScorer | None = None,
        min_confidence: float | None = None,
        max_n: int | None = None,
        prune: str | Mapping[int, int] | None = None,
        budget_tokens: int | None = None,
        budget_seconds: float | None = None,
        raw: bool = False,
    ) -> Iterator[Selection]:
        """Pick for every prompt; yields selections as they finish, or in the order of the prompts if `in_order`.

        All prompts share one batch: rows that end are taken over by the candidates that wait. Each selection is what
        `pick` gives for that prompt and the same options, and says by `prompt_index` which prompt it belongs to.
        Options are checked at once, prompts when their turn comes: the error of one is raised when those before it have
        been answered.
        """
        options = _options(
            n=n,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            stop=stop,
            seed=seed,
            signal=signal,
            strategy=strategy,
            task=task,
            external=external,
            min_confidence=min_confidence,
            max_n=max_n,
            prune=prune,
            budget_tokens=budget_tokens,
            budget_seconds=budget_seconds,
            raw=raw,
        )
        if isinstance(prompts, str):
            raise InvalidOptionError("prompts is one text; expected a list of prompts, or call pick")
        work = self._work(options)
        requests = (Request.of(work, prompt, time.perf_counter(), 0.0) for prompt in prompts)
        picked = (event.selection for _, event in pick_each(work, requests, watched=False) if isinstance(event, Picked))
        return _in_order(picked) if in_order else picked

    def stream(
        self,
        prompt: Prompt,
        *,
        n: int | Literal["auto"] = 8,
        max_new_tokens: int = 512,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        stop: Sequence[str] = (),
        seed: int | None = 0,
        signal: str | None = None,
        strategy: str = "auto",
        task: str | Extractor | None = None,
        external: ExternalScorer | None = None,
        min_confidence: float | None = None,
        max_n: int | None = None,
        prune: str | Mapping[int, int] | None = None,
        budget_tokens: int | None = None,
        budget_seconds: float | None = None,
        raw: bool = False,
    ) -> Iterator[Event]:
        """Do what `pick` does and tell about it: tokens with scores so far, finished candidates, `Picked` at the end.

        Options and prompt are checked before the first event is asked for.
        """
        options = _options(
            n=n,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            stop=stop,
            seed=seed,
            signal=signal,
            strategy=strategy,
            task=task,
            external=external,
            min_confidence=min_confidence,
            max_n=max_n,
            prune=prune,
            budget_tokens=budget_tokens,
            budget_seconds=budget_seconds,
            raw=raw,
        )
        return self._events(prompt, options, watched=True)

    def score(self, prompt: Prompt, texts: Sequence[str], *, signal: str | None = None, raw: bool = False) -> Selection:
        """Rank given responses to `prompt`; each is read in one go, after the prompt, which is read once.

        The EOS is appended to a text without one if the head was trained with it. Raises as `pick` does.
        """
        started = time.perf_counter()
        was_open = self._opened is not None
        opened = self._open()
        loaded = time.perf_counter()
        ranking = opened.ranking(signal)
        if isinstance(texts, str) or not (texts := list(texts)) or not all(isinstance(text, str) for text in texts):
            raise InvalidOptionError(f"texts is {texts!r}; expected a list of at least one response to rank")
        prompt_ids = opened.prompt_ids(prompt, raw=raw, feeds_last=ranking.feeds_last)  # [p]
        answers = [
            opened.answer_ids(text, place, len(prompt_ids), with_eos=ranking.counts_eos)
            for place, text in enumerate(texts)
        ]
        session = opened.session
        longest = max(map(len, answers))
        session.require_memory(1, len(prompt_ids), longest, layers=len(ranking.layers), tokens_per_run=CHUNK_TOKENS)
        begun = time.perf_counter()
        cache = session.new_cache(1, len(prompt_ids) + longest, len(prompt_ids) + longest)
        first_logits = session.prefill(cache, prompt_ids).logits  # [1, v]
        watch = Stopwatch(prefill_s=time.perf_counter() - begun)
        assert first_logits is not None
        candidates = []
        for index, (text, answer) in enumerate(zip(texts, answers, strict=True)):
            cache.truncate(len(prompt_ids))
            growing = GrowingCandidate(index, ranking, opened.tokenizer)
            read_answer(session, cache, growing, answer, first_logits, watch)
            unscored = max(0, len(prompt_ids) + len(answer) - session.context_length)
            candidates.append(growing.finish("given", unscored, text))
        read = len(prompt_ids) + sum(map(len, answers))
        timings = watch.timings(0.0 if was_open else loaded - started, time.perf_counter() - started, read, 0)
        # Texts that were not drawn from the model say nothing together: each stands for itself.
        decision = Decision.by_score(ranking.head)
        return select(opened, ranking, decision, tuple(candidates), len(prompt_ids), timings, bundle=self._path)

    def _open(self) -> OpenedModel:
        """Open everything on first use; threads that come meanwhile wait."""
        with self._lock:
            if self._opened is None:
                self._opened = OpenedModel.open(
                    self._path, self._head, self._providers, self._threads, self._prefix_cache_bytes
                )
            return self._opened

    def _work(self, options: Options) -> Work:
        """Check options against the bundle."""
        opened = self._open()
        sampling, ranking, plan = opened.verify(options)
        plan = opened.pace.applied(plan)
        return Work(opened, options, sampling, ranking, plan, self._path, opened.bundle.manifest.tokens.eos_ids)

    def _events(self, prompt: Prompt, options: Options, *, watched: bool) -> Iterator[Event]:
        """Pick for one prompt; everything is checked before the first event is asked for."""
        started = time.perf_counter()
        was_open = self._opened is not None
        pace = self._open().pace
        load_s = 0.0 if was_open else time.perf_counter() - started
        was_settled, begun = pace.is_settled, time.perf_counter()
        work = self._work(options)
        if pace.is_settled and not was_settled:
            load_s += time.perf_counter() - begun
        request = Request.of(work, prompt, started, load_s)
        return (event for _, event in pick_each(work, iter((request,)), watched=watched))


def _options(
    *,
    n: int | Literal["auto"],
    max_new_tokens: int,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    min_p: float | None,
    repetition_penalty: float | None,
    stop: Sequence[str],
    seed: int | None,
    signal: str | None,
    strategy: str,
    task: str | Extractor | None,
    external: ExternalScorer | None,
    min_confidence: float | None,
    max_n: int | None,
    prune: str | Mapping[int, int] | None,
    budget_tokens: int | None,
    budget_seconds: float | None,
    raw: bool,
) -> Options:
    """Take the options as they were given: one stop string may come alone, and a seed that is None is drawn here.

    By name, so that two of a type cannot change places, and without defaults, so that none can be forgotten.
    """
    return Options(
        n=n,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        seed=secrets.randbits(32) if seed is None else seed,
        signal=signal,
        strategy=strategy,
        task=task,
        external=external,
        min_confidence=min_confidence,
        max_n=max_n,
        prune=prune,
        budget_tokens=budget_tokens,
        budget_seconds=budget_seconds,
        raw=raw,
    )


def _last(events: Iterator[Event]) -> Selection:
    """Let a stream run to its end and keep what it picked."""
    for event in events:
        if isinstance(event, Picked):
            return event.selection
    raise AssertionError("a stream ends with Picked")


def _in_order(picked: Iterator[Selection]) -> Iterator[Selection]:
    """Keep back selections that finish before one of an earlier prompt."""
    kept: dict[int, Selection] = {}
    due = 0
    for selection in picked:
        kept[selection.prompt_index] = selection
        while due in kept:
            yield kept.pop(due)
            due += 1
