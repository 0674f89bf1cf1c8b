"""A bundle whose manifest, tokenizer or template is odd, and whose hashes are right: opened and picked from.

The graph is a real one and stays as it is: what reads a graph is onnxruntime.
"""

import hashlib
import json
from typing import Any

import promise
from fixtures import ADDITION
from folders import scratch, unpack, write

from swift_edge import Selector

GRAPH = (ADDITION / "model.onnx").read_bytes()


def target(data: bytes) -> None:
    files = {"model.onnx": GRAPH, "tokenizer.json": (ADDITION / "tokenizer.json").read_bytes()} | unpack(data)
    files["swift_edge.json"] = _with_hashes(files)
    with scratch() as folder:
        write(files, folder)
        promise.kept(lambda: _pick(folder))


def _pick(folder: Any) -> None:
    with Selector(folder, threads=1) as selector:
        for prompt, n in (("331970", 2), ("12", 1)):
            promise.kept(lambda prompt=prompt, n=n: selector.pick(prompt, n=n, max_new_tokens=3))
        promise.kept(lambda: selector.score("331970", ["1301", "1"]))


def _with_hashes(files: dict[str, bytes]) -> bytes:
    """The manifest with sizes and hashes as the files have them, where it has a place for them."""
    manifest = files.get("swift_edge.json", b"")
    try:
        document = json.loads(manifest)
    except (ValueError, RecursionError):
        return manifest
    records = document.get("files") if isinstance(document, dict) else None
    if not isinstance(records, dict):
        return manifest
    for name in records.keys() & files.keys():
        if isinstance(records[name], dict):
            records[name] |= {"sha256": hashlib.sha256(files[name]).hexdigest(), "size": len(files[name])}
    try:
        return json.dumps(document).encode()
    except ValueError:  # a number of more digits than Python writes
        return manifest
