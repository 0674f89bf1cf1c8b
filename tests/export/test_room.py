"""The memory that an export says it needs is what it was seen to take, and a little more."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import pytest

from swift_edge.errors import MemoryLimitError
from swift_edge_export import preflight as room
from swift_edge_export.checkpoint import Checkpoint, read_checkpoint

GB = 10**9
# Layers, hidden size, vocabulary, tied, parameters.
SHAPES = {
    "qwen2.5-0.5b": (24, 896, 151_936, True, 494_032_768),
    "llama-3.2-3b": (28, 3072, 128_256, True, 3_212_749_824),
    "llama-3.2-3b of 4 layers": (4, 3072, 128_256, True, 796_683_264),
    "llama-3.1-8b": (32, 4096, 128_256, False, 8_030_261_248),
}


def of_shape(tiny_checkpoint: Path, shape: str) -> Checkpoint:
    """The tiny checkpoint, with the sizes of a large one."""
    checkpoint = read_checkpoint(str(tiny_checkpoint))
    layers, hidden, vocabulary, tied, parameters = SHAPES[shape]
    sizes = dataclasses.replace(checkpoint.architecture, num_layers=layers, hidden_size=hidden, vocab_size=vocabulary)
    checkpoint.config.tie_word_embeddings = tied
    return dataclasses.replace(checkpoint, architecture=sizes, parameters=parameters)


@pytest.mark.parametrize(
    ("shape", "precision", "peak"),
    [
        ("llama-3.2-3b", "int4", 4.71 * GB),
        ("llama-3.1-8b", "int4", 6.71 * GB),
        ("llama-3.2-3b of 4 layers", "fp16", 5.64 * GB),
    ],
)
def test_what_a_streamed_export_was_seen_to_take_fits_the_estimate(
    tiny_checkpoint: Path, shape: str, precision: str, peak: float
) -> None:
    assert peak <= room.memory_streamed(of_shape(tiny_checkpoint, shape), precision) <= 1.3 * peak


@pytest.mark.parametrize(("precision", "peak"), [("int4", 3.44 * GB)])
def test_what_a_loaded_export_was_seen_to_take_fits_the_estimate(
    tiny_checkpoint: Path, precision: str, peak: float
) -> None:
    assert peak <= room.memory_loaded(of_shape(tiny_checkpoint, "qwen2.5-0.5b"), precision) <= 1.3 * peak


@pytest.mark.parametrize(
    ("free", "streamed"), [(96 * GB, False), (20 * GB, True), (5 * GB, None)], ids=["plenty", "little", "too little"]
)
def test_a_model_is_streamed_where_it_does_not_fit_whole(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, streamed: bool | None
) -> None:
    monkeypatch.setattr(room.machine, "available_memory", lambda *_: free)
    monkeypatch.setattr(room.machine, "require_disk", lambda *_: None)
    checkpoint, lines = of_shape(tiny_checkpoint, "llama-3.1-8b"), list[str]()
    if streamed is None:
        with pytest.raises(MemoryLimitError, match="more memory"):
            room.require_room(checkpoint, tmp_path, "int4", "dynamo", "nearest", lines.append)
    else:
        assert room.require_room(checkpoint, tmp_path, "int4", "dynamo", "nearest", lines.append) is streamed
    assert ("reading one weight at a time" in lines[0]) is (streamed is not False)
    with pytest.raises(MemoryLimitError) if free < 96 * GB else contextlib.nullcontext():
        room.require_room(checkpoint, tmp_path, "int4", "optimum", "nearest", lines.append)


def test_the_disk_has_to_hold_the_first_layers_in_fp32(tiny_checkpoint: Path) -> None:
    checkpoint = of_shape(tiny_checkpoint, "llama-3.1-8b")
    # Two tables of 525 M and two layers of 218 M parameters, 4 bytes each: more than all in int4.
    assert room.disk_streamed(checkpoint, "int4") == pytest.approx(5.95 * GB, rel=0.01)
    assert room.disk_streamed(checkpoint, "int8") == room.disk_loaded(checkpoint, "int8") > 8 * GB
