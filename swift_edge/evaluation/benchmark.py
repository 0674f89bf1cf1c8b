"""How long a pick takes on this machine, and where the time goes: all shapes in turn, round after round, in one run.

A pick is what `Selector.pick` does, from token ids on; its prompt is random and no token ends it, so that a shape says
how much work it is.
"""

import dataclasses
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Unpack

import numpy as np

from swift_edge.bundle.manifest import Manifest
from swift_edge.errors import InvalidOptionError
from swift_edge.evaluation.record import machine_facts, versions
from swift_edge.handle import begin
from swift_edge.options import PickOptions, SamplingInput
from swift_edge.results import Selection, TokenSampled
from swift_edge.scoring.head import Head
from swift_edge.selection.planning import PlannedPick, Planner
from swift_edge.system.machine import memory_for, process_memory, reset_peak_memory

RESAMPLES: Final = 2000


@dataclass(frozen=True, slots=True)
class Shape:
    """How much work a pick is."""

    n: int
    """Candidates."""
    prompt_tokens: int
    """Tokens of the prompt."""
    new_tokens: int
    """Tokens of each candidate."""


@dataclass(frozen=True, slots=True)
class Timed:
    """One pick."""

    selection: Selection
    """Its result, with its timings."""
    first_token_s: float
    """Seconds until the first token of such a pick is known."""
    peak_bytes: int | None
    """Memory that it took at most beside the opened bundle; None where the system does not tell."""


@memory_for("the benchmark")
def bench(
    path: str,
    shapes: Sequence[Shape],
    *,
    rounds: int = 5,
    head: str | None = None,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] = lambda _done, _of: None,
    **sampling: Unpack[SamplingInput],
) -> dict[str, Any]:
    """Time picks of all `shapes`, `rounds` times each, in another order in every round.

    A bundle without a head is given a random one over all its hidden states, so that scoring is part of the work.
    `progress` is called with the picks done and to be done. Returns the figures as plain data: medians, each with the
    95 % interval of a bootstrap over the rounds.

    Raises `InvalidOptionError` for a shape that the model's context does not hold, and what opening a bundle raises.
    """
    if rounds < 1:
        raise InvalidOptionError(f"rounds is {rounds}; expected at least 1")
    started = time.perf_counter()
    planner = Planner.open(path, head, providers, threads)
    load_s = time.perf_counter() - started
    session, manifest = planner.model.session, planner.model.bundle.manifest
    scored_by = planner.head_name
    if planner.head is None and manifest.hidden_states.indices:
        planner, scored_by = dataclasses.replace(planner, head=random_head(manifest), head_name=None), "a random head"
    work = {shape: planned_shape(planner, shape, **sampling) for shape in shapes}
    timed: dict[Shape, list[Timed]] = {shape: [] for shape in shapes}
    order = random.Random(0)
    for number in range(rounds + 1):
        for shape in order.sample(list(work), len(work)):
            timing = _time(work[shape], shape, number)
            if number:  # the first round warms up
                timed[shape].append(timing)
                progress(sum(map(len, timed.values())), rounds * len(work))
    return {
        "bundle": path,
        "model": manifest.base_model,
        "architecture": dataclasses.asdict(manifest.architecture),
        "precision": manifest.precision.label,
        "scored_by": scored_by or "mean log-probability",
        "sampling": dataclasses.asdict(next(iter(work.values())).sampling),
        "providers": list(session.providers),
        "threads": session.threads,
        "machine": machine_facts(),
        "versions": versions(),
        "rounds": rounds,
        "load_s": load_s,
        "shapes": [_figures(shape, timed) for shape in shapes],
    }


def random_head(manifest: Manifest) -> Head:
    """A head over all hidden states that a bundle gives out, with random weights."""
    layers = manifest.hidden_states.indices
    width = len(layers) * manifest.architecture.hidden_size
    weight = np.random.default_rng(0).standard_normal((2, width), np.float32) / np.float32(width**0.5)
    return Head(weight, np.zeros(2, np.float32), layers=layers, fingerprint=manifest.fingerprint)


