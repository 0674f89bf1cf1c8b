"""A test on one page: write and grade the candidates, judge every rule on them, and write down what came out.

    DIR/candidates         the store of all candidates, which an interrupted test goes on with
    DIR/results.json       every figure, and everything that is needed to do it again
    DIR/results.md         the tables
    DIR/accuracy.png, .svg, calibration.png, .svg, economy.png, .svg

Candidates come from the same loop as those that heads are trained on, and heads score them while they are written. This
is where the bundle, the problems, heads and figures meet.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from swift_edge.answers import answer_task
from swift_edge.arrays import Doubles
from swift_edge.bundle.manifest import MANIFEST_NAME
from swift_edge.engine.model import OpenedModel
from swift_edge.errors import InvalidOptionError, OutputExistsError
from swift_edge.evaluation.ablations import Ablations
from swift_edge.evaluation.economy import economy
from swift_edge.evaluation.external import read_external
from swift_edge.evaluation.figures import FORMATS, check_drawing, draw_accuracy, draw_calibration, draw_economy
from swift_edge.evaluation.measure import measure
from swift_edge.evaluation.record import file_sha256, machine_facts, versions
from swift_edge.evaluation.sampled import Sampled
from swift_edge.evaluation.selectors import BASELINES, PASS_AT_1, RESERVED, expected_by_size
from swift_edge.evaluation.tables import markdown
from swift_edge.evaluation.trial import Trial
from swift_edge.options import CollectOptions, PickOptions, SamplingOptions
from swift_edge.records import json_text
from swift_edge.scoring.bootstrap import RESAMPLES
from swift_edge.scoring.calibration import PREFIX_TOKENS
from swift_edge.scoring.head import Head, load_head
from swift_edge.scoring.verdict import judge
from swift_edge.selection.adaptive.step_times import measure_steps
from swift_edge.selection.decision import Decision
from swift_edge.selection.planning import Planner
from swift_edge.system.files import write_whole
from swift_edge.system.machine import memory_for
from swift_edge.training.collecting.collected import CollectProgress, read_timings
from swift_edge.training.collecting.problems import Problems, read_problems
from swift_edge.training.seen import prompt_hash, seen_prompts, shown_text, trained_on
from swift_edge.training.store.format import STORE_NAME, read_info
from swift_edge.training.store.writer import Store, locked_folder

DEFAULT_HEAD: Final = "default"
"""Name of the bundle's own head."""
SIZES: Final = (1, 2, 4, 8, 16)
"""Numbers of candidates to judge rules at."""
TIMED_ROWS: Final = (1, 2, 4, 6, 8, 12, 16, 24, 32)
"""Numbers of rows whose steps are timed."""
CANDIDATES: Final = "candidates"
"""Name of the store within the folder of a test."""
FAMILY_FIELDS: Final = ("family", "kind")
"""Fields of a problem by which accuracies are divided, where rows have them."""

_UNTIMED: Final = (
    "decode times are left out: equal steps took different times, as on a machine with other work; "
    "run the same command again when it is quiet, which measures them anew"
)


