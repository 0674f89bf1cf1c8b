"""An opened bundle: its graph, its tokenizer, and the engine that all its users share."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np

from swift_edge.arrays import Ids
from swift_edge.bundle.external_data import check_external_data
from swift_edge.bundle.folder import check_hashes, check_template, open_bundle
from swift_edge.bundle.manifest import MODEL_NAME, TEMPLATE_NAME, TOKENIZER_NAME, Bundle
from swift_edge.bundle.tokenizer import Message, Tokenizer
from swift_edge.bundle.verified import VerifiedFiles
from swift_edge.checks import check_whole
from swift_edge.engine.engine import DEFAULT_ROWS, Engine
from swift_edge.engine.prefix_cache import PrefixCache
from swift_edge.engine.session import ModelSession
from swift_edge.errors import InvalidOptionError, PromptTooLongError
from swift_edge.system.machine import memory_for

Prompt: TypeAlias = str | Sequence[Message]

LEAD_S: Final = 0.1
"""Head start of opening the graph, in seconds: reading a tokenizer keeps the interpreter from other threads."""


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A bundle with its session, tokenizer and engine, shared by all calls and threads."""

    bundle: Bundle
    """The folder, checked."""
    session: ModelSession
    """The graph."""
    tokenizer: Tokenizer
    """Text to ids and back."""
    engine: Engine
    """The rows of all requests."""
    warnings: tuple[str, ...]
    """What the caller should know, one line each."""

    @classmethod
    @memory_for("opening the bundle")
    def open(
        cls,
        path: str | os.PathLike[str] | Bundle,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        prefix_cache_bytes: int = 0,
        rows: int | None = None,
    ) -> "OpenedModel":
        """Open a folder, or what `bundle_at` read of one: its graph and its tokenizer, and check its hashes.

        At most `rows` rows decode together; None: `DEFAULT_ROWS`. `prefix_cache_bytes` is for beginnings of prompts.
        Raises what `check_hashes`, `ModelSession` and `Tokenizer.load` do.
        """
        check_whole("prefix_cache_bytes", prefix_cache_bytes, 0)
        bundle = path if isinstance(path, Bundle) else cls.bundle_at(path)
        session, tokenizer, complaint = _open_parts(bundle, providers, threads)
        # Concatenated rows come from the graph as a whole, and rows on a device would have to cross the bus.
        keeps = prefix_cache_bytes > 0 and session.takes_ragged_rows and not session.keeps_rows_on_device
        prefixes = PrefixCache(prefix_cache_bytes) if keeps else None
        engine = Engine(session, rows=DEFAULT_ROWS if rows is None else rows, prefixes=prefixes)
        return cls(bundle, session, tokenizer, engine, () if complaint is None else (complaint,))

    @staticmethod
    def bundle_at(path: str | os.PathLike[str]) -> Bundle:
        """Read what a folder says about itself, without its hashes: `open` checks them."""
        return open_bundle(path, hashes=False)

    def prompt_ids(self, prompt: Prompt, *, raw: bool, feeds_last: bool) -> Ids:
        """Token ids `[p]` of a prompt that leaves room for one more token, and with `feeds_last` for feeding it."""
        prompt_ids = np.array(self.tokenizer.encode_prompt(prompt, raw=raw), np.int64)
        if len(prompt_ids) + feeds_last > self.session.context_length:
            raise PromptTooLongError(len(prompt_ids), self.session.context_length)
        return prompt_ids

    def answer_ids(self, text: str, place: int, prompt_tokens: int, *, with_eos: bool) -> list[int]:
        """Token ids `[t]` of a given response that fits into the context, with the EOS at its end if asked for.

        `place` is its place among the responses, from 0.
        """
        try:
            answer = self.tokenizer.encode_response(text)
        except PromptTooLongError as error:
            raise InvalidOptionError(
                f"text {place + 1} has {error.nbytes} bytes or more, at least {error.prompt_tokens} tokens after a "
                f"prompt of {prompt_tokens}, but the model's context holds {error.context_length}; shorten the text "
                "or the prompt"
            ) from None
        end = self.tokenizer.end_of_turn
        ended = bool(answer) and answer[-1] in self.bundle.manifest.tokens.eos_ids
        if with_eos and end is not None and not ended:
            answer.append(end)
        context = self.session.context_length
        if not answer:
            raise InvalidOptionError(f"text {place + 1} has no tokens; expected some text to score")
        # As in decoding, the last token may lie beyond a full context.
        if prompt_tokens + len(answer) > context + 1:
            raise InvalidOptionError(
                f"text {place + 1} has {len(answer)} tokens after a prompt of {prompt_tokens}, "
                f"but the model's context holds {context}; shorten the text or the prompt"
            )
        return answer


def _open_parts(
    bundle: Bundle, providers: Sequence[str] | None, threads: int | None
) -> tuple[ModelSession, Tokenizer, str | None]:
    """Open the graph and read the tokenizer; the text is a warning, if there is one.

    The graph and the tokenizer are hashed before they are read. The rest, the weights, is only numbers: they are
    hashed while onnxruntime packs them and the tokenizer is read. Files that an earlier start found right and that have
    not changed since are not hashed again. At the end all have to be the files that they were at the beginning.
    """
    files = VerifiedFiles(bundle)
    unchecked = () if files.known() else bundle.manifest.fixed_files
    read_whole = (MODEL_NAME, TOKENIZER_NAME, TEMPLATE_NAME)
    check_hashes(bundle, [name for name in unchecked if name in read_whole])
    check_external_data(bundle)
    check_template(bundle)
    tokenizer = Tokenizer(bundle)
    with ThreadPoolExecutor(2) as beside:
        session = beside.submit(ModelSession, bundle, providers, threads)
        hashing = beside.submit(check_hashes, bundle, [name for name in unchecked if name not in read_whole])
        wait([session], LEAD_S)
        tokenizer.load()
        hashing.result()  # first: damage explains more than the failure that it leads to
    files.require_unchanged()
    complaint = files.remember() if unchecked else None
    return session.result(), tokenizer, complaint
