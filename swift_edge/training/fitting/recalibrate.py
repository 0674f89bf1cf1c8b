"""An existing head on other states of the same model: another precision, other weights of it, or local problems.

    states of another precision,  each input is matched to the mean and scale it had in training, an affine change that
    or of other weights           is folded into the weights; then the calibration is refitted
    states of the same precision  the weights stay; the calibration is refitted

What the head knows is then told by the problems of the store, too: of others it does not say how likely a pick is
right.

The order of scores changes in the first case alone.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from swift_edge.arrays import Doubles
from swift_edge.bundle.kin import are_kin, other_weights
from swift_edge.errors import HeadMismatchError, InvalidOptionError, TrainingError
from swift_edge.scoring.calibration import PREFIX_TOKENS, Calibration, calibration_error
from swift_edge.scoring.head import Head
from swift_edge.scoring.quality import within_problem_auroc
from swift_edge.system.machine import memory_for
from swift_edge.training.fitting.calibrate import calibrate, task_of
from swift_edge.training.fitting.descent import Objective, Standard, Weights
from swift_edge.training.fitting.examples import (
    Candidates,
    Examples,
    Survey,
    check_stores,
    read_candidates,
    read_examples,
    survey,
)
from swift_edge.training.fitting.inputs import Inputs
from swift_edge.training.fitting.known import LEAST_PROBLEMS, UNKNOWING, known_from
from swift_edge.training.fitting.objectives import cut_after
from swift_edge.training.fitting.options import LEAST_MEMORY
from swift_edge.training.seen import SHOWN_NAME, SUMMARY_NAME, packed, seen_prompts, shown_problems, trained_on
from swift_edge.training.store.writer import Store

FEW_PROBLEMS: Final = 100
"""With fewer problems the report says that a calibration is rough."""


@memory_for("recalibrating")
def recalibrate(
    head: Head,
    store: Store,
    *,
    seed: int = 0,
    memory_bytes: int = 2**30,
    report: Callable[[str], None] | None = None,
) -> Head:
    """The same head for the states and labels of `store`: matched where its precision is another, and calibrated.

    Problems that the head was trained on are left out, and a store of nothing else is refused. `report` is told how
    AUROC and calibration error were before and are now; the head's summary has the same under `recalibration`. A store
    that was graded without a task leaves the head its own; what an answer is worth, all candidates together, is then
    calibrated no longer.

    Raises `HeadMismatchError` for a store of another model or of another feature, or of the problems that the head was
    trained on, `StoreError` for one without the
    head's layers or with numbers that are not finite, `TrainingError` where the labels are all the same.
    """
    if memory_bytes < LEAST_MEMORY:
        raise InvalidOptionError(f"memory_bytes is {memory_bytes!r}; expected at least {LEAST_MEMORY} bytes")
    tell = report or (lambda _line: None)
    _check(head, store)
    inputs = Inputs(head.layers, head.token_statistics, head.norm, head.includes_eos)
    candidates = read_candidates([store], inputs.includes_eos)
    places = check_stores([store], inputs)
    notes: list[str] = []
    fresh = _fresh(head, store, candidates, notes)
    if len(fresh) < len(candidates.prompts):
        candidates = candidates.arranged(fresh)
    examples = read_examples([store], candidates, inputs, places, memory_bytes)
    problems = len(examples.problem_starts) - 1
    if not store.complete:
        notes.append(f"{store.path} is not complete: {store.problems} of {store.info.problems} problems are there")
    if problems < FEW_PROBLEMS:
        notes.append(f"{problems} problems make a rough calibration; 200 to 500 make a good one")
    surveyed = survey(examples, range(problems), [store], pool=False)
    earlier = head.calibration
    if store.info.task is None and earlier is not None and earlier.answers is not None:
        notes.append("the store names no task to find answers by, so the head judges candidates, and answers no longer")
    prefixes = _prefixes(head, examples)
    scores = prefixes[:, -1]
    before = _judged(examples, scores, None if earlier is None else _error(earlier, scores, examples))
    same_states = head.precision == store.info.precision and not _other_weights(head, store)
    moved, way = head, "weights unchanged, the precision is the same"
    if not same_states:
        moved, way = _matched(head, surveyed, store)
    if not same_states and moved is head:
        notes.append("the head does not say how its inputs were standardised, so its weights stay; fit a new head")
    if moved is not head:
        prefixes = _prefixes(moved, examples)
    calibration = calibrate(
        prefixes,
        candidates.tokens,
        candidates.correct,
        candidates.problems,
        candidates.answers,
        candidates.cut_off,
        task_of([store]),
        seed,
    )
    after = _judged(examples, prefixes[:, -1], calibration.error)
    known = known_from(moved, [store], candidates, prefixes[:, -1], same_states=same_states)
    if known is None and head.known is not None:
        notes.append(UNKNOWING)
    for note in notes:
        tell(f"warning: {note}")
    tell(f"{way}; {_figures_text('before', before)}; {_figures_text('now', after)}")
    document: dict[str, Any] = {
        "from_precision": head.precision,
        "to_precision": store.info.precision,
        "weights": way,
        "problems": problems,
        "candidates": len(candidates.correct),
        "candidates_without_tokens": candidates.without_tokens,
        "before": before,
        "after": after,
        "data_sha256": store.info.data_sha256,
        SHOWN_NAME: shown_problems([store], problems),
        SUMMARY_NAME: packed(candidates.prompts),
        "seed": seed,
        "notes": notes,
    }
    return replace(
        moved,
        calibration=calibration,
        fingerprint=store.info.fingerprint or head.fingerprint,
        precision=store.info.precision,
        base_model=store.info.base_model or head.base_model,
        architecture=store.info.architecture or head.architecture,
        known=known,
        summary={**head.summary, "task": store.info.task or head.summary.get("task"), "recalibration": document},
    )


def know(head: Head, store: Store, *, memory_bytes: int = 2**30) -> Head:
    """The same head, which knows the problems of `store`: to be used on one that was fitted before heads knew any.

    Weights and calibration stay as they are, so the problems must be of the kind that the head was fitted to. Raises
    `HeadMismatchError` and `StoreError` as `recalibrate` does, `TrainingError` where the problems are too few.
    """
    _check(head, store)
    inputs = Inputs(head.layers, head.token_statistics, head.norm, head.includes_eos)
    candidates = read_candidates([store], inputs.includes_eos)
    places = check_stores([store], inputs)
    examples = read_examples([store], candidates, inputs, places, memory_bytes)
    known = known_from(head, [store], candidates, _prefixes(head, examples)[:, -1], same_states=False)
    if known is None:
        raise TrainingError(f"{UNKNOWING}; expected at least {LEAST_PROBLEMS} problems in {store.path}: collect more")
    return replace(head, architecture=head.architecture or store.info.architecture, known=known)


def _check(head: Head, store: Store) -> None:
    """Whether the store is of the head's model, or of kin."""
    info = store.info
    ours, theirs = head.base_model or "a model it does not name", info.base_model or "a model it does not name"
    if _other_weights(head, store) and not are_kin(
        head.base_model, head.architecture, info.base_model, info.architecture
    ):
        raise HeadMismatchError(
            f"the head was trained on {ours} (weights {head.fingerprint[:12]}), {store.path} was collected from "
            f"{theirs} (weights {info.fingerprint[:12]}); expected the same weights: fit a head to this store instead"
        )
    if (head.feature, head.state_width) != (info.feature, info.width):
        raise HeadMismatchError(
            f"the head reads {head.feature} of width {head.state_width}, {store.path} holds {info.feature} of width "
            f"{info.width}; expected the same: collect again from the head's model, {ours}"
        )


