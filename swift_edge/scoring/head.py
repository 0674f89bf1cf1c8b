"""The head: from hidden states to a gate and a reward per token, and from these to one score per candidate.

    (gate logit, reward) = W h + b        gate = sigmoid(gate logit)        score = Σ gate·reward / max(Σ gate, 1e-8)

(SWIFT, arXiv 2505.12225.) With the norm `rms` each state is divided by its root mean square first. This
module holds the head as data, its file, its check against a bundle, and its arithmetic, which runs on the calling
thread without BLAS, whose threads would fight onnxruntime's. A row's result does not depend on other rows, bit for bit.
"""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from swift_edge.answers import ANSWER_TASKS
from swift_edge.bundle.kin import are_kin, other_weights
from swift_edge.bundle.manifest import LONGEST_NAME, MOST_LAYERS, Architecture, Manifest
from swift_edge.checks import expect, require
from swift_edge.engine.signals import TokenStatistics
from swift_edge.engine.states import StateWeights, state_products
from swift_edge.errors import MIB, HeadFileError, HeadMismatchError, one_line
from swift_edge.records import json_text, read_fields
from swift_edge.scoring.calibration import Calibration
from swift_edge.scoring.known import ARRAYS, NUMBERS, KnownStates
from swift_edge.system.array_files import read_arrays
from swift_edge.system.documents import parse_json
from swift_edge.system.files import write_whole
from swift_edge.system.machine import memory_for

HEAD_FORMAT_VERSION: Final = 1
LEAST_GATE_SUM: Final = 1e-8
"""Least divisor, so that a candidate whose gates are all 0 has a score."""

RMS_EPSILON: Final = 1e-6
"""Added to the mean square of a state before its root is taken, as models do in their own norm."""

Feature = Literal["hidden", "logits"]
TokenStatistic = Literal["logprob", "entropy"]
Norm = Literal["none", "rms"]