def planned_shape(planner: Planner, shape: Shape, seed: int = 0, **sampling: Unpack[SamplingInput]) -> PlannedPick:
    """What picks of a shape have in common: no token ends a candidate.

    Raises `InvalidOptionError` for a shape that the model's context does not hold.
    """
    options = {"n": shape.n, "max_new_tokens": shape.new_tokens, "seed": seed, "strategy": "best", "raw": True}
    planned = planner.planned(PickOptions.of(None, options | sampling))
    context = planner.model.session.context_length
    if shape.prompt_tokens < 1 or shape.prompt_tokens + shape.new_tokens > context:
        raise InvalidOptionError(
            f"a prompt of {shape.prompt_tokens} tokens and {shape.new_tokens} new ones do not fit: the prompt needs at "
            f"least one token, and the model's context holds {context} in all; ask for others"
        )
    return dataclasses.replace(planned, stop_ids=frozenset())


def _time(planned: PlannedPick, shape: Shape, number: int) -> Timed:
    """Make one pick, and begin another to see when its first token comes."""
    vocabulary = planned.model.session.vocab_size
    prompt_ids = np.random.default_rng(number).integers(0, vocabulary, shape.prompt_tokens)  # [p]
    before = reset_peak_memory()
    selection = begin(planned, prompt_ids, watched=False, started=time.perf_counter()).result()
    peak = process_memory("VmHWM")
    memory = None if before is None or peak is None else max(0, peak - before)
    started = time.perf_counter()
    with begin(planned, prompt_ids, watched=True, started=started) as handle:
        next(event for event in handle if isinstance(event, TokenSampled))
        first_token_s = time.perf_counter() - started
    return Timed(selection, first_token_s, memory)


def _figures(shape: Shape, timed: dict[Shape, list[Timed]]) -> dict[str, Any]:
    """The figures of a shape; one candidate of the same lengths, if that was timed, is what it is compared with."""
    mine = timed[shape]
    timings = [each.selection.timings for each in mine]
    figures: dict[str, Any] = dataclasses.asdict(shape) | {
        "pick_s": median_with_interval([each.total_s for each in timings]),
        "prefill_s": median_with_interval([each.prefill_s for each in timings]),
        "first_token_s": median_with_interval([each.first_token_s for each in mine]),
        "step_s": median_with_interval([each.decode_s / shape.new_tokens for each in timings]),
        "sampling_share": median_with_interval([each.sample_s / each.decode_s for each in timings]),
        "head_share": median_with_interval([each.head_s / each.decode_s for each in timings]),
        "rest_share": median_with_interval([_rest(each.selection) / each.selection.timings.decode_s for each in mine]),
        "tokens_per_s": median_with_interval([each.decode_tps for each in timings]),
        "peak_bytes": max((each.peak_bytes for each in mine if each.peak_bytes is not None), default=None),
    }
    single = timed.get(dataclasses.replace(shape, n=1))
    if single is not None and shape.n > 1:
        alone = [each.selection.timings.total_s for each in single]
        ratios = [shape.n * one / many.total_s for one, many in zip(alone, timings, strict=True)]
        figures["times_faster_than_one_by_one"] = median_with_interval(ratios)
    return figures


def _rest(selection: Selection) -> float:
    """Seconds of a pick in none of its parts: texts, bookkeeping, ranking."""
    timings = selection.timings
    return timings.total_s - timings.prefill_s - timings.decode_s - timings.sample_s - timings.head_s


def median_with_interval(values: Sequence[float]) -> dict[str, float]:
    """The median of the rounds and the 95 % interval of a bootstrap."""
    draws = np.random.default_rng(0).choice(np.array(values), (RESAMPLES, len(values)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return {"median": statistics.median(values), "low": float(low), "high": float(high)}
