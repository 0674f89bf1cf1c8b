"""What the answers of many rounds come to: medians, ratios of a round, and how far the rounds lie apart.

Knows answers as plain data. Does not know how they were got or how they are shown.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from peers import Peer

TIMES = ("total_s", "prefill_s", "decode_s", "second_pass_s")
PARTS = ("graph_s", "sample_s", "head_s")
Answers: TypeAlias = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Shape:
    """How much work a request is."""

    n: int
    """Candidates."""
    prompt_tokens: int
    """Tokens of the prompt."""
    new_tokens: int
    """Tokens of each candidate, or the most that are drawn."""
    drawn: bool
    """Whether the lengths are drawn."""

    def __str__(self) -> str:
        """In words."""
        tokens = f"up to {self.new_tokens} (drawn)" if self.drawn else str(self.new_tokens)
        return f"N = {self.n}, prompt {self.prompt_tokens}, new tokens {tokens}"


def figures_of(answers: Answers, shape: Shape, peer: Peer) -> dict[str, Any] | None:
    """The figures of a peer for a shape; None where it has answered nothing, the error where it failed."""
    mine = of(answers, shape, peer.name)
    if not mine:
        return None
    errors = [answer["error"] for answer in mine if "error" in answer]
    if errors:
        return {"error": errors[0]}
    found: dict[str, Any] = {
        name: median_with_range([answer[name] for answer in mine]) for name in TIMES if has(mine, name)
    }
    if has(mine, "parts"):
        parts = [answer["parts"] for answer in mine]
        found |= {name: median_with_range([part[name] for part in parts]) for name in PARTS if name in parts[0]}
    if has(mine, "decode_s"):
        found["step_s"] = median_with_range([answer["decode_s"] / answer["steps"] for answer in mine])
    found["tokens_per_s"] = median_with_range([answer["new_tokens"] / answer["total_s"] for answer in mine])
    found["sampled_for_each_token"] = median_with_range(
        [answer["sampled_tokens"] / answer["new_tokens"] for answer in mine]
    )
    found["peak_bytes"] = max(answer["peak_bytes"] for answer in mine)
    theirs = {answer["round"]: answer for answer in of(answers, shape, peer.reference) if "error" not in answer}
    pairs = [(answer, theirs[answer["round"]]) for answer in mine if answer["round"] in theirs]
    if pairs and peer.name != peer.reference:
        found["ratio"] = median_with_range([answer["total_s"] / reference["total_s"] for answer, reference in pairs])
    return found


def of(answers: Answers, shape: Shape, name: str) -> Answers:
    """The answers of a peer for a shape."""
    return [answer for answer in answers if answer["peer"] == name and answer["shape"] == str(shape)]


def has(answers: Answers, name: str) -> bool:
    """Whether all answers tell it."""
    return all(answer.get(name) is not None for answer in answers)


def median_with_range(values: Sequence[float]) -> dict[str, float]:
    """The median of the rounds, and the lowest and the highest of them."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}
