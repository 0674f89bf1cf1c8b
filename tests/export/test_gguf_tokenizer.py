"""Tokenizers of GGUF files give the ids that the tokenizers give which they were made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gguf_files import (
    CORPUS,
    VOCABULARY,
    byte_level_metadata,
    byte_level_tokenizer,
    family_model,
    metadata_of,
    tensors_of,
    write_gguf,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, pre_tokenizers

from swift_edge.errors import ExportError, TokenizerError
from swift_edge_export.checkpoint import Checkpoint, read_checkpoint
from swift_edge_export.gguf.pre_tokenizers import PRE_TOKENIZERS

TEXTS = [
    *CORPUS,
    "",
    " ",
    "\n\n",
    "  two  spaces\tand\ttabs \n",
    "I'll, we've, THEY'RE",
    "1 12 123 1234 12345",
    "café cafe\u0301 Straße",
    "今天天气 日本語 한국어 العربية हिन्दी",
    "😀 👩‍👩‍👧 \ufffd \u200b",
    "<|im_start|>user\nhi<|im_end|>",
    "a<|im_end|><|im_end|> b <|endoftext|",
    "x = y[0] += {'a': 1}; // done\r\n",
]
SPACE = "\u2581"
# Pieces and their scores: the greatest is merged first, whatever else fits.
PIECES = {
    "<unk>": 0.0,
    "<s>": 0.0,
    "</s>": 0.0,
    **{f"<0x{byte:02X}>": 0.0 for byte in range(256)},
    **{
        piece.replace("_", SPACE): -float(rank * 7 % 31)  # the order of the tokens says nothing
        for rank, piece in enumerate(
            [
                *["_t", "he", "_a", "in", "th", "_the", "the", "an", "nd", "_and", "__", "aa", "aaa", "aaaa", "_"],
                *"abcdehinostxé你",
            ]
        )
    },
}


def reading(tmp_path: Path, metadata: dict[str, Any]) -> Checkpoint:
    model = family_model("llama")
    keys = metadata_of(model.config, "llama") | {key: value for key, value in metadata.items() if value is not None}
    return read_checkpoint(str(write_gguf(tmp_path / "model.gguf", keys, tensors_of(model, "llama"))))


def sentencepiece_metadata(**changes: Any) -> dict[str, Any]:
    kinds = [2, 3, 3, *[6] * 256, *[1] * (len(PIECES) - 259)]
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [*PIECES],
        "tokenizer.ggml.scores": [*PIECES.values()],
        "tokenizer.ggml.token_type": kinds,
    }
    return metadata | {f"tokenizer.ggml.{name}": value for name, value in changes.items()}


def pieces_of(text: str, prefix: bool) -> list[int]:
    """SentencePiece's way, spelled out: join the neighbours whose piece has the greatest score, the first of equals."""
    ids = {piece: token for token, piece in enumerate(PIECES)}
    if not text:
        return []
    letters = list((SPACE if prefix else "") + text.replace(" ", SPACE))
    while True:
        joined = ["".join(letters[place : place + 2]) for place in range(len(letters) - 1)]
        found = [place for place, piece in enumerate(joined) if piece in PIECES and ids[piece] > 258]
        if not found:
            break
        best = max(found, key=lambda place: PIECES[joined[place]])
        letters[best : best + 2] = [joined[best]]
    known = [
        [ids[letter]] if letter in ids else [ids[f"<0x{byte:02X}>"] for byte in letter.encode()] for letter in letters
    ]
    return [token for tokens in known for token in tokens]


def test_byte_level_ids_are_those_of_the_tokenizer(tmp_path: Path) -> None:
    own, given_ = byte_level_tokenizer(), reading(tmp_path, byte_level_metadata()).tokenizer.backend_tokenizer
    for text in TEXTS:
        assert given_.encode(text).ids == own.encode(text).ids, text
        assert given_.decode(given_.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("name", sorted(PRE_TOKENIZERS))
def test_every_pattern_reads(name: str) -> None:
    for pattern in PRE_TOKENIZERS[name].patterns:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        for text in TEXTS:
            assert "".join(piece for piece, _ in split.pre_tokenize_str(text)) == text


@pytest.mark.parametrize(
    ("name", "text", "pieces"),
    [
        ("gpt-2", "I'll pay 1234 €", ["I", "'ll", " pay", " 1234", " €"]),
        ("smollm", "I'll pay 1234 €", ["I", "'ll", " pay", " ", "1", "2", "3", "4", " €"]),
        ("llama-bpe", "I'LL pay 1234\n\n €", ["I", "'LL", " pay", " ", "123", "4", "\n\n", " €"]),
        ("qwen2", "I'LL pay 1234\n\n €", ["I", "'LL", " pay", " ", "1", "2", "3", "4", "\n\n", " €"]),
        ("gpt-4o", "helloWorld's 1234", ["hello", "World's", " ", "123", "4"]),
        ("tekken", "helloWorld's 1234", ["hello", "World", "'s", " ", "1", "2", "3", "4"]),
        ("deepseek-v3", "a1234你好!x", ["a", "123", "4", "你好", "!x"]),
    ],
)
def test_a_text_is_cut_where_the_model_cuts_it(name: str, text: str, pieces: list[str]) -> None:
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PRE_TOKENIZERS[name].patterns]
    assert [piece for piece, _ in pre_tokenizers.Sequence(cuts).pre_tokenize_str(text)] == pieces


