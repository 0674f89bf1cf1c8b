"""The shipped model with its head: small, calibrated, and better at picking than at answering once."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest

from swift_edge import Selection, Selector
from swift_edge.answers import answer_task
from swift_edge.bundle import open_bundle
from swift_edge.scoring import load_head

sys.path.insert(0, str(Path(__file__).parents[2] / "models" / "recipe"))

from corpus import draw_problem
from solvers import Problem, right_answer

pytestmark = pytest.mark.slow

BUNDLE = Path(__file__).parents[2] / "models" / "small-steps"
PROBLEMS = 60


def test_the_bundle_travels_with_the_sources() -> None:
    assert sum(file.stat().st_size for file in BUNDLE.iterdir()) <= 16 * 2**20
    manifest = open_bundle(BUNDLE).manifest
    assert manifest.precision.name in ("int8", "int4")
    assert manifest.hidden_states.indices == tuple(range(manifest.architecture.num_layers + 1))


def test_the_head_belongs_to_the_bundle_and_is_calibrated() -> None:
    bundle = open_bundle(BUNDLE)
    assert bundle.head_path is not None
    head = load_head(bundle.head_path)
    assert head.fingerprint == bundle.manifest.fingerprint
    assert head.calibration is not None
    assert head.calibration.error < 0.05


@pytest.fixture(scope="module")
def picked() -> list[tuple[Problem, Selection]]:
    """Picks for problems of the test split: sentence patterns and numbers that no training question has."""
    rng = random.Random("unseen")
    problems = [draw_problem(rng, "test") for _ in range(PROBLEMS)]
    selector = Selector(BUNDLE, threads=1)
    picks = selector.pick_many([problem.question for problem in problems], n=8, max_new_tokens=96, in_order=True)
    return list(zip(problems, picks, strict=True))


def test_the_pick_of_eight_is_right_more_often_than_a_response(picked: list[tuple[Problem, Selection]]) -> None:
    task = answer_task("exact")
    responses, bests, oracle = [], [], []
    for problem, selection in picked:
        right = [task.correct(each.text, right_answer(problem)) for each in selection.candidates]
        responses.append(np.mean(right))
        bests.append(right[selection.best.index])
        oracle.append(any(right))
    # Other processors round differently and write other candidates, so that the margins are wide.
    assert np.mean(bests) > np.mean(responses) + 0.1
    assert np.mean(oracle) > np.mean(responses) + 0.2
    assert 0.25 < np.mean(responses) < 0.75


def test_the_probability_of_the_pick_says_when_it_is_right(picked: list[tuple[Problem, Selection]]) -> None:
    task = answer_task("exact")
    right = np.array([task.correct(selection.best.text, right_answer(problem)) for problem, selection in picked])
    probability = np.array([selection.p_correct for _, selection in picked], np.float64)
    told = np.isfinite(probability)  # of a few the head says that they are foreign to it
    assert told.mean() > 0.85
    right, probability = right[told], probability[told]
    surer = probability >= np.median(probability)
    assert right[surer].mean() > right[~surer].mean()
