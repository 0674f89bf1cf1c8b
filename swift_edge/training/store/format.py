"""What a store of labelled candidates says, as data: its settings, a line per candidate, and the names of its files."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from swift_edge.answers import ANSWER_TASKS
from swift_edge.bundle.manifest import MOST_LAYERS, MOST_TOKENS, Architecture
from swift_edge.errors import StoreError
from swift_edge.records import FloatOrNull, RecordError, json_text, read_fields, read_record, shown
from swift_edge.results import is_foreign, was_cut_off
from swift_edge.system.documents import LINES_BYTES, DocumentError, json_lines, opened, parse_json, read_text

STATISTICS: Final = ("logprob", "entropy", "self_certainty")
"""Columns of a shard's token statistics, in nats at temperature 1 and before any filter."""
FORMAT_VERSION: Final = 1
STORE_NAME: Final = "store.json"
TIMINGS_NAME: Final = "timings.json"
PARTIAL: Final = ".partial"
"""At the end of a file's name: it is not complete."""
ARRAY_NAMES: Final = ("states", "statistics", "tokens", "positions")
"""Arrays of a shard; `states` is left out where no features are kept."""

AGAIN: Final = "delete the files of this shard and of all later ones, and run the same collect again"
"""The way out of a damaged shard."""

Form: TypeAlias = Literal["system", "user", "text", "given"]
StoredFeature: TypeAlias = Literal["hidden", "logits", "none"]

_UNCOMPARED = ("bundle", "version", "architecture")
"""Fields that do not change a candidate: where the bundle lay, who wrote the store, the sizes that weights have."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Which problems of a data file were asked, and in which words."""

    benchmark: str
    """What the rows were read as, see `options.BenchmarkName`."""
    shots: int
    """Worked examples before each question."""
    system: str
    """What the model was asked to do with each question; empty for nothing."""
    form: Form
    """Where that stood: a system prompt, behind the first question, before a text, or in prompts that were given."""
    examples_sha256: str
    """SHA-256 of the worked examples; empty without any."""
    skip: int
    """Problems that were left out before the first."""
    shuffle: int | None = None
    """Seed of their order; None is that of the file."""

    def described(self, problems: int) -> str:
        """What was asked, in a few words.

        >>> info.asked.described(1000)
        'gsm8k, 1,000 problems, zero-shot'
        """
        counted = f"{problems:,} {'problem' if problems == 1 else 'problems'}"
        if self.form == "given":
            return f"{counted} as given"
        examples = "zero-shot" if not self.shots else f"{self.shots}-shot"
        return f"{self.benchmark}, {counted}, {examples}" + (", without chat template" if self.form == "text" else "")


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """The settings that made a store; the same settings give the same store, byte for byte."""

    base_model: str
    """Name of the model, as its bundle says it."""
    fingerprint: str
    """Fingerprint of the model's weights; empty where unknown."""
    precision: str
    """Label of the bundle's precision."""
    bundle: str
    """The bundle, as the caller named it."""
    feature: StoredFeature
    """What is kept per token: hidden states, logits, or neither."""
    layers: tuple[int, ...]
    """Hidden states that are kept, ascending; empty for logits and for none."""
    width: int
    """Width w of a slice: the hidden size, the vocabulary size, or 0 for none."""
    eos_ids: tuple[int, ...]
    """Ids that end a response: a head may leave them uncounted."""
    problems: int
    """Problems of the finished store."""
    n: int | None
    """Candidates per problem; None where texts were given."""
    seed: int | None
    """Seed of all candidates; None where texts were given."""
    sampling: Mapping[str, Any] | None
    """Sampling options as they were used, stop strings included; None where texts were given."""
    max_new_tokens: int | None
    """Most tokens of a candidate; None where texts were given."""
    raw: bool
    """Whether prompts were taken without the chat template."""
    task: str | None
    """Task that graded; None for labels that came with the texts, or from a callable."""
    tokens_per_candidate: int | None
    """Most tokens per candidate that are kept; None keeps all."""
    data_sha256: str
    """SHA-256 of the data file; where its first rows were skipped or all were shuffled, of it and how."""
    version: str
    """Version of swift-edge that wrote it."""
    format_version: int = FORMAT_VERSION
    """Version of this list of fields."""
    bundle_sha256: str = ""
    """SHA-256 over the hashes of the bundle's files, its head apart; empty where the bundle has none."""
    heads: Mapping[str, str] = field(default_factory=dict)
    """Heads that scored while the candidates were written: SHA-256 by name."""
    asked: Asked | None = None
    """Which problems, and in which words; None for prompts as a whole file has them, or up to a limit."""
    architecture: Architecture | None = None
    """Sizes of the model; None in a store of an earlier version."""

    @property
    def can_end(self) -> bool:
        """Whether responses could end by themselves, by an EOS id or a stop string."""
        return bool(self.eos_ids or (self.sampling or {}).get("stop"))

    @property
    def slices(self) -> int:
        """Slices l per token: one for logits, none where nothing is kept."""
        return {"hidden": len(self.layers), "logits": 1, "none": 0}[self.feature]

    @property
    def array_names(self) -> tuple[str, ...]:
        """Arrays that each shard of this store has."""
        return ARRAY_NAMES if self.feature != "none" else ARRAY_NAMES[1:]

    def to_json(self) -> str:
        """Write it; `from_json` reads it back unchanged."""
        return json_text(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, path: Path) -> "StoreInfo":
        """Read what `to_json` wrote; raises `StoreError`, which names `path`."""
        try:
            document = parse_json(text, str(path))
        except DocumentError as error:
            raise StoreError(f"{error}: collect again into another folder") from error
        version = document.get("format_version") if isinstance(document, dict) else None
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise StoreError(
                f"{path} has format version {version}, this swift-edge reads version {FORMAT_VERSION}; "
                "run: pip install --upgrade swift-edge"
            )
        try:
            info = read_record(document, cls)
            _check_info(info)
            return info
        except RecordError as error:
            raise StoreError(f"{path}: {error}; collect again into another folder") from None

    def difference(self, other: "StoreInfo") -> str | None:
        """Name of the first field in which the settings differ; None where both make the same candidates."""
        # Without hashes only its path tells one bundle from another.
        compared = [each.name for each in fields(self) if each.name not in _UNCOMPARED]
        if not (self.bundle_sha256 and other.bundle_sha256):
            compared.insert(0, "bundle")
        mine, theirs = (json.loads(info.to_json()) for info in (self, other))  # as read back, tuples are lists
        return next((name for name in compared if mine[name] != theirs[name]), None)


