"""How good a pick is: every selector against every baseline on the same candidates, with intervals over problems.

    from swift_edge.evaluation import bench, evaluate, markdown
    print(markdown(evaluate("models/small-steps", "test.jsonl", "results", task="number")))


This package is a door: users and tests import its names from here, so that the files behind it can change. The runtime
itself imports a name from the file where it lives, which keeps the imports readable as a graph.
"""

from swift_edge.evaluation.ablations import Ablations, Variant, fit_options_of, stored_scores, variants
from swift_edge.evaluation.benchmark import Shape, bench
from swift_edge.evaluation.confidence import confidence
from swift_edge.evaluation.evaluating import evaluate
from swift_edge.evaluation.external import read_external
from swift_edge.evaluation.measure import measure
from swift_edge.evaluation.reliability import Bin, binned_calibration_error, reliability
from swift_edge.evaluation.replay import Replayed, replay
from swift_edge.evaluation.sampled import HeadScores, Sampled
from swift_edge.evaluation.selectors import expected_accuracies, expected_by_size, problem_aurocs
from swift_edge.evaluation.tables import markdown
from swift_edge.scoring.bootstrap import Estimate

__all__ = [
    "Ablations",
    "Bin",
    "Estimate",
    "HeadScores",
    "Replayed",
    "Sampled",
    "Shape",
    "Variant",
    "bench",
    "binned_calibration_error",
    "confidence",
    "evaluate",
    "expected_accuracies",
    "expected_by_size",
    "fit_options_of",
    "markdown",
    "measure",
    "problem_aurocs",
    "read_external",
    "reliability",
    "replay",
    "stored_scores",
    "variants",
]