HEAD_BYTES: Final = 256 * MIB
"""Most of a head, or of the checkpoint that it is made from, unpacked: one of a million inputs has 8 MB."""
_LARGEST_WEIGHT = 1e20
"""Beyond it the products with a token's states might not be finite in float32."""
_METADATA: Final = (
    "layers",
    "token_statistics",
    "gate",
    "feature",
    "includes_eos",
    "calibration",
    "fingerprint",
    "precision",
    "base_model",
    "summary",
    "norm",
    "architecture",
)
"""Fields of `Head` besides the arrays."""
_LATER: Final = ("norm", "architecture")
"""Fields that older files do not have."""
_STANDARDISATION = ("input_mean", "input_scale")
"""Arrays that a file may leave out."""
_KNOWN: Final = {f"known_{name}": kind for name, kind in ARRAYS.items()}
"""Arrays of what the head knows, all or none, and their types."""


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """A trained head and what it was trained on; f inputs are l states of d numbers, then the token statistics."""

    weight: NDArray[np.float32]  # [2, f], or [1, f] without a gate
    """Row 0 gives the gate logit and row 1 the reward; without a gate the only row gives the reward. Read-only."""
    bias: NDArray[np.float32]  # [2], or [1] without a gate
    """Added to the products of the rows of `weight`. Read-only."""
    layers: tuple[int, ...]
    """Hidden states that are read, ascending (0 embeddings, L last block after the final norm); empty for logits."""
    token_statistics: tuple[TokenStatistic, ...] = ()
    """Inputs that follow the states, in this order: log-probability and entropy in nats at temperature 1."""
    gate: bool = True
    """Whether tokens are weighted; without, the score is the mean reward."""
    feature: Feature = "hidden"
    """What is read per token: the hidden states after it, or the logits after it."""
    includes_eos: bool = True
    """Whether the token that ends a response was counted in training."""
    calibration: Calibration | None = None
    """How a score becomes a probability of being correct, where that was fitted."""
    fingerprint: str = ""
    """Fingerprint of the base model's weights; empty where unknown."""
    precision: str = ""
    """Label of the precision of the bundle that made the training states; empty where unknown."""
    base_model: str = ""
    """Name of the base model, for messages."""
    summary: Mapping[str, Any] = field(default_factory=dict)
    """What training reported."""
    norm: Norm = "none"
    """What is done to each state of each token before the weights: nothing, or division by its root mean square. That
    is a model's final RMS norm but for the norm's own weights, which are linear and absorbed in `weight`. A layer norm
    subtracts the mean first, which changes the divisor, so it is not among the choices."""
    input_mean: NDArray[np.float32] | None = None  # [f]
    """Mean of each input over the training tokens, so that another precision can be matched to it; None if unknown."""
    input_scale: NDArray[np.float32] | None = None  # [f]
    """Scale by which each input was standardised in training; given exactly if `input_mean` is."""
    architecture: Architecture | None = None
    """Sizes of the base model, by which other weights of it are known as kin; None in files of earlier versions."""
    known: KnownStates | None = None
    """Where the states of its own problems lie, so that P(correct) is told of these alone; None where unknown."""

    def __post_init__(self) -> None:
        """Check that the fields fit together; raises `InvalidOptionError` where they do not."""
        rows = 2 if self.gate else 1
        task = self.summary.get("task")
        known = task is None or (isinstance(task, str) and task in ANSWER_TASKS)
        expect(known, "the head's task", task, f"one of {', '.join(ANSWER_TASKS)}, or None")
        for name in ("fingerprint", "precision", "base_model"):  # messages repeat them
            text = getattr(self, name)
            expect(len(text) <= LONGEST_NAME, f"the head's {name}", text, f"at most {LONGEST_NAME} characters")
        for name in ("weight", "bias"):
            array = np.array(getattr(self, name), dtype=np.float32, order="C")
            require(bool(np.isfinite(array).all()), f"the head's {name}", "not finite everywhere", "finite numbers")
            largest = float(np.abs(array).max(initial=0.0))
            require(largest <= _LARGEST_WEIGHT, f"the head's {name}", f"{largest:g} somewhere", "numbers up to 1e20")
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        layers = tuple(int(layer) for layer in self.layers)
        object.__setattr__(self, "layers", layers)
        object.__setattr__(self, "token_statistics", tuple(self.token_statistics))
        wide = self.weight.ndim == 2 and self.weight.shape[0] == rows
        require(wide, "the head's weight", f"of shape {list(self.weight.shape)}", f"[{rows}, f] with gate {self.gate}")
        require(self.bias.shape == (rows,), "the head's bias", f"of shape {list(self.bias.shape)}", f"[{rows}]")
        choices = get_args(TokenStatistic)
        names = self.token_statistics
        distinct = set(names) <= set(choices) and len(set(names)) == len(names)
        require(distinct, "the head's token_statistics", list(names), f"distinct names out of {', '.join(choices)}")
        require(self.feature in get_args(Feature), "the head's feature", self.feature, " or ".join(get_args(Feature)))
        if self.feature == "logits":
            require(not layers, "the head's layers", list(layers), "none, because the feature is logits")
        else:
            ascending = bool(layers) and list(layers) == sorted(set(layers))
            inside = ascending and layers[0] >= 0 and layers[-1] <= MOST_LAYERS
            expect(
                inside, "the head's layers", list(layers), f"ascending numbers from 0 to {MOST_LAYERS}, at least one"
            )
        state_inputs = self.weight.shape[1] - len(names)
        whole = state_inputs > 0 and state_inputs % self._slices == 0
        require(whole, "the head's weight", f"{self.weight.shape[1]} inputs wide", self._width_text("d"))
        require(self.norm in get_args(Norm), "the head's norm", self.norm, " or ".join(get_args(Norm)))
        on_states = self.norm == "none" or self.feature == "hidden"
        require(on_states, "the head's norm", self.norm, "none, because the feature is logits")
        self._check_standardisation()
        self._check_known()
        fitted = self.calibration is None or isinstance(self.calibration, Calibration)
        require(fitted, "the head's calibration", repr(self.calibration), "a Calibration, or None")

    def _check_known(self) -> None:
        if self.known is None:
            return
        read = self.feature == "hidden" and self.known.layer in self.layers
        require(read, "the known layer", str(self.known.layer), f"one of the head's, {_cut(str(list(self.layers)))}")
        width = self.known.mean.size
        require(width == self.state_width, "the known states", f"of width {width}", f"width {self.state_width}")

    def _check_standardisation(self) -> None:
        for name in _STANDARDISATION:
            array = getattr(self, name)
            if array is None:
                continue
            array = np.array(array, dtype=np.float32)
            inputs = self.weight.shape[1]
            shape = list(array.shape)
            require(shape == [inputs], f"the head's {name}", f"of shape {shape}", f"[{inputs}], one per input")
            require(bool(np.isfinite(array).all()), f"the head's {name}", "not finite everywhere", "finite numbers")
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        both = (self.input_mean is None) == (self.input_scale is None)
        presence = "given" if self.input_scale is None else "absent"
        require(both, "the head's input_mean", presence, "input_mean with input_scale")
        if self.input_scale is not None:
            positive = bool((self.input_scale > 0).all())
            require(positive, "the head's input_scale", "not positive everywhere", "positive numbers")

    @property
    def state_width(self) -> int:
        """Width of one slice that is read: the hidden size d, or the vocabulary size v for logits."""
        return (int(self.weight.shape[1]) - len(self.token_statistics)) // self._slices

    @property
    def state_weight(self) -> NDArray[np.float32]:
        """Weights of the slices, `[g, l, d]`, without those of the token statistics: rows as in `weight`."""
        slices, width = self._slices, self.state_width
        return self.weight[:, : slices * width].reshape(-1, slices, width)

    @property
    def state_weights(self) -> StateWeights:
        """The weights to multiply states with in the memory where they lie."""
        return StateWeights(self.layers, self.state_weight, RMS_EPSILON if self.norm == "rms" else None)

    @property
    def _slices(self) -> int:
        return max(1, len(self.layers))

    def _width_text(self, width: object) -> str:
        statistics = len(self.token_statistics)
        return f"{self._slices} x {width}" + (f" + {statistics} token statistics" if statistics else "")

    def evaluate(
        self, states: NDArray[Any], statistics: TokenStatistics | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Gates and rewards, float32 [m] each, of m tokens; gates are 1 without a gate.

        `states` is float32 or float16 [l, m, d]: the hidden states of exactly this head's layers, in its order; for
        the feature logits it is the logits as one slice, [1, m, v]. `statistics` holds at least what `token_statistics`
        names, [m] each. Raises `HeadMismatchError` for other shapes and for statistics that are not there.
        """
        expected = (self._slices, self.state_width)
        if states.ndim != 3 or (states.shape[0], states.shape[2]) != expected:
            raise HeadMismatchError(
                f"the head got states of shape {list(states.shape)}; expected [{expected[0]}, m, {expected[1]}]: "
                "pass the states of the head's own layers"
            )
        return self.evaluate_products(state_products(states, self.state_weights), statistics)

    def evaluate_products(
        self, products: NDArray[Any], statistics: TokenStatistics | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Gates and rewards as `evaluate` gives them, from the states' products with `state_weight`, `[g, m]`."""
        tokens = products.shape[1]
        sums = products + self.bias[:, np.newaxis].astype(np.float64)  # [g, m]
        for column, name in enumerate(self.token_statistics, start=self._slices * self.state_width):
            values = getattr(statistics, name, None)  # [m]
            if values is None or values.shape != (tokens,):
                raise HeadMismatchError(
                    f"the head reads the token statistic {name!r}; expected {tokens} values of it: ask "
                    "token_statistics for what the head names"
                )
            sums += self.weight[:, column, np.newaxis].astype(np.float64) * values
        rewards = sums[-1].astype(np.float32)
        if not self.gate:
            return np.ones(tokens, np.float32), rewards
        # log(1 + exp(-x)) neither overflows nor loses small gates.
        return np.exp(-np.logaddexp(0.0, -sums[0])).astype(np.float32), rewards


class RunningScore:
    """Score of one candidate, kept as two sums, so that it can be read after every token.

    >>> running = RunningScore()
    >>> running.add(1.0, 2.0); running.add(0.5, -1.0); running.score
    1.0
    """

    __slots__ = ("gate_reward_sum", "gate_sum", "tokens")

    def __init__(self) -> None:
        """Start with no tokens."""
        self.gate_reward_sum = 0.0
        self.gate_sum = 0.0
        self.tokens = 0

    def add(self, gate: float, reward: float) -> None:
        """Count one more token."""
        self.add_all((float(gate),), (float(reward),))

    def add_all(self, gates: Sequence[float], rewards: Sequence[float]) -> None:
        """Count tokens one after the other, given as Python floats: the same bits as `add` for each."""
        gate_reward_sum, gate_sum = self.gate_reward_sum, self.gate_sum
        for gate, reward in zip(gates, rewards, strict=True):
            gate_reward_sum += gate * reward
            gate_sum += gate
        self.gate_reward_sum, self.gate_sum = gate_reward_sum, gate_sum
        self.tokens += len(gates)

    @property
    def score(self) -> float:
        """Gate-weighted mean of the rewards so far; NaN, which ranks last, before the first token."""
        return self.gate_reward_sum / max(self.gate_sum, LEAST_GATE_SUM) if self.tokens else math.nan


def check_head(head: Head, manifest: Manifest) -> list[str]:
    """Check that the head fits this bundle's model.

    Raises `HeadMismatchError` for another model, another width, or layers that the bundle does not have. Returns
    warnings, a line each, about what cannot be checked, and about other weights or another precision of the same model.
    """
    architecture = manifest.architecture
    if head.feature == "hidden":
        quantity, width = "hidden size", architecture.hidden_size
    else:
        quantity, width = "vocabulary size", architecture.vocab_size
    ours, theirs = head.base_model or "a model it does not name", manifest.base_model or "a model it does not name"
    if head.state_width != width:
        raise HeadMismatchError(
            f"the head is {head.weight.shape[1]} inputs wide and was trained on {ours}; expected "
            f"{head._width_text(width)} for {theirs} ({quantity} {width}): use the head of this model"
        )
    differs = other_weights(head.fingerprint, manifest.fingerprint)
    if differs and not are_kin(head.base_model, head.architecture, manifest.base_model, architecture):
        raise HeadMismatchError(
            f"the head was trained on {ours} (weights {head.fingerprint[:12]}), the bundle holds {theirs} "
            f"(weights {manifest.fingerprint[:12]}); expected the same weights: use the head of this model"
        )
    missing = [layer for layer in head.layers if layer not in manifest.hidden_states.indices]
    if missing:
        raise HeadMismatchError(_not_exported(missing, manifest.hidden_states.indices))
    warnings = []
    if not head.fingerprint or not manifest.fingerprint:
        side = "bundle" if head.fingerprint else "head"
        warnings.append(
            f"the {side} does not say which weights it belongs to; "
            f"only the width was checked, make sure that the head was trained on {theirs}"
        )
    if differs:
        warnings.append(
            f"the head was trained on other weights of the same base model, {ours} "
            f"({head.precision or 'unknown precision'}, weights {head.fingerprint[:12]}); the bundle has "
            f"{manifest.precision.label}, weights {manifest.fingerprint[:12]}; scores may shift: "
            "run swift-edge recalibrate"
        )
    elif head.precision and head.precision != manifest.precision.label:
        warnings.append(
            f"the head was trained at precision {head.precision}, the bundle has "
            f"{manifest.precision.label}; scores may shift: run swift-edge recalibrate"
        )
    return warnings


@memory_for("reading the head")
def load_head(path: Path | str) -> Head:
    """Read a head file; raises `HeadFileError` unless it is sound. Nothing in the file is ever executed."""
    path = Path(path)
    try:
        is_there = path.exists()
    except OSError:  # a name that is too long for any file
        is_there = False
    if not is_there:
        raise HeadFileError(f"there is no head file at {path}; expected an .npz written by swift-edge")
    # A damaged archive surfaces as almost any exception of zipfile or zlib.
    try:
        names = ("weight", "bias", "metadata")
        arrays: dict[str, Any] = read_arrays(path, (*names, *_STANDARDISATION, *_KNOWN), HEAD_BYTES)
        absent = [name for name in names if name not in arrays]
        if absent:
            raise HeadFileError(f"it has no {', '.join(absent)}, expected {', '.join(names)}")
        metadata = arrays.pop("metadata")
        if metadata.shape != () or metadata.dtype.kind != "U":
            raise HeadFileError(f"its metadata is {metadata.dtype} {list(metadata.shape)}, expected one text")
        for name, array in arrays.items():
            expected = _KNOWN.get(name, np.float32)
            if array.dtype != expected:
                raise HeadFileError(f"its {name} is {array.dtype}, expected {np.dtype(expected)}")
        document = parse_json(str(metadata[()]), "its metadata")
        known = _read_known(document, {name: arrays.pop(name) for name in _KNOWN if name in arrays})
        return Head(**arrays, **_read_metadata(document), known=known)
    except (MemoryError, RecursionError):  # the file may well be sound
        raise
    except Exception as error:
        reason = one_line(error) or type(error).__name__
        raise HeadFileError(
            f"{path} does not read as a head: {reason}; expected a file written by save_head or swift-edge convert-head"
        ) from error


@memory_for("writing the head")
def save_head(path: Path | str, head: Head) -> None:
    """Write a head file whole, or raise `HeadFileError` and leave nothing; the same head gives the same bytes."""
    path = Path(path)
    metadata = {name: getattr(head, name) for name in _METADATA if name != "architecture"}
    metadata["calibration"] = None if head.calibration is None else head.calibration.to_dict()
    if head.architecture is not None:
        metadata["architecture"] = asdict(head.architecture)
    if head.known is not None:
        metadata["known"] = {name: getattr(head.known, name) for name in NUMBERS}
    try:
        text = json_text(metadata | {"format_version": HEAD_FORMAT_VERSION}, sort_keys=True)
        parse_json(text, "its summary")
    except (TypeError, ValueError, RecursionError) as error:
        raise HeadFileError(
            f"the head cannot be written to {path} ({error}); expected a summary of texts, numbers, lists and mappings"
        ) from error
    extra = {name: array for name in _STANDARDISATION if (array := getattr(head, name)) is not None}
    if head.known is not None:
        extra |= {f"known_{name}": getattr(head.known, name) for name in ARRAYS}
    archive = io.BytesIO()
    np.savez(archive, weight=head.weight, bias=head.bias, metadata=np.array(text), **extra)
    try:
        write_whole(path, archive.getvalue())
    except OSError as error:
        raise HeadFileError(
            f"the head cannot be written to {path} ({error.strerror or error}); expected a folder with room for it"
        ) from error


def _read_metadata(document: Any) -> dict[str, Any]:
    version = document.get("format_version") if isinstance(document, dict) else HEAD_FORMAT_VERSION
    if version != HEAD_FORMAT_VERSION:
        raise HeadFileError(
            f"it has format version {version}, this swift-edge reads version {HEAD_FORMAT_VERSION} "
            "(for a later one run: pip install --upgrade swift-edge)"
        )
    return read_fields(document, Head, _METADATA, optional=_LATER)


def _read_known(document: Any, arrays: Mapping[str, Any]) -> KnownStates | None:
    """What the head knows; raises `HeadFileError` where a part of it is missing."""
    numbers = document.get("known") if isinstance(document, dict) else None
    if numbers is None and not arrays:
        return None
    absent = [name for name in _KNOWN if name not in arrays]
    if numbers is None or absent:
        raise HeadFileError(
            f"it has no {', '.join(absent) or 'known'}, expected {', '.join(_KNOWN)} with known, or none"
        )
    named = {name.removeprefix("known_"): array for name, array in arrays.items()}
    return KnownStates(**named, **read_fields(numbers, KnownStates, NUMBERS, where="known"))


def _cut(text: str) -> str:
    return text if len(text) <= 300 else text[:297] + "..."


def _not_exported(missing: Sequence[int], available: Sequence[int]) -> str:
    there = ",".join(map(str, available)) or "no hidden states"
    return (
        f"the head reads hidden states {_cut(','.join(map(str, missing)))}, the bundle has {_cut(there)}; "
        f"export the model again with these layers: swift-edge export MODEL --out DIR --layers all"
    )
