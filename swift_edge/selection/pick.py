"""Picks in progress: the candidates of many prompts in one batch, scored in the pass that writes them, then ranked.

This is where token ids, text, rows and scores meet. Knows requests that have been checked. Does not know where a bundle
lies, or how a prompt became token ids.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from swift_edge.arrays import Ids
from swift_edge.engine.model import OpenedModel, Options, Prompt
from swift_edge.engine.rows import DecodeLoop, Finished, Step
from swift_edge.engine.sampling import SamplingOptions
from swift_edge.engine.scheduler import ContinuousBatch
from swift_edge.engine.stopwatch import Stopwatch
from swift_edge.results import (
    Candidate,
    CandidateDropped,
    CandidateFinished,
    Event,
    Picked,
    Selection,
    Timings,
    TokenSampled,
    Usage,
)
from swift_edge.scoring.candidate import GrowingCandidate, PendingTokens, Ranking
from swift_edge.selection.adaptive.pace import LONG_PROMPT
from swift_edge.selection.adaptive.steering import Completed, Plan, Steering
from swift_edge.selection.decision import Decision
from swift_edge.system.machine import available_memory, require_available

MOST_ROWS: Final = 32
"""Rows of a batch: more hardly raise the tokens per second of two cores, and take memory."""
CANDIDATE_BYTES: Final = 4096
"""What a candidate takes beside its tokens."""
TOKEN_BYTES: Final = 64
"""What a token of a finished candidate takes: its id, gate, reward and text."""


@dataclass(frozen=True, slots=True)
class Work:
    """What all picks of a call have in common, checked."""

    opened: OpenedModel
    """The model."""
    options: Options
    """What was asked for."""
    sampling: SamplingOptions
    """How tokens are drawn, the bundle's defaults filled in."""
    ranking: Ranking
    """By what candidates are scored."""
    plan: Plan
    """How many candidates there are, which are dropped, and how the pick is made."""
    bundle: str
    """The bundle, as the caller named it."""
    eos_ids: tuple[int, ...]
    """Ids that end a response: the bundle's, or none where every response has to have the same length."""


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt to pick for, checked."""

    prompt_ids: Ids  # [p]
    """The prompt, int64."""
    rows: int
    """Rows that fit into memory beside each other, `MOST_ROWS` at most."""
    started: float
    """When it was asked for, as `time.perf_counter` counts."""
    load_s: float
    """Seconds that opening the bundle took for it."""

    @classmethod
    def of(cls, work: Work, prompt: Prompt, started: float, load_s: float) -> "Request":
        """Check a prompt and the memory that answering it takes, before anything is computed."""
        prompt_ids = work.opened.prompt_ids(prompt, raw=work.options.raw, feeds_last=work.ranking.feeds_last)
        return cls.of_ids(work, prompt_ids, started, load_s)

    @classmethod
    def of_ids(cls, work: Work, prompt_ids: Ids, started: float, load_s: float) -> "Request":
        """Check the memory that answering a prompt of token ids takes."""
        session, options = work.opened.session, work.options
        # The last token may be sampled from a full context, though it cannot be fed.
        new_tokens = min(options.max_new_tokens, session.context_length - len(prompt_ids) + 1)
        available = available_memory()
        require_available(
            work.plan.most * (CANDIDATE_BYTES + new_tokens * TOKEN_BYTES),
            available,
            f"keeping {work.plan.most} candidates of up to {new_tokens} tokens",
            "ask for fewer candidates or fewer tokens",
        )
        layers = len(work.ranking.layers)
        rows = session.fitting_rows(MOST_ROWS, len(prompt_ids), new_tokens, available, layers=layers)
        return cls(prompt_ids, rows, started, load_s)


def pick_each(work: Work, requests: Iterator[Request], *, watched: bool) -> Iterator[tuple[int, Event]]:
    """Pick for one request after another, as many at a time as fill the rows.

    Yields events with the number of the request, counted from 0; `Picked` is a request's last one. Not `watched`, it
    tells the picks alone, and scores many tokens at a time. An error of `requests` is raised when the picks in progress
    are done.
    """
    return _Loop(work, requests, watched).events()


class _Pick:
    """A request whose candidates wait, are written, or wait for each other."""

    def __init__(
        self,
        place: int,
        request: Request,
        work: Work,
        batch: ContinuousBatch,
        pending: PendingTokens,
        *,
        watched: bool,
    ) -> None:
        self.place = place
        self.request = request
        self.watch = Stopwatch()
        self.growing: dict[int, GrowingCandidate] = {}  # by number
        self.steering: Steering | None = None
        self._work = work
        self._batch = batch
        self._pending = pending
        self._watched = watched
        self._numbers: list[int] = []  # by index
        plan, kept_rows = work.plan, None
        if not plan.is_fixed:
            refills = work.opened.session.takes_ragged_rows
            rows = plan.rows
            if plan.long_prompt_rows is not None and len(request.prompt_ids) > LONG_PROMPT:
                rows = plan.long_prompt_rows
            plan = replace(plan, rows=min(rows, request.rows), refills=refills)
            self.steering, kept_rows = Steering(plan), plan.rows
        begun = range(plan.most if kept_rows is None else kept_rows)
        self.queued = batch.submit(request.prompt_ids, begun, work.options.seed, kept_rows=kept_rows)
        self._grow(self.queued.numbers)
        self.ends: dict[int, Finished | None] = {}
        self.candidates: dict[int, Candidate] = {}  # those that have been shown

    @property
    def is_written(self) -> bool:
        """Whether all its candidates have ended, and no more are to come."""
        ended = len(self.ends) == len(self.growing)
        return ended and (self.steering is None or self.steering.stopped_because is not None)

    def begin(self, count: int) -> dict[int, GrowingCandidate]:
        """Begin further candidates; returns them by number."""
        first = len(self.growing)
        return self._grow(self._batch.add(self.queued, range(first, first + count)))

    def score_of(self, index: int) -> float:
        """Running score of a candidate."""
        self._pending.count()
        return self.growing[self._numbers[index]].score

    def token_ids_of(self, index: int) -> Sequence[int]:
        """Tokens of a candidate so far."""
        return self.growing[self._numbers[index]].token_ids

    def drop(self, index: int, reason: str) -> Candidate:
        """End a candidate that is still written."""
        self._pending.count()
        number = self._numbers[index]
        self._batch.drop(number)
        self.ends[number] = None
        self.candidates[number] = self.growing[number].finish("dropped", 0, dropped_because=reason)
        return self.candidates[number]

    def candidate(self, number: int) -> Candidate:
        """A candidate that has ended, frozen once: its text gives out what it held back only then."""
        if number not in self.candidates:
            self.candidates[number] = self.growing[number].finish_at(self.ends[number])
        return self.candidates[number]

    def _grow(self, numbers: tuple[int, ...]) -> dict[int, GrowingCandidate]:
        work, first = self._work, len(self.growing)
        grown = {
            number: GrowingCandidate(
                index, work.ranking, work.opened.tokenizer, work.options.stop, watched=self._watched
            )
            for index, number in enumerate(numbers, start=first)
        }
        self.growing |= grown
        self._numbers += numbers
        return grown

    def finish(self) -> Selection:
        """Put together what has been written and scored."""
        work = self._work
        if self.steering is not None:
            self._batch.close(self.queued)
        candidates = tuple(map(self.candidate, self.growing))
        prompt_tokens, written = len(self.request.prompt_ids), sum(candidate.n_tokens for candidate in candidates)
        self.watch.prefill_s = self.queued.prefill_s
        total_s = time.perf_counter() - self.request.started
        timings = self.watch.timings(self.request.load_s, total_s, prompt_tokens, written)
        return select(
            work.opened,
            work.ranking,
            work.plan.decision,
            candidates,
            prompt_tokens,
            timings,
            bundle=work.bundle,
            seed=work.options.seed,
            stopped_because=None if self.steering is None else self.steering.stopped_because,
            rows=self.queued.kept_rows,
            prompt_index=self.place,
        )


class _Loop:
    """The state of `pick_each`."""

    def __init__(self, work: Work, requests: Iterator[Request], watched: bool) -> None:
        self._work = work
        self._requests = requests
        self._watched = watched
        session, ranking = work.opened.session, work.ranking
        self._decode = DecodeLoop(
            session,
            work.sampling,
            work.eos_ids,
            min(work.options.max_new_tokens, session.context_length + 1),
            layers=ranking.layers,
            keep_logits=ranking.keep_logits,
            statistics=ranking.statistics,
            weights=ranking.weights,
        )
        self._batch = ContinuousBatch(session, self._decode, rows=1, prefixes=work.opened.prefixes)
        self._picks: dict[int, _Pick] = {}  # by candidate number
        self._begun = 0
        self._error: Exception | None = None
        self._growing: dict[int, GrowingCandidate] = {}
        # Tokens that are shown, may spell a stop string or are steered by cannot wait.
        self._takes_tokens = watched or bool(work.options.stop) or not work.plan.is_fixed
        self._pending = PendingTokens(ranking, self._growing, gather=not watched, with_tokens=not self._takes_tokens)
        self._shared = Stopwatch()

    def events(self) -> Iterator[tuple[int, Event]]:
        """Decode until every pick is made."""
        self._submit()
        for step in self._batch.steps():
            self._pending.add(step)
            yield from self._take(step)
            rows_of = Counter(map(self._picks.__getitem__, step.candidates))
            self._share_time(rows_of)
            if not self._work.plan.is_fixed:
                yield from self._steer(step, rows_of)
            yield from self._finish(rows_of)
            self._submit()
        if self._error is not None:
            raise self._error

    def _submit(self) -> None:
        """Begin further picks while there is room for them."""
        while self._batch.wants_prompt and self._error is None:
            try:
                request = next(self._requests, None)
            except Exception as error:
                self._error = error
                return
            if request is None:
                return
            self._batch.rows = request.rows if self._begun == 0 else min(self._batch.rows, request.rows)
            pick = _Pick(self._begun, request, self._work, self._batch, self._pending, watched=self._watched)
            self._begun += 1
            self._growing |= pick.growing
            self._picks |= dict.fromkeys(pick.growing, pick)

    def _take(self, step: Step) -> Iterator[tuple[int, Event]]:
        """Add a token to each candidate, unless they wait to be counted, and drop those that a stop string ends."""
        finished = {end.candidate: end for end in step.finished}
        for row, number in enumerate(step.candidates if self._takes_tokens else finished):
            pick, growing = self._picks[number], self._growing[number]
            if self._takes_tokens:
                token_id = int(step.token_ids[row])
                text = growing.add_tokens([token_id], step.statistics, slice(row, row + 1))
                if self._watched:
                    yield pick.place, TokenSampled(growing.index, token_id, text, growing.score)
            if growing.stopped or number in finished:
                self._batch.drop(number)
                pick.ends[number] = finished.get(number)
                if self._watched:
                    yield pick.place, CandidateFinished(pick.candidate(number))

    def _share_time(self, rows_of: Mapping[_Pick, int]) -> None:
        """Give every pick its rows' share of the time that the step took."""
        total = Stopwatch(decode_s=self._decode.decode_s, sample_s=self._decode.sample_s, head_s=self._pending.head_s)
        rows = sum(rows_of.values())
        for pick, own in rows_of.items():
            pick.watch.add_share(total, self._shared, own / rows)
        self._shared = total

    def _steer(self, step: Step, picks: Iterable[_Pick]) -> Iterator[tuple[int, Event]]:
        """Drop and begin candidates as their picks decide."""
        for pick in picks:
            assert pick.steering is not None
            assert pick.queued.admitted is not None
            ended = [number for number in step.candidates if number in pick.growing and number in pick.ends]
            if ended:
                self._pending.count()
            live = [index for index, number in enumerate(pick.growing) if number not in pick.ends]
            orders = pick.steering.after_step(
                {index: len(pick.token_ids_of(index)) for index in live},
                dict(map(self._completed, map(pick.candidate, ended))),
                pick.score_of,
                pick.token_ids_of,
                time.perf_counter() - pick.queued.admitted + pick.queued.prefill_s + pick.request.load_s,
            )
            for index, reason in orders.drop.items():
                candidate = pick.drop(index, reason)
                if self._watched:
                    yield pick.place, CandidateDropped(candidate)
            begun = pick.begin(orders.begin)
            self._growing |= begun
            self._picks |= dict.fromkeys(begun, pick)

    def _completed(self, candidate: Candidate) -> tuple[int, Completed]:
        answer = self._work.plan.decision.answer_of(candidate.text)
        return candidate.index, Completed(candidate.n_tokens, candidate.score, answer)

    def _finish(self, picks: Iterable[_Pick]) -> Iterator[tuple[int, Event]]:
        """Give out the picks whose last candidate has ended."""
        for pick in picks:
            if not pick.is_written:
                continue
            begun_s = self._pending.head_s
            self._pending.count()
            pick.watch.head_s += self._pending.head_s - begun_s
            self._shared.head_s += self._pending.head_s - begun_s
            for number in pick.growing:
                del self._picks[number], self._growing[number]
            yield pick.place, Picked(pick.finish())


