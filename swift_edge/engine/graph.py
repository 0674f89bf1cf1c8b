"""A bundle's decoder graph, opened, with its inputs and outputs and the memory they live in."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from swift_edge.bundle.external_data import external_files
from swift_edge.bundle.manifest import Bundle
from swift_edge.bundle.verified import MappedFiles
from swift_edge.engine.device.memory import memory_failure, rows_device
from swift_edge.engine.device.rows import DeviceMemory
from swift_edge.engine.host import HOST
from swift_edge.engine.providers import input_device, open_graph
from swift_edge.engine.row_memory import RowMemory
from swift_edge.errors import BundleError, one_line

_FLOATS: Final[Mapping[str, np.dtype[Any]]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
}
_KV_DTYPES: Final[Mapping[str | None, Mapping[str, np.dtype[Any]]]] = {
    None: _FLOATS,
    "int8": {"tensor(int8)": np.dtype(np.int8)},
}


@dataclass(frozen=True, slots=True)
class DecoderGraph:
    """A graph with keys and values as inputs and outputs, opened once; shared by threads."""

    model_path: Path
    """The file it was opened from."""
    files: MappedFiles
    """Those that it may read weights from as long as it is open."""
    inference_session: Any
    """The `onnxruntime.InferenceSession` that runs it."""
    providers: tuple[str, ...]
    """The execution providers that it really got, as onnxruntime names them."""
    layers: tuple[int, ...]
    """Layers whose hidden states it gives, ascending."""
    num_layers: int
    """Layers with keys and values."""
    vocab_size: int
    """Logits of a position."""
    hidden_size: int
    """Numbers of a hidden state."""
    kv_shape: tuple[int, int]
    """Heads, and numbers per head, of a token's keys and of its values alike."""
    kv_dtype: np.dtype[Any]
    """Type of keys and values: float32, float16 or int8."""
    logits_dtype: np.dtype[Any]
    """Type of the logits: float32 or float16."""
    hidden_dtype: np.dtype[Any]
    """Type of the hidden states: float32 or float16."""
    in_place: bool
    """Whether new tokens are written behind the old ones in the same memory; else new arrays hold both."""
    even_rows: bool
    """Whether a step should run an even number of rows."""
    picks_logits: bool
    """Whether an input names the positions of the logits; else it gives them at every position."""
    wants_positions: bool
    """Whether the tokens' positions are an input; else it counts them itself."""
    memory: RowMemory
    """Where rows live: where it reads keys and values if it writes them in place, else in NumPy's memory."""
    device_name: str
    """That device, as onnxruntime names it."""
    rebinds_kv: bool
    """Whether keys and values have to be bound anew for every run."""
    rebinds_fed: bool
    """Whether the other inputs have to be bound anew for every run."""

    @classmethod
    def open(cls, bundle: Bundle, providers: Sequence[str] | None, threads: int) -> "DecoderGraph":
        """Open the graph on `threads` threads; `providers` as `providers.open_graph` takes them.

        Raises `ProviderError` for a provider that the session does not get, or that cannot compute this bundle's
        attention; `BundleError` for a graph that onnxruntime does not open or whose tensors are not those of a decoder.
        """
        manifest = bundle.manifest
        architecture = manifest.architecture
        layers = manifest.hidden_states.indices
        data = [bundle.model_path.parent / name for name in external_files(bundle.model_path)]
        files = MappedFiles(bundle, [path for path in data if path.is_file()])
        session = open_graph(bundle, providers, threads)
        files.check_opened()
        got = tuple(session.get_providers())
        inputs = {value.name: value.type for value in session.get_inputs()}
        outputs = {value.name: value.type for value in session.get_outputs()}
        _check_names(bundle, inputs, outputs)
        kv_dtype = _dtype(inputs, "past_key_values.0.key", bundle, _KV_DTYPES[manifest.precision.kv_cache])
        logits_dtype = _dtype(outputs, "logits", bundle, _FLOATS)
        hidden_dtype = _dtype(outputs, f"hidden_states.{layers[0]}" if layers else "logits", bundle, _FLOATS)
        in_place = manifest.graph.kv == "in-place"
        kv_device = input_device(session, "past_key_values.0.key")
        device = rows_device(kv_device, got) if in_place else None
        return cls(
            model_path=bundle.model_path,
            files=files,
            inference_session=session,
            providers=got,
            layers=layers,
            num_layers=architecture.num_layers,
            vocab_size=architecture.vocab_size,
            hidden_size=architecture.hidden_size,
            kv_shape=(architecture.num_key_value_heads, architecture.head_dim),
            kv_dtype=kv_dtype,
            logits_dtype=logits_dtype,
            hidden_dtype=hidden_dtype,
            in_place=in_place,
            # onnxruntime's kernels for packed weights take rows in pairs, and round the last of an odd number
            # differently. With one more row as a stand-in, a candidate's numbers do not depend on the rows beside it.
            even_rows=in_place and manifest.precision.name in ("int8", "int4"),
            picks_logits="logits_positions" in inputs,
            wants_positions="position_ids" in inputs,
            memory=HOST if device is None else DeviceMemory(device, logits_dtype, hidden_dtype),
            device_name="cpu" if device is None else device.name,
            # An input in other memory than the graph's is copied when it is bound: bound only once, later values would
            # never be read.
            rebinds_kv=device is None and kv_device != "cpu",
            rebinds_fed=device is not None or {input_device(session, name) for name in inputs} != {"cpu"},
        )

    @contextlib.contextmanager
    def failures(self) -> Iterator[None]:
        """Turn what onnxruntime raises while the graph runs into a `DeviceMemoryError`, or else a `BundleError`.

        The latter also where its weights were written to: cut short, they would end the process.
        """
        self.files.require_unchanged()
        try:
            yield
        except Exception as error:  # onnxruntime's own kinds have no base class that it exports
            reason = one_line(error)
            failure = (
                f"onnxruntime could not run {self.model_path}: {reason}; "
                "inspect the folder, or export the model with swift-edge export"
            )
            raise (memory_failure(self.device_name, reason) or BundleError(failure)) from error


