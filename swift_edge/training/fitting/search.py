"""Weight decays to weights: the convex start of each, the descent from there, and the best that was found.

What every iteration comes to is kept, so that a search that is interrupted has its best all the same.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from swift_edge.arrays import Doubles
from swift_edge.training.fitting.descent import Descent, Objective, Standard, Weights, descend
from swift_edge.training.fitting.examples import Examples, Split, Survey
from swift_edge.training.fitting.objectives import Counts, contrasts, cut
from swift_edge.training.fitting.options import FitOptions

SHORTEST_PREFIX: Final = 0.1
"""Least share of a response that a prefix keeps."""


@dataclass(frozen=True, slots=True)
class Interruption:
    """Where a search was interrupted."""

    stage: str
    """`start` for a convex start, `descent` for the descent from there."""
    weight_decay: float
    """The weight decay that was being tried."""
    iteration: int
    """The last iteration that was judged; 0 is where the stage begins."""

    def __str__(self) -> str:
        """Say it in one line."""
        stage = " of the convex start" if self.stage == "start" else ""
        return f"interrupted after iteration {self.iteration}{stage} with weight decay {self.weight_decay:g}"


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """What the descents came to."""

    examples: Examples
    """All candidates with their tokens."""
    objective: Objective
    """Of the training problems; on mean inputs where that is the same."""
    descent: Descent
    """The best one."""
    weight_decay: float
    """The one that was used."""
    search: list[dict[str, float]]
    """Within-problem AUROC on the validation problems by weight decay, after the convex start and in the end; NaN where
    there is none."""
    start_auroc: float
    """The same of the convex start."""
    interruption: Interruption | None
    """Where the search was interrupted, if it was."""


class Search:
    """The descents by weight decay, as far as they have come."""

    def __init__(
        self,
        examples: Examples,
        surveyed: Survey,
        split: Split,
        options: FitOptions,
        tell: Callable[[str], None],
    ) -> None:
        """Make the losses and list the weight decays; nothing descends before `run`."""
        train = Objective(
            examples,
            split.train,
            Standard(surveyed.mean, surveyed.scale),
            options.gate,
            options.loss,
            options.pairwise_weight,
            _pieces(examples, options),
            options.prefix_weight,
        )
        # The mean of the tokens' scores is the score of their mean: without a gate one row per response is enough.
        self._means = replace(train, examples=surveyed.pooled or examples, gate=False, loss="bce", pieces=None)
        if not options.gate and not options.prefixes:
            train = replace(train, examples=self._means.examples)
        self._examples, self._train = examples, train
        decays = options.weight_decays if options.weight_decay is None else (options.weight_decay,)
        self._decays = sorted(decays, reverse=True)
        if not contrasts(*_labels(examples, split.validation)).any():
            self._decays = [self._decays[len(decays) // 2]]  # nothing tells which is best
        self._split, self._options, self._tell = split, options, tell
        self._starts: dict[float, Descent] = {}
        self._descents: dict[float, Descent] = {}

    def run(self) -> Fitted:
        """Descend by every weight decay. After a `KeyboardInterrupt` the best until then is still to be had."""
        nothing = np.zeros(self._train.examples.rows.inputs + 1)
        for decay in self._decays:
            # Each from zero: along another one's path it would be judged with what that one found.
            self._descend(self._starts, self._means, decay, nothing, lambda line: self._tell(f"convex start, {line}"))
            self._tell(
                f"weight decay {decay:g}: within-problem AUROC {self._starts[decay].auroc:.4f} after the convex start"
            )
        for decay in self._decays if self._options.search == "full" else [_best(self._starts)]:
            self._descend(self._descents, self._train, decay, self._begin(decay), self._tell)
            self._tell(f"weight decay {decay:g}: within-problem AUROC {self._descents[decay].auroc:.4f}")
        return self._best_so_far(None)

    def interrupted(self) -> Fitted | None:
        """The best until a `KeyboardInterrupt`; None where there is nothing but the zeros that all begins with."""
        if not any(each.vector.any() for each in (*self._starts.values(), *self._descents.values())):
            return None
        stage, descents = ("descent", self._descents) if self._descents else ("start", self._starts)
        decay = list(descents)[-1]
        return self._best_so_far(Interruption(stage, decay, descents[decay].iterations))

    def _best_so_far(self, interruption: Interruption | None) -> Fitted:
        descents = self._descents
        if not descents:  # the best start is what the descent would have begun with
            decay = _best(self._starts)
            descents = {decay: replace(self._starts[decay], vector=self._begin(decay), iterations=0, best_iteration=0)}
        chosen = _best(descents)
        search = [
            {
                "weight_decay": decay,
                "start_auroc": self._starts[decay].auroc,
                "auroc": self._descents[decay].auroc if decay in self._descents else math.nan,
            }
            for decay in sorted(self._starts)
        ]
        start_auroc = self._starts[chosen].auroc
        return Fitted(self._examples, self._train, descents[chosen], chosen, search, start_auroc, interruption)

    def _descend(
        self,
        into: dict[float, Descent],
        train: Objective,
        decay: float,
        start: Doubles,
        report: Callable[[str], None] | None = None,
    ) -> None:
        def keep(reached: Descent) -> None:
            into[decay] = reached

        limits = self._options.limits(decay)
        into[decay] = descend(train, _judge(train, self._split), start, limits, report=report, keep=keep)

    def _begin(self, decay: float) -> Doubles:
        """The flat weights of a convex start, with a gate where one is wanted."""
        start = Weights.of(self._starts[decay].vector, self._train.examples.rows.inputs)
        return (start.gated() if self._options.gate else start).flat()


def _best(descents: Mapping[float, Descent]) -> float:
    """The weight decay with the greatest AUROC, of equal ones the strongest."""
    return max(sorted(descents, reverse=True), key=lambda decay: descents[decay].auroc)


def _labels(examples: Examples, problems: range) -> tuple[NDArray[np.bool_], Counts]:
    """Labels of the candidates of some problems, and where each problem starts among them."""
    members = examples.members(problems)
    starts = examples.problem_starts[problems.start : problems.stop + 1] - members.start
    return examples.candidates.correct[members], starts


def _judge(train: Objective, split: Split) -> Objective | None:
    """The same loss over whole responses of the validation problems; None without such problems."""
    return replace(train, problems=split.validation, pieces=None) if len(split.validation) else None


def _pieces(examples: Examples, options: FitOptions) -> Counts | None:
    """Where each response is truncated, drawn by the seed."""
    if not options.prefixes:
        return None
    random = np.random.default_rng(np.random.SeedSequence(options.seed, spawn_key=(1,)))
    problems = len(examples.problem_starts) - 1
    fractions = random.uniform(SHORTEST_PREFIX, 1.0, (problems, options.prefixes))
    return cut(examples.candidates.tokens, fractions[examples.candidates.problems])
