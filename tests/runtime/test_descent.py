"""The descent: it keeps its best, ends when nothing becomes better, and judges by what there is to judge by."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from swift_edge.training import FitOptions, Store, fit_head
from swift_edge.training.fitting import descent
from swift_edge.training.fitting.descent import Limits, Objective, Standard, descend
from swift_edge.training.fitting.examples import Candidates, Examples
from swift_edge.training.fitting.inputs import ArrayRows


def examples_of(seed: int = 0, problems: int = 12) -> Examples:
    """Each problem a correct and a wrong candidate of one token; input 0 tells them apart, the others do not."""
    random = np.random.default_rng(seed)
    correct = np.tile([True, False], problems)
    rows = random.normal(size=(2 * problems, 20)).astype(np.float32)
    rows[:, 0] += np.where(correct, 1, -1)
    ones = np.ones(2 * problems, np.int64)
    numbers = np.repeat(np.arange(problems), 2)
    none, hashes = (None,) * (2 * problems), (None,) * problems
    signals = np.zeros((len(ones), 2))
    candidates = Candidates(correct, none, numbers, 0 * ones, 0 * ones, ones, hashes, ones < 0, 0, signals)
    return Examples.of(candidates, ArrayRows(rows), 2**30)


def test_best_weights_are_kept_by_copy_not_by_reference_to_weights_that_go_on() -> None:
    # SWIFT's own training keeps a reference to its "best" model, and so saves the last epoch. Here the optimiser goes
    # on in the same memory, as L-BFGS may, and ends far from its best iteration.
    examples = examples_of()
    standard = Standard(np.zeros(20), np.ones(20))
    train = Objective(examples, range(6), standard, gate=False)
    validation = replace(train, problems=range(6, 12))
    watch = descent._Watch(validation, patience=10, report=None, keep=None)
    vector = np.zeros(21)
    seen = []
    for step in (1.0, 5.0, -3.0, -9.0):
        vector[0] = step
        watch.iterations += 1
        watch.see(vector)
        seen.append(validation.auroc(validation.measure(vector, gradient=False).scores))
    assert seen[0] > seen[-1]
    assert watch.best[0] == 5.0  # ranks as the first, with less loss
    vector[:] = 77.0
    assert watch.best[0] == 5.0


def test_descent_stops_early_and_gives_back_its_best() -> None:
    examples = examples_of(3, problems=8)
    standard = Standard(np.zeros(20), np.ones(20))
    train = Objective(examples, range(4), standard, gate=False)
    validation = replace(train, problems=range(4, 8))
    lines: list[str] = []
    found = descend(train, validation, np.zeros(21), Limits(0.0, 100, 12), report=lines.append)
    soon = descend(train, validation, np.zeros(21), Limits(0.0, 100, 3))
    assert soon.iterations == soon.best_iteration + 3 < found.iterations
    assert validation.auroc(validation.measure(found.vector, gradient=False).scores) == found.auroc
    assert lines[0].startswith("iteration 10: loss 0.")
    assert "within-problem AUROC" in lines[0]
    # Without problems to judge by it goes to the end: four problems are separable by 20 inputs.
    alone = descend(train, None, np.zeros(21), Limits(0.0, 100, 12))
    assert alone.best_iteration == alone.iterations
    assert math.isnan(alone.auroc)
    assert train.measure(alone.vector, gradient=False).loss < 1e-3
    held = descend(train, None, np.zeros(21), Limits(10.0, 100, 12))
    assert np.abs(held.vector[:-1]).max() < 0.2 < np.abs(alone.vector[:-1]).max()


def test_without_both_labels_in_validation_the_loss_decides() -> None:
    examples = examples_of(problems=200)
    # From the fifth problem on all are correct: to hold candidates for correct is right there.
    correct = examples.candidates.correct | (examples.candidates.problems >= 4)
    examples = replace(examples, candidates=replace(examples.candidates, correct=correct))
    train = Objective(examples, range(120), Standard(np.zeros(20), np.ones(20)), gate=False)
    validation = replace(train, problems=range(120, 200))
    found = descend(train, validation, np.zeros(21), Limits(0.1, 30, 5))
    assert math.isnan(found.auroc)
    least = validation.measure(found.vector, gradient=False).loss
    assert least < validation.measure(np.zeros(21), gradient=False).loss


def test_the_gated_fit_starts_from_logistic_regression(
    make_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(problems=60, n=6, shard_bytes=20_000)
    calls: list[tuple[Objective, NDArray[np.float64], NDArray[np.float64]]] = []

    def watched(train: Objective, *arguments: Any, **named: Any) -> descent.Descent:
        found = descend(train, *arguments, **named)
        calls.append((train, arguments[1].copy(), found.vector))
        return found

    monkeypatch.setattr("swift_edge.training.fitting.search.descend", watched)
    fit_head(store, FitOptions(loss="infonca", weight_decay=0.03, max_iterations=40, patience=10))
    (convex, nothing, row), (whole, begin, _) = calls
    assert (convex.loss, convex.gate, convex.pieces) == ("bce", False, None)
    assert convex.examples.rows.read(0, 10**6).shape == (len(store.candidates), 14)  # one row per response
    assert not nothing.any()
    assert (whole.loss, whole.gate) == ("infonca", True)
    np.testing.assert_array_equal(begin, np.concatenate([np.zeros(14), row[:14], [0.0, row[14]]]))
