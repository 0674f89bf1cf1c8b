"""Text to token ids and back: the tokenizer, the chat template, and text that grows token by token."""

import contextlib
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from swift_edge.bundle.manifest import Bundle
from swift_edge.errors import (
    EmptyPromptError,
    PromptError,
    PromptTooLongError,
    TemplateError,
    TokenizerError,
    one_line,
)
from swift_edge.system.documents import HALF_CHARACTER
from swift_edge.system.machine import memory_for
from swift_edge.system.panics import is_panic, quiet_panics

if TYPE_CHECKING:
    import tokenizers

    from swift_edge.bundle.template import ChatTemplate

Message = Mapping[str, str]
"""A chat message: `{"role": "user", "content": "What is 2 + 2?"}`."""

ROLES = ("system", "developer", "user", "assistant", "tool")

# Digits first: most tokenizers keep them apart from letters, so that they do not merge with what follows.
_ANCHORS = ("1", "0", "a", "A", ".")

USUAL_BYTES: Final = 4
"""Bytes of a token, about: texts that have more of them per token of the context are looked at before they are read."""
NORMALIZED_BYTES: Final = 4
"""Bytes that a normalizer may make one of: those of a letter for mathematics, which becomes a plain one."""

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Tokenizer:
    """The tokenizer of a bundle; its file is read when it is first needed.

    >>> tokenizer = Tokenizer(open_bundle("models/stories260k"))
    >>> tokenizer.encode_prompt("Once upon a time")
    [1, 403, 407, 261, 378]
    >>> tokenizer.decode([1, 403, 407, 261, 378])
    'Once upon a time'
    """

    def __init__(self, bundle: Bundle) -> None:
        """Keep the bundle; nothing is read yet."""
        self._bundle = bundle

    def load(self) -> None:
        """Read the file now, while there is other work to wait for. Raises `TokenizerError`."""
        self._backend  # noqa: B018

    @memory_for("reading the prompt")
    def encode_prompt(self, prompt: str | Sequence[Message], *, raw: bool = False) -> list[int]:
        """Turn a prompt into token ids [p], ready for generation.

        Special tokens that are spelled out in the prompt become those tokens, in messages too: filter text that is not
        yours. Messages go through the chat template. So does a text, as one user message, if the bundle has a template;
        otherwise, or with `raw`, it is encoded as it stands, with the special tokens that the tokenizer adds, but for
        those that it begins with already (a chat prompt that was rendered elsewhere has its BOS) and EOS at its end.
        Messages end with a turn to answer, so never with the assistant's: what it says would be followed by a second
        turn of its own.
        Raises `EmptyPromptError`, `TemplateError`, `TokenizerError`, `PromptTooLongError` for one that is refused by
        its length, before it is read, or `PromptError` for malformed messages and for text that is not valid Unicode.
        """
        if isinstance(prompt, str):
            self._require_length(len(prompt))
            _check_text(prompt, "the prompt")
            if not (prompt if raw else prompt.strip()):
                raise EmptyPromptError("the prompt is empty; expected some text to answer")
            if raw or self._bundle.chat_template is None:
                ids = self._encode(prompt, add_special_tokens=True)
            else:
                ids = self._encode(self.render([{"role": "user", "content": prompt}]), add_special_tokens=False)
        else:
            if raw:
                raise PromptError("raw is set, but the prompt is a list of messages; expected one text, or raw=False")
            self._require_few_messages(prompt)
            if _checked(prompt)[-1]["role"] == "assistant":
                raise PromptError(
                    "the last message of the prompt is the assistant's; expected one to answer: leave it out, or, to "
                    "have it continued, render the chat prompt up to its end yourself and give that text with raw=True"
                )
            ids = self._encode(self.render(prompt), add_special_tokens=False)
        if not ids:
            raise EmptyPromptError("the prompt gives no token at all; expected some text to answer")
        return ids

    @memory_for("reading the answer")
    def encode_response(self, text: str) -> list[int]:
        """Turn a given answer into token ids [t] as they follow a prompt, without special tokens; may be empty.

        `decode_response` of the ids gives the text back where the tokenizer loses nothing. Raises `TokenizerError`,
        `PromptTooLongError` for a text that is refused by its length, or `PromptError` where it is not valid Unicode.
        """
        self._require_length(len(text))
        _check_text(text, "the answer")
        for anchor, ids in self._anchors:
            whole = self._encode(anchor + text, add_special_tokens=False)
            if whole[: len(ids)] == ids:  # else the anchor and the text have merged
                return whole[len(ids) :]
        return self._encode(text, add_special_tokens=False)

    def decode(self, ids: Iterable[int]) -> str:
        """Turn ids into text; special tokens, and ids without a token, leave nothing."""
        tokens = [token for token in map(int, ids) if self._is_text(token)]
        return self._call(self._backend.decode, tokens, skip_special_tokens=False)  # type: ignore[no-any-return]

    def decode_response(self, ids: Iterable[int]) -> str:
        """Turn the ids of a response into text as it follows a prompt: a space before its first word stays."""
        anchor = self._anchors[0][1] if self._anchors else []
        return self.decode([*anchor, *ids])[len(self.decode(anchor)) :]

    def special_text(self, token: int) -> str:
        """How a special token is written; empty for tokens that leave text."""
        return self._special_texts.get(int(token), "")

    def spells_special(self, text: str) -> bool:
        """Whether a text has special tokens in it, spelled out: text that a model writes shows none of them."""
        return any(special in text for special in self._special_texts.values())

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end a response; may be empty."""
        return self._bundle.manifest.tokens.eos_ids

    @functools.cached_property
    def end_of_turn(self) -> int | None:
        """The EOS id that ends an answer: the one that the chat template writes, else the first; None without any.

        A model may have several, and the tokenizer's own is not always the one that its answers end with.
        """
        eos_ids = self.eos_ids
        if self._bundle.chat_template is not None and len(eos_ids) > 1:
            turns = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "1"}]
            with contextlib.suppress(TemplateError, TokenizerError):  # a template may refuse answers: no hint then
                ids = self._encode(self._write(turns, add_generation_prompt=False), add_special_tokens=False)
                written = [token for token in ids if token in eos_ids]
                if written:
                    return written[-1]
        return eos_ids[0] if eos_ids else None

    def stream(self) -> "TextStream":
        """Start a text that grows token by token."""
        return TextStream(self)

    def render(self, messages: Sequence[Message]) -> str:
        """Write messages as the text that the model was trained on, up to where its answer starts."""
        if self._bundle.chat_template is None:
            raise TemplateError(
                f"{self._bundle.path} has no chat template, but the prompt is a list of messages; expected one text"
            )
        self._require_few_messages(messages)
        checked = _checked(messages)
        self._require_length(sum(len(message["content"]) for message in checked))
        return self._write(checked, add_generation_prompt=True)

    def _write(self, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        values = {
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
            # Templates tell these from undefined names.
            "tools": None,
            "documents": None,
            **self._special_tokens,
        }
        text = self._template.render(values)
        _check_text(text, "the text that the chat template made")
        return text

    @functools.cached_property
    def _template(self) -> "ChatTemplate":
        from swift_edge.bundle.template import ChatTemplate

        assert self._bundle.chat_template is not None
        return ChatTemplate(self._bundle.chat_template, self._bundle.path)

    @functools.cached_property
    def _special_tokens(self) -> dict[str, str]:
        tokens = self._bundle.manifest.tokens
        ids = {
            "bos_token": tokens.bos_id,
            "eos_token": tokens.eos_ids[0] if tokens.eos_ids else None,
            "pad_token": tokens.pad_id,
        }
        texts = {name: self._token_of(token) for name, token in ids.items() if token is not None}
        return {name: text for name, text in texts.items() if text is not None}

    @functools.cached_property
    def _backend(self) -> "tokenizers.Tokenizer":
        import tokenizers

        path, manifest = self._bundle.tokenizer_path, self._bundle.manifest
        try:
            with quiet_panics():
                backend = tokenizers.Tokenizer.from_file(str(path))
                _try_out(backend)
        # The library raises plain exceptions, and panics.
        except BaseException as error:
            if not _is_failure(error):
                raise
            raise TokenizerError(
                f"{path} does not read as a tokenizer ({one_line(error)}); "
                f"copy tokenizer.json of {manifest.base_model!r} again"
            ) from error
        # Settings of a training run that some files carry along: they would cut prompts off without a word.
        backend.no_truncation()
        backend.no_padding()
        # Tokens that were added later may well lie beyond the logits (Gemma 3 has one); ids are checked one by one.
        size, vocab_size = backend.get_vocab_size(with_added_tokens=False), manifest.architecture.vocab_size
        if size > vocab_size:
            raise TokenizerError(
                f"{path} has {size} tokens, but the model's vocabulary has {vocab_size}; "
                f"copy tokenizer.json of {manifest.base_model!r} again"
            )
        return backend

    @functools.cached_property
    def _anchors(self) -> list[tuple[str, list[int]]]:
        """Short texts with their ids, to stand where the prompt would.

        Many tokenizers put a space before the first word of a text and take it off again when they decode. A response
        is not the first word of anything: with something before it, its own spaces are encoded and decoded as they are.
        """
        anchors = []
        for text in _ANCHORS:
            ids = self._encode(text, add_special_tokens=False)
            if ids and self.decode(ids) == text:
                anchors.append((text, ids))
        return anchors

    @functools.cached_property
    def _skipped(self) -> frozenset[int]:
        """Ids that leave no text.

        Special tokens written as plain letters or digits are kept: some tokenizers name an ordinary token, such as
        the digit 0, as their unknown token, and that makes it special.
        """
        added = self._backend.get_added_tokens_decoder()
        marks = {token for token, entry in added.items() if entry.special and not entry.content.isalnum()}
        return frozenset(marks.union(self._bundle.manifest.tokens.eos_ids))

    @functools.cached_property
    def _special_texts(self) -> Mapping[int, str]:
        """How each of the `_skipped` is written."""
        texts = {token: self._token_of(token) for token in self._skipped}
        return {token: text for token, text in texts.items() if text}

    @functools.cached_property
    def _byte_tokens(self) -> frozenset[int]:
        """Ids of single bytes, where the decoder puts runs of them together."""
        ids_by_byte = {byte: self._backend.token_to_id(f"<0x{byte:02X}>") for byte in range(256)}
        letter = ids_by_byte[ord("A")]
        if letter is None or self._call(self._backend.decode, [letter], skip_special_tokens=False) != "A":
            return frozenset()
        return frozenset(token for token in ids_by_byte.values() if token is not None)

    def _is_text(self, token: int) -> bool:
        return token not in self._skipped and self._token_of(token) is not None

    def _token_of(self, token: int) -> str | None:
        """The token with this id, as its vocabulary writes it; None where there is none."""
        in_range = 0 <= token < 2**32  # the library raises for others
        return self._call(self._backend.id_to_token, token) if in_range else None

    @functools.cached_property
    def _longest_token(self) -> int:
        """Most bytes of a text that become one token, as texts of tokens are no shorter than what they stand for."""
        longest = max(len(token.encode()) for token in self._backend.get_vocab(with_added_tokens=True))
        return longest * (1 if self._backend.normalizer is None else NORMALIZED_BYTES)

    def _require_length(self, nbytes: int) -> None:
        """Refuse a text of at least so many bytes that cannot fit into the context.

        What a tokenizer drops counts as well: there is no telling how much that is without reading all of it.
        """
        context_length = self._bundle.manifest.architecture.context_length
        if nbytes > USUAL_BYTES * context_length and nbytes > self._longest_token * context_length:
            raise PromptTooLongError(-(-nbytes // self._longest_token), context_length, nbytes)

    def _require_few_messages(self, messages: Sequence[Message]) -> None:
        """Refuse more messages than the context has tokens."""
        context_length = self._bundle.manifest.architecture.context_length
        if isinstance(messages, Sequence) and len(messages) > context_length:
            raise PromptError(
                f"the prompt has {len(messages)} messages, but the model's context holds {context_length} tokens; "
                "leave the oldest out"
            )

    def _require_few_tokens(self, text: str) -> None:
        """Refuse a long text whose beginning alone has twice as many tokens as the context holds.

        A text may still be thousands of times as long as the context, where there are very long tokens, and reading
        it takes a microsecond and hundreds of bytes for every token.
        """
        context_length = self._bundle.manifest.architecture.context_length
        length = USUAL_BYTES * context_length
        if len(text) <= length:
            return
        nbytes = len(text.encode())
        self._require_length(nbytes)
        while length < len(text):
            tokens = len(self._call(self._backend.encode, text[:length], add_special_tokens=False).ids)
            if tokens > 2 * context_length:
                raise PromptTooLongError(tokens, context_length, nbytes)
            length *= 2

    def _call(self, function: Any, *arguments: Any, **options: Any) -> Any:
        """Call the library, whose panics are no `Exception`."""
        try:
            return function(*arguments, **options)
        except BaseException as error:
            if not _is_failure(error):
                raise
            raise TokenizerError(
                f"{self._bundle.tokenizer_path} failed on a text ({one_line(error)}); "
                f"copy tokenizer.json of {self._bundle.manifest.base_model!r} again"
            ) from error

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        self._require_few_tokens(text)
        encoding = self._call(self._backend.encode, text, add_special_tokens=add_special_tokens)
        ids, mask = encoding.ids, encoding.special_tokens_mask
        # What is added in front is not there twice: the mask has 1 for added tokens, 0 for those that are spelled out.
        added = next((place for place, mark in enumerate(mask) if not mark), 0)
        if ids[:added] == ids[added : 2 * added]:
            ids = ids[added:]
        # EOS added at the end, for training, would end the text: what the model writes next would begin another.
        for _ in range(next((place for place, mark in enumerate(reversed(mask)) if not mark), 0)):
            if ids[-1] not in self.eos_ids:
                break
            ids = ids[:-1]
        vocab_size = self._bundle.manifest.architecture.vocab_size
        beyond = next((token for token in ids if token >= vocab_size), None)
        if beyond is not None:
            raise TokenizerError(
                f"{self._bundle.tokenizer_path} gives {self._token_of(beyond)!r} the id {beyond}, but the "
                f"model's vocabulary has {vocab_size} tokens; leave that token out of the text, "
                f"or copy tokenizer.json of {self._bundle.manifest.base_model!r} again"
            )
        return list(ids)


class TextStream:
    """A response that grows token by token: all pieces, `finish()` included, joined are `decode_response` of all ids.

    A piece never ends within a UTF-8 character; what is not complete yet comes with a later piece.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Start with no token but what stands for the prompt."""
        self._tokenizer = tokenizer
        # Only the tokens of the last piece are decoded again, as context for the next one: decoders treat the first
        # token of a sequence in their own way, and do so here in both texts that are compared.
        self._ids: list[int] = list(tokenizer._anchors[0][1]) if tokenizer._anchors else []
        self._context = tokenizer.decode(self._ids)
        self._context_length = len(self._ids)

    def push(self, token: int) -> str:
        """Add a token and give out the text that is certain now, often one word, sometimes nothing."""
        token = int(token)
        if not self._tokenizer._is_text(token):
            return ""
        self._ids.append(token)
        # A run of byte tokens is valid or invalid as a whole, so the next byte may change what the run means so far.
        if token in self._tokenizer._byte_tokens:
            return ""
        return self._advance(final=False)

    def finish(self) -> str:
        """Give out what was held back, with a replacement character for a UTF-8 character that broke off."""
        return self._advance(final=True)

    def _advance(self, *, final: bool) -> str:
        text = self._tokenizer.decode(self._ids)
        if len(text) <= len(self._context) or (text.endswith(_REPLACEMENT) and not final):
            return ""
        piece = text[len(self._context) :]
        self._ids = self._ids[self._context_length :]
        self._context_length = len(self._ids)
        self._context = self._tokenizer.decode(self._ids)
        return piece


def _is_failure(error: BaseException) -> bool:
    """Whether the library itself has failed, by an exception of any kind or a panic, and not the process around it."""
    own = isinstance(error, Exception) and not isinstance(error, (MemoryError, RecursionError))
    return own or is_panic(error)


def _try_out(backend: "tokenizers.Tokenizer") -> None:
    """Use a tokenizer for the first time: parts that do not fit each other panic only then."""
    for use in (
        lambda: backend.decode([]),
        lambda: [backend.decode([token]) for token in backend.encode("A 1", add_special_tokens=True).ids],
    ):
        # A vocabulary without these letters is a matter for the first text that has them.
        with contextlib.suppress(Exception):
            use()


def _check_text(text: str, what: str) -> None:
    half = HALF_CHARACTER.search(text)
    if half is not None:
        raise PromptError(
            f"{what} has half a character (U+{ord(half[0]):04X}) at position {half.start()}; "
            "expected valid Unicode: read the input as UTF-8"
        )


def _checked(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Copy messages into plain dictionaries, or say which one is malformed."""
    if not isinstance(messages, Sequence) or isinstance(messages, bytes | bytearray):
        raise PromptError(f"the prompt is of type {type(messages).__name__}; expected a text or a list of messages")
    if not messages:
        raise EmptyPromptError("the prompt has no messages; expected at least one")
    checked = []
    for index, message in enumerate(messages):
        where = f"message {index} of the prompt"
        if not isinstance(message, Mapping):
            raise PromptError(f"{where} is of type {type(message).__name__}; expected a mapping with role and content")
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                shown = f"of type {type(message[key]).__name__}" if key in message else "missing"
                raise PromptError(f"{where}: {key} is {shown}; expected a string")
        if message["role"] not in ROLES:
            raise PromptError(f"{where} has the role {message['role']!r}; expected one of {', '.join(ROLES)}")
        _check_text(message["content"], where)
        checked.append(dict(message))
    if not any(message["content"].strip() for message in checked):
        raise EmptyPromptError("all messages of the prompt are empty; expected some text to answer")
    return checked
