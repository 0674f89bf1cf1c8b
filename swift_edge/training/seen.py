"""Which problems a head was trained on: short hashes of their prompts, kept in its summary.

Whoever calibrates or tests a head can then tell whether it has seen a problem, whatever file or store that comes from.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from swift_edge.engine.model import Prompt

SUMMARY_NAME: Final = "prompts"
"""Name of the hashes in a head's summary."""
_DIGITS: Final = 8
"""Hexadecimal digits of a hash: 4 bytes, so that two of a million pairs of problems are not taken for the same."""


def prompt_hash(prompt: Prompt) -> str:
    """Hash of a prompt; a text counts as one message of the user."""
    turns = [("user", prompt)] if isinstance(prompt, str) else [(each["role"], each["content"]) for each in prompt]
    return hashlib.sha256(json.dumps(turns).encode()).hexdigest()[:_DIGITS]


def packed(hashes: Sequence[str | None]) -> str | None:
    """Put hashes into one text for a summary; None unless all are known."""
    known = [each for each in hashes if each is not None]
    if len(known) < len(hashes):
        return None
    return base64.b64encode(b"".join(bytes.fromhex(each) for each in sorted(set(known)))).decode()


def seen_prompts(summary: Mapping[str, Any]) -> frozenset[str] | None:
    """The hashes of all prompts that a head was trained on; None where its summary does not have them."""
    text = summary.get(SUMMARY_NAME)
    if not isinstance(text, str):
        return None
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    size = _DIGITS // 2
    return frozenset(data[start : start + size].hex() for start in range(0, len(data), size))


def trained_on(summary: Mapping[str, Any]) -> frozenset[str]:
    """SHA-256 of every data file that a head was trained on, as far as its summary names them."""
    names = summary.get("data_sha256")
    return frozenset(name for name in (names if isinstance(names, list) else [names]) if isinstance(name, str) and name)
