"""Every option of a pick, declared once: its type, default, range, and what is said of it.

    from swift_edge import PickOptions
    PickOptions(n=16, top_p=0.9)
    PickOptions.from_dict({"n": "auto", "prune": {"16": 8}})

A field is the declaration. From it come the checks, the options of the command line with their help, the JSON that
`from_dict` reads and `json_schema` describes, and `docs/options.md`, which `options_reference` writes. The typed
dictionaries are what keywords are: type checkers cannot make them from a dataclass, so a test holds them equal.
"""

import difflib
import math
import re
import secrets
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from typing import (
    Any,
    Final,
    Literal,
    Self,
    TypeAlias,
    TypedDict,
    Union,
    Unpack,
    get_args,
    get_origin,
    get_type_hints,
)

import numpy as np

from swift_edge.answers import TaskName
from swift_edge.checks import expect, is_number, is_whole
from swift_edge.errors import InvalidOptionError
from swift_edge.field_texts import show_field_texts

SignalName: TypeAlias = Literal["mean_logprob", "self_certainty"]
"""A score that needs no head; larger is better in both."""
StrategyName: TypeAlias = Literal["best", "majority", "vote", "calibrated", "best-of-majority", "ranking", "scaling"]
"""How a pick is made from the scores, see `swift_edge.selection.strategies`."""
BenchmarkName: TypeAlias = Literal["jsonl", "gsm8k", "math", "aqua", "hellaswag", "coinflip", "svamp", "cruxeval"]
"""What the rows of a data file are: problems as they are to be asked, or those of a benchmark as it is published."""
Extractor: TypeAlias = Callable[[str], str | None]
"""From a response to its answer, or None."""
ExternalScorer: TypeAlias = Callable[[Sequence[str]], Sequence[float]]
"""From the texts of all candidates to one score each, the greatest best."""

LOWEST_TEMPERATURE: Final = 1e-6
"""Below it, and above 0, a temperature is refused: it is greedy in all but name."""
HIGHEST_TEMPERATURE: Final = 10**6
"""Above it the model has no say at all."""
MOST_N: Final = 10_000
"""Most candidates of a prompt, written or given."""
MOST_COUNT: Final = 10**9
"""Greatest number of what is counted: tokens, mostly."""
MOST_SHOTS: Final = 4
"""Most worked examples before a question: as many as there are of each benchmark."""
MOST_SECONDS: Final = 10**9
"""Three decades."""
MOST_ROWS: Final = 1024
"""Most candidates that are written side by side."""
MOST_STOPS: Final = 256
"""Most stop strings: each is looked for after every token."""
MOST_STOP_CHARACTERS: Final = 16384
"""Most characters of all stop strings together."""
MOST_PRUNINGS: Final = 256
"""Most token counts of a pruning schedule."""
THE_BUNDLES: Final = "the bundle's"
"""What stands for None where a bundle decides."""