@dataclass(frozen=True, slots=True)
class StoredCandidate:
    """One labelled response to one problem; a line of a shard."""

    problem: int
    """Place of its problem in the data, from 0."""
    index: int
    """Place among the candidates of its problem, from 0."""
    correct: bool
    """The label; a task calls a response that was cut off wrong."""
    answer: str | None
    """The answer as the task extracts it; None where it finds none, or no task is named, or it was cut off."""
    text: str
    """The response as text."""
    token_ids: tuple[int, ...]  # [t]
    """Every response token, the EOS included."""
    tokens: int
    """Its rows m in the arrays of the shard."""
    n_tokens: int
    """Number of response tokens t."""
    finish_reason: str
    """`stop`, `length` or `given`."""
    unscored_tokens: int
    """1 if the context was full, so that the last token could not be fed and has no features; else 0."""
    logprob: FloatOrNull
    """Sum of the log-probabilities of its tokens in nats; NaN where that is no number."""
    mean_logprob: FloatOrNull
    """Mean of the same."""
    self_certainty: FloatOrNull
    """Mean self-certainty of its tokens in nats; NaN where that is no number."""
    entropy: FloatOrNull
    """Mean entropy of the distributions its tokens were chosen from, in nats."""
    scores: Mapping[str, FloatOrNull] = field(default_factory=dict)
    """Score by each head that scored it while it was written, by the head's name."""
    running: Mapping[str, tuple[FloatOrNull, ...]] = field(default_factory=dict)
    """Running score by each of these after each of `calibration.PREFIX_TOKENS` tokens that it has."""
    prompt_hash: str | None = None
    """Tells its prompt from others, see `training.seen`; None in a store of an earlier version."""
    distances: Mapping[str, FloatOrNull] = field(default_factory=dict)
    """How far it is from what each of these heads knows, by the head's name, of those that say it."""
    cut_off: bool = False
    """Whether it was cut off, see `results.was_cut_off`."""

    def is_foreign(self, head: str) -> bool:
        """Whether it is too far from what the head knows for its P(correct) to mean anything."""
        return is_foreign(self.distances.get(head))

    def to_line(self) -> str:
        """Write it as one line of JSON, without a line end; numbers that JSON does not have are null."""
        document = asdict(self)
        del document["cut_off"]  # told by the reason and the settings of the store
        if not self.distances:
            del document["distances"]
        return json_text(document)