@pytest.mark.parametrize("prefix", [True, False])
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet=" aabcdehinostxé你€\n", max_size=24))
def test_pieces_are_joined_as_sentencepiece_joins_them(
    prefix: bool, text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    backend = _sentencepiece(tmp_path_factory, prefix)
    assert backend.encode(text, add_special_tokens=False).ids == pieces_of(text, prefix)


_MADE: dict[bool, Tokenizer] = {}


def _sentencepiece(folders: pytest.TempPathFactory, prefix: bool) -> Tokenizer:
    if prefix not in _MADE:
        metadata = sentencepiece_metadata(add_space_prefix=prefix)
        _MADE[prefix] = reading(folders.mktemp("spm"), metadata).tokenizer.backend_tokenizer
    return _MADE[prefix]


def test_sentencepiece_writes_back_what_it_read(tmp_path: Path) -> None:
    backend = reading(tmp_path, sentencepiece_metadata()).tokenizer.backend_tokenizer
    assert backend.encode("the an").ids[0] == 1
    for text in ("the and an", "  the", "€ 你 é x"):
        assert backend.decode(backend.encode(text).ids) == text


def test_special_tokens_begin_a_text_where_the_file_says_so(tmp_path: Path) -> None:
    tokens = reading(tmp_path, sentencepiece_metadata(add_bos_token=False)).tokenizer.backend_tokenizer
    assert tokens.encode("an").ids[0] != 1
    checkpoint = reading(tmp_path, byte_level_metadata() | {"tokenizer.ggml.add_bos_token": True})
    assert checkpoint.tokenizer.backend_tokenizer.encode("an").ids[0] == 0
    checkpoint = reading(tmp_path, byte_level_metadata() | {"tokenizer.ggml.add_eos_token": True})
    assert any("add_eos_token" in note for note in checkpoint.notes)


def test_a_tag_of_html_ends_no_answer(tmp_path: Path) -> None:
    """Some vocabularies have `</s>` as a word."""
    metadata = byte_level_metadata()
    metadata["tokenizer.ggml.tokens"][-1] = "</s>"
    metadata["tokenizer.ggml.merges"].pop()
    assert 309 not in reading(tmp_path, metadata).tokens.eos_ids
    metadata["tokenizer.ggml.token_type"][-1] = 3
    assert 309 in reading(tmp_path, metadata).tokens.eos_ids


def test_a_vocabulary_beyond_the_model_is_one_line(tmp_path: Path) -> None:
    metadata = byte_level_metadata()
    more = [f"more {token}" for token in range(VOCABULARY - len(metadata["tokenizer.ggml.tokens"]) + 1)]
    metadata["tokenizer.ggml.tokens"] += more
    metadata["tokenizer.ggml.token_type"] += [1] * len(more)
    with pytest.raises(TokenizerError, match="ids up to 320"):
        reading(tmp_path, metadata)
    metadata["tokenizer.ggml.tokens"][-1] = "the"
    with pytest.raises(ExportError, match='has the token "the" twice'):
        reading(tmp_path, metadata)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tokenizer.ggml.pre": "something-new"}, 'names the pre-tokenizer "something-new"'),
        ({"tokenizer.ggml.pre": None}, "names no pre-tokenizer"),
        ({"tokenizer.ggml.model": "t5"}, 'of the kind "t5"'),
        ({"tokenizer.ggml.merges": ["nothing here"]}, "does not fit together"),
        ({"tokenizer.ggml.merges": [f"{letter} {letter}" for letter in "zq"]}, "does not fit together"),
    ],
)
def test_a_tokenizer_that_cannot_be_is_one_line(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=reason) as caught:
        reading(tmp_path, byte_level_metadata() | changes)
    assert "\n" not in str(caught.value)