@dataclass(frozen=True, slots=True)
class Option:
    """What is declared of an option beside its type, and, once it is read from its field, the type as well."""

    help: str
    """What it does, in a sentence or two for the command line and the reference."""
    metavar: str | None = None
    """What stands for the value in `--help`; None for a switch, and for what cannot be written down."""
    unit: str | None = None
    """What a number counts, where its name leaves that open."""
    least: float | None = None
    """Least number."""
    above: float | None = None
    """A number that is just too small."""
    most: float | None = None
    """Greatest number."""
    also: float | None = None
    """A number that is taken though it is out of the range."""
    unset: str = ""
    """What None comes to, in words."""
    default: object = None
    """The field's default."""
    words: tuple[str, ...] = ()
    """The words of a closed set that it takes."""
    kinds: frozenset[object] = frozenset()
    """The other types of the field: `int`, `float`, `bool`, `Sequence`, `Mapping`, `Callable`, `NoneType`."""

    @property
    def is_plain(self) -> bool:
        """Whether a value can be written down, in JSON or on a command line."""
        return bool(self.words) or self.kinds - {Callable, types.NoneType} != frozenset()

    def accepts(self, value: object) -> bool:
        """Whether the option may have this value."""
        match value:
            case None:
                return types.NoneType in self.kinds
            case str():
                return value in self.words or str in self.kinds
            case bool():
                return bool in self.kinds
            case Mapping():
                return Mapping in self.kinds and _is_schedule(value)
            case Sequence():
                return Sequence in self.kinds and _are_texts(value)
        if is_number(value):
            fits = float in self.kinds or (int in self.kinds and is_whole(value, -math.inf))
            return fits and (value == self.also or self._is_within(value))
        return Callable in self.kinds and callable(value)

    @property
    def expected(self) -> str:
        """The values that it may have, in words."""
        parts = []
        if self.kinds & {int, float}:
            number = "an integer" if int in self.kinds else "a number"
            limits = [f"{self.also:g} or "] if self.also is not None else []
            limits += [number, *self._limits, f", in {self.unit}" if self.unit else ""]
            parts.append("".join(limits))
        parts += self.words
        for kind, words in _WORDS.items():
            parts += [words] if kind in self.kinds else []
        return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])}, or {parts[-1]}"

    @property
    def schema(self) -> dict[str, Any]:
        """The values that can be written down, as a JSON schema."""
        forms: list[dict[str, Any]] = []
        if self.kinds & {int, float}:
            limits = {"minimum": self.least, "exclusiveMinimum": self.above, "maximum": self.most}
            forms += [{"const": self.also}] if self.also is not None else []
            forms.append(
                {"type": "integer" if int in self.kinds else "number"}
                | {name: limit for name, limit in limits.items() if limit is not None}
            )
        forms += [{"enum": list(self.words)}] if self.words else []
        forms += [form for kind, some in _SCHEMAS.items() if kind in self.kinds for form in some]
        described = {"description": self.help, "default": _as_json(self.default)}
        return described | (forms[0] if len(forms) == 1 else {"anyOf": forms})

    @property
    def _limits(self) -> tuple[str, ...]:
        if self.least is not None:
            return (f" of at least {self.least}" if self.most is None else f" from {self.least} to {self.most}",)
        if self.above is not None:
            return (f" above {self.above}", "" if self.most is None else f" and at most {self.most}")
        return ()

    def _is_within(self, value: float) -> bool:
        reaches = (self.least is None or value >= self.least) and (self.above is None or value > self.above)
        return reaches and (self.most is None or value <= self.most)


def _is_schedule(value: Mapping[Any, Any]) -> bool:
    """Whether a mapping says how many stay at token counts: as many or fewer at each than at the one before."""
    if not 1 <= len(value) <= MOST_PRUNINGS:
        return False
    if not all(is_whole(each, 1) and each <= MOST_COUNT for pair in value.items() for each in pair):
        return False
    stay = [value[tokens] for tokens in sorted(value)]
    return stay == sorted(stay, reverse=True)


def _are_texts(value: Sequence[Any]) -> bool:
    """Whether a sequence holds texts that may end a candidate, no more of them than can be looked for."""
    if len(value) > MOST_STOPS or not all(isinstance(text, str) and text for text in value):
        return False
    if sum(map(len, value)) > MOST_STOP_CHARACTERS:
        return False
    # Half characters are in no text.
    return not any("\ud800" <= letter <= "\udfff" for text in value for letter in text)


# What stands for a type in a sentence, and in a JSON schema.
_WORDS: Final[Mapping[object, str]] = {
    Sequence: (
        f"a text or a list of up to {MOST_STOPS} texts, of at least one character each "
        f"and {MOST_STOP_CHARACTERS} in all"
    ),
    Mapping: "how many candidates stay by token count, never more than before, such as {16: 8, 32: 4}",
    str: "a text",
    bool: "True or False",
    Callable: "a function",
    types.NoneType: "None",
}
_TEXT: Final = {"type": "string", "minLength": 1, "maxLength": MOST_STOP_CHARACTERS}
_SCHEMAS: Final[Mapping[object, tuple[dict[str, Any], ...]]] = {
    Sequence: (_TEXT, {"type": "array", "items": _TEXT, "maxItems": MOST_STOPS}),
    Mapping: (
        {
            "type": "object",
            "patternProperties": {"^[1-9][0-9]*$": {"type": "integer", "minimum": 1, "maximum": MOST_COUNT}},
            "additionalProperties": False,
            "minProperties": 1,
            "maxProperties": MOST_PRUNINGS,
        },
    ),
    str: ({"type": "string"},),
    bool: ({"type": "boolean"},),
    types.NoneType: ({"type": "null"},),
}


def option(text: str, metavar: str | None = None, **details: Any) -> Mapping[str, Option]:
    """What is declared of a field, as the metadata of a dataclass; `details` are those of `Option`."""
    return {"option": Option(text, metavar, **details)}


