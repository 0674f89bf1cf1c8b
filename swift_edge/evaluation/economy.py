"""What adaptive and pruned picks spend, and how right they are, beside every rule at every fixed number of candidates.

Picks are replayed on the candidates of the test, in several orders of them. Seconds are those of the decode steps:
each has a number of rows, and how long a step of so many rows takes was measured on this machine. Where that was too
busy for times that can be trusted, there are none.

    q problems   s statistics of each   b resamples
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from swift_edge.arrays import Doubles
from swift_edge.evaluation.measure import plain_figure
from swift_edge.evaluation.replay import replay
from swift_edge.evaluation.selectors import ORACLE
from swift_edge.options import PickOptions
from swift_edge.scoring.bootstrap import RESAMPLES, estimate, resampled_means
from swift_edge.scoring.calibration import calibration_error
from swift_edge.selection.adaptive.steering import Plan
from swift_edge.selection.adaptive.step_times import StepTimes
from swift_edge.selection.decision import Decision
from swift_edge.training.store.format import StoredCandidate

ORDERS: Final = 4
"""Orders of a problem's candidates in which its picks are replayed: as written, and drawn ones."""
PLANS: Final[Mapping[str, Mapping[str, str]]] = {
    "auto": {"n": "auto"},
    "auto, not pruned": {"n": "auto", "prune": "off"},
    "pruned": {"prune": "auto"},
}
"""What is asked for beside the greatest number of candidates."""