@memory_for("the test")
def evaluate(
    model: str | os.PathLike[str] | OpenedModel,
    data: str | os.PathLike[str] | Problems,
    out: str | os.PathLike[str],
    *,
    task: str | None = None,
    sizes: Sequence[int] = SIZES,
    heads: Mapping[str, str | os.PathLike[str]] | None = None,
    external: str | os.PathLike[str] | None = None,
    writing: CollectOptions | None = None,
    ablations: Ablations | None = None,
    limit: int | None = None,
    force: bool = False,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    resamples: int = RESAMPLES,
    report: Callable[[str], None] = lambda _: None,
    progress: Callable[[CollectProgress], None] = lambda _: None,
) -> dict[str, Any]:
    """Test a bundle and its heads on the problems of `data`, and return the results as they are written to `out`.

    Args:
        model: a bundle; its own head is tested under the name `default`.
        data: problems in JSONL with answers, or what `read_problems` read of a benchmark; accuracies are told by
            `family` and `kind`, too.
        out: the folder to write; a test that was interrupted goes on in it.
        task: the task that grades, see `swift_edge.answers`; None is the benchmark's.
        sizes: numbers of candidates to judge rules at; as many as the greatest are written per problem.
        heads: files of further heads by name; `default` replaces the bundle's own.
        external: a file of scores to combine with the first head's, see `read_external`.
        writing: how candidates are written.
        ablations: what else is to be fitted and measured, see `swift_edge.evaluation.ablations`.
        limit: take the first problems only.
        force: start over in a folder that holds a test.
        providers: execution providers, where `model` is a folder.
        threads: threads, where `model` is a folder.
        resamples: resamples of the bootstrap.
        report: called with each line of the report.
        progress: called after each step of the decode loop.

    Raises:
        SwiftEdgeError: a leaf that says what was found; what was written before stays. `PlaceInUseError` where
            somebody else is testing in the same folder.
    """
    check_drawing()
    _require_own(Path(out), force)
    problems = (data if isinstance(data, Problems) else read_problems(data)).first(limit)
    task = problems.task if task is None else task
    if task is None:
        raise InvalidOptionError("no task is given, and the problems bring none; expected one to grade by")
    opened = model if isinstance(model, OpenedModel) else OpenedModel.open(model, providers, threads)
    files = _head_files(opened, heads or {})
    loaded = {name: load_head(path) for name, path in files.items()}
    writing = CollectOptions() if writing is None else writing
    trial = Trial(opened, problems, task, _ascending(sizes), Path(out), writing, force, resamples, report, progress)
    external_file = None if external is None else Path(external)
    if external_file is not None:
        read_external(external_file, len(problems.rows), max(sizes))  # known before anything is computed
    if ablations is not None:
        ablations.check(trial, loaded)
    # Where an earlier run kept features, they stay, and so do its candidates.
    keep = (ablations is not None and ablations.reads_features) or _has_features(trial.out / CANDIDATES)
    with _held(trial.out):
        store = trial.candidates(CANDIDATES, trial.sizes[-1], loaded, store_features=keep)
        report("judging every rule on the candidates")
        results = _results(trial, store, loaded, external_file)
        results["run"] = _run(trial, store, files, loaded, external_file, limit)
        _write(results, trial.out)
        if ablations is not None:
            results["run"]["ablations"] = ablations.to_dict()
            results["ablations"] = ablations.measure(trial, store, loaded)
            _write(results, trial.out)
    return results


def _results(trial: Trial, store: Store, heads: Mapping[str, Head], external: Path | None) -> dict[str, Any]:
    """Every figure of the candidates."""
    scores = None if external is None else read_external(external, store.problems, trial.sizes[-1])
    sampled = Sampled.read(store, answer_task(trial.task), heads, external=scores)
    families = {name: [_text(problem.row.get(name)) for problem in trial.problems.rows] for name in FAMILY_FIELDS}
    families = {name: members for name, members in families.items() if any(members)}
    by_size = expected_by_size(sampled, trial.sizes, trial.writing.seed)
    results = measure(sampled, by_size, families, seed=trial.writing.seed, resamples=trial.resamples)
    timings = read_timings(store.path)
    tokens = sum(candidate.n_tokens for candidate in store.candidates)
    results["usage"] = {
        "prompt_tokens": int(timings["prompt_tokens"]),
        "completion_tokens": tokens,
        "completion_tokens_per_candidate": tokens / len(store.candidates),
    }
    results["timings"] = {name: float(value) for name, value in timings.items() if name.endswith("_s")}
    results["notes"] = [*_notes(sampled, store), *_seen(heads, trial), *_foreign(heads, store)]
    results["verdict"] = _verdicts(heads, by_size[results["main_size"]], sampled, trial)
    if (spent := _economy(trial, store, by_size, heads)) is not None:
        results["economy"] = spent
        if not spent["step_s"]:
            trial.report(f"warning: {_UNTIMED}")
            results["notes"].append(_UNTIMED)
    return results


