"""What `pick` and `score` show beside the answer: a line that moves while candidates are written, and the report after.

Knows results, not models. The report has one line per candidate, best first, then the warnings, then one line with the
tokens read and written, their speed, and what computed them.
"""

import shutil
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from swift_edge.results import Selection

REFRESH_S = 0.1
MOST_CHARACTERS = 60
"""Characters of an answer in the report: where none is found in a response, all of it may be the answer."""


class Progress:
    """One line on stderr with rows alive, tokens and speed; nothing at all where stderr is not a terminal.

    A context manager: on the way out, whatever the reason, the line is cleared.
    """

    def __init__(self, shown: bool) -> None:
        """Begin without candidates; `shown` says whether anybody looks."""
        self._alive: set[int] = set()
        self._ended = 0
        self._tokens = 0
        self._shown = shown
        self._width = 0
        self._begin: float | None = None
        self._next = 0.0

    def __enter__(self) -> "Progress":
        """Say that the prompt is being read: the first token comes after that."""
        if self._shown:
            self._show("reading the prompt")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Clear the line."""
        if self._shown:
            self._show("")

    def token(self, index: int) -> None:
        """Count a token of a candidate, and show the line if it is old enough."""
        self._tokens += 1
        self._alive.add(index)
        if not self._shown:
            return
        now = time.monotonic()
        if self._begin is None:
            self._begin = now
        if now >= self._next:
            self._next = now + REFRESH_S
            elapsed = now - self._begin
            speed = f", {self._tokens / elapsed:.0f} tok/s" if elapsed > 0 else ""
            begun = len(self._alive) + self._ended
            self._show(f"{len(self._alive)} of {begun} rows alive, {self._tokens} tokens{speed}")

    def finished(self, index: int) -> None:
        """Count a candidate that has ended."""
        self._alive.remove(index)
        self._ended += 1

    def _show(self, text: str) -> None:
        # Blanks instead of an escape sequence: any terminal knows them. The last column stays free, or the line wraps.
        text = text[: shutil.get_terminal_size().columns - 1]
        click.echo("\r" + text.ljust(self._width) + "\r" * (not text), err=True, nl=False)
        self._width = len(text)


def report(selection: "Selection", providers: Sequence[str]) -> Iterator[str]:
    """Give the lines of the report."""
    yield " rank  candidate      score  tokens  finish"
    for rank, candidate in enumerate(selection.ranked, start=1):
        unscored = (
            " (context full, last token unscored)" if candidate.unscored_tokens and selection.signal is None else ""
        )
        yield (
            f"{rank:5}  {candidate.index:9}  {candidate.score:9.4f}  {candidate.n_tokens:6}  "
            f"{candidate.finish_reason}{unscored}"
            + ("" if candidate.dropped_because is None else f": {candidate.dropped_because}")
        )
    complete = sum(candidate.dropped_because is None for candidate in selection.candidates)
    for answer in selection.answers:
        chance = "" if answer.posterior is None else f", P(right) {answer.posterior:.2f}"
        text = answer.text if len(answer.text) <= MOST_CHARACTERS else f"{answer.text[:MOST_CHARACTERS]}..."
        yield f"answer {text!r}: {answer.support} of {_candidates(complete)}{chance}"
    if selection.abstained:
        yield "abstained: the pick is less likely to be right than was asked for"
    for warning in selection.warnings:
        yield f"warning: {warning}"
    usage, timings = selection.usage, selection.timings
    scored_by = f"head {selection.head}" if selection.signal is None else f"{selection.signal}, no head"
    facts = [
        f"scored by {scored_by}",
        f"strategy {selection.strategy}",
        f"prefill {usage.prompt_tokens} tokens, {timings.prefill_tps:.0f} tok/s",
    ]
    if selection.seed is not None:
        facts.append(f"decode {usage.completion_tokens} tokens, {timings.decode_tps:.0f} tok/s")
        facts.append(f"seed {selection.seed}")
    if selection.stopped_because is not None:
        written = len(selection.candidates)
        waves = f", {selection.rows} at a time" if selection.rows is not None and selection.rows < written else ""
        facts.append(f"{_candidates(written)}{waves}, ended by {selection.stopped_because}")
    if selection.p_correct is not None:
        facts.append(f"P(correct) {selection.p_correct:.2f}")
    yield "; ".join([*facts, f"{timings.total_s:.2f} s", ", ".join(providers)])


def _candidates(count: int) -> str:
    return f"{count} candidate{'' if count == 1 else 's'}"
