"""Official SWIFT checkpoints to head files.

Such a checkpoint is a state dict with a weight and a bias and nothing else: what it was trained on comes from the
bundle it is meant for and, where that leaves two readings, from the caller. Imports torch only to read a file.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from swift_edge.bundle.manifest import Manifest
from swift_edge.errors import HeadFileError, InvalidOptionError, one_line
from swift_edge.scoring.head import HEAD_BYTES, Feature, Head, check_head, save_head
from swift_edge.system.array_files import opened_archive
from swift_edge.system.documents import opened
from swift_edge.system.extras import import_extra
from swift_edge.system.machine import memory_for
from swift_edge_export.pickles import refuse_long_texts

GATED_PREFIX = "fused_layer"
"""Parameters of a head with a gate: weight [2, f], bias [2]."""
UNGATED_PREFIX = "reward_layer"
"""Parameters of a head without one: weight [1, f], bias [1]."""
ROWS = {GATED_PREFIX: 2, UNGATED_PREFIX: 1}
"""Rows of the weight, by what the parameters' names begin with."""
MOST_INPUTS = HEAD_BYTES // 8
"""Most inputs: as many as two rows of fp32 have in a file of that size."""


@memory_for("converting the head")
def convert_head(
    source: Path,
    out: Path,
    manifest: Manifest | None,
    *,
    layers: Sequence[int] | None = None,
    feature: Feature | None = None,
    final_norm: bool = False,
) -> Head:
    """Write `out`, a head file for the bundle of `manifest`, from the official checkpoint `source` (.pt, .safetensors).

    The gate follows from the names in the file, the rest from its number of inputs f: f = v is a head on logits,
    f = (L+1)·d one on all layers; for any other multiple of d `layers` must be given. `layers` and `feature` settle
    what f leaves open. `final_norm` says that the head was trained with the final norm applied to every state.

    Raises `HeadFileError` for a file that is not such a checkpoint, `InvalidOptionError` naming the option that is
    missing or contradicts the file, `HeadMismatchError` where the bundle does not have the layers, `MissingExtraError`
    where a package to read the file is absent.
    """
    if manifest is None:
        raise InvalidOptionError(
            "a SWIFT checkpoint does not say which model it belongs to; name the bundle it is for: --bundle DIR"
        )
    if final_norm:
        raise InvalidOptionError(
            "a head trained with the final norm on every hidden state cannot be converted: it needs the norm's own "
            "weights, which a bundle does not hold apart; train a head with swift-edge fit --norm rms instead"
        )
    weight, bias, gate = read_checkpoint(source)
    chosen = _layers(weight.shape[1], manifest, layers, feature)
    head = Head(
        weight,
        bias,
        layers=chosen,
        gate=gate,
        feature="hidden" if chosen else "logits",
        includes_eos=True,  # the reference counts the end-of-turn token
        fingerprint=manifest.fingerprint,
        precision=manifest.precision.label,
        base_model=manifest.base_model,
        summary={"converted_from": source.name},
    )
    check_head(head, manifest)
    save_head(out, head)
    return head


def read_checkpoint(source: Path) -> tuple[NDArray[np.float32], NDArray[np.float32], bool]:
    """Weight, bias and whether there is a gate, from a `.pt` or `.safetensors` file.

    Nothing in the file is executed, and no more memory is taken than the two tensors need. Raises `HeadFileError`,
    and `MissingExtraError` where a package to read the file is absent.
    """
    if not source.is_file():
        raise HeadFileError(f"there is no file {source}; expected a SWIFT checkpoint (.pt or .safetensors)")
    if source.suffix == ".safetensors":
        return _read_safetensors(source)
    if source.suffix in (".pt", ".pth", ".bin"):
        return _read_torch(source)
    raise HeadFileError(f"{source} has the ending {source.suffix!r}; expected a SWIFT checkpoint: .pt or .safetensors")


