"""The tokenizer that a GGUF file describes: byte-level BPE, or SentencePiece's BPE, whose last resort are single bytes.

Texts are not normalised, as llama.cpp does not either: where the makers' own tokenizer composes letters and accents
first (NFC), texts that are composed already are read alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from swift_edge.bundle.manifest import MOST_TOKENS
from swift_edge.errors import SwiftEdgeError, TokenizerError, one_line
from swift_edge.records import shown
from swift_edge.system.panics import is_panic, quiet_panics
from swift_edge_export.gguf.container import Contents, damaged
from swift_edge_export.gguf.metadata import Metadata
from swift_edge_export.gguf.pre_tokenizers import PRE_TOKENIZERS

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
# Where a converter did not name what ends an answer, llama.cpp goes by how it is written; the same texts, which are
# tokens of their own wherever they stand.
_ENDINGS = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<end_of_utterance>",
)
# The same, but some vocabularies have these as words: `</s>` is a tag of HTML in those of Qwen and Gemma.
_ENDINGS_IF_CONTROL = ("</s>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<eos>")
_LONGEST_PIECE = 4096
"""Characters of a token that merges are looked for in: each has as many places to cut it."""
_DEFAULT_TEMPLATE = "tokenizer.chat_template"


@dataclasses.dataclass(frozen=True, slots=True)
class ReadTokenizer:
    """A tokenizer, and which tokens end an answer."""

    tokenizer: Any
    """the fast tokenizer of transformers, with its chat templates"""
    eos_ids: tuple[int, ...]
    """EOS, end of turn and of message, then others that are known by how they are written"""
    notes: tuple[str, ...]
    """what the user should know"""


@dataclasses.dataclass(frozen=True, slots=True)
class _Vocabulary:
    """The tokens of a file."""

    path: Path
    texts: Sequence[str]
    kinds: Sequence[int]
    ids: Mapping[str, int]


def read_tokenizer(contents: Contents, metadata: Metadata, name: str) -> ReadTokenizer:
    """Make the tokenizer; `name` is that of the model, which tells what files do not.

    Raises TokenizerError for one of an unknown kind, or whose parts do not fit each other.
    """
    vocabulary = _vocabulary(contents, metadata)
    kind = metadata.text("tokenizer.ggml.model")
    makers = {"gpt2": _byte_level, "llama": _sentencepiece}
    if kind not in makers:
        raise TokenizerError(
            f"{contents.path} has a tokenizer of the kind {shown(kind)}; expected gpt2 or llama: "
            "export the checkpoint that it was made from"
        )
    try:
        with quiet_panics():
            backend, adds_bos = makers[kind](vocabulary, metadata)
            return _with_special_tokens(backend, vocabulary, metadata, adds_bos, name)
    except SwiftEdgeError:
        raise
    except BaseException as error:  # the library raises plain exceptions, and panics
        if not (isinstance(error, Exception) or is_panic(error)) or isinstance(error, MemoryError):
            raise
        raise TokenizerError(
            f"{contents.path} has a tokenizer that does not fit together ({one_line(error)}); convert the model again"
        ) from error


def _vocabulary(contents: Contents, metadata: Metadata) -> _Vocabulary:
    texts = metadata.texts("tokenizer.ggml.tokens")
    if not 1 < len(texts) <= MOST_TOKENS:
        raise damaged(contents.path, f"has {len(texts)} tokens, expected 2 to {MOST_TOKENS}")
    # As llama.cpp calls them: a vocabulary has no token without text.
    texts = [text or f"[EMPTY_{token}]" for token, text in enumerate(texts)]
    ids = {text: token for token, text in enumerate(texts)}
    if len(ids) != len(texts):
        twice = next(text for token, text in enumerate(texts) if ids[text] != token)
        raise damaged(contents.path, f"has the token {shown(twice)} twice")
    kinds = metadata.numbers("tokenizer.ggml.token_type", len(texts))
    return _Vocabulary(contents.path, texts, [_NORMAL] * len(texts) if kinds is None else [*map(int, kinds)], ids)


def _byte_level(vocabulary: _Vocabulary, metadata: Metadata) -> tuple[Tokenizer, bool]:
    """A tokenizer of bytes, and whether it begins texts with BOS where the file does not say."""
    name = metadata.text("tokenizer.ggml.pre", "")
    if name not in PRE_TOKENIZERS:
        stated = f"names the pre-tokenizer {shown(name)}" if name else "names no pre-tokenizer"
        raise TokenizerError(
            f"{vocabulary.path} {stated}; expected one of {', '.join(PRE_TOKENIZERS)}: "
            + ("export the checkpoint that it was made from" if name else "convert the model again")
        )
    cut = PRE_TOKENIZERS[name]
    merges = metadata.texts("tokenizer.ggml.merges")
    if not merges:
        raise damaged(vocabulary.path, "has a byte-level tokenizer without merges")
    pairs = []
    for merge in merges:
        first, _, second = merge[1:].partition(" ")  # the first letter may be a space itself
        pairs.append((merge[:1] + first, second))
    model = models.BPE(vocab=dict(vocabulary.ids), merges=pairs, ignore_merges=cut.whole_words)
    backend = Tokenizer(model)
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in cut.patterns]
    encode_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, encode_bytes])
    backend.decoder = decoders.ByteLevel()
    return backend, cut.adds_bos


def _sentencepiece(vocabulary: _Vocabulary, metadata: Metadata) -> tuple[Tokenizer, bool]:
    """SentencePiece's BPE: the pair whose token has the greatest score is merged first."""
    scores = metadata.numbers("tokenizer.ggml.scores", len(vocabulary.texts))
    if scores is None:
        raise damaged(vocabulary.path, "has a tokenizer without scores")
    unknown = metadata.token("tokenizer.ggml.unknown_token_id", len(vocabulary.texts)) or 0
    model = models.BPE(
        vocab=dict(vocabulary.ids),
        merges=_merges(vocabulary, np.asarray(scores, np.float64)),
        byte_fallback=True,
        fuse_unk=True,
        unk_token=vocabulary.texts[unknown],
    )
    backend = Tokenizer(model)
    spaces: list[Any] = [normalizers.Replace(" ", _SPACE)]
    parts = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.flag("tokenizer.ggml.add_space_prefix", True):
        spaces.insert(0, normalizers.Prepend(_SPACE))
        parts.append(decoders.Strip(" ", 1, 0))
    backend.normalizer = normalizers.Sequence(spaces)
    backend.decoder = decoders.Sequence(parts)
    return backend, True


