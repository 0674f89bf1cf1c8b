"""Text of the model's own, to fit scales and rounding to: there is no data set to calibrate on.

The model writes it at temperature 1, from single random tokens and, where it has a chat template, from the words that
stand before a user's question: the way of LLM-QAT (arXiv:2305.17888) and of Magpie (arXiv:2406.08464). A question that
it ended is answered, and after an answer comes the next question.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from swift_edge.bundle.manifest import Bundle
from swift_edge.bundle.tokenizer import Tokenizer
from swift_edge.engine.kv_cache import KVCache
from swift_edge.engine.session import ModelSession
from swift_edge.errors import TemplateError, TokenizerError

_OWN_WORDS = "What the user says."


@dataclasses.dataclass(frozen=True, slots=True)
class Turns:
    """What the chat template writes by itself, as token ids; both are empty without one."""

    before_question: tuple[int, ...]
    """before a user's first word, or before any text"""
    before_answer: tuple[int, ...]
    """between a user's last word and the answer's first"""


@dataclasses.dataclass(frozen=True, slots=True)
class OwnText:
    """What a model wrote."""

    token_ids: list[NDArray[np.int64]]
    """of each text, [t]"""
    cache: KVCache
    """its keys and values: all tokens but the last one of each text"""


def write_texts(
    session: ModelSession,
    bundle: Bundle,
    texts: int,
    tokens: int,
    seed: int = 0,
    note: Callable[[float], None] = lambda _: None,
) -> OwnText:
    """Let a model write `texts` texts side by side, of `tokens` tokens each or as many as its context holds.

    `note` is told which share is written, 0 to 1.
    """
    random = np.random.default_rng(seed)
    turns = turns_of(bundle)
    starts = _starts(bundle, turns, texts, random)
    longest = min(tokens, session.context_length)
    batch = session.new_cache(texts, longest)
    logits = []
    for start in starts:
        prompt = session.new_cache(1, len(start))
        logits.append(session.prefill(prompt, start).logits)
        batch.append_copy(prompt)
    following = np.concatenate(logits)  # [n, v]
    written = [list(start) for start in starts]
    speakers = [_Speaker(turns, bundle.manifest.tokens.eos_ids) for _ in starts]
    while True:
        # The greatest of logits with Gumbel noise is a sample of their softmax. Single precision draws zeros, too.
        draws = np.maximum(random.standard_exponential(following.shape, np.float32), np.finfo(np.float32).tiny)
        drawn = (following - np.log(draws)).argmax(axis=-1)
        token_ids = np.array([speaker.says(int(token)) for speaker, token in zip(speakers, drawn, strict=True)])
        for row, token in zip(written, token_ids, strict=True):
            row.append(int(token))
        if batch.longest + 1 >= longest:
            return OwnText([np.array(row) for row in written], batch)
        following = session.decode(batch, token_ids).logits
        note(batch.longest / longest)


class _Speaker:
    """Puts the template's words between the turns of one text."""

    def __init__(self, turns: Turns, eos_ids: Sequence[int]) -> None:
        self._turns = turns
        self._ends = {*eos_ids, *turns.before_answer[:1]}
        self._asking = True
        self._waiting: list[int] = []

    def says(self, drawn: int) -> int:
        """The next token, where `drawn` is what the model would say."""
        if not self._waiting and drawn in self._ends and self._turns.before_answer:
            self._waiting = list(self._turns.before_answer if self._asking else (drawn, *self._turns.before_question))
            self._asking = not self._asking
        return self._waiting.pop(0) if self._waiting else drawn


def _starts(bundle: Bundle, turns: Turns, texts: int, random: np.random.Generator) -> list[NDArray[np.int64]]:
    """Token ids that the texts begin with, from which the model goes on by itself."""
    architecture = bundle.manifest.architecture
    starts = [random.integers(architecture.vocab_size, size=1) for _ in range(texts)]
    opening = turns.before_question
    if 0 < len(opening) < architecture.context_length:
        starts[: texts // 2] = [np.array(opening)] * (texts // 2)
    return starts


def turns_of(bundle: Bundle) -> Turns:
    """What stands around a user's words; without a template, what stands before any text."""
    beginning = () if bundle.manifest.tokens.bos_id is None else (bundle.manifest.tokens.bos_id,)
    if bundle.chat_template is None:
        return Turns(beginning, ())
    # A template may refuse these words, and a tokenizer not read.
    with contextlib.suppress(TemplateError, TokenizerError):
        tokenizer = Tokenizer(bundle)
        before, separator, after = tokenizer.render([{"role": "user", "content": _OWN_WORDS}]).partition(_OWN_WORDS)
        if separator:
            return Turns(tuple(tokenizer.encode_response(before)), tuple(tokenizer.encode_response(after)))
    return Turns(beginning, ())
