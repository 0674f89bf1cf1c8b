"""A store to a head: split by problem, start from a convex problem, descend with the gate, calibrate on what is left.

1. problems are dealt into training, validation and calibration, all candidates of one into the same part
2. inputs are standardised by the training tokens
3. L2 logistic regression on the mean inputs of each response (with the pairwise loss, if that is asked for: convex,
   too) gives the reward row; the gate row is zero, so that all tokens count alike and the scores are the same
4. gate and reward are fitted together to the loss; the best weights on the validation problems are kept
5. the weights are folded back to raw inputs, and the calibration is fitted
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

import swift_edge
from swift_edge.answers import AnswerTask
from swift_edge.arrays import Doubles
from swift_edge.errors import InvalidOptionError, TrainingError
from swift_edge.scoring.calibration import PREFIX_TOKENS, Calibration
from swift_edge.scoring.head import Head
from swift_edge.scoring.known import KnownStates
from swift_edge.scoring.quality import pick_accuracy
from swift_edge.scoring.verdict import Verdict, judge
from swift_edge.system.extras import import_extra
from swift_edge.system.machine import memory_for
from swift_edge.training.fitting.calibrate import calibrate, task_of
from swift_edge.training.fitting.descent import Objective, Weights
from swift_edge.training.fitting.examples import (
    Candidates,
    Split,
    check_stores,
    pooled_bytes,
    read_candidates,
    read_examples,
    split_problems,
    survey,
    without_cut_off,
)
from swift_edge.training.fitting.inputs import Inputs, starts_of
from swift_edge.training.fitting.known import (
    LEAST_HELD_OUT,
    UNKNOWING,
    first_states,
    fit_known,
    known_layer,
    picked_first,
)
from swift_edge.training.fitting.layers import TriedLayers, try_layers
from swift_edge.training.fitting.objectives import contrasts, cut_after
from swift_edge.training.fitting.options import FitOptions
from swift_edge.training.fitting.search import Fitted, Interruption, Search
from swift_edge.training.fitting.verdict import BY_HEAD, right_picks
from swift_edge.training.seen import SHOWN_NAME, SUMMARY_NAME, packed, shown_problems, shown_text
from swift_edge.training.store.writer import Store


class FitInterrupted(KeyboardInterrupt):
    """A `KeyboardInterrupt` that came while weights were searched, and the head that they were good for until then."""

    def __init__(self, head: Head) -> None:
        """Take the finished head; its summary says under `interrupted` where the search was."""
        super().__init__(head)
        self.head = head

    def __str__(self) -> str:
        """Say in one line where the search was, and what is left."""
        place = Interruption(**self.head.summary["interrupted"])
        return f"{place}; the best head until then is in the attribute `head` of this exception"


@memory_for("the fit")
def fit_head(
    stores: Store | Sequence[Store], options: FitOptions | None = None, *, report: Callable[[str], None] | None = None
) -> Head:
    """Fit a head to the labelled candidates of a store, or of several stores of one model and the same settings.

    `report` is told lines of progress. The same store, options and machine give the same head. Problems whose
    candidates are all correct or all wrong count in the losses over candidates, but not in ranking.

    A `KeyboardInterrupt` during the search becomes a `FitInterrupted`, which is one, too: it brings along the best head
    until then, calibrated as any. With one weight decay, interrupted after iteration k, that head has the weights of
    a fit with `max_iterations` k, if the convex start took no more than that. A `KeyboardInterrupt` before anything was
    found passes as it is, and so does another one while the head is calibrated.

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
    tell(_counts_text(candidates, split))
    tell(f"the head is shown {shown_text({SHOWN_NAME: shown_problems(stores, len(candidates.prompts))})}")
    tried = list[TriedLayers]()
    if options.layers == "best":
        room = options.memory_bytes // 2
        tried = try_layers(stores, candidates, split.train, memory_bytes=room, seed=options.seed, tell=tell)
        options = replace(options, layers=tried[0].layers)
        inputs = options.inputs(info)
        places = check_stores(stores, inputs)
    examples = read_examples(stores, candidates, inputs, places, options.memory_bytes)
    pool = pooled_bytes(examples, options.memory_bytes) > 0
    tell(f"reading {int(candidates.tokens.sum()):,} tokens with {examples.rows.inputs:,} inputs each")
    surveyed = survey(examples, split.train, stores, pool=pool)
    search = Search(examples, surveyed, split, options, tell)
    try:
        fitted = search.run()
    except KeyboardInterrupt as interruption:
        best = search.interrupted()
        if best is None:
            raise
        tell(f"{best.interruption}; finishing the best head until then, unless interrupted again")
        raise FitInterrupted(_finished(best, split, options, stores, inputs, tried, notes, tell)) from interruption
    return _finished(fitted, split, options, stores, inputs, tried, notes, tell)


