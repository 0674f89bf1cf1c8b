"""What a fitted head is worth: its picks from held-out candidates beside those of the rules that need no labels."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from swift_edge.answers import AnswerTask
from swift_edge.arrays import Doubles
from swift_edge.scoring.calibration import Calibration
from swift_edge.selection.ranking import rank, rank_by_answer, redraw_weights
from swift_edge.training.fitting.examples import Candidates

SIGNALS: Final = ("mean_logprob", "self_certainty")
"""Label-free signals, the columns of `Candidates.signals`."""
BY_HEAD: Final = ("best", "vote", "calibrated")
"""Ways to pick with a head."""


def right_picks(
    candidates: Candidates, members: slice, scores: Doubles, calibration: Calibration | None, task: AnswerTask | None
) -> dict[str, Doubles]:
    """Whether each rule picks right, `[q]`, from all candidates of some problems, whose `members` have `scores`.

    Without a task no rule compares answers. Where no candidate was written to its end, none is right.
    """
    found: dict[str, list[bool]] = {}
    numbers = candidates.problems[members]
    for number in np.unique(numbers):
        places = np.flatnonzero(numbers == number)
        whole = places[~candidates.cut_off[members][places]]
        right = candidates.correct[members][whole]
        answers = [candidates.answers[members.start + place] for place in whole]
        signals = candidates.signals[members][whole]
        for name, order in _orders(scores[whole].tolist(), signals, answers, calibration, task).items():
            found.setdefault(name, []).append(bool(len(whole) and right[order[0]]))
    return {name: np.array(picks, np.float64) for name, picks in found.items()}


def _orders(
    scores: list[float],
    signals: Doubles,
    answers: Sequence[str | None],
    calibration: Calibration | None,
    task: AnswerTask | None,
) -> dict[str, list[int]]:
    """Candidates of a problem from best to worst, by every rule; those of a head first."""
    by_signal = {name: signals[:, column].tolist() for column, name in enumerate(SIGNALS)}
    orders = {"best": rank(scores)}
    if task is not None:
        groups = task.groups(answers)
        logprob = by_signal["mean_logprob"]
        if calibration is not None:
            orders["vote"] = rank_by_answer(groups, calibration.probability(scores).tolist(), scores)
            orders["calibrated"] = rank_by_answer(groups, calibration.likelihood_ratio(scores).tolist(), scores)
        orders["majority"] = rank_by_answer(groups, [1.0] * len(scores), logprob)
        orders["best-of-majority"] = rank_by_answer(groups, redraw_weights(logprob) if scores else [], logprob)
    return orders | {name: rank(values) for name, values in by_signal.items()}
