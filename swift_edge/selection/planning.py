"""What the options of a pick come to with an opened model: how its tokens are drawn, scored, and what is picked."""

from dataclasses import dataclass

from swift_edge.engine.model import OpenedModel
from swift_edge.errors import InvalidOptionError
from swift_edge.options import PickOptions, SamplingOptions, SignalName, options_of
from swift_edge.scoring.candidate import Ranking
from swift_edge.selection.adaptive.steering import Plan
from swift_edge.selection.decision import Decision


@dataclass(frozen=True, slots=True)
class Planned:
    """A pick whose options have been checked against the model."""

    options: PickOptions
    """What was asked for, the bundle's own filled in."""
    seed: int
    """Seed of all candidates' random numbers."""
    sampling: SamplingOptions
    """How tokens are drawn."""
    ranking: Ranking
    """By what candidates are scored."""
    plan: Plan
    """How many candidates there are, which are dropped, and how the pick is made."""


def planned(opened: OpenedModel, options: PickOptions) -> Planned:
    """Check every combination of options; raises `InvalidOptionError`."""
    resolved = options.resolved(opened.bundle.manifest.sampling)
    assert resolved.seed is not None
    sampling = SamplingOptions(**{name: getattr(resolved, name) for name in options_of(SamplingOptions)})
    ranking = ranking_by(opened, resolved.signal)
    plan = Plan.of(resolved, Decision.of(ranking.head, resolved))
    if plan.most > 1 and sampling.temperature == 0:
        raise InvalidOptionError(
            f"n is {options.n} at temperature 0, where all candidates are the same; "
            "expected n=1, or a temperature above 0"
        )
    return Planned(resolved, resolved.seed, sampling, ranking, plan)


def ranking_by(opened: OpenedModel, signal: SignalName | None) -> Ranking:
    """By what to rank: the signal that was asked for, else the head, else the mean log-probability."""
    if signal is None and opened.head is not None:
        return Ranking.by_head(opened.head, opened.bundle.manifest.tokens.eos_ids)
    return Ranking(None, signal or "mean_logprob")
