"""`tokenizer.json` of a small model: read, and used to turn texts into ids and ids into texts, whole and in pieces."""

import dataclasses

import promise
from fixtures import STORIES
from folders import scratch, unpack

from swift_edge.bundle import Tokenizer, open_bundle

BUNDLE = open_bundle(STORIES)
TEXTS = ("Once upon a time", " a b", "ab\n\u00e9\U0001f600 1\x00", "<s> </s>", " ", "a" * 300)
IDS = (0, 1, 2, 3, 5, 7, 11, 65, 300, 511, 10**6)


def target(data: bytes) -> None:
    files = unpack(data)
    with scratch() as folder:
        path = folder / "tokenizer.json"
        path.write_bytes(files.get("tokenizer.json", b""))
        tokenizer = Tokenizer(dataclasses.replace(BUNDLE, tokenizer_path=path))
        promise.kept(tokenizer.load)
        texts = (*TEXTS, files["text.txt"].decode("utf-8", "surrogateescape")) if "text.txt" in files else TEXTS
        for text in texts:
            ids = promise.kept(lambda text=text: tokenizer.encode_prompt(text))
            promise.kept(lambda text=text: tokenizer.encode_response(text))
            if ids is not None:
                promise.kept(lambda ids=ids: tokenizer.decode(ids))
                promise.kept(lambda ids=ids: _check_stream(tokenizer, ids))
        promise.kept(lambda: tokenizer.decode([]))
        promise.kept(lambda: tokenizer.decode(IDS))
        promise.kept(lambda: tokenizer.decode_response(IDS))


def _check_stream(tokenizer: Tokenizer, ids: list[int]) -> None:
    stream = tokenizer.stream()
    for token in ids:
        stream.push(token)
    stream.finish()
