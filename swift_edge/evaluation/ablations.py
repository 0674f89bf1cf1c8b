"""What each choice of a head is worth: heads fitted with one choice changed, and heads on bundles of other precision.

layers, gate, token statistics, losses, prefixes, norm, size of the training set    fitted to one store of training
                    candidates, and judged on the test's own candidates by the features that are stored with them
logits              fitted to a store of logits, and judged on the same candidates, written once more
precision           the default head on the candidates of another bundle, as it is and recalibrated there
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from swift_edge.answers import answer_task
from swift_edge.arrays import Doubles
from swift_edge.bundle.folder import open_bundle
from swift_edge.engine.model import OpenedModel
from swift_edge.engine.signals import TokenStatistics
from swift_edge.errors import InvalidOptionError, StoreError, SwiftEdgeError
from swift_edge.evaluation.expectation import expected_best, expected_vote, subsets_of
from swift_edge.evaluation.measure import plain_figure, ratio_estimate
from swift_edge.evaluation.sampled import Sampled
from swift_edge.evaluation.selectors import problem_aurocs
from swift_edge.evaluation.trial import Trial
from swift_edge.records import RecordError, read_fields
from swift_edge.scoring.bootstrap import estimate, resampled_means
from swift_edge.scoring.head import LEAST_GATE_SUM, Head
from swift_edge.system.extras import import_extra
from swift_edge.training.collecting.problems import Problems, data_rows, read_problems
from swift_edge.training.fitting.fit import fit_head
from swift_edge.training.fitting.objectives import LOSSES
from swift_edge.training.fitting.options import FitOptions
from swift_edge.training.fitting.recalibrate import recalibrate
from swift_edge.training.seen import prompt_hash
from swift_edge.training.store.format import STATISTICS
from swift_edge.training.store.shards import Shard
from swift_edge.training.store.writer import Store

LAST_LAYERS: Final = (1, 2, 4)
"""Numbers of last hidden states that are tried."""
SHARES: Final = (1 / 8, 1 / 4, 1 / 2)
"""Shares of the training problems that are tried."""
TOKENS_AT_ONCE: Final = 4096
"""Tokens that are read and scored at once."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A head that differs from the default one in one choice."""

    group: str
    """What is changed."""
    name: str
    """To what."""
    options: FitOptions
    """How it is fitted."""


