"""The manifest of a bundle as data: what its fields mean, how they are read from JSON and checked."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

from swift_edge.errors import MIB, InvalidOptionError, ManifestError, NewerFormatError, UnsafePathError
from swift_edge.options import SamplingOptions
from swift_edge.records import RecordError, json_text, read_fields, read_record, shown
from swift_edge.system.documents import DOCUMENT_BYTES, DocumentError, parse_json
from swift_edge.system.documents import read_text as read_document

FORMAT_VERSION = 1
MANIFEST_NAME = "swift_edge.json"
MODEL_NAME = "model.onnx"
TOKENIZER_NAME = "tokenizer.json"
TEMPLATE_NAME = "chat_template.jinja"
HEAD_NAME = "head.npz"

MANIFEST_BYTES = MIB
"""Most of a manifest: one of a few files has 3 KB."""
TEMPLATE_BYTES = 128 * 1024
"""Most of a chat template: the longest of well-known models have a quarter of that."""
MOST_LAYERS = 10_000
"""More than any model's: the deepest have a few hundred."""
MOST_TOKENS = 2**24
"""More than any vocabulary's: the largest have 262,144."""
MOST_EOS_IDS = 1000
"""More than any model's: those that have many have about ten."""
LONGEST_NAME = 1000
"""Characters of a name, such as the model's."""
_LARGEST: Mapping[str, int] = {
    "num_layers": MOST_LAYERS,
    "hidden_size": 2**20,
    "num_attention_heads": 2**16,
    "num_key_value_heads": 2**16,
    "head_dim": 2**16,
    "vocab_size": MOST_TOKENS,
    "context_length": 2**31 - 1,
}
"""The most of each size: far beyond any model's, and small enough that tensors can be counted and named."""
_MOST_BYTES = 2**50
"""Of a file."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """Sizes of the model; every tensor of the graph has its shape from here."""

    model_type: str
    """The family's name in transformers, such as `llama`."""
    num_layers: int
    """Transformer blocks L; key and value inputs are numbered 0 to L-1."""
    hidden_size: int
    """Width d of a hidden state."""
    num_attention_heads: int
    """Query heads per layer."""
    num_key_value_heads: int
    """KV heads h per layer."""
    head_dim: int
    """Width k of one KV head."""
    vocab_size: int
    """Width v of the logits."""
    context_length: int
    """Most tokens that a row can hold, the prompt included."""


@dataclass(frozen=True, slots=True)
class Precision:
    """How the weights are stored, and how keys and values are kept."""

    name: Literal["fp32", "fp16", "int8", "int4", "unknown"]
    """Type of the weights; `unknown` only for folders that others wrote."""
    block_size: int | None = None
    """Weights that share one scale, for int8 and int4."""
    accuracy_level: int | None = None
    """What onnxruntime's MatMulNBits computes in: 1 fp32, 4 int8."""
    kv_cache: Literal["int8"] | None = None
    """Type in which keys and values are kept, with scales that are fixed in the graph; None is that of activations."""
    carried: int | None = None
    """Weight matrices that were quantised before, as those of a GGUF file, and whose codes were taken as they are."""
    zero_points: int | None = None
    """Weight matrices whose blocks have a zero point beside their scale; None where there are none."""
    fitted_tokens: int | None = None
    """Tokens of the model's own text to which rounding was fitted; None where each weight got its nearest code."""

    @property
    def label(self) -> str:
        """The words by which heads and stores tell one precision of a model from another."""
        return self.name if self.kv_cache is None else f"{self.name} with {self.kv_cache} keys and values"


@dataclass(frozen=True, slots=True)
class HiddenStates:
    """Which hidden states the graph gives out."""

    indices: tuple[int, ...]
    """Ascending; 0 is the embeddings, L the last block after the final norm. Empty: the graph has none."""
    convention: Literal["transformers"] = "transformers"
    """Whose numbering the indices follow."""


