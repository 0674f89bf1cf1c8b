"""How many candidates a pick begins, which rows it drops, and when it ends: decided between two steps.

The caller reports each step, and gets back which candidates to drop and how many to begin. A pick keeps its rows, so
that its candidates advance together and the decisions depend on them alone: replaying stored candidates gives the same.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from swift_edge.errors import InvalidOptionError
from swift_edge.options import PickOptions
from swift_edge.selection.adaptive.pruning import Pruning
from swift_edge.selection.adaptive.stopping import (
    FIRST_CANDIDATES,
    LEAST_GAIN,
    LEAST_LEAD,
    confidence_at,
    gain,
    lead,
    likeliest,
)
from swift_edge.selection.decision import Decision
from swift_edge.selection.ranking import answer_sums

StopReason: TypeAlias = Literal["settled", "max_n", "budget_tokens", "budget_seconds"]

MOST_CANDIDATES: Final = 16
"""Most candidates of `n="auto"` without `max_n`."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How many candidates a pick writes, side by side and in all, and by what rules; checked."""

    rows: int
    """Candidates that begin at once, and the most that are written side by side."""
    most: int
    """Most candidates in all."""
    adaptive: bool
    """Whether the pick may end with fewer."""
    pruning: Pruning | None
    """The rule that drops rows; None drops none."""
    decision: Decision
    """How the pick is made, and how answers are compared."""
    budget_tokens: int | None
    """Most response tokens of all candidates together."""
    budget_s: float | None
    """Most seconds."""
    refills: bool = True
    """Whether a new candidate may take a free row while others go on; not with graphs that concatenate."""
    free_rows: int = 0
    """Rows that cost nothing on this machine: once no candidate waits, so many are never dropped."""
    long_prompt_rows: int | None = None
    """Rows for prompts longer than those that were timed; None: the same."""

    @classmethod
    def of(cls, options: PickOptions, decision: Decision) -> "Plan":
        """The plan of these options; raises `InvalidOptionError`. By default only `n="auto"` prunes."""
        n, max_n, budget_tokens, prune = options.n, options.max_n, options.budget_tokens, options.prune
        if n == "auto":
            most = MOST_CANDIDATES if max_n is None else max_n
            rows = min(FIRST_CANDIDATES, most)
        elif max_n is None:
            rows = most = n
        else:
            raise InvalidOptionError(f'max_n is {max_n} and n is {n}; expected n="auto" with max_n, or n alone')
        if budget_tokens is not None:
            rows = min(rows, budget_tokens)
        if prune is None:
            prune = "auto" if n == "auto" else "off"
        pruning = Pruning.of(prune, decision.calibration)
        return cls(rows, most, n == "auto", pruning, decision, budget_tokens, options.budget_seconds)

    @property
    def is_fixed(self) -> bool:
        """Whether all candidates are written to their end, so that there is nothing to decide."""
        nothing = self.pruning is None and self.budget_tokens is None and self.budget_s is None
        return nothing and not self.adaptive


@dataclass(frozen=True, slots=True)
class Completed:
    """A candidate that has ended."""

    tokens: int
    """Response tokens."""
    score: float
    """Its score."""
    answer: str | None
    """What it answers; None without an answer, or without a task."""
    cut_off: bool = False
    """Whether it was cut off: its score is then no evidence."""
    is_foreign: bool = False
    """Whether it is foreign to the head, so that its score says nothing about its chance to be right."""


@dataclass(slots=True)
class Orders:
    """What to do before the next step."""

    drop: dict[int, str] = field(default_factory=dict)
    """Candidates to drop, each with the reason."""
    begin: int = 0
    """Candidates to begin."""


