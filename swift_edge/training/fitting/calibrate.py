"""The calibration of a head: of its scores, whole and running, and of the evidence of what candidates answer."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from swift_edge.answers import AnswerTask, answer_task
from swift_edge.scoring.calibration import (
    PREFIX_TOKENS,
    Calibration,
    PrefixCalibration,
    fit_answer_calibration,
    fit_calibration,
    fit_prefix_calibration,
)
from swift_edge.selection.ranking import answer_sums
from swift_edge.training.store.writer import Store

LEAST_CANDIDATES: Final = 100
"""Candidates that have to go on at a token count for it to be calibrated."""


def calibrate(
    prefixes: NDArray[np.float64],
    tokens: ArrayLike,
    correct: ArrayLike,
    problems: ArrayLike,
    answers: tuple[str | None, ...],
    cut_off: NDArray[np.bool_],
    task: AnswerTask | None,
    seed: int,
) -> Calibration:
    """Calibrate labelled candidates `[c]`, the problems one after another, that the head was not trained on.

    `prefixes` `[c, s]` are their running scores at each of `PREFIX_TOKENS` and, last, their scores; `tokens` `[c]` says
    how many tokens they have. Each problem serves with its first 1, 2, 4, ... candidates, so that the evidence is worth
    what it should be whatever their number is. Candidates that were `cut_off` `[c]` say nothing about scores, as picks
    take none of theirs for evidence; while they go on, nobody knows it yet. Raises `TrainingError` as `fit_calibration`
    does.
    """
    scores = np.where(cut_off, np.nan, prefixes[:, -1])
    calibration = fit_calibration(scores, correct, problems, seed)
    calibration = replace(calibration, prefixes=_running(prefixes, np.asarray(tokens), np.asarray(correct, np.bool_)))
    if task is None or not any(answer is not None for answer in answers):
        return calibration
    ratios = calibration.likelihood_ratio(scores)  # [c]
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


def _running(
    prefixes: NDArray[np.float64], tokens: NDArray[np.int64], correct: NDArray[np.bool_]
) -> dict[int, PrefixCalibration]:
    """What the running scores are worth, of the candidates that go on."""
    calibrations = {}
    for place, count in enumerate(PREFIX_TOKENS):
        going_on = tokens > count
        if np.isfinite(prefixes[going_on, place]).sum() >= LEAST_CANDIDATES:
            calibrations[count] = fit_prefix_calibration(prefixes[going_on, place], correct[going_on])
    return calibrations


def task_of(stores: Sequence[Store]) -> AnswerTask | None:
    """The task that says what the candidates of the stores answer; None where they have none, or several."""
    names = {store.info.task for store in stores}
    name = names.pop() if len(names) == 1 else None
    return None if name is None else answer_task(name)


def _sizes(candidates: int) -> list[int]:
    """1, 2, 4, ... and all."""
    return [*(2**power for power in range(candidates.bit_length()) if 2**power < candidates), candidates]