def read_lines(path: Path, info: StoreInfo, *, growing: bool = False) -> Iterator[tuple[StoredCandidate, bytes]]:
    """Read the lines of a shard, each as a candidate and as it is.

    Earlier versions looked for answers in responses that were cut off: they are read as `collect` stores them now.
    Raises `StoreError` with file and line for anything but sound ones; in a `growing` file the last may be cut off.
    """
    shared: dict[int, int] = {}  # one object per token id: 8 bytes per token instead of 36
    try:
        with opened(path, LINES_BYTES) as (stream, _):
            for place, line in json_lines(stream, path):
                if not (growing and not line.endswith(b"\n")):
                    yield _candidate(line, place, info, shared), line
    except DocumentError as error:
        raise StoreError(f"{error}: {AGAIN}") from error
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror}); expected files that this user may read") from error


def _candidate(line: bytes, place: str, info: StoreInfo, shared: dict[int, int]) -> StoredCandidate:
    try:
        values = read_fields(parse_json(line, "it"), StoredCandidate, optional=("cut_off",))
        values["token_ids"] = tuple(shared.setdefault(each, each) for each in values["token_ids"])
        values["cut_off"] = was_cut_off(values["finish_reason"], can_end=info.can_end)
        if values["cut_off"]:
            values |= {"correct": values["correct"] and info.task is None, "answer": None}
        candidate = StoredCandidate(**values)
        _check_candidate(candidate)
    except ValueError as error:
        raise StoreError(f"{place} does not read as a candidate ({error}); {AGAIN}") from error
    return candidate


def _check_info(info: StoreInfo) -> None:
    """Raise `RecordError` for settings that no store has."""
    places = list(info.layers)
    _expect(info.problems >= 1, "problems", info.problems, "an integer of at least 1")
    known = info.task is None or info.task in ANSWER_TASKS
    _expect(known, "task", info.task, f"one of {', '.join(ANSWER_TASKS)}, or null")
    _expect(info.n is None or info.n >= 1, "n", info.n, "an integer of at least 1, or null")
    _expect(0 <= info.width <= MOST_TOKENS, "width", info.width, f"an integer from 0 to {MOST_TOKENS}")
    ascending = places == sorted(set(places)) and all(0 <= layer <= MOST_LAYERS for layer in places)
    _expect(ascending, "layers", places, f"ascending integers from 0 to {MOST_LAYERS}")
    if info.feature != "none":
        _expect(info.slices >= 1 and info.width >= 1, "layers", places, f"some, of a width, for {info.feature}")


def _check_candidate(candidate: StoredCandidate) -> None:
    """Raise `RecordError` for numbers that do not belong together, or that arrays do not hold."""
    ids = candidate.token_ids
    _expect(candidate.n_tokens == len(ids), "n_tokens", candidate.n_tokens, f"the number of token_ids, {len(ids)}")
    _expect(0 <= candidate.tokens < 2**31, "tokens", candidate.tokens, "a number of rows")
    for token in (min(ids), max(ids)) if ids else ():
        _expect(0 <= token < 2**31, "token_ids", token, "ids of a vocabulary")


def _expect(condition: bool, where: str, value: object, expected: str) -> None:
    if not condition:
        raise RecordError(f"{where} is {shown(value)}; expected {expected}")


def array_path(folder: Path, shard: int, name: str) -> Path:
    """Where an array of a shard lies."""
    return folder / f"shard-{shard:05}.{name}.npy"


def lines_path(folder: Path, shard: int) -> Path:
    """Where the candidates of a shard lie."""
    return folder / f"shard-{shard:05}.jsonl"


def partial_path(path: Path) -> Path:
    """Name of a file while it is not complete."""
    return path.with_name(path.name + PARTIAL)


def read_info(folder: Path) -> StoreInfo:
    """Read the settings of the store in `folder`; raises `StoreError` where there is none."""
    path = folder / STORE_NAME
    try:
        return StoreInfo.from_json(read_text(path), path)
    except FileNotFoundError:
        raise StoreError(
            f"{folder} holds no {STORE_NAME}; expected a store, as swift-edge collect --out DIR makes"
        ) from None
    except DocumentError as error:
        raise StoreError(f"{error}: collect again into another folder") from error
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error}); expected a store that this user may read") from error
