"""The memory of all live requests, so that two of them never count the same free bytes."""

import time
from typing import Final

from swift_edge.engine.kv_cache import cache_tokens
from swift_edge.engine.session import WORKING_BYTES, ModelSession
from swift_edge.system.machine import available_memory

FRESH_S: Final = 0.05
"""How long what the system said of its free memory is taken as true."""


class Ledger:
    """What rows and prompts will come to, beside what there is.

    The batch is a rectangle: as many tokens as its longest row may come to, for every row.
    """

    def __init__(self, session: ModelSession, most_bytes: int | None = None) -> None:
        """Count for a session; `most_bytes` bounds what is used, beside what the machine has."""
        self._session = session
        self._most_bytes = most_bytes
        self._measured_at = -FRESH_S
        self._available: int | None = None

    def budget(self, held_tokens: int) -> int | None:
        """Bytes that live requests may come to; None where the system does not say.

        `held_tokens` are those whose keys and values lie in memory already.
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
        """Bytes of a batch of so many rows, of which the longest may come to so many tokens."""
        if not rows:
            return 0
        return sum(self._session.request_bytes(rows, 0, tokens, layers=layers)) + WORKING_BYTES