class Steering:
    """The decisions of one pick. Candidates are numbered in the order in which they begin.

    >>> steering = Steering(plan)
    >>> orders = steering.after_step({0: 24, 2: 24}, {1: Completed(23, 0.4, "12")}, score_of, ids_of, elapsed_s=0.2)
    """

    def __init__(self, plan: Plan) -> None:
        """Begin with `plan.rows` candidates."""
        self.begun = plan.rows
        self.stopped_because: StopReason | None = None
        self._plan = plan
        self._completed: dict[int, Completed] = {}
        # Answers are compared when there are new ones, not at every step: with some tasks that takes a while.
        self._settled: dict[tuple[int, int], bool] = {}
        self._dropped_tokens = 0
        self._was_short = False  # whether candidates were dropped for lack of tokens
        self._worth: dict[int, dict[int, float]] = {}  # of live ones by token count, then by candidate

    def after_step(
        self,
        live: Mapping[int, int],
        completed: Mapping[int, Completed],
        score_of: Callable[[int], float],
        ids_of: Callable[[int], Sequence[int]],
        elapsed_s: float,
    ) -> Orders:
        """Decide what to do next; `live` holds the token count of each candidate that goes on.

        `completed` are those that ended with this step; `score_of` and `ids_of` give a live candidate's running score
        and its token ids. Once `stopped_because` is set, no candidate is live and none begins.
        """
        if completed:
            self._completed |= completed
            self._settled.clear()
        orders = Orders()
        left = dict(live)
        self._drop(self._pruned(live, score_of, ids_of), orders, left)
        stop = self._stops(left, elapsed_s)
        if stop is None:
            self._drop(self._unaffordable(left, score_of), orders, left)
            orders.begin = self._num_to_begin(left)
            if not left and not orders.begin:
                stop = "budget_tokens" if self._was_short or self.begun < self._plan.most else "max_n"
        if stop is not None:
            self.stopped_because = stop
            self._drop(dict.fromkeys(left, _REASONS[stop]), orders, left)
        self.begun += orders.begin
        return orders

    def _drop(self, reasons: Mapping[int, str], orders: Orders, left: dict[int, int]) -> None:
        """Take candidates out of those that are `left`."""
        orders.drop |= reasons
        for index in reasons:
            self._dropped_tokens += left.pop(index)
            for worth in self._worth.values():
                worth.pop(index, None)

    def _pruned(
        self, live: Mapping[int, int], score_of: Callable[[int], float], ids_of: Callable[[int], Sequence[int]]
    ) -> dict[int, str]:
        """The candidates that the pruning rule drops at the token counts just reached, with the reasons."""
        pruning, drops = self._plan.pruning, dict[int, tuple[float, str]]()
        if pruning is None:
            return {}
        answered = any(each.answer is not None for each in self._completed.values())
        for count in sorted(set(live.values()) & pruning.token_counts):
            arrived = {index: tuple(ids_of(index)) for index, tokens in live.items() if tokens == count}
            worth = self._worth.setdefault(count, {})
            worth |= {index: pruning.worth(score_of(index), count, ended=False) for index in arrived}
            ended = {
                index: pruning.worth(each.score, count, ended=True)
                for index, each in self._completed.items()
                if index not in worth and not each.cut_off
            }
            drops |= pruning.dropped(count, arrived, worth | ended, answered=answered)
        waits = self.begun < self._plan.most
        paying = len(live) if waits else max(0, len(live) - self._plan.free_rows)
        weakest = sorted(drops, key=drops.__getitem__, reverse=True)[:paying]
        return {index: reason for index, (_, reason) in drops.items() if index in weakest}

    def _stops(self, left: Mapping[int, int], elapsed_s: float) -> StopReason | None:
        """Why the pick ends now, if it does."""
        plan = self._plan
        if plan.budget_s is not None and elapsed_s >= plan.budget_s:
            return "budget_seconds"
        if plan.budget_tokens is not None and left and self._spent(left) + 1 > plan.budget_tokens:
            return "budget_tokens"
        if plan.adaptive and self.begun - len(left) < plan.most and self._is_settled(left, 0):
            return "settled"
        return None

    def _is_settled(self, left: Mapping[int, int], promised: int) -> bool:
        """Whether no further candidate is worth it, if `promised` live ones turn out as well as they can."""
        finished = self.begun - len(left) + promised  # one that was dropped is known to be weak
        if (finished, promised) not in self._settled:
            self._settled[finished, promised] = self._settles(finished, promised)
        return self._settled[finished, promised]

    def _settles(self, finished: int, promised: int) -> bool:
        """The same, with `finished` candidates that are complete, dropped or promised."""
        plan, completed = self._plan, [each for each in self._completed.values() if not each.cut_off]
        if finished < min(FIRST_CANDIDATES, plan.most) or not completed:
            return False
        scores = [each.score for each in completed]
        task, calibration = plan.decision.task, plan.decision.calibration
        if task is None:
            return promised == 0 and gain(scores) <= LEAST_GAIN
        groups = task.groups([each.answer for each in completed])
        foreign = sum(each.is_foreign for each in completed) > len(completed) / 2
        if calibration is None or calibration.answers is None or foreign:
            return lead([len(group) for group in groups], promised) >= LEAST_LEAD
        ratios = calibration.likelihood_ratio(scores).tolist()
        sums = answer_sums(groups, ratios)
        best = max((ratio for ratio in ratios if not math.isnan(ratio)), default=0.0)
        threshold = confidence_at(finished, plan.most, plan.decision.min_confidence)
        return likeliest(sums, calibration.answers, promised * best) >= threshold

    def _num_to_begin(self, left: Mapping[int, int]) -> int:
        """How many candidates to begin: one per free row, or none if the live ones may settle the pick."""
        plan = self._plan
        places = min(plan.rows - len(left), plan.most - self.begun)
        if places <= 0 or (left and not plan.refills):
            return 0
        if plan.adaptive and left and self._is_settled(left, len(left)):
            return 0
        if plan.budget_tokens is None:
            return places
        spare = plan.budget_tokens - self._spent(left) - sum(self._to_come(tokens) for tokens in left.values())
        # A new one needs as much as the longest live one, which is taken to be halfway.
        each = self._to_come(0) if self._completed else max(1, 2 * max(left.values(), default=0))
        return max(0, min(places, int(spare // each)))

    def _unaffordable(self, left: Mapping[int, int], score_of: Callable[[int], float]) -> dict[int, str]:
        """The weakest live candidates, which the tokens that are left do not suffice for; one always stays."""
        budget, drops = self._plan.budget_tokens, dict[int, str]()
        if budget is None:
            return drops
        spare = budget - self._spent(left)
        needs = {index: self._to_come(tokens) for index, tokens in left.items()}
        if sum(needs.values()) <= spare:
            return drops
        weakest = sorted(left, key=lambda index: (not math.isnan(score := score_of(index)), score, -index))
        for index in weakest[:-1]:
            if sum(needs.values()) <= spare:
                break
            del needs[index]
            drops[index] = f"at {left[index]} tokens the budget of {budget} tokens did not suffice for all"
            self._was_short = True
        return drops

    def _spent(self, left: Mapping[int, int]) -> int:
        """Response tokens so far."""
        return self._dropped_tokens + sum(left.values()) + sum(each.tokens for each in self._completed.values())

    def _to_come(self, tokens: int) -> float:
        """Tokens that a candidate of `tokens` tokens may still need.

        Those that it lacks to the mean of the complete ones; before there is one, as many as it has.
        """
        if not self._completed:
            return max(1, tokens)
        mean = sum(each.tokens for each in self._completed.values()) / len(self._completed)
        return max(1.0, mean - tokens)


_REASONS: Final[Mapping[StopReason, str]] = {
    "max_n": "all others had ended",
    "settled": "the pick was settled without it",
    "budget_tokens": "the budget of tokens was used up",
    "budget_seconds": "the budget of time was used up",
}