@dataclass(frozen=True, slots=True)
class Ablations:
    """What to fit and to measure beside the test itself; what is not given is left out."""

    train: Path | None = None
    """Store of training candidates with hidden states."""
    train_logits: Path | None = None
    """Store of training candidates with logits."""
    others: Mapping[str, Path] = field(default_factory=dict)
    """Further bundles of the same model by name, to run the default head on."""
    recalibration_data: Path | None = None
    """Problems with answers, to recalibrate the default head on for each further bundle."""
    recalibration_problems: int = 300
    """How many of them."""
    options: FitOptions | None = None
    """How heads are fitted where a variant does not say otherwise; None is how the default head was fitted."""
    variants: tuple[Variant, ...] | None = None
    """Heads to fit to `train`; None are all that `variants` gives."""

    @property
    def any(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.train or self.train_logits or self.others or self.recalibration_data)

    @property
    def reads_features(self) -> bool:
        """Whether the hidden states of the test's candidates are needed."""
        return self.train is not None

    def check(self, trial: Trial, heads: Mapping[str, Head]) -> None:
        """Find out what does not fit before anything is computed: `StoreError`, `InvalidOptionError`, `BundleError`."""
        if self.train or self.train_logits:
            import_extra("scipy.optimize", "fit", "train")
        for path, feature in ((self.train, "hidden"), (self.train_logits, "logits")):
            if path is not None:
                _check_store(Store.open(path), feature, trial)
        if self.recalibration_data is not None:
            if not self.others:
                raise InvalidOptionError(
                    "problems to recalibrate on are given, but no other bundle; name one with --other"
                )
            problems = self._recalibration(trial)
            if shared := len(_hashes(trial.problems) & _hashes(problems)):
                raise InvalidOptionError(
                    f"{self.recalibration_data} holds {shared} of the problems of the test; expected others to "
                    "recalibrate on"
                )
        if self.others and not heads:
            raise InvalidOptionError(
                "other bundles are given, but there is no head to run on them; name one with --head"
            )
        ours = trial.opened.bundle.manifest
        for name, path in self.others.items():
            theirs = open_bundle(path).manifest
            if theirs.fingerprint != ours.fingerprint:
                raise InvalidOptionError(
                    f"the bundle {name}, {path}, has other weights ({theirs.base_model}) than the one that is tested "
                    f"({ours.base_model}); expected another precision of the same model"
                )

    def to_dict(self) -> dict[str, Any]:
        """As plain data, ready for JSON."""
        return {
            "train": _store_facts(self.train),
            "train_logits": _store_facts(self.train_logits),
            "others": {name: str(path) for name, path in self.others.items()},
            "recalibration": None
            if self.recalibration_data is None
            else {
                "file": str(self.recalibration_data),
                "sha256": data_rows(self.recalibration_data, piped=False)[0],
                "problems": self.recalibration_problems,
            },
        }

    def measure(self, trial: Trial, store: Store, heads: Mapping[str, Head]) -> list[dict[str, Any]]:
        """Fit and judge every variant; a row of plain data each, the head that is tested first."""
        judged = []
        for row in self._judge(trial, store, heads):
            judged.append(row)
            trial.report(f"{row.group} {row.name}: pick {row.best.mean():.3f}, vote {row.vote.mean():.3f}")
        return _rows(judged, trial)

    def _judge(self, trial: Trial, store: Store, heads: Mapping[str, Head]) -> Iterator["_Judged"]:
        default = next(iter(heads.values()), None)
        if default is not None:
            yield _Judged.of("", next(iter(heads)), default, store, trial)
        options = self.options or fit_options_of(default)
        if self.train is not None:
            train = Store.open(self.train)
            fitted: dict[FitOptions, _Judged] = {}
            for variant in variants(train, options) if self.variants is None else self.variants:
                judged = fitted.get(variant.options)
                if judged is None:
                    trial.report(f"fitting {variant.group}: {variant.name}")
                    head = fit_head(train, variant.options)
                    scores = stored_scores(store, head)
                    judged = _Judged.of(variant.group, variant.name, head, store, trial, scores)
                    fitted[variant.options] = judged
                yield replace(judged, group=variant.group, name=variant.name)
        if self.train_logits is not None:
            trial.report("fitting to logits")
            head = fit_head(Store.open(self.train_logits), replace(options, layers=None, norm="none"))
            written = trial.candidates("candidates-logits", trial.main_size, {"logits": head})
            yield _Judged.of("feature", "logits", head, written, trial)
        if default is not None:
            for name, path in self.others.items():
                yield from self._judge_other(trial, name, path, default)

    def _recalibration(self, trial: Trial) -> Problems:
        """The problems to recalibrate on, which are asked as those of the test are."""
        assert self.recalibration_data is not None
        asking = trial.problems.asking
        return read_problems(
            self.recalibration_data,
            piped=False,
            benchmark=asking.benchmark,
            shots=asking.shots,
            system=asking.system,
        ).first(self.recalibration_problems)

    def _judge_other(self, trial: Trial, name: str, path: Path, head: Head) -> Iterator["_Judged"]:
        """Judge the head on the candidates of another bundle, as it is and recalibrated."""
        session = trial.opened.session
        other = OpenedModel.open(path, session.providers, session.threads)
        heads = {"as it is": head}
        if self.recalibration_data is not None:
            problems = self._recalibration(trial)
            collected = trial.candidates(
                f"recalibration-{name}", trial.main_size, {}, opened=other, problems=problems, store_features=True
            )
            heads["recalibrated"] = recalibrate(head, collected, seed=trial.writing.seed, report=trial.report)
        written = trial.candidates(f"candidates-{name}", trial.main_size, heads, opened=other)
        for state, scorer in heads.items():
            yield _Judged.of(name, state, scorer, written, trial)


