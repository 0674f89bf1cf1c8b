"""Collecting: write or read candidates, grade them, and store them with what the model computed for them.

    from swift_edge.training import collect
    collect("models/x", "train.jsonl", "features", task="number", n=8)

`collect` writes candidates with the engine that picks use, `collect_responses` reads given ones.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Unpack

import numpy as np

from swift_edge import __version__
from swift_edge.bundle.manifest import HEAD_NAME, Bundle
from swift_edge.checks import check_whole
from swift_edge.engine.model import OpenedModel
from swift_edge.errors import DataError, InvalidOptionError
from swift_edge.options import CollectInput, CollectOptions
from swift_edge.scoring.head import Feature, Head, check_head
from swift_edge.scoring.scorer import Scorer
from swift_edge.selection.planning import Planner
from swift_edge.system import machine
from swift_edge.training.collecting.collected import (
    BYTES_PER_LINE,
    BYTES_PER_TOKEN,
    Collected,
    Collection,
    CollectProgress,
    require_disk_or_warn,
)
from swift_edge.training.collecting.features import FeatureReader, check_layers
from swift_edge.training.collecting.generating import HELD_BYTES, HELD_PROBLEMS, generate
from swift_edge.training.collecting.problems import Grader, Grading, Problems, read_problems
from swift_edge.training.collecting.reading import check_completions, read_completions
from swift_edge.training.collecting.responses import Responses, read_responses
from swift_edge.training.collecting.wording import asked, worded, wording_for
from swift_edge.training.store.format import Asked, StoreInfo
from swift_edge.training.store.writer import SHARD_BYTES, StoreWriter


@machine.memory_for("collecting")
def collect(
    model: str | os.PathLike[str] | OpenedModel,
    data: str | os.PathLike[str] | Problems,
    out: str | os.PathLike[str],
    *,
    n: int = 8,
    task: str | None = None,
    grader: Grader | None = None,
    layers: Sequence[int] | None = None,
    feature: Feature = "hidden",
    tokens_per_candidate: int | None = None,
    store_features: bool = True,
    heads: Mapping[str, Head] | None = None,
    limit: int | None = None,
    force: bool = False,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    held_problems: int = HELD_PROBLEMS,
    held_bytes: int = HELD_BYTES,
    report: Callable[[str], None] = lambda _: None,
    progress: Callable[[CollectProgress], None] = lambda _: None,
    **writing: Unpack[CollectInput],
) -> Collected:
    """Write `n` candidates for each problem of `data`, grade them, and store them with their features in `out`.

    Candidates are those of `Selector.pick` with the same options. The store depends on the options alone, not on
    `rows`, interruptions or timing. Called again, an interrupted run goes on where it was.

    Args:
        model: a bundle, or one that `OpenedModel.open` opened.
        data: problems in JSONL, or what `read_problems` read of a benchmark.
        out: the folder of the store.
        n: candidates per problem.
        task: the task that grades, see `swift_edge.answers`; None is the benchmark's.
        grader: a callable that grades instead: it gets the problem and a response, and returns True or False.
        layers: hidden states to keep; None keeps all that the bundle gives out.
        feature: what to keep per token, `hidden` or `logits`.
        tokens_per_candidate: most tokens to keep of a candidate, evenly spread, the last one always among them.
        store_features: False keeps no features, only labels, statistics and scores.
        heads: heads by name that score every candidate while it is written.
        limit: take the first problems only.
        force: start over in a folder that holds a store.
        providers: execution providers, where `model` is a folder.
        threads: threads, where `model` is a folder.
        shard_bytes: a shard is closed with the problem that takes it past this size.
        held_problems: problems that are begun and not stored, at most: they wait for the longest of their candidates.
        held_bytes: no further problem is begun while what is finished and waits holds more.
        report: called with each line of the report.
        progress: called after each step.
        writing: how candidates are written, see `CollectOptions`.

    Raises:
        SwiftEdgeError: a leaf that says what was found; what was stored before stays.
    """
    check_whole("n", n, 1)
    for name, value in (("shard_bytes", shard_bytes), ("held_problems", held_problems), ("held_bytes", held_bytes)):
        check_whole(name, value, 1)
    collect_options = CollectOptions.of(None, writing)
    problems = (data if isinstance(data, Problems) else read_problems(data, answers=task is not None)).first(limit)
    if task is None and grader is None:
        task = problems.task
    grading = Grading(task, grader)
    if not grading.grades:
        raise InvalidOptionError("neither a task nor a grader is given; expected one of them to label candidates by")
    for problem in problems.rows:
        grading.check(problem)
    opened = model if isinstance(model, OpenedModel) else OpenedModel.open(model, providers, threads)
    reader = _reader(opened, layers, feature, tokens_per_candidate, store_features, heads or {}, report)
    wording = wording_for(problems, opened, raw=collect_options.raw)
    if wording is not None:
        collect_options = replace(collect_options, stop=(*collect_options.stop, *wording.stop))
    options = collect_options.for_pick(n=n)
    sampling = Planner.over(opened).planned(options).sampling
    info = _info(
        opened,
        reader,
        problems=len(problems.rows),
        n=n,
        seed=collect_options.seed,
        sampling=asdict(sampling) | {"stop": list(collect_options.stop)},
        max_new_tokens=collect_options.max_new_tokens,
        raw=collect_options.raw,
        task=task,
        data_sha256=problems.sha256,
        asked=asked(problems, wording),
    )
    if info.asked is not None:
        report(info.asked.described(info.problems))
    with StoreWriter(out, info, force=force, shard_bytes=shard_bytes) as writer:
        collection = Collection(writer, report, progress)
        _say_where(writer, report)
        to_come = worded(problems, wording)[writer.done :]
        if to_come:
            longest = len(reader.kept_positions(min(collect_options.max_new_tokens, opened.session.context_length)))
            candidates = len(to_come) * n
            require_disk_or_warn(writer.path, _disk_bytes(info, candidates, candidates * longest), report)
            written = generate(
                opened,
                to_come,
                options,
                reader,
                rows=collect_options.rows,
                held_problems=held_problems,
                held_bytes=held_bytes,
                tally=collection.tally,
                on_step=collection.step,
            )
            try:
                for problem, candidates_read in written:
                    labels = [
                        (
                            grading.correct(problem, each.text, cut_off=each.cut_off),
                            grading.answer(each.text, cut_off=each.cut_off),
                        )
                        for each in (read.candidate for read in candidates_read)
                    ]
                    collection.add(problem, candidates_read, labels)
            finally:
                collection.keep_timings()
    return collection.summary()


@machine.memory_for("collecting")
def collect_responses(
    model: str | os.PathLike[str] | OpenedModel,
    data: str | os.PathLike[str] | Responses,
    out: str | os.PathLike[str],
    *,
    task: str | None = None,
    grader: Grader | None = None,
    layers: Sequence[int] | None = None,
    feature: Feature = "hidden",
    tokens_per_candidate: int | None = None,
    store_features: bool = True,
    heads: Mapping[str, Head] | None = None,
    raw: bool = False,
    limit: int | None = None,
    force: bool = False,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    report: Callable[[str], None] = lambda _: None,
    progress: Callable[[CollectProgress], None] = lambda _: None,
) -> Collected:
    """Read given responses, see `read_responses`, and store them with their labels and features in `out`.

    Labels come from the file, or from `task` or `grader` where it has none. `task` extracts the answers in either case.
    The EOS is appended to a text without one; token ids are taken as they are. Everything else is as in `collect`.
    """
    responses = (data if isinstance(data, Responses) else read_responses(data)).first(limit)
    grading = Grading(task, grader)
    for problem in responses.rows:
        if problem.correctness is None:
            if not grading.grades:
                raise DataError(f"{problem.place} has no correctness; add it, or name a --task that grades")
            grading.check(problem)
    opened = model if isinstance(model, OpenedModel) else OpenedModel.open(model, providers, threads)
    reader = _reader(opened, layers, feature, tokens_per_candidate, store_features, heads or {}, report)
    info = _info(
        opened,
        reader,
        problems=len(responses.rows),
        n=None,
        seed=None,
        sampling=None,
        max_new_tokens=None,
        raw=raw,
        task=task,
        data_sha256=responses.sha256,
    )
    with StoreWriter(out, info, force=force) as writer:
        collection = Collection(writer, report, progress, responses.notes)
        _say_where(writer, report)
        to_come = responses.rows[writer.done :]
        if to_come:
            extent = check_completions(opened, to_come, reader, raw=raw)
            needed = _disk_bytes(info, extent.candidates, extent.kept_tokens)
            machine.require_disk(writer.path, needed, "the store, which fewer --layers make smaller,")
            read = read_completions(opened, to_come, reader, raw=raw, tally=collection.tally, on_step=collection.step)
            try:
                for problem, candidates in read:
                    labels = problem.correctness or [grading.correct(problem, text) for text in problem.completions]
                    answers = [grading.answer(text) for text in problem.completions]
                    collection.add(problem, candidates, list(zip(labels, answers, strict=True)))
            finally:
                collection.keep_timings()
    return collection.summary()


def _reader(
    opened: OpenedModel,
    layers: Sequence[int] | None,
    feature: Feature,
    tokens_per_candidate: int | None,
    store_features: bool,
    heads: Mapping[str, Head],
    report: Callable[[str], None],
) -> FeatureReader:
    """What to read of every token; raises `InvalidOptionError` and `HeadMismatchError`."""
    if feature not in ("hidden", "logits"):
        raise InvalidOptionError(f"feature is {feature!r}; expected hidden or logits")
    if layers is not None and (feature == "logits" or not store_features):
        raise InvalidOptionError("layers are given, but no hidden states are kept; leave one of the options out")
    if tokens_per_candidate is not None and tokens_per_candidate < 1:
        raise InvalidOptionError(
            f"tokens_per_candidate is {tokens_per_candidate}; expected at least 1, or None for all"
        )
    manifest = opened.bundle.manifest
    for name, head in heads.items():
        for warning in check_head(head, manifest):
            report(f"warning: {name}: {warning}")
    read_layers = check_layers(layers, opened.session.layers) if store_features and feature == "hidden" else ()
    scorers = {name: Scorer.by_head(head, manifest.tokens.eos_ids) for name, head in heads.items()}
    return FeatureReader(feature if store_features else "none", read_layers, scorers, tokens_per_candidate)


def _info(
    opened: OpenedModel,
    reader: FeatureReader,
    *,
    problems: int,
    n: int | None,
    seed: int | None,
    sampling: Mapping[str, object] | None,
    max_new_tokens: int | None,
    raw: bool,
    task: str | None,
    data_sha256: str,
    asked: Asked | None = None,
) -> StoreInfo:
    """The settings of the store."""
    manifest, session = opened.bundle.manifest, opened.session
    return StoreInfo(
        base_model=manifest.base_model,
        fingerprint=manifest.fingerprint,
        precision=manifest.precision.label,
        bundle=str(opened.bundle.path),
        feature=reader.feature,
        layers=reader.layers,
        width={"hidden": session.hidden_size, "logits": session.vocab_size, "none": 0}[reader.feature],
        eos_ids=manifest.tokens.eos_ids,
        problems=problems,
        n=n,
        seed=seed,
        sampling=sampling,
        max_new_tokens=max_new_tokens,
        raw=raw,
        task=task,
        tokens_per_candidate=reader.tokens_per_candidate,
        data_sha256=data_sha256,
        version=__version__,
        bundle_sha256=_bundle_sha256(opened.bundle),
        heads={name: _head_sha256(ranking.head) for name, ranking in reader.scorers.items()},
        asked=asked,
        architecture=manifest.architecture,
    )


def _say_where(writer: StoreWriter, report: Callable[[str], None]) -> None:
    total = writer.info.problems
    if writer.complete:
        report(f"{writer.path} is complete: {total} problems, {writer.candidates} candidates; nothing is left to do")
    elif writer.done:
        report(f"going on in {writer.path} after {writer.done} of {total} problems")


def _disk_bytes(info: StoreInfo, candidates: int, tokens: int) -> int:
    """Bytes of a store of `candidates` candidates that keeps `tokens` tokens in all."""
    return candidates * BYTES_PER_LINE + tokens * (info.slices * info.width * 2 + BYTES_PER_TOKEN)


def _bundle_sha256(bundle: Bundle) -> str:
    """One hash for all files of a bundle that have one, without its head; empty if none has."""
    files = sorted((name, file.sha256) for name, file in bundle.manifest.files.items() if name != HEAD_NAME)
    return hashlib.sha256(repr(files).encode()).hexdigest() if files else ""


def _head_sha256(head: Head | None) -> str:
    """One hash for everything that scores depend on: neither the calibration nor the summary."""
    digest = hashlib.sha256()
    for name in ("weight", "bias", "layers", "token_statistics", "gate", "feature", "includes_eos", "norm"):
        value = getattr(head, name)
        digest.update(name.encode())
        digest.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
    return digest.hexdigest()