_READ: Final[dict[object, Mapping[str, Option]]] = {}
"""The options of every dataclass that was asked for."""


def options_of(declaration: type) -> Mapping[str, Option]:
    """The options that are the fields of a dataclass, by name."""
    if declaration not in _READ:
        hints = get_type_hints(declaration)
        _READ[declaration] = {each.name: _option(each, _members(hints[each.name])) for each in fields(declaration)}
    return _READ[declaration]


def _option(each: Field[Any], members: Sequence[Any]) -> Option:
    """What is declared of a field, given the types that it joins."""
    declared: Option = each.metadata["option"]
    closed = [member for member in members if get_origin(member) is Literal]
    return replace(
        declared,
        default=each.default,
        words=tuple(word for member in closed for word in get_args(member)),
        kinds=frozenset(get_origin(member) or member for member in members if member not in closed),
    )


def _members(annotation: Any) -> tuple[Any, ...]:
    """The types that a union joins, unions within it too."""
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(member for each in get_args(annotation) for member in _members(each))
    return (annotation,)


def _check(options: Any) -> None:
    """Take values as plain Python; raise `InvalidOptionError` for the first one that its option may not have."""
    for name, declared in options_of(type(options)).items():
        value = getattr(options, name)
        expect(declared.accepts(plain := _plain(value, declared)), name, value, declared.expected)
        object.__setattr__(options, name, plain)


def _plain(value: object, declared: Option) -> object:
    """NumPy's numbers as Python's, a text alone as a tuple of one, and what might be changed later as a copy."""
    if isinstance(value, np.generic):
        return value.item()
    if Sequence in declared.kinds and isinstance(value, str):
        return (value,)
    # What is longer than any option may be is refused as it stands: a range of a billion is quickly written.
    if Sequence in declared.kinds and isinstance(value, Sequence) and len(value) <= MOST_STOPS:
        return tuple(value)
    return dict(value) if isinstance(value, Mapping) and len(value) <= MOST_PRUNINGS else value


def _refuse_unknown(names: Mapping[str, object], expected: Sequence[str]) -> None:
    """Raise `InvalidOptionError` for a name that is not known, with the one that may have been meant."""
    for name in names:
        if name not in expected:
            shown = str(name)[:40]  # it may come from anywhere
            near = difflib.get_close_matches(shown, expected, 1, 0.0)
            raise InvalidOptionError(
                f"there is no option {shown!r}; did you mean {near[0]}? Expected some of {', '.join(expected)}"
            )


