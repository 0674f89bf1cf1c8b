"""A GGUF file that is damaged, or made to do harm, is refused in one line, in little time and memory."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

import promise
import pytest
from gguf_files import family_file
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swift_edge.errors import ExportError, UnsupportedModelError
from swift_edge_export.checkpoint import read_checkpoint
from swift_edge_export.gguf.container import read_contents
from swift_edge_export.loading import load_model

U8, I32, F32, TEXT, LIST = 0, 5, 6, 8, 9


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    return family_file("llama", path, "Q8_0")[0].read_bytes()


def text(content: bytes | str) -> bytes:
    content = content.encode() if isinstance(content, str) else content
    return struct.pack("<Q", len(content)) + content


def entry(key: bytes | str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, shape: Iterable[int], kind: int = 0, offset: int = 0) -> bytes:
    axes = list(shape)
    return text(name) + struct.pack(f"<I{len(axes)}QIQ", len(axes), *axes, kind, offset)


def made(
    entries: Iterable[bytes] = (),
    tensors: Iterable[bytes] = (),
    data: bytes = b"",
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:
    entries, tensors = list(entries), list(tensors)
    counted = counts or (len(tensors), len(entries))
    head = b"GGUF" + struct.pack("<IQQ", version, *counted) + b"".join([*entries, *tensors])
    return head + b"\0" * (-len(head) % 32) + data


HOSTILE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "does not begin with GGUF"),
    "another format": (b"PK\x03\x04" + bytes(100), "does not begin with GGUF"),
    "no counts": (b"GGUF\x03\0\0\0", "ends within its counts"),
    "version 1": (made(version=1), "GGUF of version 1"),
    "version 4": (made(version=4), "GGUF of version 4"),
    "big-endian": (made(version=3 << 24), "big-endian"),
    "keys beyond the file": (made(counts=(0, 2**63)), "9223372036854775808 keys"),
    "tensors beyond the file": (made(counts=(2**64 - 1, 0)), "18446744073709551615 tensors"),
    "a key beyond the file": (made([struct.pack("<Q", 2**60)], counts=(0, 1)), "ends within|states|more than"),
    "a text beyond the file": (made([entry("a", TEXT, struct.pack("<Q", 2**62))]), "bytes for|ends within"),
    "a list beyond the file": (made([entry("a", LIST, struct.pack("<IQ", I32, 2**61))]), "ends within"),
    "texts beyond the file": (made([entry("a", LIST, struct.pack("<IQ", TEXT, 2**61))]), "texts in"),
    "a list of lists": (made([entry("a", LIST, struct.pack("<IQ", LIST, 1))]), "unknown type 9"),
    "an unknown type": (made([entry("a", 99, bytes(8))]), "unknown type 99"),
    "a key twice": (made([entry("a", U8, b"1"), entry("a", U8, b"2")]), "twice"),
    "no UTF-8": (made([entry(b"\xff\xfe", U8, b"1")]), "no UTF-8"),
    "an alignment of 3": (made([entry("general.alignment", 4, struct.pack("<I", 3))]), "power of two"),
    "an alignment of 0": (made([entry("general.alignment", 4, bytes(4))]), "power of two"),
    "a tensor twice": (made(tensors=[tensor("t", [8]), tensor("t", [8])], data=bytes(64)), "twice"),
    "a tensor beyond the file": (made(tensors=[tensor("t", [2**40])], data=bytes(64)), "is cut"),
    "a tensor whose size overflows": (made(tensors=[tensor("t", [2**62, 2**62])], data=bytes(64)), "is cut"),
    "an offset beyond the file": (made(tensors=[tensor("t", [8], offset=2**40)], data=bytes(64)), "is cut"),
    "an offset between": (made(tensors=[tensor("t", [8], offset=4)], data=bytes(64)), "multiple of 32"),
    "tensors over each other": (made(tensors=[tensor(f"t{i}", [16]) for i in range(9)], data=bytes(64)), "is cut"),
    "no numbers": (made(tensors=[tensor("t", [0])], data=bytes(64)), "shape"),
    "no axes": (made(tensors=[tensor("t", [])], data=bytes(64)), "0 axes"),
    "many axes": (made(tensors=[tensor("t", [1] * 9)], data=bytes(64)), "9 axes"),
    "half a block": (made(tensors=[tensor("t", [48], kind=2)], data=bytes(64)), "whole blocks of 32"),
    "a type of numbers that is gone": (made(tensors=[tensor("t", [32], kind=5)], data=bytes(64)), "the type 5"),
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_a_hostile_file_is_one_line(name: str, tmp_path: Path) -> None:
    content, reason = HOSTILE[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ExportError, match=reason) as caught:
        read_contents(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_is_known_by_its_beginning(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(whole)
    assert read_checkpoint(str(path)).architecture.num_layers == 3


def test_every_cut_is_one_line(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    draw = random.Random(0)
    lengths = [*range(0, 64, 7), *(draw.randrange(len(whole)) for _ in range(40)), len(whole) - 1]
    for length in lengths:
        path.write_bytes(whole[:length])
        with pytest.raises(ExportError) as caught:
            read_contents(path)
        assert "\n" not in str(caught.value)


def test_a_file_that_shrinks_afterwards_is_one_line(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(whole)
    checkpoint = read_checkpoint(str(path))
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ExportError, match="became shorter"):
        load_model(checkpoint)


def test_weights_without_numbers_are_named(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(whole)
    place = read_contents(path).tensors["blk.1.ffn_up.weight"].offset
    path.write_bytes(whole[:place] + b"\xff\xff" + whole[place + 2 :])  # the scale of a block
    from swift_edge_export.publish import export_bundle

    with pytest.raises(ExportError, match=r"NaN or infinity in model.layers.1.mlp.up_proj"):
        export_bundle(str(path), tmp_path / "bundle")


def _flipped(content: bytes, draw: random.Random, end: int) -> bytes:
    damaged = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        damaged[draw.randrange(end)] = draw.choice((0, 1, 8, 9, 127, 128, 255, draw.randrange(256)))
    return bytes(damaged)


def _cut_out(content: bytes, draw: random.Random, end: int) -> bytes:
    start = draw.randrange(end)
    return content[:start] + content[start + draw.randint(1, 64) :]


def _widened(content: bytes, draw: random.Random, end: int) -> bytes:
    start = draw.randrange(8, end - 8)
    odd = draw.choice((0, 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**64 - 1))
    return content[:start] + struct.pack("<Q", odd) + content[start + 8 :]


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), damage=st.sampled_from([_flipped, _cut_out, _widened]))
def test_a_damaged_header_is_a_model_or_one_line(
    seed: int, damage: Callable[[bytes, random.Random, int], bytes], whole: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    header = len(whole) // 4  # names and sizes, and the vocabulary
    path.write_bytes(damage(whole, random.Random(seed), header))
    promise.kept(lambda: read_checkpoint(str(path)))


def test_a_type_that_the_package_makes_no_numbers_of_is_refused(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    stated = struct.pack("<I2QI", 2, 64, 96, 8)  # an axis more than enough, its sizes, Q8_0
    assert whole.count(stated)
    # Q8_1 has 36 bytes for 32 numbers, Q8_0 has 34: the file is made longer instead.
    path.write_bytes(whole.replace(stated, struct.pack("<I2QI", 2, 64, 96, 9)) + bytes(10**5))
    with pytest.raises(UnsupportedModelError, match="as Q8_1"):
        load_model(read_checkpoint(str(path)))
