"""`convert-head`: a checkpoint in torch's format or in that of safetensors becomes a head file, whole or not at all."""

import io
import zipfile

import promise
from fixtures import STORIES
from folders import scratch, unpack

from swift_edge.bundle import open_bundle
from swift_edge.scoring import load_head
from swift_edge_export.convert_head import convert_head

MANIFEST = open_bundle(STORIES).manifest
LAYERS = (1, 3)


def checkpoint(files: dict[str, bytes]) -> tuple[str, bytes]:
    """The ending of a checkpoint's name and its content, put together from its parts."""
    if "header.json" in files:
        header = files["header.json"]
        length = files.get("length.bin", len(header).to_bytes(8, "little"))
        return ".safetensors", length + header + files.get("numbers.bin", b"")
    if "raw.pt" in files:
        return ".pt", files["raw.pt"]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            # A record's folder cannot stand in the name of an input's file.
            archive.writestr("archive/" + name.replace("data_", "data/"), content)
    return ".pt", packed.getvalue()


def target(data: bytes) -> None:
    ending, content = checkpoint(unpack(data))
    with scratch() as folder:
        source, out = folder / f"checkpoint{ending}", folder / "head.npz"
        source.write_bytes(content)
        head = promise.kept(lambda: convert_head(source, out, MANIFEST, layers=LAYERS))
        promise.check_no_leftovers(folder)
        promise.require(out.exists() == (head is not None), "a head file exactly where a head was converted")
        if head is not None:
            promise.require(load_head(out).layers == LAYERS, "the head reads other layers")