def variants(store: Store, options: FitOptions) -> Iterator[Variant]:
    """All heads to fit to a store of hidden states; the first as `options` say, the others with one choice changed.

    Some may come to the same head, such as that on all layers where all are read anyway.
    """
    layers = store.info.layers

    def changed(group: str, name: str, **changes: Any) -> Variant:
        return Variant(group, name, replace(options, **changes))

    yield changed("all choices", "as the default")
    for count in LAST_LAYERS:
        if count < len(layers):
            yield changed("layers", f"last {count}", layers=layers[-count:])
    yield changed("layers", f"all {len(layers)}", layers=layers)
    yield changed("gate", "off", gate=False)
    yield changed("token statistics", "none: plain SWIFT", token_statistics=())
    for count in (4, len(layers)):
        if count <= len(layers):
            name = f"plain, {'all' if count == len(layers) else 'last'} {count} layers"
            yield changed("token statistics", name, token_statistics=(), layers=layers[-count:])
    yield changed("token statistics", "logprob and entropy", token_statistics=("logprob", "entropy"))
    for loss in LOSSES:
        yield changed("loss", loss, loss=loss, pairwise_weight=0.0)
    yield changed("loss", "bce and pairwise", loss="bce", pairwise_weight=1.0)
    yield changed("convex", "logistic regression on means", gate=False, prefixes=0, loss="bce", pairwise_weight=0.0)
    yield changed("prefixes", "none", prefixes=0)
    yield changed("norm", "rms", norm="rms")
    for share in SHARES:
        problems = round(share * store.problems)
        if problems >= 2:
            yield changed("training problems", f"{problems}", problems=problems)


def fit_options_of(head: Head | None) -> FitOptions:
    """The options that a head was fitted with, as its summary tells them; the defaults for one that does not tell."""
    values: Any = {} if head is None else head.summary.get("options")
    names = {each.name for each in fields(FitOptions)}
    if not isinstance(values, Mapping) or not set(values) <= names:
        return FitOptions()
    try:
        return FitOptions(**read_fields(values, FitOptions, values))
    except (SwiftEdgeError, RecordError):  # written by an older or a newer swift-edge
        return FitOptions()


def stored_scores(store: Store, head: Head, *, tokens_at_once: int = TOKENS_AT_ONCE) -> Doubles:
    """Scores `[c]` that a head gives the candidates of a store, from the features stored with them; NaN without any.

    `tokens_at_once` are read and scored together.
    """
    places = [store.info.layers.index(layer) for layer in head.layers] if head.feature == "hidden" else [0]
    uncounted = () if head.includes_eos else store.info.eos_ids
    return np.concatenate([_shard_scores(shard, head, places, uncounted, tokens_at_once) for shard in store.shards])


def _shard_scores(
    shard: Shard, head: Head, places: Sequence[int], uncounted: Sequence[int], tokens_at_once: int
) -> Doubles:
    tokens = len(shard.token_ids)
    gates, weighted, counted = np.zeros(tokens), np.zeros(tokens), np.zeros(tokens)
    for begin in range(0, tokens, tokens_at_once):
        block = slice(begin, begin + tokens_at_once)
        shard.require_whole()
        states = shard.states[block][:, places].transpose(1, 0, 2)  # [l, m, w]
        columns = dict(zip(STATISTICS, shard.statistics[block].T.astype(np.float64), strict=True))
        gate, reward = head.evaluate(states, TokenStatistics(**columns))
        counted[block] = ~np.isin(shard.token_ids[block], uncounted)
        gates[block] = gate * counted[block]
        weighted[block] = gates[block] * reward
    # A candidate without tokens has no run of its own: sums up to its start and its end are the same.
    total, weight, count = (
        np.diff(np.concatenate([[0.0], np.cumsum(each)])[shard.starts]) for each in (weighted, gates, counted)
    )
    return np.where(count > 0, total / np.maximum(weight, LEAST_GATE_SUM), np.nan)