def _read_safetensors(source: Path) -> tuple[NDArray[np.float32], NDArray[np.float32], bool]:
    safe_open: Any = _package("safetensors", source).safe_open
    _package("torch", source)  # NumPy has neither bfloat16 nor the types of eight bits
    try:
        with opened(source, HEAD_BYTES), safe_open(str(source), framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no dict
            prefix = _prefix(shapes, source)
            return _head_numbers({name: file.get_tensor(name) for name in shapes}, prefix, source)
    except HeadFileError:
        raise
    except Exception as error:  # the reader's own errors, unknown types, and whatever damage brings
        raise _unreadable(source, error) from error


def _read_torch(source: Path) -> tuple[NDArray[np.float32], NDArray[np.float32], bool]:
    torch = _package("torch", source)
    try:
        # What torch wrote before its version 1.6 is no archive, and says only while it is read how large it is.
        with opened_archive(source, HEAD_BYTES) as (_, data):
            refuse_long_texts(io.BytesIO(data))
            state: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
            raise HeadFileError(
                f"{source} does not hold a state dict of tensors; expected an official SWIFT checkpoint"
            )
        # A tensor may be a single number that stands for billions.
        prefix = _prefix({str(name): tuple(value.shape) for name, value in state.items()}, source)
        return _head_numbers(state, prefix, source)
    except HeadFileError:
        raise
    except Exception as error:  # refused pickles, damaged archives, odd tensors: torch raises many kinds
        raise _unreadable(source, error) from error


def _package(name: str, source: Path) -> Any:
    return import_extra(name, f"reading {source.name}", "export")


def _unreadable(source: Path, error: Exception) -> HeadFileError:
    return HeadFileError(
        f"{source} does not read as a checkpoint ({one_line(error) or type(error).__name__}); "
        "expected a state dict of tensors: download it again, or save it again with torch.save"
    )


def _prefix(shapes: Mapping[str, tuple[int, ...]], source: Path) -> str:
    """What the names of the parameters begin with; raises `HeadFileError` for other names or shapes."""
    for prefix, rows in ROWS.items():
        if shapes.keys() != {f"{prefix}.weight", f"{prefix}.bias"}:
            continue
        weight, bias = shapes[f"{prefix}.weight"], shapes[f"{prefix}.bias"]
        if len(weight) != 2 or weight[0] != rows or not 1 <= weight[1] <= MOST_INPUTS or bias != (rows,):
            raise HeadFileError(
                f"{source} has {prefix}.weight {list(weight)} and {prefix}.bias {list(bias)}; "
                f"expected [{rows}, f] and [{rows}], with at most {MOST_INPUTS} inputs f"
            )
        return prefix
    tensor_names = ", ".join(sorted(shapes)[:6])[:200] + (", ..." if len(shapes) > 6 else "") if shapes else "nothing"
    raise HeadFileError(
        f"{source} holds {tensor_names}; expected {GATED_PREFIX}.weight and .bias (with a gate) "
        f"or {UNGATED_PREFIX}.weight and .bias (without)"
    )


def _head_numbers(
    state: Mapping[str, Any], prefix: str, source: Path
) -> tuple[NDArray[np.float32], NDArray[np.float32], bool]:
    """Weight, bias and whether there is a gate, out of torch's tensors."""
    arrays = []
    for name in (f"{prefix}.weight", f"{prefix}.bias"):
        tensor = state[name]
        # Whole numbers are codes of quantised weights, whose scales are not here.
        if not tensor.is_floating_point() or tensor.device.type != "cpu" or str(tensor.layout) != "torch.strided":
            raise HeadFileError(
                f"{source} has {name} of {tensor.dtype}, {tensor.layout}; expected plain numbers such as torch.float32"
            )
        array: NDArray[np.float32] = tensor.detach().float().numpy()
        if not np.isfinite(array).all():
            raise HeadFileError(f"{source} holds NaN or infinite weights; expected finite ones: download it again")
        arrays.append(array)
    return arrays[0], arrays[1], prefix == GATED_PREFIX


def _layers(inputs: int, manifest: Manifest, layers: Sequence[int] | None, feature: Feature | None) -> tuple[int, ...]:
    """The layers that are read; none for a head on logits."""
    architecture = manifest.architecture
    width, last, vocab_size = architecture.hidden_size, architecture.num_layers, architecture.vocab_size
    model = f"{manifest.base_model or 'the bundle'} (hidden size {width}, {last} layers, vocabulary {vocab_size})"
    if feature == "logits" or (feature is None and layers is None and inputs == vocab_size and inputs % width):
        if layers is not None:
            raise InvalidOptionError("--feature logits reads no hidden states; leave out --layers")
        if inputs != vocab_size:
            raise InvalidOptionError(
                f"the checkpoint has {inputs} inputs, a head on logits of {model} has {vocab_size}; "
                "use the bundle of the model it was trained on, or --feature hidden"
            )
        return ()
    if inputs % width:
        raise InvalidOptionError(
            f"the checkpoint has {inputs} inputs, neither the vocabulary nor a multiple of the hidden size of {model}; "
            "name the bundle of the model it was trained on: --bundle DIR"
        )
    if layers is not None:
        chosen = tuple(layers)
        if list(chosen) != sorted(set(chosen)) or not all(0 <= layer <= last for layer in chosen):
            raise InvalidOptionError(f"--layers is {list(chosen)}; expected ascending numbers from 0 to {last}")
        if len(chosen) * width != inputs:
            raise InvalidOptionError(
                f"--layers names {len(chosen)} layers, but the checkpoint has {inputs} inputs = "
                f"{inputs // width} x hidden size {width}; name {inputs // width} layers"
            )
        return chosen
    if feature is None and inputs == vocab_size:
        raise InvalidOptionError(
            f"the checkpoint has {inputs} inputs, which is the vocabulary and {inputs // width} hidden states of "
            f"{model}; say which: --feature logits or --feature hidden"
        )
    if inputs == (last + 1) * width:
        return tuple(range(last + 1))
    if inputs > (last + 1) * width:
        raise InvalidOptionError(
            f"the checkpoint has {inputs} inputs = {inputs // width} hidden states, more than {last + 1} of {model}; "
            "name the bundle of the model it was trained on: --bundle DIR"
        )
    raise InvalidOptionError(
        f"the checkpoint reads {inputs // width} of the {last + 1} hidden states of {model} and does not say which; "
        f"name them: --layers with {inputs // width} numbers from 0 to {last}"
    )
