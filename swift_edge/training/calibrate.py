"""The calibration of a head: of its scores and, where a task says what candidates answer, of the answers' evidence."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from swift_edge.answers import AnswerTask, answer_task
from swift_edge.calibration import Calibration, fit_answer_calibration, fit_calibration
from swift_edge.selection import answer_sums
from swift_edge.training.store import Store


def calibrate(
    scores: ArrayLike,
    correct: ArrayLike,
    problems: ArrayLike,
    answers: tuple[str | None, ...],
    task: AnswerTask | None,
    seed: int,
) -> Calibration:
    """Calibrate labelled candidates `[c]`, the problems one after another, that the head was not trained on.

    Each problem serves with its first 1, 2, 4, ... candidates, so that the evidence is worth what it should be whatever
    their number is. Raises `TrainingError` as `fit_calibration` does.
    """
    calibration = fit_calibration(scores, correct, problems, seed)
    if task is None or not any(answer is not None for answer in answers):
        return calibration
    ratios = calibration.log_likelihood_ratio(scores)  # [c]
    labels, numbers = np.asarray(correct, np.bool_), np.asarray(problems)
    sums: list[list[float]] = []
    right: list[int | None] = []
    examples: list[int] = []
    for number in dict.fromkeys(numbers.tolist()):
        members = np.flatnonzero(numbers == number)
        for size in _sizes(len(members)):
            some = members[:size]
            correct_ones = labels[some]
            groups = task.groups([answers[member] for member in some])
            sums.append(answer_sums(groups, ratios[some].tolist()))
            right.append(next((place for place, group in enumerate(groups) if correct_ones[group].any()), None))
            examples.append(number)
    return replace(calibration, answers=fit_answer_calibration(sums, right, examples, seed))


def task_of(stores: Sequence[Store]) -> AnswerTask | None:
    """The task that says what the candidates of the stores answer; None where they have none, or several."""
    names = {store.info.task for store in stores}
    name = names.pop() if len(names) == 1 else None
    return None if name is None else answer_task(name)


def _sizes(candidates: int) -> list[int]:
    """1, 2, 4, ... and all."""
    return [*(2**power for power in range(candidates.bit_length()) if 2**power < candidates), candidates]
