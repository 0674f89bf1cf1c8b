"""The plan of a pick: its options checked against an opened model and its head, before anything is computed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from swift_edge.arrays import Ids
from swift_edge.engine.model import OpenedModel, Prompt
from swift_edge.errors import InvalidOptionError
from swift_edge.options import PickOptions, SamplingOptions, SignalName, options_of
from swift_edge.scoring.head import Head, check_head, load_head
from swift_edge.scoring.scorer import Scorer
from swift_edge.scoring.verdict import verdict_of
from swift_edge.selection.adaptive.pace import Pace
from swift_edge.selection.adaptive.steering import Plan
from swift_edge.selection.decision import Decision
from swift_edge.system.machine import memory_for


@dataclass(frozen=True, slots=True)
class Planner:
    """A model with the head that scores its candidates; shared by calls and threads."""

    model: OpenedModel
    """The model."""
    head: Head | None
    """The head that scores unless a signal is asked for."""
    head_name: str | None
    """The name that the caller gave the head, or its file name in the bundle."""
    bundle: str
    """The bundle, as the caller named it."""
    warnings: tuple[str, ...]
    """What the caller should know, one line each."""
    pace: Pace
    """How long steps take on this machine, which sets the rows of plans."""

    @classmethod
    @memory_for("opening the bundle")
    def open(
        cls,
        path: str,
        head: str | Head | None = None,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        prefix_cache_bytes: int = 0,
        rows: int | None = None,
    ) -> "Planner":
        """Open and check a bundle and its head; `head` replaces the bundle's own; the rest is as in `OpenedModel.open`.

        Raises what `OpenedModel.open` does, and before that `HeadFileError` and `HeadMismatchError`.
        """
        bundle = OpenedModel.bundle_at(path)
        loaded: Head | None
        name: str | None
        if isinstance(head, Head):
            loaded, name = head, f"a head of {head.base_model or 'an unnamed model'}"
        elif head is not None:
            loaded, name = load_head(head), head
        elif bundle.head_path is not None:
            loaded, name = load_head(bundle.head_path), bundle.head_path.name
        else:
            loaded, name = None, None
        warnings = [] if loaded is None else [*check_head(loaded, bundle.manifest), *_worthless(loaded)]
        if not bundle.manifest.hidden_states.indices:
            warnings.append(
                f"{path} ({bundle.origin}) gives no hidden states: it serves label-free signals and heads on logits; "
                "run swift-edge export for other heads"
            )
        model = OpenedModel.open(bundle, providers, threads, prefix_cache_bytes, rows)
        return cls(model, loaded, name, path, (*warnings, *model.warnings), Pace(bundle, model.engine))

    @classmethod
    def over(cls, model: OpenedModel, head: Head | None = None) -> "Planner":
        """Plan for a model that is open already, with `head` or none; the bundle's own head is not used."""
        pace = Pace(model.bundle, model.engine)
        return cls(model, head, None, str(model.bundle.path), model.warnings, pace)

    def scorer(self, signal: SignalName | None) -> Scorer:
        """The signal asked for, else the head, else the mean log-probability."""
        if signal is None and self.head is not None:
            return Scorer.by_head(self.head, self.model.bundle.manifest.tokens.eos_ids)
        return Scorer(None, signal or "mean_logprob")

    def planned(self, options: PickOptions) -> "PlannedPick":
        """Check every combination of options; raises `InvalidOptionError`."""
        manifest = self.model.bundle.manifest
        resolved = options.resolved(manifest.sampling)
        assert resolved.seed is not None
        sampling = SamplingOptions(**{name: getattr(resolved, name) for name in options_of(SamplingOptions)})
        scorer = self.scorer(resolved.signal)
        plan = Plan.of(resolved, Decision.of(scorer.head, resolved))
        if plan.most > 1 and sampling.temperature == 0:
            raise InvalidOptionError(
                f"n is {options.n} at temperature 0, where all candidates are the same; "
                "expected n=1, or a temperature above 0"
            )
        stop_ids = frozenset(manifest.tokens.eos_ids)
        return PlannedPick(self, resolved, resolved.seed, sampling, scorer, self.pace.applied(plan), stop_ids)


def _worthless(head: Head) -> Iterator[str]:
    """A line for a head that was no better on its validation problems than what needs no labels."""
    verdict = verdict_of(head.summary)
    other, problems = verdict.get("other"), verdict.get("problems")
    told = isinstance(other, str) and other in _WAYS and isinstance(problems, int)
    if told and verdict.get("adds_nothing") is True:
        yield (
            f"the head adds nothing that shows: on the {problems} problems that it was validated on, {other}, which "
            f"needs no head, was as good; pick by {_WAYS[str(other)]}, or fit it to more problems"
        )


_WAYS: Final[Mapping[str, str]] = {
    "majority": "--strategy majority",
    "best-of-majority": "--signal mean_logprob",
    "mean_logprob": "--signal mean_logprob --strategy best",
    "self_certainty": "--signal self_certainty --strategy best",
}
"""How to pick without a head, by the rule."""


@dataclass(frozen=True, slots=True)
class PlannedPick:
    """What picks with the same options have in common."""

    planner: Planner
    """The model and its head."""
    options: PickOptions
    """The options, completed with the bundle's defaults."""
    seed: int
    """Seed of all candidates' random numbers."""
    sampling: SamplingOptions
    """How tokens are drawn."""
    scorer: Scorer
    """How candidates are scored."""
    plan: Plan
    """How many candidates there are, which are dropped, and how the pick is made."""
    stop_ids: frozenset[int]
    """Ids that end a response: the bundle's, or none where every response has to have the same length."""

    @property
    def model(self) -> OpenedModel:
        """The model."""
        return self.planner.model

    def prompt_ids(self, prompt: Prompt) -> Ids:
        """Token ids `[p]` of a prompt that leaves room for what the options ask for."""
        return self.model.prompt_ids(prompt, raw=self.options.raw, feeds_last=self.scorer.reads.feeds_last)
