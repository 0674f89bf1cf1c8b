"""What candidates are worth: heads, running scores, and their calibration.

    from swift_edge.scoring import load_head
    load_head("models/small-steps/head.npz").layers


This package is a door: users and tests import its names from here, so that the files behind it can change. The runtime
itself imports a name from the file where it lives, which keeps the imports readable as a graph.
"""

from swift_edge.scoring.calibration import (
    PREFIX_TOKENS,
    AnswerCalibration,
    Calibration,
    PrefixCalibration,
    calibration_error,
    fit_answer_calibration,
    fit_calibration,
)
from swift_edge.scoring.head import Feature, Head, Norm, RunningScore, TokenStatistic, check_head, load_head, save_head
from swift_edge.scoring.known import KnownStates
from swift_edge.scoring.quality import PickAccuracy, pick_accuracy, within_problem_auroc
from swift_edge.scoring.scorer import Scorer
from swift_edge.scoring.verdict import Verdict, judge

__all__ = [
    "PREFIX_TOKENS",
    "AnswerCalibration",
    "Calibration",
    "Feature",
    "Head",
    "KnownStates",
    "Norm",
    "PickAccuracy",
    "PrefixCalibration",
    "RunningScore",
    "Scorer",
    "TokenStatistic",
    "Verdict",
    "calibration_error",
    "check_head",
    "fit_answer_calibration",
    "fit_calibration",
    "judge",
    "load_head",
    "pick_accuracy",
    "save_head",
    "within_problem_auroc",
]