def economy(
    problems: Sequence[Sequence[StoredCandidate]],
    decision: Decision,
    head: str,
    chances: Mapping[int, Mapping[str, Doubles]],
    times: StepTimes | None,
    paced: Callable[[Plan], Plan],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Accuracy, tokens and seconds of the plans in `PLANS`, and of every rule at every size.

    `problems` are the candidates of each, with running scores by the head named `head`, which `decision` is made by;
    `chances` are those of every rule's pick to be right, `[q]`, by size and rule. Without `times` there are no seconds.
    `paced` makes a plan what it is on this machine.
    """
    sizes = sorted(chances)
    most, names = sizes[-1], [name for name in chances[sizes[-1]] if name != ORACLE]
    fixed = {size: _fixed(problems, size, times) for size in sizes}
    plans = {name: paced(plan_of(decision, most, keywords)) for name, keywords in PLANS.items()}
    picks = {name: _replayed(problems, plan, head, times, seed) for name, plan in plans.items()}
    columns = [chances[size][name] for size in sizes for name in names] + [each.right for each in picks.values()]
    by_problem = np.stack(columns, axis=1)  # [q, s]
    resampled = resampled_means(by_problem, resamples=resamples, seed=seed)  # [b, s]
    # The mean itself is one more row, so that whatever is made of the resamples is made of it.
    means = np.concatenate([by_problem.mean(axis=0)[np.newaxis], resampled])  # [1 + b, s]
    rules = means[:, : len(sizes) * len(names)].reshape(len(means), len(sizes), len(names))
    reference = rules[:, -1, names.index(f"{head} calibrated")]
    plan_figures: dict[str, Any] = {}
    for (name, each), mine in zip(picks.items(), means[:, -len(picks) :].T, strict=True):
        plan_figures[name] = {
            "accuracy": _figure(mine),
            "rows": plans[name].rows,
            "candidates": each.candidates,
            "tokens": each.tokens,
            "tokens_share": each.tokens / fixed[most]["tokens"],
            "seconds": each.seconds,
            "seconds_share": None if each.seconds is None else each.seconds / fixed[most]["seconds"],
            "calibration_error": each.calibration_error,
            "less_calibrated_at_most": _figure(mine - reference),
        }
        for cost in ("tokens", "seconds"):
            if plan_figures[name][cost] is None:
                plan_figures[name][f"best_at_equal_{cost}"] = None
                continue
            pair, share = _between(fixed, cost, plan_figures[name][cost])
            low, high = (rules[:, sizes.index(size)] for size in pair)  # [1 + b, rules]
            mixed = (1 - share) * low + share * high
            best = int(mixed[0].argmax())
            plan_figures[name][f"best_at_equal_{cost}"] = {
                "rule": names[best],
                "accuracy": float(mixed[0, best]),
                "less": _figure(mine - mixed[:, best]),
            }
    return {
        "head": head,
        "orders": ORDERS,
        "knee": None if times is None else times.knee,
        "step_s": {} if times is None else {str(rows): seconds for rows, seconds in times.seconds.items()},
        "fixed": {str(size): figures for size, figures in fixed.items()},
        "plans": plan_figures,
    }


@dataclass(frozen=True, slots=True)
class _Picks:
    """What the picks of a plan come to, per problem."""

    right: Doubles  # [q]
    """Share of the orders in which the pick is right."""
    candidates: float
    """Candidates begun, on average."""
    tokens: float
    """Tokens per problem."""
    seconds: float | None
    """Seconds of decode steps per problem; None where steps were not timed."""
    calibration_error: float
    """That of the P(correct) of the picks."""


def plan_of(decision: Decision, most: int, keywords: Mapping[str, str]) -> Plan:
    """The plan of a pick of at most `most` candidates with these options; of exactly so many unless `n` is `auto`."""
    adaptive = keywords.get("n") == "auto"
    options = {"n": "auto", "max_n": most} if adaptive else {"n": most}
    return Plan.of(PickOptions.of(None, options | {"prune": keywords.get("prune")}), decision)


def _replayed(
    problems: Sequence[Sequence[StoredCandidate]], plan: Plan, head: str, times: StepTimes | None, seed: int
) -> _Picks:
    right = np.zeros(len(problems))
    candidates = tokens = 0
    steps: Counter[int] = Counter()
    chances: list[float] = []
    labels: list[bool] = []
    random = np.random.default_rng(seed)
    for number in range(ORDERS):
        for place, stored in enumerate(problems):
            order = random.permutation(plan.most).tolist() if number else range(plan.most)
            shown = [stored[index] for index in order]
            pick = replay(plan, shown, head)
            correct = shown[pick.picked].correct
            right[place] += correct / ORDERS
            candidates += len(pick.candidates)
            tokens += pick.tokens
            steps.update(pick.steps)
            chances.append(pick.p_correct or 0.0)  # a pick that is no answer has none
            labels.append(correct)
    picks = ORDERS * len(problems)
    error = calibration_error(chances, labels)
    return _Picks(right, candidates / picks, tokens / picks, _seconds(times, steps, picks), error)


def _seconds(times: StepTimes | None, steps: Mapping[int, int], picks: int) -> float | None:
    """Seconds per pick; None where steps were not timed."""
    return None if times is None else times.of(steps) / picks


def _fixed(problems: Sequence[Sequence[StoredCandidate]], size: int, times: StepTimes | None) -> dict[str, Any]:
    """Tokens and seconds per problem of `size` candidates begun together, of the first ones of each problem."""
    steps: Counter[int] = Counter()
    for candidates in problems:
        steps.update(_steps(each.n_tokens for each in candidates[:size]))
    tokens = sum(rows * count for rows, count in steps.items())
    return {"tokens": tokens / len(problems), "seconds": _seconds(times, steps, len(problems))}


def _steps(lengths: Iterable[int]) -> Mapping[int, int]:
    """Decode steps by the number of their rows, of candidates of these lengths that begin together."""
    ordered, steps, previous = sorted(lengths), Counter[int](), 0
    for place, length in enumerate(ordered):
        steps[len(ordered) - place] += length - previous
        previous = length
    return steps


def _between(fixed: Mapping[int, Mapping[str, float]], cost: str, spent: float) -> tuple[tuple[int, int], float]:
    """The two sizes between which what was spent lies, and how far from the first to the second."""
    for low, high in itertools.pairwise(sorted(fixed)):
        below, above = fixed[low][cost], fixed[high][cost]
        if spent <= above:
            return (low, high), max(0.0, (spent - below) / (above - below)) if above > below else 0.0
    return (max(fixed), max(fixed)), 0.0


def _figure(means: Doubles) -> dict[str, float | None]:
    """A figure out of its value and its resamples, `[1 + b]`."""
    return plain_figure(estimate(float(means[0]), means[1:]))