def select(
    opened: OpenedModel,
    ranking: Ranking,
    decision: Decision,
    candidates: tuple[Candidate, ...],
    prompt_tokens: int,
    timings: Timings,
    *,
    bundle: str,
    seed: int | None = None,
    stopped_because: str | None = None,
    rows: int | None = None,
    prompt_index: int = 0,
) -> Selection:
    """Decide between the candidates of a prompt and put everything together; `bundle` as the caller named it."""
    decided = decision.apply(candidates)
    ranked = tuple(candidates[index] for index in decided.ranked)
    warnings = opened.warnings
    if ranked[0].dropped_because is not None:
        warnings += (f"no candidate was written to its end, the pick neither: {ranked[0].dropped_because}",)
    return Selection(
        best=ranked[0],
        candidates=candidates,
        ranked=ranked,
        strategy=decided.strategy,
        signal=ranking.signal,
        p_correct=decided.p_correct,
        usage=Usage(prompt_tokens, sum(candidate.n_tokens for candidate in candidates)),
        timings=timings,
        seed=seed,
        bundle=bundle,
        head=None if ranking.head is None else opened.head_name,
        answers=decided.answers,
        abstained=decided.abstained,
        stopped_because=stopped_because,
        rows=rows,
        prompt_index=prompt_index,
        warnings=warnings,
    )