def _other_weights(head: Head, store: Store) -> bool:
    return other_weights(head.fingerprint, store.info.fingerprint)


def _fresh(head: Head, store: Store, candidates: Candidates, notes: list[str]) -> NDArray[np.int64]:
    """The problems that the head was not trained on, as far as can be told; adds what is to be said to `notes`.

    Raises `HeadMismatchError` where there are none.
    """
    prompts, seen, files = candidates.prompts, seen_prompts(head.summary), trained_on(head.summary)
    everything = np.arange(len(prompts))
    if seen is not None and None not in prompts:
        fresh = everything[[prompt not in seen for prompt in prompts]]
    elif store.info.data_sha256 in files:
        # Of either an earlier version, so that the data file alone tells.
        fresh = everything[:0]
    else:
        fresh = everything
        if not files:
            notes.append(
                "the head does not say which problems it was trained on: make sure that they are not those of the store"
            )
    if len(prompts) and not len(fresh):
        raise HeadMismatchError(
            f"the head was trained on the problems of {store.path}, where its scores look better than they are; "
            "expected others: collect candidates for problems that it has not seen"
        )
    if len(fresh) < len(prompts):
        notes.append(
            f"{len(prompts) - len(fresh)} of {len(prompts)} problems are left out, the head was trained on them"
        )
    return fresh


