"""Which problems a head was trained on: short hashes of their prompts, kept in its summary, and what it was shown.

Whoever calibrates or tests a head can then tell whether it has seen a problem, whatever file or store that comes from,
and in whichever words a benchmark asks it.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Final

from swift_edge.engine.model import Prompt
from swift_edge.training.store.format import Asked
from swift_edge.training.store.writer import Store

SHOWN_NAME: Final = "shown"
"""Name of what it was shown, in a head's summary."""
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


def shown_problems(stores: Sequence[Store], problems: int) -> list[dict[str, Any]]:
    """What a head was shown, for its summary: kind by kind the settings, how many problems, and both in words.

    `problems` is how many of the stores' are used, where they are of one kind.
    """
    kinds: dict[Asked | str, set[str]] = {}
    counts: dict[str, int] = {}
    for store in stores:
        asked, data = store.info.asked, store.info.data_sha256
        kinds.setdefault(data if asked is None else replace(asked, skip=0), set()).add(data)
        counts[data] = store.problems  # stores of the same data with other seeds hold the same problems
    shown = []
    for kind, files in kinds.items():
        count = problems if len(kinds) == 1 else sum(counts[data] for data in files)
        if isinstance(kind, str):
            described, settings = f"{count:,} problems of data {kind[:8]}", {"data_sha256": kind}
        else:
            described, settings = kind.described(count), asdict(kind)
        shown.append({"text": described, "problems": count, **settings})
    return shown


def shown_text(summary: Mapping[str, Any]) -> str | None:
    """What a head was shown, in a few words: `gsm8k, 1,000 problems, zero-shot`; None where its summary has nothing."""
    shown, recalibration = summary.get(SHOWN_NAME), summary.get("recalibration")
    entries = [each for each in shown if isinstance(each, Mapping)] if isinstance(shown, list) else []
    texts = [each["text"] for each in entries if isinstance(each.get("text"), str)]
    if isinstance(recalibration, Mapping) and (since := shown_text({SHOWN_NAME: recalibration.get(SHOWN_NAME)})):
        texts.append(f"recalibrated on {since}")
    return "; ".join(texts) or None


def trained_on(summary: Mapping[str, Any]) -> frozenset[str]:
    """SHA-256 of every data file that a head was trained on, as far as its summary names them."""
    names = summary.get("data_sha256")
    return frozenset(name for name in (names if isinstance(names, list) else [names]) if isinstance(name, str) and name)
