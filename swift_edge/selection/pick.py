"""One request's candidates: tokens become texts and scores, scores and answers become a pick.

A `Pick` consumes the steps of its request in the engine's driver thread. The result is put together in the thread that
asks for it, so that the caller's own functions run there.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from swift_edge.arrays import Ids
from swift_edge.engine.engine import DEFAULT_ROWS
from swift_edge.engine.request import Consumer, Finished, Generation, Orders, Step
from swift_edge.results import (
    Candidate,
    CandidateBegun,
    CandidateDropped,
    CandidateFinished,
    Event,
    Selection,
    Timings,
    TokenSampled,
    Usage,
)
from swift_edge.scoring.buffer import TokenBuffer
from swift_edge.scoring.candidate import GrowingCandidate
from swift_edge.scoring.scorer import Scorer
from swift_edge.selection.adaptive.pace import LONG_PROMPT
from swift_edge.selection.adaptive.steering import Completed, Steering
from swift_edge.selection.decision import Decision
from swift_edge.selection.planning import PlannedPick, Planner
from swift_edge.system.machine import require_available

CANDIDATE_BYTES: Final = 4096
"""Bytes of a candidate without its tokens."""
TOKEN_BYTES: Final = 64
"""Bytes of a token of a finished candidate: its id, gate, reward and text."""


class Pick(Consumer):
    """A pick under way; the consumer of its request.

    >>> pick = Pick(planned, prompt_ids, started=time.perf_counter())
    >>> ticket = engine.submit(pick.generation, pick)
    """

    def __init__(
        self,
        planned: PlannedPick,
        prompt_ids: Ids,
        *,
        started: float,
        load_s: float = 0.0,
        prompt_index: int = 0,
        key: object = None,
        tell: Callable[[Sequence[Event]], None] | None = None,
        done: Callable[[BaseException | None], None] = lambda _: None,
    ) -> None:
        """Check that the candidates fit into memory; raises `MemoryLimitError`, with the numbers, if they never can.

        `started` is the time of the call by `time.perf_counter`, and `load_s` the seconds since then that opening the
        bundle took. The driver calls `tell` with the events of every step, and `done` once at the end.
        """
        engine, session = planned.model.engine, planned.model.session
        # The last token may be sampled from a full context, though it cannot be fed.
        new_tokens = min(planned.options.max_new_tokens, session.context_length - len(prompt_ids) + 1)
        budget = engine.budget()
        require_available(
            planned.plan.most * (CANDIDATE_BYTES + new_tokens * TOKEN_BYTES),
            budget,
            f"keeping {planned.plan.most} candidates of up to {new_tokens} tokens",
            "ask for fewer candidates or fewer tokens",
        )
        reads = planned.scorer.reads
        rows = min(
            session.fitting_rows(DEFAULT_ROWS, len(prompt_ids), new_tokens, budget, layers=len(reads.all_layers)),
            engine.most_rows,
        )
        self.steering: Steering | None = None
        self.kept_rows: int | None = None
        plan = planned.plan
        if not plan.is_fixed:
            begins = plan.rows
            if plan.long_prompt_rows is not None and len(prompt_ids) > LONG_PROMPT:
                begins = plan.long_prompt_rows
            self._plan = replace(plan, rows=min(begins, rows), refills=session.takes_ragged_rows)
            self.steering, self.kept_rows = Steering(self._plan), self._plan.rows
        self.generation = Generation(
            prompt_ids,
            planned.sampling,
            plan.most if self.kept_rows is None else self.kept_rows,
            planned.seed,
            new_tokens,
            planned.stop_ids,
            reads,
            self.kept_rows,
            key,
        )
        self._planned = planned
        self._started = started
        self._load_s = load_s
        self._prompt_index = prompt_index
        self._tell = tell
        self._done = done
        self._growing: dict[int, GrowingCandidate] = {}
        self._ends: dict[int, Finished | None] = {}
        self._candidates: dict[int, Candidate] = {}  # finished and dropped ones
        # Tokens that are shown, may spell a stop string or are steered by cannot wait.
        self._takes_tokens = tell is not None or bool(planned.options.stop) or self.steering is not None
        self._buffer = TokenBuffer(
            planned.scorer, self._growing, gather=tell is None, with_tokens=not self._takes_tokens
        )

    def begun(self, candidates: Sequence[int]) -> None:
        """Candidates were given rows: make room for their tokens."""
        planned, watched = self._planned, self._tell is not None
        for index in candidates:
            self._growing[index] = GrowingCandidate(
                index, planned.scorer, planned.model.tokenizer, planned.options.stop, watched=watched
            )
        if self._tell is not None:
            self._tell([CandidateBegun(index) for index in candidates])

    def step(self, step: Step) -> Orders | None:
        """Add a token to each candidate, and say which ones are dropped and how many begin."""
        self._buffer.add(step)
        events: list[Event] = []
        orders = Orders()
        ended = self._take(step, orders, events)
        if self.steering is not None:
            self._steer(self.steering, ended, orders, events)
        if self._tell is not None:
            self._tell(events)
        return orders

    def closed(self, error: BaseException | None) -> None:
        """Count the tokens that still wait; `selection` puts the candidates together."""
        if error is None:
            self._buffer.count()
        self._done(error)

    def _take(self, step: Step, orders: Orders, events: list[Event]) -> list[int]:
        """Add a token to each candidate, unless the buffer does that later; returns the candidates that have ended."""
        finished = {end.candidate: end for end in step.finished}
        ended = []
        for row, index in enumerate(step.candidates if self._takes_tokens else finished):
            growing = self._growing[index]
            if self._takes_tokens:
                token_id = int(step.token_ids[row])
                text = growing.add_tokens([token_id], step.statistics, slice(row, row + 1))
                if self._tell is not None:
                    logprob = float(step.statistics.logprob[row])
                    events.append(
                        TokenSampled(index, token_id, text, growing.score, logprob, *growing.last_gate_and_reward)
                    )
            if growing.stopped or index in finished:
                ended.append(index)
                orders.drop[index] = "ended"
                self._ends[index] = finished.get(index)
                if self._tell is not None:
                    events.append(CandidateFinished(self._candidate(index)))
        return ended

    def _steer(self, steering: Steering, ended: Sequence[int], orders: Orders, events: list[Event]) -> None:
        """Drop and begin candidates as the steering decides."""
        assert self.ticket.seated_at is not None
        if ended:
            self._buffer.count()
        live = [index for index in self._growing if index not in self._ends]
        decided = steering.after_step(
            {index: len(self._growing[index].token_ids) for index in live},
            dict(self._completed(index) for index in ended),
            self._score_of,
            lambda index: self._growing[index].token_ids,
            time.perf_counter() - self.ticket.seated_at + self.ticket.watch.prefill_s + self._load_s,
        )
        for index, reason in decided.drop.items():
            self._buffer.count()
            self._ends[index] = None
            self._candidates[index] = self._growing[index].finish("dropped", 0, dropped_because=reason)
            if self._tell is not None:
                events.append(CandidateDropped(self._candidates[index]))
        orders.drop |= decided.drop
        orders.begin = decided.begin
        left = len(live) - len(decided.drop) + self._plan.most - steering.begun + decided.begin
        orders.most_rows = min(self._plan.rows, left)

    def _score_of(self, index: int) -> float:
        """Running score of a candidate."""
        self._buffer.count()
        return self._growing[index].score

    def _completed(self, index: int) -> tuple[int, Completed]:
        candidate = self._candidate(index)
        answer = self._planned.plan.decision.answer_of(candidate)
        return index, Completed(candidate.n_tokens, candidate.score, answer, candidate.cut_off, candidate.is_foreign)

    def _candidate(self, index: int) -> Candidate:
        """A candidate that has ended, frozen once, with the text that was held back until its end."""
        if index not in self._candidates:
            self._candidates[index] = self._growing[index].finish_at(self._ends[index])
        return self._candidates[index]

    def selection(self) -> Selection:
        """Put together what has been written and scored, in the caller's thread; once, when it is done."""
        planned = self._planned
        candidates = tuple(self._candidate(index) for index in sorted(self._growing))
        prompt_tokens = len(self.generation.prompt_ids)
        watch = self.ticket.watch
        watch.head_s += self._buffer.head_s
        return select(
            planned.planner,
            planned.scorer,
            planned.plan.decision,
            candidates,
            prompt_tokens,
            watch.timings(
                self._load_s,
                time.perf_counter() - self._started,
                prompt_tokens,
                sum(candidate.n_tokens for candidate in candidates),
            ),
            seed=planned.seed,
            stopped_because=None if self.steering is None else self.steering.stopped_because,
            rows=self.kept_rows,
            prompt_index=self._prompt_index,
            limit=self._limit,
        )

    @property
    def _limit(self) -> str:
        """What cuts candidates off, and the way out."""
        asked, most = self._planned.options.max_new_tokens, self.generation.max_new_tokens
        if most < asked:
            context = self._planned.model.session.context_length
            return f"where the context of {context} tokens is full: shorten the prompt"
        return f"at max_new_tokens, {asked}: ask for more"


