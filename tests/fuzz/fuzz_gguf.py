"""`export MODEL.gguf`: a file is a model with its tokenizer, or refused in one line before any weight is read."""

import promise
from folders import scratch, unpack

from swift_edge_export.checkpoint import read_checkpoint
from swift_edge_export.gguf.container import read_contents
from swift_edge_export.gguf.tensors import dequantized


def target(data: bytes) -> None:
    files = unpack(data)
    with scratch() as folder:
        path = folder / "model.gguf"
        # Apart, so that a change of the header does not move the tensors.
        path.write_bytes(files.get("header.bin", b"") + files.get("tensors.bin", b""))
        contents = promise.kept(lambda: read_contents(path))
        if contents is None:
            return
        for tensor in contents.tensors.values():
            promise.kept(lambda tensor=tensor: dequantized(tensor))
        checkpoint = promise.kept(lambda: read_checkpoint(str(path)))
        if checkpoint is not None:
            vocab_size = checkpoint.architecture.vocab_size
            promise.require(all(0 <= token < vocab_size for token in checkpoint.tokens.eos_ids), "EOS has no logit")
