"""A folder that optimum or onnxruntime-genai wrote, described from its configuration files."""

import promise
from folders import scratch, unpack, write

from swift_edge.bundle import Tokenizer, open_bundle


def target(data: bytes) -> None:
    files = unpack(data)
    files.pop("swift_edge.json", None)
    with scratch() as folder:
        write({"model.onnx": b"graph", "tokenizer.json": b"{}"} | files, folder)
        shown = promise.command("inspect", "--json", str(folder))
        promise.require((shown.status == 0) == bool(shown.out), "inspect prints a line exactly where it succeeds")
        bundle = promise.kept(lambda: open_bundle(folder))
        if bundle is not None:
            promise.kept(Tokenizer(bundle).load)