def _verdicts(
    heads: Mapping[str, Head], chances: Mapping[str, Doubles], sampled: Sampled, trial: Trial
) -> dict[str, dict[str, Any]]:
    """What each head is worth at the main size, by its name."""
    right_share = sampled.correct.mean(axis=1)
    found = {}
    for name, head in heads.items():
        # `vote` and `calibrated` as a pick has them, which needs a calibration for both.
        ways = {name: "best", f"{name} vote": "vote", f"{name} calibrated": "calibrated"}
        if head.calibration is None:
            ways = {name: "best"}
        rules = {ways[rule]: values for rule, values in chances.items() if rule in ways}
        free = [rule for rule in chances if rule in BASELINES and rule != PASS_AT_1]
        problems = head.summary.get("problems")
        training = problems.get("train") if isinstance(problems, Mapping) else None
        found[name] = judge(
            rules | {rule: chances[rule] for rule in free},
            "calibrated" if "calibrated" in rules else "best",
            free,
            training_problems=training if isinstance(training, int) else None,
            contrasts=float(((right_share > 0) & (right_share < 1)).mean()),
            resamples=trial.resamples,
            seed=trial.writing.seed,
        ).to_dict()
    return found


def _foreign(heads: Mapping[str, Head], store: Store) -> Iterator[str]:
    """A line for each head that knows what is foreign to it, with how many of the candidates are."""
    for name, head in heads.items():
        if head.known is not None and any(name in each.distances for each in store.candidates):
            share = sum(each.is_foreign(name) for each in store.candidates) / len(store.candidates)
            yield (
                f"{share:.1%} of the candidates are foreign to the head {name}, which gives no P(correct) to picks of "
                "them; of its own kind of problems 5% are: the calibration above is told with them"
            )


def _economy(
    trial: Trial, store: Store, by_size: Mapping[int, Mapping[str, Doubles]], heads: Mapping[str, Head]
) -> dict[str, Any] | None:
    """What adaptive and pruned picks by the first head come to; None where it is not calibrated for answers."""
    name, head = next(iter(heads.items()), (None, None))
    if name is None or head is None or head.calibration is None:
        return None
    decision = Decision.of(head, PickOptions.of(None, {"strategy": "calibrated", "task": trial.task}))
    candidates, n = store.candidates, trial.sizes[-1]
    # A store of an earlier version has no running scores.
    has_running_scores = all(
        len(each.running.get(name, ())) >= sum(count < each.n_tokens for count in PREFIX_TOKENS) for each in candidates
    )
    if not has_running_scores or decision.calibration is None or decision.calibration.answers is None:
        return None
    trial.report("replaying adaptive and pruned picks")
    sampling = {option: value for option, value in (store.info.sampling or {}).items() if option != "stop"}
    planner = Planner.over(trial.opened, head)
    sizes = [rows for rows in TIMED_ROWS if rows < n] + [n]
    times = measure_steps(trial.opened.engine, planner.scorer(None), SamplingOptions(**sampling), sizes)
    return economy(
        [candidates[start : start + n] for start in range(0, len(candidates), n)],
        decision,
        name,
        by_size,
        times,
        planner.pace.applied,
        seed=trial.writing.seed,
        resamples=trial.resamples,
    )


def _notes(sampled: Sampled, store: Store) -> list[str]:
    """What the reader of the figures should know."""
    notes = []
    share = sampled.correct.mean()
    if share in (0, 1):
        notes.append(f"all candidates are {'right' if share else 'wrong'}: no rule can be told from another")
    without = (sampled.answers < 0).mean()
    if without:
        notes.append(f"{without:.1%} of the candidates give no answer: they are wrong, and have no vote")
    if cut_off := sum(candidate.cut_off for candidate in store.candidates):
        notes.append(
            f"{cut_off:,} of the {len(store.candidates):,} candidates were cut off, at {store.info.max_new_tokens} "
            "tokens or by a full context: they give no answer"
        )
    return notes


def _seen(heads: Mapping[str, Head], trial: Trial) -> Iterator[str]:
    """A line for each head that says itself that it has seen these very problems, or some of them."""
    for name, head in heads.items():
        recalibration = head.summary.get("recalibration")
        summaries = [head.summary, recalibration if isinstance(recalibration, Mapping) else {}]
        if trial.problems.sha256 in frozenset().union(*map(trained_on, summaries)):
            yield f"the head {name} was fitted or calibrated on the problems of this test: its figures are too good"
            continue
        shown = frozenset().union(*(seen_prompts(each) or () for each in summaries))
        if known := sum(prompt_hash(problem.question) in shown for problem in trial.problems.rows):
            yield (
                f"the head {name} was fitted or calibrated on {known:,} of the {len(trial.problems.rows):,} problems "
                "of this test: its figures are too good"
            )