def _finished(
    fitted: Fitted,
    split: Split,
    options: FitOptions,
    stores: Sequence[Store],
    inputs: Inputs,
    tried: Sequence[TriedLayers],
    notes: Sequence[str],
    tell: Callable[[str], None],
) -> Head:
    """Calibrate, fold the weights back to raw inputs, and note what there is to know of the fit."""
    info, vector = stores[0].info, fitted.descent.vector
    task = task_of(stores)
    calibration, note = _calibrated(fitted.objective, split, vector, task, options.seed)
    if note:
        notes = [*notes, note]
        tell(f"warning: {note}")
    standard = fitted.objective.standard
    weight, bias = Weights.of(vector, fitted.examples.rows.inputs).folded(standard)
    known = None
    if info.feature == "hidden":
        known = _known(fitted, split, stores, inputs.layers)
        if known is None:
            notes = [*notes, UNKNOWING]
            tell(f"warning: {UNKNOWING}")
    summary = _summary(fitted, split, options, stores, task, calibration, notes)
    if tried:
        summary["layers_tried"] = [{"layers": list(each.layers), "auroc": _plain(each.auroc)} for each in tried]
    tell(_outcome(summary))
    if (verdict := _verdict(fitted, split, calibration, task, options.seed)) is not None:
        summary["verdict"] = verdict.to_dict()
        tell(str(verdict))
    return Head(
        weight,
        bias.astype(np.float32),
        layers=inputs.layers if info.feature == "hidden" else (),
        token_statistics=inputs.token_statistics,
        gate=options.gate,
        feature="hidden" if info.feature == "hidden" else "logits",
        includes_eos=inputs.includes_eos,
        calibration=calibration,
        fingerprint=info.fingerprint,
        precision=info.precision,
        base_model=info.base_model,
        summary=summary,
        norm=inputs.norm,
        input_mean=standard.mean.astype(np.float32),
        input_scale=standard.scale.astype(np.float32),
        architecture=info.architecture,
        known=known,
    )


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
        if cut_off := int(candidates.cut_off.sum()):
            counts += f" ({cut_off} candidates were cut off, which is wrong: collect with more --max-new-tokens)"
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
    whole, train = without_cut_off(candidates.arranged(order), split.train)
    moved = train.stop - split.train.stop  # problems of which nothing is left are gone
    return whole, Split(
        train,
        range(split.validation.start + moved, split.validation.stop + moved),
        range(split.calibration.start + moved, split.calibration.stop + moved),
    )


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
            tokens, cut_off = candidates.tokens[members], candidates.cut_off[members]
            return calibrate(prefixes, tokens, part.correct, part.numbers, answers, cut_off, task, seed), note
        except TrainingError:
            note = "the calibration problems were too few: those that chose the weights served, too; collect more"
    return None, (
        "the head is not calibrated: right and wrong candidates that were written to their ends are too few; collect "
        "more, or longer ones (--max-new-tokens)"
    )


def _verdict(
    fitted: Fitted, split: Split, calibration: Calibration | None, task: AnswerTask | None, seed: int
) -> Verdict | None:
    """What the head is worth on the validation problems; None without any."""
    if not len(split.validation):
        return None
    candidates, members = fitted.examples.candidates, fitted.examples.members(split.validation)
    scores = _scores(fitted, split.validation)
    right = right_picks(candidates, members, scores, calibration, task)
    both, all_right, all_wrong = _kinds(candidates)
    problems = both + all_right + all_wrong
    return judge(
        right,
        "calibrated" if "calibrated" in right else "best",
        [name for name in right if name not in BY_HEAD],
        training_problems=len(split.train),
        contrasts=both / problems,
        problems_per_judged=problems / len(split.validation),
        seed=seed,
    )


def _scores(fitted: Fitted, problems: range) -> Doubles:
    """The scores of all candidates of some problems."""
    part = replace(fitted.objective, problems=problems, pieces=None)
    return part.measure(fitted.descent.vector, gradient=False).scores


def _known(fitted: Fitted, split: Split, stores: Sequence[Store], layers: Sequence[int]) -> KnownStates | None:
    """What the head knows, from the training problems, with the limit from picks of the others."""
    examples = fitted.examples
    candidates, held_out = examples.candidates, range(split.validation.start, split.calibration.stop)
    if len(held_out) < LEAST_HELD_OUT:
        return None
    layer, members = known_layer(layers), examples.members(held_out)
    states = first_states(stores, candidates, layer)
    scores = _scores(fitted, held_out)
    picks = picked_first(scores, candidates.problems[members], candidates.cut_off[members])
    return fit_known(states[examples.members(split.train)], states[members][picks], layer)


