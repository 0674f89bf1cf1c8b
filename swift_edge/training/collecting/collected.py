"""One run of collecting: it stores candidates, reports progress, and sums up at the end."""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from swift_edge.errors import DiskSpaceError, StoreError, size_text
from swift_edge.records import json_text, read_value
from swift_edge.system.documents import read_json
from swift_edge.system.files import write_whole
from swift_edge.system.machine import require_disk
from swift_edge.training.collecting.features import ReadCandidate
from swift_edge.training.collecting.generating import Tally
from swift_edge.training.collecting.problems import Problem
from swift_edge.training.seen import prompt_hash
from swift_edge.training.store.format import TIMINGS_NAME, StoredCandidate
from swift_edge.training.store.shards import CandidateRows
from swift_edge.training.store.writer import StoreWriter

MEASURED_PROBLEMS = 8
"""Problems after which the disk space is estimated again, from their size."""
BYTES_PER_LINE = 512
"""About how many a candidate's line has, without its tokens and text."""
BYTES_PER_TOKEN = 32
"""About how many a token takes besides its features: statistics, id, position, and its part of the line."""
_TIMINGS = ("runs", "tokens", "prompt_tokens", "total_s", "prefill_s", "decode_s", "sample_s", "head_s")


@dataclass(frozen=True, slots=True)
class CollectProgress:
    """How far collecting is."""

    problems: int
    """Problems in the store."""
    total: int
    """Problems that the store will have."""
    problems_before: int
    """Problems that were in the store when this run began."""
    candidates: int
    """Candidates in the store."""
    correct: int
    """Those of them that are right."""
    tokens: int
    """Response tokens of this run, including those of unfinished candidates."""
    seconds: float
    """Since this run began."""
    rows: int
    """Rows at work."""
    held: int
    """Problems that have begun and are not in the store yet."""


@dataclass(frozen=True, slots=True)
class Collected:
    """A finished store, and the tokens and seconds of this run."""

    path: Path
    """The store."""
    problems: int
    """Problems in it."""
    candidates: int
    """Candidates in it."""
    correct: int
    """Candidates that are right."""
    mixed: int
    """Problems with right and with wrong candidates: the others say nothing about ranking."""
    tokens: int
    """Response tokens in it."""
    nbytes: int
    """Its size in bytes."""
    new_tokens: int
    """Response tokens of this run; 0 where the store was complete already."""
    new_prompt_tokens: int
    """Prompt tokens of this run."""
    total_s: float
    """Seconds of this run."""
    prefill_s: float
    """Seconds of this run spent reading tokens in one go."""
    decode_s: float
    """Seconds of this run spent running the graph, token by token."""
    sample_s: float
    """Seconds of this run spent drawing tokens and on their statistics."""
    head_s: float
    """Seconds of this run spent scoring, and copying features."""
    notes: tuple[str, ...]
    """What the caller should know, one line each."""

    @property
    def share_correct(self) -> float:
        """Share of candidates that are right."""
        return self.correct / self.candidates

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, ready for JSON."""
        return asdict(self) | {"path": str(self.path), "share_correct": self.share_correct, "notes": list(self.notes)}


class Collection:
    """One run that fills a store."""

    def __init__(
        self,
        writer: StoreWriter,
        report: Callable[[str], None],
        progress: Callable[[CollectProgress], None],
        notes: Sequence[str] = (),
    ) -> None:
        """Continue where the writer is."""
        self.tally = Tally()
        self._writer = writer
        self._report = report
        self._progress = progress
        self._notes = list(notes)
        self._problems_before = writer.done
        self._bytes_before = writer.nbytes
        self._started = time.perf_counter()
        self._total_s = 0.0

    def add(
        self, problem: Problem, candidates: Sequence[ReadCandidate], labels: Sequence[tuple[bool, str | None]]
    ) -> None:
        """Store a problem's candidates with their labels and extracted answers."""
        self._writer.add(
            problem.number,
            [_rows(problem, read, *label) for read, label in zip(candidates, labels, strict=True)],
        )
        if self._writer.done - self._problems_before == MEASURED_PROBLEMS:
            self._require_disk()

    def step(self) -> None:
        """Report progress."""
        writer, tally = self._writer, self.tally
        self._progress(
            CollectProgress(
                problems=writer.done,
                total=writer.info.problems,
                problems_before=self._problems_before,
                candidates=writer.candidates,
                correct=writer.correct,
                tokens=tally.tokens,
                seconds=time.perf_counter() - self._started,
                rows=tally.rows,
                held=tally.held,
            )
        )

    def keep_timings(self) -> None:
        """Stop the clock, and add the seconds of this run to those of earlier ones, in a file beside the store's."""
        self._total_s = time.perf_counter() - self._started
        if not self._writer.holds_store:
            return
        path = self._writer.path / TIMINGS_NAME
        try:
            before = read_timings(path.parent)
        except StoreError:  # times of earlier runs are not worth an error
            before = dict.fromkeys(_TIMINGS, 0)
        mine = {"runs": 1, "tokens": self.tally.tokens, "prompt_tokens": self.tally.prompt_tokens} | self._seconds()
        after = {name: value + before[name] for name, value in mine.items()}
        with contextlib.suppress(OSError):  # on a full disk, say, which is reported anyway
            write_whole(path, (json_text(after, indent=2) + "\n").encode())

    def summary(self) -> Collected:
        """The summary of a complete store."""
        writer = self._writer
        if writer.correct in (0, writer.candidates):
            which = "right" if writer.correct else "wrong"
            self._notes.append(
                f"all {writer.candidates} candidates are {which}: nothing can be learned from one class alone; "
                "collect on other problems, or with other sampling options"
            )
        elif not writer.mixed:
            self._notes.append(
                "no problem has both right and wrong candidates, so that nothing can be learned about ranking; "
                "collect more candidates per problem, or on other problems"
            )
        for note in self._notes:
            self._report(f"note: {note}")
        return Collected(
            path=writer.path,
            problems=writer.done,
            candidates=writer.candidates,
            correct=writer.correct,
            mixed=writer.mixed,
            tokens=writer.tokens,
            nbytes=writer.nbytes,
            new_tokens=self.tally.tokens,
            new_prompt_tokens=self.tally.prompt_tokens,
            notes=tuple(self._notes),
            **self._seconds(),
        )

    def _seconds(self) -> dict[str, float]:
        watch = self.tally.watch
        return {
            "total_s": self._total_s,
            "prefill_s": watch.prefill_s,
            "decode_s": watch.decode_s,
            "sample_s": watch.sample_s,
            "head_s": watch.head_s,
        }

    def _require_disk(self) -> None:
        """Raise `DiskSpaceError` if the remaining problems do not fit, estimated from those of this run."""
        writer = self._writer
        mean = (writer.nbytes - self._bytes_before) / (writer.done - self._problems_before)
        left = writer.info.problems - writer.done
        what = (
            f"storing {left} more problems at {size_text(round(mean))} each, "
            "which fewer --layers or --tokens-per-candidate make smaller,"
        )
        require_disk(writer.path, round(mean * left), what)