def _run(
    trial: Trial,
    store: Store,
    files: Mapping[str, Path],
    heads: Mapping[str, Head],
    external: Path | None,
    limit: int | None,
) -> dict[str, Any]:
    """Everything that is needed to do the test again."""
    bundle, manifest = trial.opened.bundle, trial.opened.bundle.manifest
    session = trial.opened.session
    return {
        "bundle": {
            "path": str(bundle.path),
            "base_model": manifest.base_model,
            "fingerprint": manifest.fingerprint,
            "precision": manifest.precision.label,
            "files": {name: record.sha256 for name, record in sorted(manifest.files.items())},
        },
        "data": {
            "path": str(trial.problems.path),
            "name": trial.problems.path.name,
            "sha256": trial.problems.sha256,
            "limit": limit,
            "asked": None if store.info.asked is None else asdict(store.info.asked),
            "text": None if store.info.asked is None else store.info.asked.described(store.problems),
        },
        "task": trial.task,
        "heads": {
            name: {
                "file": str(files[name]),
                "sha256": file_sha256(files[name]),
                "feature": head.feature,
                "layers": list(head.layers),
                "token_statistics": list(head.token_statistics),
                "gate": head.gate,
                "precision": head.precision,
                "calibrated": head.calibration is not None,
                "shown": shown_text(head.summary),
            }
            for name, head in heads.items()
        },
        "external": None if external is None else {"file": str(external), "sha256": file_sha256(external)},
        "sampling": dict(store.info.sampling or {}),
        "max_new_tokens": trial.writing.max_new_tokens,
        "seed": trial.writing.seed,
        "raw": trial.writing.raw,
        "rows": trial.writing.rows,
        "threads": session.threads,
        "providers": list(session.providers),
        "machine": machine_facts(),
        "versions": versions(),
    }


def _write(results: Mapping[str, Any], out: Path) -> None:
    """Write results, tables and drawings."""
    write_whole(out / "results.json", (json_text(results, indent=1) + "\n").encode())
    write_whole(out / "results.md", markdown(results).encode(errors="replace"))
    draw_accuracy(results, out)
    draw_calibration(results, out)
    draw_economy(results, out)


@contextlib.contextmanager
def _held(out: Path) -> Iterator[None]:
    """Hold the folder of a test, whose stores are held one by one: results of two tests must not be mixed in it.

    Folders that were made for it and in which nothing was written go again.
    """
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    lock = locked_folder(out)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _require_own(out: Path, force: bool) -> None:
    """Raise `OutputExistsError` for a store, a bundle, and results that are not those of a test in this folder."""
    for name, what in ((STORE_NAME, "a store"), (MANIFEST_NAME, "a bundle")):
        if (out / name).exists():
            raise OutputExistsError(f"{out} is {what}, not the folder of a test; name another with --out")
    drawings = [f"{name}.{form}" for name in ("accuracy", "calibration", "economy") for form in FORMATS]
    taken = [name for name in ("results.json", "results.md", *drawings) if (out / name).exists()]
    if taken and not force and not (out / CANDIDATES / STORE_NAME).is_file():
        raise OutputExistsError(
            f"{out} holds {taken[0]!r} and no test that it belongs to; name another folder with --out, or replace it "
            "with --force"
        )


def _has_features(folder: Path) -> bool:
    """Whether there is a store that keeps features."""
    return (folder / STORE_NAME).is_file() and read_info(folder).feature != "none"


def _ascending(sizes: Sequence[int]) -> tuple[int, ...]:
    ascending = tuple(sorted(set(sizes)))
    if not ascending or ascending[0] < 1:
        raise InvalidOptionError(f"sizes are {list(sizes)}; expected numbers of candidates of at least 1, such as 1,8")
    return ascending


def _head_files(opened: OpenedModel, heads: Mapping[str, str | os.PathLike[str]]) -> dict[str, Path]:
    """The head files by name, the bundle's own first; raises `InvalidOptionError` for a name that means something."""
    files = {} if opened.bundle.head_path is None else {DEFAULT_HEAD: opened.bundle.head_path}
    for name, path in heads.items():
        plain = name.replace("-", "").replace("_", "").replace(".", "").isalnum()
        if not plain or name in RESERVED:
            raise InvalidOptionError(
                f"a head is named {name!r}; expected letters, digits, - _ . and none of {', '.join(RESERVED)}"
            )
        files[name] = Path(path)
    return files


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