def _check_names(bundle: Bundle, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> None:
    """Raise `BundleError` if the graph's tensors are not those that a run binds."""
    manifest = bundle.manifest
    parts = [(layer, part) for layer in range(manifest.architecture.num_layers) for part in ("key", "value")]
    plain_inputs = {"input_ids", "attention_mask", "position_ids", "logits_positions"}
    past = {f"past_key_values.{layer}.{part}" for layer, part in parts}
    expected_outputs = {"logits", *(f"present.{layer}.{part}" for layer, part in parts)}
    expected_outputs |= {f"hidden_states.{layer}" for layer in manifest.hidden_states.indices}
    missing = (({"input_ids", "attention_mask"} | past) - inputs.keys()) | (expected_outputs - outputs.keys())
    unknown = inputs.keys() - plain_inputs - past
    if missing or unknown:
        problem = f"lacks {min(missing)}" if missing else f"asks for an unknown input {min(unknown)}"
        raise BundleError(
            f"{bundle.model_path} {problem} ({len(missing)} tensors missing, {len(unknown)} unknown); "
            "expected a decoder graph with past_key_values.N.key/value and present.N.key/value: "
            "run swift-edge export"
        )


def _dtype(types: Mapping[str, str], name: str, bundle: Bundle, expected: Mapping[str, np.dtype[Any]]) -> np.dtype[Any]:
    """The dtype of the graph's tensor `name`; raises `BundleError` unless it is expected."""
    tensor_type = types[name]
    if tensor_type not in expected:
        raise BundleError(
            f"{name} of {bundle.model_path} is {tensor_type}; expected {' or '.join(expected)}: "
            "export the model with swift-edge export"
        )
    return expected[tensor_type]
