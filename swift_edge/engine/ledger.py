"""The memory that all live requests may take together: no two of them count the same free bytes."""

import time
from typing import Final

from swift_edge.engine.kv_cache import cache_tokens
from swift_edge.engine.session import WORKING_BYTES, ModelSession
from swift_edge.system.machine import available_memory

FRESH_S: Final = 0.05
"""Seconds for which a reading of the system's free memory counts."""


class Ledger:
    """Bytes that rows and prompts may grow to, and the bytes available.

    The batch is a rectangle: every row has as many tokens as the longest one may get.
    """

    def __init__(self, session: ModelSession, most_bytes: int | None = None) -> None:
        """Count for a session; `most_bytes` limits the bytes, as free memory does."""
        self._session = session
        self._most_bytes = most_bytes
        self._measured_at = -FRESH_S
        self._available: int | None = None

    def budget(self, held_tokens: int) -> int | None:
        """Most bytes of live requests; None if the system does not say.

        `held_tokens` counts the tokens whose keys and values are in memory already.
        """
        now = time.monotonic()
        if now - self._measured_at > FRESH_S:
            self._available, self._measured_at = available_memory(), now
        if self._available is None:
            return self._most_bytes
        total = self._available + held_tokens * self._session.kv_bytes_per_token
        return total if self._most_bytes is None else min(total, self._most_bytes)

    def prompt_bytes(self, tokens: int) -> int:
        """Bytes of the keys and values of a prompt's own row."""
        return cache_tokens(tokens, self._session.context_length) * self._session.kv_bytes_per_token

    def batch_bytes(self, rows: int, tokens: int, layers: int) -> int:
        """Bytes of a batch of `rows` rows, the longest of which may get `tokens` tokens."""
        if not rows:
            return 0
        return sum(self._session.request_bytes(rows, 0, tokens, layers=layers)) + WORKING_BYTES