def select(
    planner: Planner,
    scorer: Scorer,
    decision: Decision,
    candidates: tuple[Candidate, ...],
    prompt_tokens: int,
    timings: Timings,
    *,
    seed: int | None = None,
    stopped_because: str | None = None,
    rows: int | None = None,
    prompt_index: int = 0,
    limit: str = "",
) -> Selection:
    """Decide between the candidates of a prompt and put everything together; `limit` says what cuts candidates off."""
    decided = decision.apply(candidates)
    ranked = tuple(candidates[index] for index in decided.ranked)
    warnings = planner.warnings
    if ranked[0].dropped_because is not None:
        warnings += (f"no candidate was written to its end, the pick neither: {ranked[0].dropped_because}",)
    # Where nothing asks for answers, a text that breaks off is what was asked for.
    elif ranked[0].cut_off and (decision.task is not None or decision.calibration is not None):
        cut_off = sum(candidate.cut_off for candidate in candidates)
        count = f"all {cut_off} candidates" if cut_off > 1 else "the only candidate"
        if cut_off < len(candidates):
            count = f"{cut_off} of {len(candidates)} candidates (the others were dropped)"
        verb = "were" if len(candidates) > 1 else "was"
        warnings += (f"the pick is no answer, {count} {verb} cut off {limit}",)
    elif ranked[0].is_foreign and decision.calibration is not None:
        warnings += (
            f"the question is foreign to the head: the pick's states are {ranked[0].distance:.3g} times as far from "
            "those of its own problems as it can judge, so it does not say how likely the pick is to be right",
        )
    return Selection(
        best=ranked[0],
        candidates=candidates,
        ranked=ranked,
        strategy=decided.strategy,
        signal=scorer.signal,
        p_correct=decided.p_correct,
        usage=Usage(prompt_tokens, sum(candidate.n_tokens for candidate in candidates)),
        timings=timings,
        seed=seed,
        bundle=planner.bundle,
        head=None if scorer.head is None else planner.head_name,
        answers=decided.answers,
        abstained=decided.abstained,
        stopped_because=stopped_because,
        rows=rows,
        prompt_index=prompt_index,
        warnings=warnings,
    )
