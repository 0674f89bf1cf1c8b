"""What P(correct) of a pick is worth, with all candidates of a problem together: its error, and what abstaining gains.

The picks are those of the strategy `calibrated`, out of the first `size` candidates of each problem, the next `size`,
and so on.

    q problems   n candidates of each   m picks of each problem
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from swift_edge.arrays import Doubles
from swift_edge.evaluation.sampled import HeadScores, Sampled
from swift_edge.scoring.bootstrap import RESAMPLES, estimate, resampled_means
from swift_edge.scoring.calibration import AnswerCalibration, calibration_error
from swift_edge.selection.ranking import answer_sums

ABSTAINED: Final = 0.2
"""Share of the picks, the least sure ones, that abstaining leaves out."""


def confidence(
    head: HeadScores, sampled: Sampled, size: int, *, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Any] | None:
    """Calibration error of the picks' P(correct), and accuracy without the least sure ones; None without a calibration.

    The calibration error has ten bins of equal count. `gain` is the accuracy of the picks that are kept less that of
    all, with its interval over problems.
    """
    if head.ratios is None or head.answers is None:
        return None
    chances, right = _picks(head.ratios, head.answers, sampled, size)  # [q, m]
    threshold = np.quantile(chances, ABSTAINED)
    sure = chances > threshold  # [q, m]
    if not sure.any():
        return None
    columns = np.stack([right.mean(axis=1), sure.mean(axis=1), (right & sure).mean(axis=1)], axis=1)  # [q, 3]
    means, values = resampled_means(columns, resamples=resamples, seed=seed), columns.mean(axis=0)
    with np.errstate(invalid="ignore"):  # a resample of few problems may have no sure pick, and no accuracy of these
        kept = means[:, 2] / means[:, 1]
    gain = estimate(float(values[2] / values[1] - values[0]), kept - means[:, 0])
    return {
        "picks_out_of": size,
        "picks": int(chances.size),
        "error": calibration_error(chances.ravel(), right.ravel()),
        "accuracy": float(values[0]),
        "kept_share": float(values[1]),
        "kept_accuracy": float(values[2] / values[1]),
        "gain": {"value": gain.value, "low": gain.low, "high": gain.high},
    }


def _picks(
    ratios: Doubles, calibration: AnswerCalibration, sampled: Sampled, size: int
) -> tuple[Doubles, NDArray[np.bool_]]:
    """P(correct) of the picks, and whether they are right, `[q, m]` each; a problem without an answer has 0."""
    problems, each = len(ratios), sampled.n // size
    chances, right = np.zeros((problems, each)), np.zeros((problems, each), np.bool_)
    for problem in range(problems):
        for number in range(each):
            part = slice(number * size, (number + 1) * size)
            answers = sampled.answers[problem, part]
            names = np.unique(answers[answers >= 0])
            if not names.size:
                continue
            groups = [np.flatnonzero(answers == name).tolist() for name in names]
            sums = np.array(answer_sums(groups, ratios[problem, part].tolist()))
            best = int(sums.argmax())
            chances[problem, number] = calibration.posterior(sums)[best]
            right[problem, number] = sampled.correct[problem, part][answers == names[best]].any()
    return chances, right
