"""Whether a head is worth its while: its pick against the best that can be had without labels, in a plain sentence.

q problems
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np

from swift_edge.arrays import Doubles
from swift_edge.scoring.bootstrap import Estimate, estimate, resampled_means

LEAST_PROBLEMS: Final = 20
"""Fewer problems tell nothing."""
FEW_CONTRASTS: Final = 0.4
"""Share of problems with right and wrong candidates below which they are said to be too easy or too hard."""
MORE: Final = 3
"""Times as many training problems as there are that are asked for where a head is not ahead: less is hardly seen."""
RESAMPLES: Final = 2000

Outcome = Literal["ahead", "unsure", "behind", "unknown"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """How the pick of a head does against the rules that need no labels, on problems that it was not trained on."""

    outcome: Outcome
    """`ahead` and `behind` of the best of these rules where the interval of the difference says so, `unsure` between
    them, `unknown` with too few problems."""
    problems: int
    """Problems that it was judged on."""
    rule: str
    """How the head picks."""
    accuracy: float
    """Share of right picks."""
    other: str
    """The best rule without labels."""
    other_accuracy: float
    """Share of its right picks."""
    difference: Estimate
    """The head's share less that, with its interval over problems."""
    majority: Estimate | None
    """The head's share less that of the commonest answer; None where nothing tells answers."""
    strategy: str
    """The best way to pick with this head: `rule`, unless another one is ahead of it beyond doubt."""
    advice: str
    """What to do next."""

    @property
    def adds_nothing(self) -> bool:
        """Whether what needs no labels did as well."""
        return self.outcome != "unknown" and self.difference.value <= 0

    def __str__(self) -> str:
        """Say it in plain words."""
        if self.outcome == "unknown":
            return f"verdict: {self.problems} problems are too few to say what the head is worth; {self.advice}"
        words = {
            "ahead": "the head pays",
            "unsure": "the head may pay or not" if self.difference.value > 0 else "the head adds nothing that shows",
            "behind": "the head does not pay",
        }
        against = "" if self.majority is None or self.other == "majority" else f", {_text(self.majority)} over majority"
        return (
            f"verdict: {words[self.outcome]}: on {self.problems} problems its pick ({self.rule}) is right in "
            f"{self.accuracy:.3f}, {self.other}, the best without labels, in {self.other_accuracy:.3f}: "
            f"{_text(self.difference)}{against}; {self.advice}"
        )

    def to_dict(self) -> dict[str, Any]:
        """As plain data, with the sentence."""
        return asdict(self) | {"adds_nothing": self.adds_nothing, "text": str(self)}


def verdict_of(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    """The verdict in a head's summary, as plain data; empty where it has none."""
    verdict = summary.get("verdict")
    return verdict if isinstance(verdict, Mapping) else {}


def judge(
    right: Mapping[str, Doubles],
    rule: str,
    without_labels: Sequence[str],
    *,
    training_problems: int | None = None,
    contrasts: float = math.nan,
    problems_per_judged: float = 1.0,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Verdict:
    """Judge the head's `rule` by the chances `[q]` of rules to pick right.

    Args:
        right: chances by rule; those that are not `without_labels` are other ways to pick with the head.
        rule: how the head picks by default.
        without_labels: rules that need no labels.
        training_problems: problems that the head was trained on; None where unknown.
        contrasts: share of problems with right and wrong candidates; NaN where unknown.
        problems_per_judged: problems to collect for one that is judged.
        resamples: resamples of the bootstrap.
        seed: seed of the bootstrap.
    """
    names = list(right)
    columns = np.stack([right[name] for name in names], axis=1)  # [q, s]
    means, values = resampled_means(columns, resamples=resamples, seed=seed), columns.mean(axis=0)
    place = {name: number for number, name in enumerate(names)}

    def less(one: str, other: str) -> Estimate:
        mine, theirs = place[one], place[other]
        return estimate(float(values[mine] - values[theirs]), means[:, mine] - means[:, theirs])

    best = max(without_labels, key=lambda name: values[place[name]])
    difference = less(rule, best)
    strategy = max(names, key=lambda name: (less(name, rule).low > 0, values[place[name]], name == rule))
    if not less(strategy, rule).low > 0:
        strategy = rule
    outcome: Outcome = "unsure"
    if len(columns) < LEAST_PROBLEMS:
        outcome, strategy = "unknown", rule
    elif difference.low > 0:
        outcome = "ahead"
    elif difference.high < 0:
        outcome = "behind"
    advice = _advice(outcome, difference, len(columns), training_problems, contrasts, problems_per_judged)
    return Verdict(
        outcome,
        len(columns),
        rule,
        float(values[place[rule]]),
        best,
        float(values[place[best]]),
        difference,
        less(rule, "majority") if "majority" in place else None,
        strategy,
        advice,
    )


def _advice(
    outcome: Outcome, difference: Estimate, judged: int, training: int | None, contrasts: float, per_judged: float
) -> str:
    if outcome == "ahead":
        return "next: use it, on problems of this kind"
    if outcome == "unknown":
        return f"next: collect at least {_round(5 * LEAST_PROBLEMS * per_judged)} problems"
    steps = []
    if difference.value > 0:
        # The interval shrinks with the root of the problems.
        needed = judged * ((difference.high - difference.low) / 2 / difference.value) ** 2
        steps.append(f"about {_round(min(max(needed, judged), 1e6) * per_judged)} problems in all would tell")
    if training is not None:
        steps.append(f"fit to about {_round(MORE * training)} training problems instead of {training}")
    if contrasts < FEW_CONTRASTS:
        steps.append(
            f"choose problems that are neither too easy nor too hard: {contrasts:.0%} have right and wrong candidates, "
            "and only those teach"
        )
    return f"next: {', or '.join(steps) or 'fit it to more problems of this kind'}"


def _round(number: float) -> int:
    """Two digits, upwards."""
    step = 10 ** max(0, math.floor(math.log10(max(number, 1))) - 1)
    return int(math.ceil(number / step) * step)


def _text(figure: Estimate) -> str:
    return f"{figure.value:+z.3f} [{figure.low:+z.3f}, {figure.high:+z.3f}]"
