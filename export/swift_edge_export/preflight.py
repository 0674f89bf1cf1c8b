"""What an export takes of memory and disk, said and compared with what there is before any weight is read.

Its figures were measured on the checkpoints that tests/bench/random_checkpoint.py makes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from swift_edge.system import machine
from swift_edge_export.checkpoint import Checkpoint
from swift_edge_export.streaming import layers_of_every_kind

# A model that would take more of the free memory than this when loaded whole is read one weight at a time.
MOST_LOADED = 0.6
# Share of the free memory that second moments of inputs may take.
MOST_MOMENTS = 0.3
_WEIGHT_BYTES = {"fp32": 4.0, "fp16": 2.0, "int8": 1.1, "int4": 0.6}
# What torch, transformers and onnxruntime take before there is any weight.
TORCH_BYTES = 800 * 10**6
# Peak memory of an export that loads all weights, as a multiple of them in fp32. Measured on 0.5 B parameters in
# bfloat16, resident: 3.4 GB for int4, as they are loaded, when the file is mapped beside them.
_LOADED_FACTOR = {"fp32": 2.6, "fp16": 2.2, "int8": 1.5, "int4": 1.5}
# An opened graph of packed weights takes this many times its file: onnxruntime lays the codes out anew, and reads them
# from the mapped file. Measured on 3.2 B parameters: 2.2 GB for 1.8 GB.
_OPENED_FACTOR = 1.3
# The tables of cosines and sines are computed, halved, traced and written.
_ANGLE_COPIES = 5
# On top of the weights of the largest step: activations, logits, what the allocators keep.
_SPARE = 1.1


def require_room(
    checkpoint: Checkpoint, folder: Path, precision: str, exporter: str, rounding: str, report: Callable[[str], None]
) -> bool:
    """Estimate memory and disk, say so, and refuse what cannot fit; returns whether to stream the weights.

    Raises:
        MemoryLimitError: there is less memory than even a streamed export takes.
        DiskSpaceError: the disk of `folder` has no room for the bundle.
    """
    memory, disk = memory_loaded(checkpoint, precision), disk_loaded(checkpoint, precision)
    available = machine.available_memory()
    streamed = exporter == "dynamo" and available is not None and memory > available * MOST_LOADED
    if precision in ("int8", "int4") and rounding == "calibrated" and not streamed:
        memory += draft_bytes(checkpoint, precision, memory, available)
        disk += disk_loaded(checkpoint, "int8")  # the draft lies beside the bundle for a while
    if streamed:
        memory, disk = memory_streamed(checkpoint, precision), disk_streamed(checkpoint, precision)
    report(
        f"{checkpoint.name}: {checkpoint.parameters / 1e6:.1f} M parameters; "
        f"about {memory / 1e9:.1f} GB of memory and {disk / 1e9:.2f} GB of disk needed"
        + (", reading one weight at a time" if streamed else "")
    )
    for note in checkpoint.notes:
        report(f"  {note}")
    machine.require_memory(memory, f"exporting {checkpoint.name}", "export it on a machine with more memory")
    machine.require_disk(folder, disk, f"exporting {checkpoint.name}")
    return streamed


def memory_loaded(checkpoint: Checkpoint, precision: str) -> int:
    """Bytes at the peak of an export that loads all weights."""
    weights = int(_LOADED_FACTOR[precision] * checkpoint.parameters * 4)
    return weights + _ANGLE_COPIES * _angle_bytes(checkpoint) + TORCH_BYTES


def draft_bytes(checkpoint: Checkpoint, precision: str, loaded: int, available: int | None) -> int:
    """Bytes beside `loaded` weights while rounding is fitted: the draft, opened, and what is known of its inputs.

    Second moments are for int4, and those of wide inputs are left out where there is no room for them.
    """
    draft = int(_OPENED_FACTOR * _WEIGHT_BYTES["int8"] * checkpoint.parameters)
    if precision != "int4":
        return draft
    sizes = checkpoint.config.get_text_config()
    wide = getattr(sizes, "intermediate_size", None) or 4 * checkpoint.architecture.hidden_size
    layer = 3 * checkpoint.architecture.hidden_size**2 + wide**2
    moments = 4 * checkpoint.architecture.num_layers * layer
    if available is not None:
        moments = max(0, min(moments, int(available * MOST_MOMENTS), available - loaded - draft))
    return draft + moments


def memory_streamed(checkpoint: Checkpoint, precision: str) -> int:
    """Bytes at the peak of an export that reads one weight at a time.

    That is where the first layers are opened in fp32, or where the finished graph is. Measured for int4, resident:
    4.7 GB on 3.2 B parameters (tied), 6.7 GB on 8.0 B (not tied), where two layers were opened in fp32; and for fp16
    5.6 GB on four layers of the former, where the finished graph was.
    """
    few = _opened_bytes(checkpoint, _first_layers(checkpoint))
    if precision in ("fp32", "fp16"):  # onnxruntime computes in fp32 on a CPU, and holds the weights so
        whole = _opened_bytes(checkpoint, checkpoint.architecture.num_layers)
    else:
        whole = int(_OPENED_FACTOR * _WEIGHT_BYTES[precision] * checkpoint.parameters)
    return int(_SPARE * max(few, whole)) + _ANGLE_COPIES * _angle_bytes(checkpoint) + TORCH_BYTES


def disk_streamed(checkpoint: Checkpoint, precision: str) -> int:
    """Bytes of the bundle, or of the first layers in fp32 that lie in its place before."""
    few = (_tables(checkpoint) + _layers(checkpoint, _first_layers(checkpoint))) * 4
    return max(few, disk_loaded(checkpoint, precision))


def disk_loaded(checkpoint: Checkpoint, precision: str) -> int:
    """Bytes of the bundle."""
    return int(checkpoint.parameters * _WEIGHT_BYTES[precision]) + _angle_bytes(checkpoint) + 64 * 1024**2


def _opened_bytes(checkpoint: Checkpoint, count: int) -> int:
    """What onnxruntime takes for `count` layers in fp32.

    The embedding is mapped and the output layer laid out anew, from the same table or from one of its own; the layers'
    weights are laid out anew one by one.
    """
    return 4 * (2 * _table(checkpoint) + _layers(checkpoint, count))


def _angle_bytes(checkpoint: Checkpoint) -> int:
    """Cosines and sines of all positions, which the graph holds."""
    return checkpoint.architecture.context_length * checkpoint.architecture.head_dim * 4


def _first_layers(checkpoint: Checkpoint) -> int:
    return min(layers_of_every_kind(checkpoint.config), checkpoint.architecture.num_layers)


def _table(checkpoint: Checkpoint) -> int:
    """Parameters of the embedding."""
    return checkpoint.architecture.vocab_size * checkpoint.architecture.hidden_size


def _tables(checkpoint: Checkpoint) -> int:
    """Parameters of the embedding and of an output layer of its own."""
    return _table(checkpoint) * (1 if checkpoint.config.get_text_config().tie_word_embeddings else 2)


def _layers(checkpoint: Checkpoint, count: int) -> int:
    """Parameters of `count` layers."""
    return (checkpoint.parameters - _tables(checkpoint)) * count // checkpoint.architecture.num_layers