def read_timings(folder: Path) -> dict[str, float]:
    """Seconds and tokens of all runs that filled a store, by name; 0 where none are kept.

    Raises `StoreError` for a file that is damaged.
    """
    path = folder / TIMINGS_NAME
    try:
        document = read_json(path)
        read_value(document, Mapping[str, float], "it")
        return {name: document[name] for name in _TIMINGS}
    except FileNotFoundError:
        return dict.fromkeys(_TIMINGS, 0)
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"{path} does not read ({error!r:.200}); delete it, and the times are left out") from error


def require_disk_or_warn(path: Path, needed: int, report: Callable[[str], None]) -> None:
    """Warn if the most that a store may need is more than is free; it is no error, as most candidates are shorter."""
    report(f"at most {size_text(needed)} of disk")
    try:
        require_disk(path, needed, "the store")
    except DiskSpaceError as error:
        report(
            f"warning: only {size_text(error.available)} are free; going on, and estimating again after "
            f"{MEASURED_PROBLEMS} problems: fewer --layers or --tokens-per-candidate make the store smaller"
        )


def _rows(problem: Problem, read: ReadCandidate, correct: bool, answer: str | None) -> CandidateRows:
    """A candidate in the form that the store takes."""
    candidate = read.candidate
    stored = StoredCandidate(
        problem=problem.number,
        index=candidate.index,
        correct=correct,
        answer=answer,
        text=candidate.text,
        token_ids=candidate.token_ids,
        tokens=len(read.positions),
        n_tokens=candidate.n_tokens,
        finish_reason=candidate.finish_reason,
        unscored_tokens=candidate.unscored_tokens,
        logprob=candidate.logprob,
        mean_logprob=candidate.mean_logprob,
        self_certainty=np.nan if candidate.self_certainty is None else candidate.self_certainty,
        entropy=read.entropy,
        scores=read.scores,
        running=read.running,
        distances=read.distances,
        prompt_hash=prompt_hash(problem.question),
        cut_off=candidate.cut_off,
    )
    return CandidateRows(stored, read.states, read.statistics, read.positions)