def _as_json(value: object) -> object:
    """A value as JSON holds it."""
    if isinstance(value, Mapping):
        return {str(tokens): keep for tokens, keep in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _of_json(value: object) -> object:
    """The same the other way round: token counts are keys, which JSON has as texts alone."""
    if not isinstance(value, Mapping):
        return value
    whole = re.compile("[1-9][0-9]{0,9}")
    return {int(key) if isinstance(key, str) and whole.fullmatch(key) else key: each for key, each in value.items()}


@show_field_texts
@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How a token is drawn; the defaults draw from the model's own distribution."""

    temperature: float = field(
        default=1.0,
        metadata=option(
            "Divides the logits; 0 is greedy.", metavar="T", least=LOWEST_TEMPERATURE, most=HIGHEST_TEMPERATURE, also=0
        ),
    )
    """Divides the logits; 0 is greedy: the greatest logit after the repetition penalty, and nothing is drawn."""
    top_p: float = field(
        default=1.0, metadata=option("Probability mass to keep, in (0, 1]; 1 keeps all.", metavar="P", above=0, most=1)
    )
    """Probability mass kept, in (0, 1]: the most likely tokens up to and with the one that reaches it; 1 keeps all."""
    top_k: int | None = field(
        default=None,
        metadata=option("Most likely tokens to keep; 0 keeps all.", metavar="K", least=0, most=MOST_COUNT, unset="all"),
    )
    """How many of the most likely tokens are kept; None or 0 keeps all."""
    min_p: float | None = field(
        default=None,
        metadata=option("Least share of the top probability; 0 keeps all.", metavar="P", least=0, most=1, unset="all"),
    )
    """Tokens less likely than this share of the most likely one are removed, in [0, 1]."""
    repetition_penalty: float = field(
        default=1.0,
        metadata=option("Holds back tokens that were seen; 1 is none.", metavar="R", least=0.001, most=1000),
    )
    """Divides positive and multiplies negative logits of tokens of the prompt and the response so far; 1 is none."""

    def __post_init__(self) -> None:
        """Raise `InvalidOptionError` for a value of another type or out of its range."""
        _check(self)

    @property
    def draws_from_all(self) -> bool:
        """Whether every token of the vocabulary may be drawn."""
        return self.temperature > 0 and self.top_p == 1 and not self.top_k and not self.min_p


def _left_open(name: str) -> Any:
    """The field of `SamplingOptions` of that name, left to the bundle unless something is asked for."""
    left = replace(options_of(SamplingOptions)[name], unset=THE_BUNDLES)
    return field(default=None, metadata={"option": left})


SEED: Final = option("The same seed gives the same candidates.", metavar="N", least=0, most=2**64 - 1, unset="drawn")
"""Seeds are alike wherever they are asked for; whether one may be left open differs."""


@show_field_texts
@dataclass(frozen=True, slots=True, kw_only=True)
class WritingOptions:
    """How candidates are written, whatever for; None is the bundle's own."""

    max_new_tokens: int = field(
        default=512,
        metadata=option("Most tokens of each candidate.", metavar="N", unit="tokens", least=1, most=MOST_COUNT),
    )
    """Tokens at which a candidate ends, unless an EOS id, a stop string or a full context ends it first."""
    temperature: float | None = _left_open("temperature")
    """As in `SamplingOptions`, like all that follow up to `stop`."""
    top_p: float | None = _left_open("top_p")
    """See there."""
    top_k: int | None = _left_open("top_k")
    """See there."""
    min_p: float | None = _left_open("min_p")
    """See there."""
    repetition_penalty: float | None = _left_open("repetition_penalty")
    """See there."""
    stop: Sequence[str] = field(
        default=(), metadata=option("Text that ends a candidate; may be repeated.", metavar="TEXT")
    )
    """Texts before which a candidate ends, kept as a tuple; one may come alone."""
    raw: bool = field(default=False, metadata=option("Continue prompts as they stand, without the chat template."))
    """Whether a prompt is taken without the chat template."""

    def __post_init__(self) -> None:
        """Raise `InvalidOptionError` for a value of another type or out of its range."""
        _check(self)

    @classmethod
    def of(cls, options: Self | None, changes: Mapping[str, object]) -> Self:
        """The options with `changes`, by name; None are the defaults.

        Raises `InvalidOptionError` for a name that is not known, and for a value that its option may not have.
        """
        expect(options is None or isinstance(options, cls), "options", options, f"a {cls.__name__}, or None")
        _refuse_unknown(changes, list(options_of(cls)))
        values: dict[str, Any] = dict(changes)
        return replace(cls() if options is None else options, **values)

    def for_pick(self, **changes: Unpack["PickInput"]) -> "PickOptions":
        """The options of picks whose candidates are written so."""
        shared = options_of(type(self)).keys() & options_of(PickOptions).keys()
        return PickOptions.of(None, {name: getattr(self, name) for name in shared} | changes)


@show_field_texts
@dataclass(frozen=True, slots=True, kw_only=True)
class DataOptions:
    """Which problems of a data file are asked, and in which words."""

    benchmark: BenchmarkName = field(
        default="jsonl",
        metadata=option(
            "What the rows of --data are: prompts of your own, or those of a benchmark as it is published.",
            metavar="NAME",
        ),
    )
    """A benchmark brings its task and its wording; the rows of `jsonl` are asked as they stand."""
    shots: int | None = field(
        default=None,
        metadata=option(
            "Worked examples before each question of a benchmark.",
            metavar="K",
            least=0,
            most=MOST_SHOTS,
            unset=f"none with a chat template, else {MOST_SHOTS}",
        ),
    )
    """A chat model knows how to answer; one without a chat template is shown."""
    system: str | None = field(
        default=None,
        metadata=option(
            "What a benchmark's questions are asked with, as the system prompt; an empty text for nothing.",
            metavar="TEXT",
            unset="the benchmark's",
        ),
    )
    """In place of the benchmark's instruction: the system prompt, or how a text begins without a chat template."""
    skip: int = field(
        default=0, metadata=option("Leave out the first N problems.", metavar="N", least=0, most=MOST_COUNT)
    )
    """Problems that are left out, the first ones after shuffling: they may be those of another store."""
    shuffle: int | None = field(
        default=None,
        metadata=option(
            "Shuffle the problems first; the same seed gives the same order.",
            metavar="SEED",
            least=0,
            most=2**64 - 1,
            unset="the order of the file",
        ),
    )
    """The order depends on the seed and the number of problems alone, on every machine and in every version."""

    def __post_init__(self) -> None:
        """Raise `InvalidOptionError` for a value of another type or out of its range, and for two that do not fit."""
        _check(self)
        for name in ("shots", "system"):
            value = getattr(self, name)
            fits = self.benchmark != "jsonl" or value is None
            expect(fits, name, value, "none without a benchmark, as the rows of jsonl are asked as they stand")

    @classmethod
    def of(cls, **values: Unpack["DataInput"]) -> Self:
        """The options by name; raises `InvalidOptionError` for a name that is not known, too."""
        _refuse_unknown(values, list(options_of(cls)))
        return cls(**values)


@show_field_texts
@dataclass(frozen=True, slots=True, kw_only=True)
class CollectOptions(WritingOptions):
    """How the candidates of many problems are written."""

    seed: int = field(default=0, metadata=SEED)
    """Seed of all candidates' random numbers."""
    rows: int = field(
        default=16, metadata=option("Candidates to write at a time.", metavar="N", least=1, most=MOST_ROWS)
    )
    """Rows that decode at a time; what is written does not depend on it."""


@show_field_texts
@dataclass(frozen=True, slots=True, kw_only=True)
class PickOptions(WritingOptions):
    """Everything that `Selector.pick` can be asked for. Keywords of a call win over the options that it is given.

    >>> selector.pick(prompt, options=PickOptions(n="auto", top_p=0.9), seed=3)
    """

    n: int | Literal["auto"] = field(
        default=8,
        metadata=option(
            "Candidates to write; auto writes as many as the answer takes.", metavar="N", least=1, most=MOST_N
        ),
    )
    """Candidates per prompt. `auto` begins four, or as many as take hardly longer on this machine, and more, up to
    `max_n`, until an answer is as likely as `min_confidence`; without that, until what more of them could change is
    not worth their tokens."""
    seed: int | None = field(default=0, metadata=SEED)
    """Seed of all candidates' random numbers; candidate i does not depend on `n`. None draws one for every call."""
    signal: SignalName | None = field(
        default=None,
        metadata=option("Rank by a signal that needs no training instead of a head.", metavar="NAME", unset="the head"),
    )
    """Signal that scores in place of the head."""
    strategy: Literal["auto"] | StrategyName = field(
        default="auto",
        metadata=option(
            "How to pick; auto goes by what the head and the task allow, ranking and scaling need an external judge.",
            metavar="NAME",
        ),
    )
    """How the pick is made from the scores. `auto` is `ranking` with external scores; `calibrated` with a calibrated
    head where answers can be found, `best-of-majority` where they can and the head is not calibrated; else `best`."""
    task: TaskName | Extractor | None = field(
        default=None,
        metadata=option(
            "What answers are, so that those that say the same can be counted together.",
            metavar="NAME",
            unset="what the head learned from",
        ),
    )
    """How answers are found: a task of `swift_edge.answers`, or a function from a text to its answer or None."""
    external: ExternalScorer | None = field(
        default=None,
        metadata=option("Another judge: a function from the candidates' texts to one score each.", unset="none"),
    )
    """Another judge of the candidates' texts, for the strategies `ranking` and `scaling`."""
    min_confidence: float | None = field(
        default=None,
        metadata=option(
            "Abstain where the pick is less likely to be right: print nothing.",
            metavar="P",
            least=0,
            most=1,
            unset="never abstain",
        ),
    )
    """Least probability of a pick that is not abstained from; the selection says whether it is."""
    max_n: int | None = field(
        default=None, metadata=option("Most candidates where n is auto.", metavar="N", least=1, most=MOST_N, unset="16")
    )
    """Most candidates where `n` is `auto`."""
    prune: Literal["auto", "off"] | Mapping[int, int] | None = field(
        default=None,
        metadata=option(
            "Drop weak candidates early: auto, off, or how many stay at token counts, such as 16:8,32:4; until one has "
            "an answer, two different texts stay.",
            metavar="RULE",
            unset="auto where n is auto, else off",
        ),
    )
    """Which rows are dropped while they are written: `auto` those that the head calibrated on prefixes finds much less
    likely than the best, a schedule such as `{16: 8, 32: 4}` all but the best 8 at 16 tokens and all but 4 at 32, `off`
    none. Until a candidate has an answer, two different texts stay, whatever the rule. Candidates that are dropped are
    in the selection, with the reason."""
    budget_tokens: int | None = field(
        default=None,
        metadata=option(
            "Most tokens of all candidates together.",
            metavar="N",
            unit="tokens",
            least=1,
            most=MOST_COUNT,
            unset="no limit",
        ),
    )
    """Most response tokens of a pick."""
    budget_seconds: float | None = field(
        default=None,
        metadata=option(
            "Most seconds; the pick is from what is there by then.",
            metavar="S",
            unit="seconds",
            above=0,
            most=MOST_SECONDS,
            unset="no limit",
        ),
    )
    """Most seconds of a pick, but for one step and the reading of the prompt."""

    @classmethod
    def from_dict(cls, mapping: Mapping[str, object]) -> Self:
        """Read options as JSON has them: token counts of `prune` are texts, and functions cannot be given.

        Raises `InvalidOptionError` for a name that is not known, and for a value that its option may not have.
        """
        expect(isinstance(mapping, Mapping), "options", mapping, "an object of options by name")
        _refuse_unknown(mapping, _plain_names())
        return cls.of(None, {name: _of_json(value) for name, value in mapping.items()})

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON has them, for `from_dict`; raises `InvalidOptionError` where one is a function."""
        for name in ("task", "external"):
            expect(not callable(getattr(self, name)), name, getattr(self, name), "no function, which JSON cannot hold")
        return {name: _as_json(getattr(self, name)) for name in _plain_names()}

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """What `from_dict` reads, as a JSON schema of draft 2020-12."""
        declared = options_of(cls)
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": cls.__name__,
            "type": "object",
            "properties": {name: declared[name].schema for name in _plain_names()},
            "additionalProperties": False,
        }

    def resolved(self, defaults: SamplingOptions) -> Self:
        """The options with the bundle's own where nothing was asked for, and with a seed."""
        values: dict[str, Any] = {
            name: getattr(defaults, name) for name in options_of(SamplingOptions) if getattr(self, name) is None
        }
        return replace(self, **values, seed=secrets.randbits(32) if self.seed is None else self.seed)


class SamplingInput(TypedDict, total=False):
    """Keywords that say how tokens are drawn."""

    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None


class WritingInput(SamplingInput, total=False):
    """Keywords for `WritingOptions`."""

    max_new_tokens: int
    stop: Sequence[str]
    raw: bool


class DataInput(TypedDict, total=False):
    """Keywords for `DataOptions`."""

    benchmark: BenchmarkName
    shots: int | None
    system: str | None
    skip: int
    shuffle: int | None


class CollectInput(WritingInput, total=False):
    """Keywords for `CollectOptions`."""

    seed: int
    rows: int


class PickInput(WritingInput, total=False):
    """Keywords for `PickOptions`."""

    n: int | Literal["auto"]
    seed: int | None
    signal: SignalName | None
    strategy: Literal["auto"] | StrategyName
    task: TaskName | Extractor | None
    external: ExternalScorer | None
    min_confidence: float | None
    max_n: int | None
    prune: Literal["auto", "off"] | Mapping[int, int] | None
    budget_tokens: int | None
    budget_seconds: float | None


def _plain_names() -> list[str]:
    """Names of the options that JSON can hold."""
    return [name for name, declared in options_of(PickOptions).items() if declared.is_plain]


def options_reference() -> str:
    """The options of a pick as a page in Markdown, which is kept in `docs/options.md`."""
    rows = [
        f"| `{name}` | {declared.expected} | {declared.unset if declared.default is None else _shown(declared)} "
        f"| {declared.help} |"
        for name, declared in options_of(PickOptions).items()
    ]
    return "\n".join(
        [
            "# Options of a pick",
            "",
            "Keywords of `Selector.pick`, `pick_many` and `stream`, fields of `PickOptions`, and keys of",
            "`PickOptions.from_dict`. This page is made from their declarations in `swift_edge/options.py`:",
            "",
            '    python -c "from swift_edge.options import options_reference as page; print(page(), end=str())"',
            "",
            "| option | takes | default | what it does |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _shown(declared: Option) -> str:
    return "none" if declared.default == () else f"`{declared.default}`"