@dataclass(frozen=True, slots=True)
class Graph:
    """What the graph asks of its caller, beyond the names that every graph uses."""

    kv: Literal["in-place", "concatenated"]
    """`in-place`: past and present share a buffer of any capacity; `concatenated`: present is past plus new tokens."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids with a meaning."""

    eos_ids: tuple[int, ...]
    """Ids that end a response, the tokenizer's own (`eos_token` in chat templates) first; may be empty."""
    bos_id: int | None = None
    """Id that starts a text, where the model has one."""
    pad_id: int | None = None
    """Id that fills up rows, where the model has one."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file as it was published."""

    sha256: str
    """SHA-256 of its content, 64 hex digits."""
    size: int
    """Size in bytes."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What `swift_edge.json` says about its bundle."""

    base_model: str
    """Hub id or name of the model that was exported."""
    base_revision: str | None
    """Commit of the hub repository, where it is known."""
    fingerprint: str
    """SHA-256 of the base model's weights as loaded, the same at every precision; empty where it is unknown."""
    architecture: Architecture
    """Sizes of the model."""
    precision: Precision
    """How the weights are stored, and how keys and values are kept."""
    hidden_states: HiddenStates
    """Which hidden states the graph gives out."""
    graph: Graph
    """What the graph asks of its caller."""
    tokens: Tokens
    """Token ids with a meaning."""
    sampling: SamplingOptions
    """Sampling that the model's makers recommend."""
    files: Mapping[str, FileRecord]
    """Every file of the bundle but the manifest itself, by its name in the folder."""
    exporter: Mapping[str, str]
    """Packages that made the bundle and their versions."""
    parity: Mapping[str, Any]
    """How far the graph was from the original when it was exported."""
    format_version: int = FORMAT_VERSION
    """Version of this list of fields."""

    def __post_init__(self) -> None:
        """Check what types cannot say; a wrong value is a `ManifestError`."""
        sizes = asdict(self.architecture)
        for name, most in _LARGEST.items():
            value = sizes[name]
            bound = "at least 1" if value < 1 else f"at most {most}"
            _expect(1 <= value <= most, f"architecture.{name}", value, f"an integer of {bound}")
        names = {name: getattr(self, name) or "" for name in ("base_model", "base_revision", "fingerprint")}
        for name, text in (names | {"architecture.model_type": self.architecture.model_type}).items():
            _expect(len(text) <= LONGEST_NAME, name, text, f"at most {LONGEST_NAME} characters")
        self._check_tokens()
        indices, layers = self.hidden_states.indices, self.architecture.num_layers
        ascending = list(indices) == sorted(set(indices))
        inside = all(0 <= index <= layers for index in indices)
        _expect(ascending and inside, "hidden_states.indices", list(indices), f"ascending integers from 0 to {layers}")
        _expect(
            self.precision.kv_cache is None or self.graph.kv == "in-place",
            "precision.kv_cache",
            self.precision.kv_cache,
            "null, as the graph concatenates keys and values",
        )
        for name, record in self.files.items():
            digits = set(record.sha256) <= set("0123456789abcdef") and len(record.sha256) == 64
            _expect(digits, f"files.{name}.sha256", record.sha256, "64 lower-case hex digits")
            _expect(0 <= record.size <= _MOST_BYTES, f"files.{name}.size", record.size, "a number of bytes")

    def _check_tokens(self) -> None:
        vocab_size, eos_ids = self.architecture.vocab_size, self.tokens.eos_ids
        _expect(len(eos_ids) <= MOST_EOS_IDS, "tokens.eos_ids", list(eos_ids), f"at most {MOST_EOS_IDS} of them")
        named = {f"eos_ids[{place}]": token for place, token in enumerate(eos_ids)} | {"bos_id": self.tokens.bos_id}
        for name, token in named.items():
            inside = token is None or 0 <= token < vocab_size
            _expect(inside, f"tokens.{name}", token, f"an id of the vocabulary, from 0 to {vocab_size - 1}")
        # One that was added for training alone may lie beyond the logits.
        pad_id = self.tokens.pad_id
        _expect(pad_id is None or 0 <= pad_id < 2**31, "tokens.pad_id", pad_id, "an id, from 0 up")

    @property
    def fixed_files(self) -> tuple[str, ...]:
        """Names of the files that have to be as they were published."""
        # A head may be replaced at any time: it says itself which model it is for, and its archive has checksums.
        return tuple(name for name in self.files if name != HEAD_NAME)

    @classmethod
    def from_json(cls, text: str, source: Path = Path(MANIFEST_NAME)) -> "Manifest":
        """Read a manifest; keys that this version does not know are passed over.

        Raises `NewerFormatError` for a later format and `ManifestError` for anything that is missing or of another
        type; both name `source`.
        """
        try:
            document = parse_json(text, str(source))
            # The version comes first: a later format may well look different in every other field.
            version = read_fields(document, cls, ("format_version",))["format_version"]
            _expect(version >= 1, "format_version", version, "an integer of at least 1")
            if version > FORMAT_VERSION:
                raise NewerFormatError(source, version, FORMAT_VERSION)
            return read_record(document, cls)
        except DocumentError as error:
            raise ManifestError(f"{error}: export or copy the bundle again") from error
        except (RecordError, ManifestError) as error:
            raise ManifestError(f"{source}: {error}; export or copy the bundle again") from error
        except InvalidOptionError as error:
            raise ManifestError(f"{source}: sampling.{error}; export or copy the bundle again") from error

    def to_json(self) -> str:
        """Write the manifest; `Manifest.from_json` reads it back unchanged."""
        document = {"format_version": self.format_version} | asdict(self)
        return json_text(document, indent=2) + "\n"


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened folder: what it says about itself and where its files are."""

    path: Path
    """The folder."""
    manifest: Manifest
    """What the folder says about itself; made up from other files where `origin` is not `swift-edge`."""
    model_path: Path
    """The graph, to be opened by its path, which its external data is relative to."""
    tokenizer_path: Path
    """The tokenizer in the format of the tokenizers library."""
    chat_template: str | None
    """Source of the chat template, where the model has one."""
    head_path: Path | None
    """The head that lies in the folder, where there is one."""
    origin: Literal["swift-edge", "optimum", "onnxruntime-genai"] = "swift-edge"
    """Who wrote the folder."""


def file_inside(folder: Path, name: str) -> Path:
    """Path of the file `name` of `folder`, existing or not; `UnsafePathError` if it leads out of the folder."""
    if len(name) > LONGEST_NAME:
        raise UnsafePathError(folder, name[:80] + "...", f"which has {len(name)} characters")
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    if not name or "\0" in name or posix.is_absolute() or windows.is_absolute() or windows.drive or windows.root:
        raise UnsafePathError(folder, name, "which is not a relative path")
    if ".." in posix.parts or ".." in windows.parts:
        raise UnsafePathError(folder, name, "which leads out of the folder")
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UnsafePathError(folder, name, f"which is a link to {path.resolve()}")
    return path


def read_text(path: Path, most: int = DOCUMENT_BYTES) -> str:
    """Read a text file of a bundle; `ManifestError` if it is not UTF-8, no file or too large to be one of these."""
    try:
        return read_document(path, most)
    except DocumentError as error:
        raise ManifestError(f"{error}: export or copy the bundle again") from error


def _expect(condition: bool, where: str, value: object, expected: str) -> None:
    if not condition:
        raise ManifestError(f"{where} is {shown(value)}; expected {expected}")
