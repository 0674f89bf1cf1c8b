"""The strategy of a pick and what it needs: checked once, then applied to the candidates of each prompt."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from swift_edge.answers import AnswerTask, answer_task
from swift_edge.checks import expect, is_number, shown
from swift_edge.errors import InvalidOptionError, SwiftEdgeError, one_line
from swift_edge.options import ExternalScorer, Extractor, PickOptions, StrategyName
from swift_edge.results import Answer, Candidate
from swift_edge.scoring.calibration import Calibration
from swift_edge.scoring.head import Head
from swift_edge.scoring.verdict import verdict_of
from swift_edge.selection.ranking import (
    BY_ANSWER,
    answer_sums,
    combine_by_rank,
    combine_by_scaling,
    rank,
    rank_by_answer,
    redraw_weights,
)
from swift_edge.system.documents import HALF_CHARACTER

_VALIDATED: Final[tuple[StrategyName, ...]] = ("calibrated", "vote", "best", "majority")
"""What `auto` may stand for with a calibrated head."""


@dataclass(frozen=True, slots=True)
class Decided:
    """The decision about the candidates of one prompt."""

    strategy: str
    """The strategy that was applied: `best` if the chosen one compares answers and there are none."""
    ranked: tuple[int, ...]
    """Candidates from best to worst."""
    answers: tuple[Answer, ...]
    """The answers, that of the pick first; empty without a task."""
    p_correct: float | None
    """Probability that the pick is right; None without a calibration, and where the pick is foreign to the head."""
    abstained: bool
    """Whether `p_correct` is below the `min_confidence` asked for."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A strategy with everything that it needs."""

    strategy: StrategyName
    """How the pick is made from the scores."""
    task: AnswerTask | None
    """How answers are extracted and compared; None if they are not looked at."""
    external: ExternalScorer | None
    """A function of the caller that scores the texts, too."""
    min_confidence: float | None
    """Abstain from picks that are less likely to be right than this."""
    calibration: Calibration | None
    """Turns scores into probabilities; None without a calibrated head."""

    @classmethod
    def of(cls, head: Head | None, options: PickOptions) -> "Decision":
        """Check the options against the head, and choose a strategy for `auto`.

        Raises `InvalidOptionError` for a strategy that lacks something it needs.
        """
        external, min_confidence = options.external, options.min_confidence
        calibration, task = None if head is None else head.calibration, _task(options.task, head)
        strategy = options.strategy
        if strategy == "auto":
            strategy = _automatic(task, external, calibration, head)
        if strategy in BY_ANSWER and task is None:
            raise InvalidOptionError(
                f"the strategy {strategy} compares answers, and nothing says how to find them; name a task, "
                "or choose the strategy best"
            )
        if strategy in ("calibrated", "vote") and calibration is None:
            raise InvalidOptionError(
                f"the strategy {strategy} needs a calibrated head; calibrate it with swift-edge recalibrate, "
                "or choose best-of-majority"
            )
        if (strategy in ("ranking", "scaling")) != (external is not None):
            raise InvalidOptionError(
                f"the strategy is {strategy}, and external scores are {'missing' if external is None else 'given'}; "
                "expected external scores with the strategies ranking and scaling, and with no other"
            )
        if min_confidence is not None and calibration is None:
            raise InvalidOptionError(
                "min_confidence is given, but nothing says how likely a pick is to be right; "
                "calibrate a head with swift-edge recalibrate, or leave it out"
            )
        return cls(strategy, task, external, min_confidence, calibration)

    @classmethod
    def by_score(cls, head: Head | None) -> "Decision":
        """Pick by score alone, without comparing answers: for texts that the model did not write."""
        return cls("best", None, None, None, None if head is None else head.calibration)

    def apply(self, candidates: Sequence[Candidate]) -> Decided:
        """Decide between the candidates of a prompt, in sampling order.

        Only those that were written to their ends give answers and evidence. After them come those that were cut off,
        and last those that were dropped. Where none was written to its end, the first of the others is picked by its
        score, and `p_correct` is None. So it is where the pick is foreign to the head, whose scores rank all the same.
        """
        by_score = rank([candidate.score for candidate in candidates])
        dropped = [place for place in by_score if candidates[place].dropped_because is not None]
        cut_off = [place for place in by_score if candidates[place].cut_off]
        whole = [place for place, candidate in enumerate(candidates) if candidate.is_whole]
        places, others = (whole, cut_off + dropped) if whole else (sorted(cut_off), dropped)
        if not places:
            return Decided("best", tuple(others), (), None, self.min_confidence is not None)
        decided = self._decide([candidates[place] for place in places])
        answers = [
            replace(answer, candidates=tuple(places[place] for place in answer.candidates))
            for answer in decided.answers
        ]
        return replace(decided, ranked=(*(places[place] for place in decided.ranked), *others), answers=tuple(answers))

    def answer_of(self, candidate: Candidate) -> str | None:
        """The answer of a candidate; None without a task, without one, and where it was not written to its end."""
        return self.task.extract(candidate.text) if self.task is not None and candidate.is_whole else None

    def _decide(self, candidates: Sequence[Candidate]) -> Decided:
        scores = [candidate.score for candidate in candidates]
        texts = [self.answer_of(candidate) for candidate in candidates]
        groups = [] if self.task is None else self.task.groups(texts)
        strategy = self.strategy if groups or self.strategy not in BY_ANSWER else "best"
        ratios = None if self.calibration is None else self.calibration.likelihood_ratio(scores)  # [n]
        ranked = self._rank(strategy, candidates, scores, groups, ratios)
        picked = candidates[ranked[0]]
        answers = self._answers(texts, groups, ranked, None if picked.is_foreign else ratios)
        p_correct = self._probability(picked, ranked[0], answers)
        abstained = self.min_confidence is not None and not (p_correct or 0.0) >= self.min_confidence
        return Decided(strategy, tuple(ranked), answers, p_correct, abstained)

    def _rank(
        self,
        strategy: str,
        candidates: Sequence[Candidate],
        scores: Sequence[float],
        groups: Sequence[Sequence[int]],
        ratios: NDArray[np.float64] | None,
    ) -> list[int]:
        match strategy:
            case "best":
                return rank(scores)
            case "ranking" | "scaling":
                assert self.external is not None
                combine = combine_by_rank if strategy == "ranking" else combine_by_scaling
                return rank(combine(scores, _checked(self.external([each.text for each in candidates]), len(scores))))
            case "majority":
                return rank_by_answer(groups, [1.0] * len(scores), scores)
            case "best-of-majority":
                return rank_by_answer(groups, redraw_weights(scores), scores)
            case "vote":
                assert self.calibration is not None
                return rank_by_answer(groups, self.calibration.probability(scores).tolist(), scores)
            case _:
                assert ratios is not None
                return rank_by_answer(groups, ratios.tolist(), scores)

    def _answers(
        self,
        texts: Sequence[str | None],
        groups: Sequence[Sequence[int]],
        ranked: Sequence[int],
        ratios: NDArray[np.float64] | None,
    ) -> tuple[Answer, ...]:
        """All answers with their posteriors, in the order of their best candidates."""
        place = {index: at for at, index in enumerate(ranked)}
        ordered = sorted((sorted(group, key=place.__getitem__) for group in groups), key=lambda group: place[group[0]])
        posteriors: Sequence[float | None] = [None] * len(ordered)
        if ratios is not None and self.calibration is not None and self.calibration.answers is not None:
            posteriors = self.calibration.answers.posterior(answer_sums(ordered, ratios.tolist())).tolist()
        return tuple(
            Answer(texts[group[0]] or "", tuple(group), posterior)
            for group, posterior in zip(ordered, posteriors, strict=True)
        )

    def _probability(self, picked: Candidate, place: int, answers: Sequence[Answer]) -> float | None:
        """P(correct) of the pick: that of its answer if answers are calibrated, else that of its score."""
        if self.calibration is None or not picked.is_whole or picked.is_foreign:
            return None
        answer = next((each for each in answers if place in each.candidates), None)
        if answer is not None and answer.posterior is not None:
            return answer.posterior
        # Whatever its score, a response in which the task finds no answer gives no right one.
        return 0.0 if answer is None and self.task is not None else self.calibration.chance(picked.score)