def _matched(head: Head, surveyed: Survey, store: Store) -> tuple[Head, str]:
    """The head for the store's states, and what was done to its weights; the head itself where nothing was."""
    if head.input_mean is None or head.input_scale is None:
        return head, "weights unchanged"
    # An input as it was in training: (new - new mean) / new scale * old scale + old mean.
    old = head.weight.astype(np.float64)
    weight = (old * (head.input_scale.astype(np.float64) / surveyed.scale)).astype(np.float32)
    bias = head.bias + old @ head.input_mean.astype(np.float64) - weight.astype(np.float64) @ surveyed.mean
    matched = replace(
        head,
        weight=weight,
        bias=bias.astype(np.float32),
        input_mean=surveyed.mean.astype(np.float32),
        input_scale=surveyed.scale.astype(np.float32),
    )
    ours, theirs = head.precision or "an unknown precision", store.info.precision
    if _other_weights(head, store):
        ours, theirs = f"weights {head.fingerprint[:12]}, {ours},", f"weights {store.info.fingerprint[:12]}, {theirs}"
    return matched, f"inputs matched from {ours} to {theirs}"


def _prefixes(head: Head, examples: Examples) -> Doubles:
    """Running scores of every candidate at each of `PREFIX_TOKENS` and, last, its score, `[c, s]`."""
    as_they_are = Standard(np.zeros(examples.rows.inputs), np.ones(examples.rows.inputs))
    pieces = cut_after(examples.candidates.tokens, PREFIX_TOKENS)
    whole = Objective(examples, range(len(examples.problem_starts) - 1), as_they_are, head.gate, pieces=pieces)
    weights = Weights(head.weight.astype(np.float64), head.bias.astype(np.float64))
    return whole.measure(weights.flat(), gradient=False).prefixes


def _error(calibration: Calibration, scores: Doubles, examples: Examples) -> float:
    whole = ~examples.candidates.cut_off
    return calibration_error(calibration.probability(scores[whole]), examples.candidates.correct[whole])


def _judged(examples: Examples, scores: Doubles, error: float | None) -> dict[str, float | None]:
    candidates = examples.candidates
    auroc = within_problem_auroc(np.where(candidates.cut_off, np.nan, scores), candidates.correct, candidates.problems)
    return {"within_problem_auroc": auroc if math.isfinite(auroc) else None, "calibration_error": error}


def _figures_text(when: str, judged: dict[str, float | None]) -> str:
    auroc, error = (
        "none" if judged[name] is None else f"{judged[name]:.3f}"
        for name in ("within_problem_auroc", "calibration_error")
    )
    return f"{when}: within-problem AUROC {auroc}, calibration error {error}"