@dataclass(frozen=True, slots=True, eq=False)
class _Judged:
    """How a head does on each of the q problems."""

    group: str
    """What is changed."""
    name: str
    """To what."""
    inputs: int
    """Inputs of the head."""
    pass_at_1: Doubles  # [q]
    """Share of right candidates."""
    best: Doubles  # [q]
    """Chance that its pick is right."""
    vote: Doubles  # [q]
    """Chance that the pick of its vote is right."""
    auroc: Doubles  # [q]
    """AUROC within the problem; NaN where all candidates are right or all are wrong."""

    @classmethod
    def of(
        cls, group: str, name: str, head: Head, store: Store, trial: Trial, scores: Doubles | None = None
    ) -> "_Judged":
        """Judge a head by its `scores`, `[c]`, or by those it gave while the candidates were written, as `name`."""
        scores_by_head = None if scores is None else {name: scores.reshape(store.problems, -1)}
        sampled = Sampled.read(store, answer_task(trial.task), {name: head}, scores=scores_by_head)
        head_scores, correct = sampled.heads[name], sampled.correct
        subsets = subsets_of(sampled.n, trial.main_size, trial.writing.seed)
        return cls(
            group=group,
            name=name,
            inputs=int(head.weight.shape[1]),
            pass_at_1=correct.mean(axis=1),
            best=expected_best(head_scores.scores, correct, trial.main_size),
            vote=expected_vote(head_scores.votes, sampled.answers, correct, subsets),
            auroc=problem_aurocs(head_scores.scores, correct),
        )


def _rows(judged: Sequence[_Judged], trial: Trial) -> list[dict[str, Any]]:
    """The figures with their intervals, all from the same resamples."""
    if not judged:
        return []
    columns = np.stack(
        [
            column
            for row in judged
            for column in (
                row.pass_at_1,
                row.best,
                row.vote,
                np.nan_to_num(row.auroc),
                ~np.isnan(row.auroc),
                row.best - judged[0].best,
            )
        ],
        axis=1,
    )  # [q, 6 rows]
    means = resampled_means(columns, resamples=trial.resamples, seed=trial.writing.seed)
    values = columns.mean(axis=0)
    rows = []
    for number, row in enumerate(judged):
        first, best, vote, won, both, less = range(6 * number, 6 * number + 6)
        rows.append(
            {
                "group": row.group,
                "variant": row.name,
                "inputs": row.inputs,
                "pass@1": plain_figure(estimate(float(values[first]), means[:, first])),
                "accuracy": plain_figure(estimate(float(values[best]), means[:, best])),
                "vote": plain_figure(estimate(float(values[vote]), means[:, vote])),
                "auroc": plain_figure(ratio_estimate(values[won], values[both], means[:, won], means[:, both])),
                "difference": plain_figure(estimate(float(values[less]), means[:, less])) if number else None,
            }
        )
    return rows


def _check_store(store: Store, feature: str, trial: Trial) -> None:
    info, manifest = store.info, trial.opened.bundle.manifest
    if info.feature != feature:
        raise StoreError(
            f"{store.path} holds {info.feature}; expected a store of {feature}: collect it with --feature {feature}"
        )
    for name, ours in (("fingerprint", manifest.fingerprint), ("precision", manifest.precision.label)):
        if getattr(info, name) != ours:
            raise StoreError(
                f"{store.path} has {name} {getattr(info, name)!r}, the bundle that is tested {ours!r}; "
                "expected a store that was collected with this bundle"
            )
    known = {each.prompt_hash for each in store.candidates}
    shared = len(known & _hashes(trial.problems))
    if shared or info.data_sha256 == trial.problems.sha256:
        count = f"{shared} of " if shared else ""
        raise StoreError(f"{store.path} was collected on {count}the problems of the test; expected others to train on")


def _hashes(problems: Problems) -> set[str]:
    return {prompt_hash(problem.question) for problem in problems.rows}


def _store_facts(path: Path | None) -> dict[str, Any] | None:
    """What a store was made with; None without one."""
    return None if path is None else {"path": str(path), "info": json.loads(Store.open(path).info.to_json())}