def _task(task: str | Extractor | None, head: Head | None) -> AnswerTask | None:
    """The named task, one made from a function, or by default the task that the head was trained on."""
    if callable(task):
        return AnswerTask("custom", _guarded(task), str.strip, lambda text: text.strip() or None)
    name: Any = task if task is not None or head is None else head.summary.get("task")
    return None if name is None else answer_task(name)


def _guarded(extract: Extractor) -> Extractor:
    """A caller's function from a text to its answer, whose failures say that they are its own."""

    def guarded(text: str) -> str | None:
        try:
            answer: object = extract(text)
        except SwiftEdgeError:
            raise
        except Exception as error:
            raise InvalidOptionError(
                f"task failed on the text {shown(text)} ({type(error).__name__}: {one_line(error)}); "
                "expected the answer of a text, or None"
            ) from error
        if answer is None or (isinstance(answer, str) and not HALF_CHARACTER.search(answer)):
            return answer
        raise InvalidOptionError(
            f"task gave {shown(answer)} for the text {shown(text)}; expected the answer of a text, or None"
        )

    return guarded


def _automatic(
    task: AnswerTask | None, external: ExternalScorer | None, calibration: Calibration | None, head: Head | None
) -> StrategyName:
    """The strategy that `auto` stands for, given the task, the external scorer, the calibration and the head.

    With a calibrated head it is what was best on the problems that it was validated on, see `scoring.verdict`.
    """
    if external is not None:
        return "ranking"
    if task is None:
        return "best"
    if head is None or calibration is None:
        return "best-of-majority"
    best = verdict_of(head.summary).get("strategy")
    return next((name for name in _VALIDATED if name == best), "calibrated")


def _checked(scores: object, expected: int) -> list[float]:
    """Scores of an external judge as floats; raises `InvalidOptionError` unless there is one per candidate."""
    try:
        values: list[Any] = list(islice(scores, expected + 1))  # type: ignore[call-overload]
    except TypeError:
        raise InvalidOptionError(f"external gave {shown(scores)}; expected a score for each candidate") from None
    if len(values) != expected:
        count = len(values) if len(values) < expected else f"more than {expected}"
        raise InvalidOptionError(f"external gave {count} scores for {expected} candidates; expected one each")
    for value in values:
        expect(is_number(value), "a score of external", value, "a finite number")
    return [float(value) for value in values]
