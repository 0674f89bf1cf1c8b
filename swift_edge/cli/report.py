"""The report that `pick` and `score` show beside the answer.

It has one line per candidate, or for those that say the same, best first, then the answers and the warnings, then one
line with the tokens read and written, their speed, and what computed them.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from swift_edge.results import alike

if TYPE_CHECKING:
    from swift_edge.results import Candidate, Selection

MOST_CHARACTERS = 60
"""Characters of an answer in the report: where none is found in a response, all of it may be the answer."""


def report(selection: "Selection", providers: Sequence[str]) -> Iterator[str]:
    """Give the lines of the report."""
    yield " rank  candidate      score  tokens  finish"
    ranks, count = {each.index: rank for rank, each in enumerate(selection.ranked, start=1)}, len(selection.candidates)
    for candidate, *others in alike(selection.ranked):
        unscored = (
            " (context full, last token unscored)" if candidate.unscored_tokens and selection.signal is None else ""
        )
        yield (
            f"{ranks[candidate.index]:5}  {f'{candidate.number} of {count}':>9}  {candidate.score:9.4f}  "
            f"{candidate.n_tokens:6}  {candidate.finish_reason}{unscored}"
            + ("" if candidate.dropped_because is None else f": {candidate.dropped_because}")
            + (f"; x{len(others) + 1}, with {_numbers(others)}" if others else "")
        )
    complete = sum(candidate.is_whole for candidate in selection.candidates)
    for answer in selection.answers:
        chance = "" if answer.posterior is None else f", P(right) {answer.posterior:.2f}"
        text = answer.text if len(answer.text) <= MOST_CHARACTERS else f"{answer.text[:MOST_CHARACTERS]}..."
        yield f"answer {text!r}: {answer.support} of {_candidates(complete)}{chance}"
    if selection.abstained:
        known = selection.p_correct is not None
        why = (
            "the pick is less likely to be right than was asked for" if known else "nothing says that the pick is right"
        )
        yield f"abstained: {why}"
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


def _numbers(candidates: Sequence["Candidate"]) -> str:
    return ", ".join(str(each.number) for each in candidates)


def _candidates(count: int) -> str:
    return f"{count} candidate{'' if count == 1 else 's'}"