def _merges(vocabulary: _Vocabulary, scores: np.ndarray[Any, Any]) -> list[tuple[str, str]]:
    """Every pair of tokens that together are a token, the one with the greatest score first."""
    if not np.isfinite(scores).all():
        raise damaged(vocabulary.path, "has scores of tokens that are not finite")
    mergeable = {
        text: score
        for (text, token), score in zip(vocabulary.ids.items(), scores.tolist(), strict=True)
        if vocabulary.kinds[token] not in (_UNKNOWN, _CONTROL, _BYTE)
    }
    pairs = []
    for text, score in mergeable.items():
        for place in range(1, min(len(text), _LONGEST_PIECE)):
            if (first := text[:place]) in mergeable and (second := text[place:]) in mergeable:
                pairs.append((-score, first, second))
    pairs.sort(key=itemgetter(0))  # among equals the order of the vocabulary stays
    return [(first, second) for _, first, second in pairs]


def _with_special_tokens(
    backend: Tokenizer, vocabulary: _Vocabulary, metadata: Metadata, adds_bos: bool, name: str
) -> ReadTokenizer:
    size = len(vocabulary.texts)
    named: dict[str, int | None] = {
        what: metadata.token(f"tokenizer.ggml.{what}_token_id", size)
        for what in ("bos", "eos", "eot", "eom", "unknown", "padding")
    }
    if metadata.text("tokenizer.ggml.model") == "llama":  # what these have where the file does not say
        for what, usual in (("bos", 1), ("eos", 2), ("unknown", 0)):
            if f"tokenizer.ggml.{what}_token_id" not in metadata:
                named[what] = usual if usual < size else None
    written = [vocabulary.ids[text] for text in _ENDINGS if text in vocabulary.ids]
    perhaps = [vocabulary.ids[text] for text in _ENDINGS_IF_CONTROL if text in vocabulary.ids]
    written += [token for token in perhaps if vocabulary.kinds[token] == _CONTROL]
    endings = [token for token in (named["eos"], named["eot"], named["eom"], *written) if token is not None]
    backend.add_tokens(list(_added(vocabulary, {*endings}, {*endings, *perhaps}, name)))
    tokens = {
        f"{what}_token": vocabulary.texts[token]
        for what, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        if (token := named[key]) is not None
    }
    notes = []
    bos = named["bos"]
    if metadata.flag("tokenizer.ggml.add_bos_token", adds_bos) and bos is not None:
        text = vocabulary.texts[bos]
        backend.post_processor = TemplateProcessing(single=[text, "$A"], special_tokens=[(text, bos)])
    if metadata.flag("tokenizer.ggml.add_eos_token", False):
        notes.append("add_eos_token of the file is left out: a prompt goes on")
    maker: Any = PreTrainedTokenizerFast
    tokenizer = maker(tokenizer_object=backend, **tokens)
    tokenizer.chat_template = _templates(metadata)
    return ReadTokenizer(tokenizer, tuple(dict.fromkeys(endings)), tuple(notes))


def _added(vocabulary: _Vocabulary, endings: set[int], whole: set[int], name: str) -> Iterator[AddedToken]:
    """Tokens that are found in a text before anything else is done with it; `whole` are some of them."""
    # Files do not tell that these take the space behind them along; llama.cpp goes by the name of the model, too.
    takes_space = any(part in name.lower() for part in ("phi-3", "phi3"))
    for token, (text, kind) in enumerate(zip(vocabulary.texts, vocabulary.kinds, strict=True)):
        if kind in (_CONTROL, _UNKNOWN, _USER_DEFINED) or token in whole:
            yield AddedToken(
                text,
                special=kind in (_CONTROL, _UNKNOWN) or token in endings,
                normalized=False,
                rstrip=takes_space and text not in ("<unk>", "<s>", "<|endoftext|>"),
            )


def _templates(metadata: Metadata) -> str | dict[str, str] | None:
    """The chat template, or several by name."""
    named = {
        key.removeprefix(f"{_DEFAULT_TEMPLATE}."): metadata.text(key) for key in metadata.keys(f"{_DEFAULT_TEMPLATE}.")
    }
    if _DEFAULT_TEMPLATE in metadata:
        default = metadata.text(_DEFAULT_TEMPLATE)
        return {"default": default, **named} if named else default
    return named or None
