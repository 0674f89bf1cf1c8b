"""A store to a head: split by problem, start from a convex problem, descend with the gate, calibrate on what is left.

    1. problems are dealt into training, validation and calibration, all candidates of one into the same part
    2. inputs are standardised by the training tokens
    3. L2 logistic regression on the mean inputs of each response (with the pairwise loss, if that is asked for: convex,
       too) gives the reward row; the gate row is zero, so that all tokens count alike and the scores are the same
    4. gate and reward are fitted together to the loss; the best weights on the validation problems are kept
    5. the weights are folded back to raw inputs, and the calibration is fitted

Knows options and what is told about a fit. Does not know how labels were made.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

import swift_edge
from swift_edge.answers import AnswerTask
from swift_edge.calibration import PREFIX_TOKENS, Calibration
from swift_edge.errors import InvalidOptionError, TrainingError
from swift_edge.extras import import_extra
from swift_edge.head import Head
from swift_edge.ranking_quality import pick_accuracy
from swift_edge.training.calibrate import calibrate, task_of
from swift_edge.training.descent import Descent, Objective, Standard, Weights, descend
from swift_edge.training.examples import (
    Candidates,
    Examples,
    Split,
    Survey,
    check_stores,
    pooled_bytes,
    read_candidates,
    read_examples,
    split_problems,
    survey,
)
from swift_edge.training.fit_options import FitOptions
from swift_edge.training.objectives import Counts, Doubles, contrasts, cut, cut_after
from swift_edge.training.rows import starts_of
from swift_edge.training.store import Store

__all__ = ["FitOptions", "fit_head"]

SHORTEST_PREFIX: Final = 0.1
"""Least share of a response that a prefix keeps."""


def fit_head(
    stores: Store | Sequence[Store], options: FitOptions | None = None, *, report: Callable[[str], None] | None = None
) -> Head:
    """Fit a head to the labelled candidates of a store, or of several stores of one model and the same settings.

    `report` is told lines of progress. The same store, options and machine give the same head. Problems whose
    candidates are all correct or all wrong count in the losses over candidates, but not in ranking.

    Raises `TrainingError` where nothing can be learned (fewer than two problems with correct and wrong candidates),
    `StoreError` for stores that do not fit together, do not hold what is asked for, or hold numbers that are not
    finite, `MissingExtraError` without SciPy.
    """
    options = options or FitOptions()
    stores = [stores] if isinstance(stores, Store) else list(stores)
    if not stores:
        raise InvalidOptionError("there is no store to fit to; name at least one")
    import_extra("scipy.optimize", "fit", "train")  # missed now rather than after the store is read
    tell = report or (lambda _line: None)
    notes = [_incomplete(store) for store in stores if not store.complete]
    for line in notes:
        tell(f"warning: {line}")
    info = stores[0].info
    inputs = options.inputs(info)
    places = check_stores(stores, inputs)
    candidates, split = _dealt(read_candidates(stores, inputs.includes_eos), options)
    tell(_told(candidates, split))
    examples = read_examples(stores, candidates, inputs, places, options.memory_bytes)
    pool = pooled_bytes(examples, options.memory_bytes) > 0
    surveyed = survey(examples, split.train, stores, pool=pool)
    fitted = _fit(examples, surveyed, split, options, tell)
    task = task_of(stores)
    calibration, note = _calibrated(fitted.objective, split, fitted.descent.vector, task, options.seed)
    if note:
        notes.append(note)
        tell(f"warning: {note}")
    standard = fitted.objective.standard
    weight, bias = Weights.of(fitted.descent.vector, examples.rows.inputs).folded(standard)
    summary = _summary(fitted, split, options, stores, task, calibration, notes)
    tell(_outcome(summary))
    return Head(
        weight,
        bias.astype(np.float32),
        layers=inputs.layers if info.feature == "hidden" else (),
        token_statistics=inputs.token_statistics,
        gate=options.gate,
        feature="hidden" if info.feature == "hidden" else "logits",
        includes_eos=inputs.includes_eos,
        calibration=None if calibration is None else calibration.to_dict(),
        fingerprint=info.fingerprint,
        precision=info.precision,
        base_model=info.base_model,
        summary=summary,
        norm=inputs.norm,
        input_mean=standard.mean.astype(np.float32),
        input_scale=standard.scale.astype(np.float32),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Fitted:
    """What the descents came to."""

    examples: Examples
    """All candidates with their tokens."""
    objective: Objective
    """Of the training problems; on mean inputs where that is the same."""
    descent: Descent
    """The last one."""
    weight_decay: float
    """The one that was used."""
    search: list[dict[str, float | None]]
    """Within-problem AUROC on the validation problems by weight decay, after the convex start and in the end."""
    start_auroc: float
    """The same of the convex start."""


def _fit(
    examples: Examples, surveyed: Survey, split: Split, options: FitOptions, tell: Callable[[str], None]
) -> _Fitted:
    """The convex start, the weight decay, and the descent from there."""
    standard = Standard(surveyed.mean, surveyed.scale)
    train = Objective(
        examples,
        split.train,
        standard,
        options.gate,
        options.loss,
        options.pairwise_weight,
        _pieces(examples, options),
        options.prefix_weight,
    )
    # The mean of the tokens' scores is the score of their mean: without a gate one row per response is enough.
    means = replace(train, examples=surveyed.pooled or examples, gate=False, loss="bce", pieces=None)
    if not options.gate and not options.prefixes:
        train = replace(train, examples=means.examples)
    decays = sorted(options.weight_decays if options.weight_decay is None else (options.weight_decay,), reverse=True)
    if not contrasts(*_labels(examples, split.validation)).any():
        decays = [decays[len(decays) // 2]]  # nothing tells which is best
    starts: dict[float, Descent] = {}
    for decay in decays:
        # Each from zero: along another one's path it would be judged with what that one found.
        nothing = np.zeros(examples.rows.inputs + 1)
        starts[decay] = descend(means, _judge(means, split), nothing, options.limits(decay))
        tell(f"weight decay {decay:g}: within-problem AUROC {starts[decay].auroc:.4f} after the convex start")
    found: dict[float, Descent] = {}
    for decay in decays if options.search == "full" else [_best(starts)]:
        start = Weights.of(starts[decay].vector, examples.rows.inputs)
        start = start.gated() if options.gate else start
        found[decay] = descend(train, _judge(train, split), start.flat(), options.limits(decay), report=tell)
        tell(f"weight decay {decay:g}: within-problem AUROC {found[decay].auroc:.4f}")
    chosen = _best(found)
    search = [
        {
            "weight_decay": decay,
            "start_auroc": _plain(starts[decay].auroc),
            "auroc": _plain(found[decay].auroc) if decay in found else None,
        }
        for decay in sorted(starts)
    ]
    return _Fitted(examples, train, found[chosen], chosen, search, starts[chosen].auroc)


def _best(found: Mapping[float, Descent]) -> float:
    """The weight decay with the greatest AUROC, of equal ones the strongest."""
    return max(sorted(found, reverse=True), key=lambda decay: found[decay].auroc)


def _labels(examples: Examples, problems: range) -> tuple[NDArray[np.bool_], Counts]:
    """Labels of the candidates of some problems, and where each problem starts among them."""
    members = examples.members(problems)
    starts = examples.problem_starts[problems.start : problems.stop + 1] - members.start
    return examples.candidates.correct[members], starts


def _judge(train: Objective, split: Split) -> Objective | None:
    """The same loss over whole responses of the validation problems; None without such problems."""
    return replace(train, problems=split.validation, pieces=None) if len(split.validation) else None


def _pieces(examples: Examples, options: FitOptions) -> Counts | None:
    """Where each response is truncated, drawn by the seed."""
    if not options.prefixes:
        return None
    random = np.random.default_rng(np.random.SeedSequence(options.seed, spawn_key=(1,)))
    problems = len(examples.problem_starts) - 1
    fractions = random.uniform(SHORTEST_PREFIX, 1.0, (problems, options.prefixes))
    return cut(examples.candidates.tokens, fractions[examples.candidates.problems])


def _dealt(candidates: Candidates, options: FitOptions) -> tuple[Candidates, Split]:
    """The problems to use, in order of the parts they are dealt into; raises `TrainingError` where they are too few."""
    problems = int(candidates.problems[-1]) + 1 if len(candidates.problems) else 0
    if options.problems is not None and options.problems < problems:
        random = np.random.default_rng(np.random.SeedSequence(options.seed, spawn_key=(0,)))
        candidates = candidates.arranged(np.sort(random.permutation(problems)[: options.problems]))
        problems = options.problems
    both, right, wrong = _kinds(candidates)
    if both < 2:
        counts = f"{problems} problems, {right} of them with correct candidates only and {wrong} with wrong ones only"
        raise TrainingError(
            f"nothing can be learned from {counts}, {both} with both; expected at least 2 problems with both: collect "
            "more problems or more candidates of each (-n), or problems that are neither too easy nor too hard"
        )
    order, split = split_problems(
        contrasts(candidates.correct, starts_of(np.bincount(candidates.problems))),
        options.validation_share,
        options.calibration_share,
        options.seed,
    )
    return candidates.arranged(order), split


def _kinds(candidates: Candidates) -> tuple[int, int, int]:
    """Problems with both labels, with correct candidates only, and with wrong ones only."""
    counts = np.bincount(candidates.problems)
    right = np.bincount(candidates.problems, weights=candidates.correct)
    return int(((right > 0) & (right < counts)).sum()), int((right == counts).sum()), int((right == 0).sum())


def _calibrated(
    objective: Objective, split: Split, vector: Doubles, task: AnswerTask | None, seed: int
) -> tuple[Calibration | None, str | None]:
    """The calibration, and what is to be said about it."""
    note = None
    for problems in (split.calibration, range(split.validation.start, split.calibration.stop)):
        candidates = objective.examples.candidates
        part = replace(objective, problems=problems, pieces=cut_after(candidates.tokens, PREFIX_TOKENS))
        try:
            prefixes = part.measure(vector, gradient=False).prefixes
            members = objective.examples.members(problems)
            answers = candidates.answers[members.start : members.stop]
            tokens = candidates.tokens[members]
            return calibrate(prefixes, tokens, part.correct, part.numbers, answers, task, seed), note
        except TrainingError:
            note = "the calibration problems were too few: those that chose the weights served, too; collect more"
    return None, "the head is not calibrated: no problems with both labels were left; collect more"


def _summary(
    fitted: _Fitted,
    split: Split,
    options: FitOptions,
    stores: Sequence[Store],
    task: AnswerTask | None,
    calibration: Calibration | None,
    notes: Sequence[str],
) -> dict[str, Any]:
    """What is kept in the head: options, numbers and figures, as plain JSON."""
    vector, examples = fitted.descent.vector, fitted.examples
    given = {name: value for name, value in asdict(options).items() if name not in ("memory_bytes", "weight_decays")}
    both, right, wrong = _kinds(examples.candidates)
    document: dict[str, Any] = {
        "options": {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()},
        "problems": {name: len(getattr(split, name)) for name in ("train", "validation", "calibration")},
        "problems_with_both": both,
        "problems_all_correct": right,
        "problems_all_wrong": wrong,
        "candidates": len(examples.candidates.correct),
        "candidates_correct": int(examples.candidates.correct.sum()),
        "candidates_without_tokens": examples.candidates.without_tokens,
        "tokens": int(examples.candidates.tokens.sum()),
        "inputs": examples.rows.inputs,
        "weight_decay": fitted.weight_decay,
        "search": fitted.search,
        "iterations": fitted.descent.iterations,
        "best_iteration": fitted.descent.best_iteration,
        "start": {"within_problem_auroc": _plain(fitted.start_auroc)},
    }
    for name in ("train", "validation"):
        part = replace(fitted.objective, problems=getattr(split, name), pieces=None)
        if not len(part.problems):
            document[name] = None
            continue
        measured = part.measure(vector, gradient=False)
        answers = examples.candidates.answers[examples.members(part.problems)]
        picks = pick_accuracy(measured.scores, part.correct, part.numbers, answers)
        auroc = part.auroc(measured.scores)
        document[name] = {"loss": measured.loss, "within_problem_auroc": _plain(auroc), **picks.to_dict()}
    document["calibration_error"] = None if calibration is None else calibration.error
    document["task"] = None if task is None else task.name
    document["data_sha256"] = [store.info.data_sha256 for store in stores]
    document["notes"] = list(notes)
    document["version"] = swift_edge.__version__
    return document


def _incomplete(store: Store) -> str:
    return f"{store.path} is not complete: {store.problems} of {store.info.problems} problems are there and are used"


def _told(candidates: Candidates, split: Split) -> str:
    both, right, wrong = _kinds(candidates)
    left_out = f"; {candidates.without_tokens} left out without tokens" if candidates.without_tokens else ""
    return (
        f"{len(candidates.correct)} candidates, {candidates.correct.mean():.1%} correct{left_out}; problems: "
        f"{len(split.train)} train, {len(split.validation)} validation, {len(split.calibration)} calibration; "
        f"{both} with both labels, {right} all correct and {wrong} all wrong say nothing about ranking"
    )


def _outcome(summary: dict[str, Any]) -> str:
    kept = f"kept iteration {summary['best_iteration']} of {summary['iterations']}"
    figures = summary["validation"]
    if figures is None:
        return f"{kept}; no validation problems"
    names = ("within_problem_auroc", "best", "pass_at_1", "majority", "oracle")
    told = ", ".join(f"{name} {figures[name]:.3f}" for name in names if figures[name] is not None)
    error = summary["calibration_error"]
    return f"{kept}; validation: {told}" + ("" if error is None else f"; calibration error {error:.3f}")


def _plain(number: float) -> float | None:
    return number if math.isfinite(number) else None