def _summary(
    fitted: Fitted,
    split: Split,
    options: FitOptions,
    stores: Sequence[Store],
    task: AnswerTask | None,
    calibration: Calibration | None,
    notes: Sequence[str],
) -> dict[str, Any]:
    """What is kept in the head: options, numbers and figures, as plain JSON."""
    vector, examples = fitted.descent.vector, fitted.examples
    settings = {name: value for name, value in asdict(options).items() if name not in ("memory_bytes", "weight_decays")}
    both, right, wrong = _kinds(examples.candidates)
    document: dict[str, Any] = {
        "options": {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()},
        "problems": {name: len(getattr(split, name)) for name in ("train", "validation", "calibration")},
        "problems_with_both": both,
        "problems_all_correct": right,
        "problems_all_wrong": wrong,
        "candidates": len(examples.candidates.correct),
        "candidates_correct": int(examples.candidates.correct.sum()),
        "candidates_without_tokens": examples.candidates.without_tokens,
        "candidates_cut_off": int(examples.candidates.cut_off.sum()) + examples.candidates.left_out,
        "tokens": int(examples.candidates.tokens.sum()),
        "inputs": examples.rows.inputs,
        "weight_decay": fitted.weight_decay,
        "search": [{name: _plain(value) for name, value in each.items()} for each in fitted.search],
        "iterations": fitted.descent.iterations,
        "best_iteration": fitted.descent.best_iteration,
        "interrupted": None if fitted.interruption is None else asdict(fitted.interruption),
        "start": {"within_problem_auroc": _plain(fitted.start_auroc)},
    }
    for name in ("train", "validation"):
        part = replace(fitted.objective, problems=getattr(split, name), pieces=None)
        if not len(part.problems):
            document[name] = None
            continue
        measured = part.measure(vector, gradient=False)
        answers = examples.candidates.answers[examples.members(part.problems)]
        cut_off = examples.candidates.cut_off[examples.members(part.problems)]
        picks = pick_accuracy(np.where(cut_off, np.nan, measured.scores), part.correct, part.numbers, answers)
        auroc = part.auroc(measured.scores)
        document[name] = {"loss": measured.loss, "within_problem_auroc": _plain(auroc), **picks.to_dict()}
    document["calibration_error"] = None if calibration is None else calibration.error
    document["task"] = None if task is None else task.name
    document["data_sha256"] = [store.info.data_sha256 for store in stores]
    document[SHOWN_NAME] = shown_problems(stores, len(examples.candidates.prompts))
    document[SUMMARY_NAME] = packed(examples.candidates.prompts)
    document["notes"] = list(notes)
    document["version"] = swift_edge.__version__
    return document


def _incomplete(store: Store) -> str:
    return f"{store.path} is not complete: {store.problems} of {store.info.problems} problems are there and are used"


def _counts_text(candidates: Candidates, split: Split) -> str:
    both, right, wrong = _kinds(candidates)
    left_out = f"; {candidates.without_tokens} left out without tokens" if candidates.without_tokens else ""
    if cut_off := int(candidates.cut_off.sum()) + candidates.left_out:
        left_out += (
            f"; {cut_off} cut off by max_new_tokens, which is wrong, {candidates.left_out} of them not trained on"
        )
    return (
        f"{len(candidates.correct)} candidates, {candidates.correct.mean():.1%} correct{left_out}; problems: "
        f"{len(split.train)} train, {len(split.validation)} validation, {len(split.calibration)} calibration; "
        f"{both} with both labels, {right} all correct and {wrong} all wrong say nothing about ranking"
    )


def _outcome(summary: dict[str, Any]) -> str:
    iteration = f"kept iteration {summary['best_iteration']} of {summary['iterations']}"
    figures = summary["validation"]
    if figures is None:
        return f"{iteration}; no validation problems"
    names = ("within_problem_auroc", "best", "pass_at_1", "majority", "oracle")
    figure_text = ", ".join(f"{name} {figures[name]:.3f}" for name in names if figures[name] is not None)
    error = summary["calibration_error"]
    return f"{iteration}; validation: {figure_text}" + ("" if error is None else f"; calibration error {error:.3f}")


def _plain(number: float) -> float | None:
    return number if math.isfinite(number) else None
