"""Labelled candidates with the inputs of their tokens: gathered from stores, split by problem, surveyed and pooled.

Tokens are always read in blocks.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from swift_edge.errors import StoreError
from swift_edge.training.fitting.inputs import ArrayRows, Inputs, Rows, Runs, TokenRows, starts_of
from swift_edge.training.store.writer import Store

_LARGEST_BLOCK: Final = 2**22
"""Numbers in a block; 16 MiB of float32 are read and multiplied while they are in the cache."""
_COMPATIBLE: Final = ("fingerprint", "precision", "feature", "layers", "width", "eos_ids")
"""Settings that stores must share to be used together."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Labels of the candidates of whole problems, and where their tokens lie; c candidates, p problems."""

    correct: NDArray[np.bool_]  # [c]
    """The labels."""
    answers: tuple[str | None, ...]  # [c]
    """The answers as the task extracted them."""
    problems: NDArray[np.int64]  # [c]
    """Which problem each belongs to, in runs: 0, 0, ..., 1, 1, ..., p - 1."""
    shard: NDArray[np.int64]  # [c]
    """Which of the shards holds its tokens."""
    begins: NDArray[np.int64]  # [c]
    """Its first row there."""
    tokens: NDArray[np.int64]  # [c]
    """Its rows, at least one."""
    prompts: tuple[str | None, ...]  # [p]
    """Hash of each problem's prompt; None in a store of an earlier version."""
    cut_off: NDArray[np.bool_]  # [c]
    """Whether it was cut off: it is then no evidence of what scores are worth."""
    without_tokens: int
    """Candidates left out because no token of theirs counts."""
    signals: NDArray[np.float64]  # [c, 2]
    """Mean log-probability and self-certainty, by which it could be picked without labels."""
    left_out: int = 0
    """Candidates left out because they were cut off: whether they would have been right is not known."""

    def arranged(self, order: NDArray[np.int64]) -> "Candidates":
        """Only the problems of `order`, in that order, numbered anew."""
        bounds = np.searchsorted(self.problems, np.stack([order, order + 1]))
        members = np.concatenate([np.arange(begin, end) for begin, end in bounds.T] or [np.zeros(0, np.int64)])
        return self.chosen(members, np.repeat(np.arange(len(order)), np.diff(bounds, axis=0)[0]), order)

    def chosen(
        self, members: NDArray[np.int64], numbers: NDArray[np.int64], problems: NDArray[np.int64]
    ) -> "Candidates":
        """Only the candidates `members` `[m]`, of the problems `problems` `[q]`, which have the new `numbers` `[m]`."""
        return replace(
            self,
            correct=self.correct[members],
            answers=tuple(self.answers[member] for member in members),
            problems=numbers.astype(np.int64),
            shard=self.shard[members],
            begins=self.begins[members],
            tokens=self.tokens[members],
            prompts=tuple(self.prompts[problem] for problem in problems),
            cut_off=self.cut_off[members],
            signals=self.signals[members],
        )


def without_cut_off(candidates: Candidates, train: range) -> tuple[Candidates, range]:
    """Leave out what was cut off in the problems `train`, which come first, and the problems of which nothing is left.

    A response that was cut off is never picked where another was not: to learn what it looks like would teach a head
    what no pick asks. Returns the candidates, and the range of the training problems among them.
    """
    out = (candidates.problems < train.stop) & candidates.cut_off
    if not out.any():
        return candidates, train
    members = np.flatnonzero(~out)
    kept, numbers = np.unique(candidates.problems[members], return_inverse=True)
    whole = replace(candidates.chosen(members, numbers, kept), left_out=int(out.sum()))
    return whole, range(int((kept < train.stop).sum()))


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Candidates with the inputs of their tokens, in order; problem i owns candidates problem_starts[i:i + 2]."""

    candidates: Candidates
    """The labels."""
    rows: Rows
    """The tokens of all candidates, one after the other."""
    starts: NDArray[np.int64]  # [c + 1]
    """Candidate i owns the rows starts[i] to starts[i + 1]."""
    problem_starts: NDArray[np.int64]  # [p + 1]
    """Where problems start among the candidates."""
    block_rows: int
    """Most rows to read at once."""

    @classmethod
    def of(cls, candidates: Candidates, rows: Rows, memory_bytes: int) -> "Examples":
        """Put candidates and their rows together."""
        block = max(1, min(_LARGEST_BLOCK, memory_bytes // 64) // rows.inputs)
        problems = int(candidates.problems[-1]) + 1 if len(candidates.problems) else 0
        problem_starts = np.searchsorted(candidates.problems, np.arange(problems + 1))
        return cls(candidates, rows, starts_of(candidates.tokens), problem_starts, block)

    def members(self, problems: range) -> slice:
        """The candidates of a range of problems."""
        return slice(int(self.problem_starts[problems.start]), int(self.problem_starts[problems.stop]))

    def groups(self, problems: range) -> Iterator[range]:
        """Runs of whole problems whose rows fit into a block, or one problem alone that does not."""
        ends = self.starts[self.problem_starts]  # [p + 1]
        begin = problems.start
        while begin < problems.stop:
            fitting = int(np.searchsorted(ends, ends[begin] + self.block_rows, side="right")) - 1
            end = min(max(begin + 1, fitting), problems.stop)
            yield range(begin, end)
            begin = end

    def blocks(self, problems: range) -> Iterator[slice]:
        """The rows of some problems in blocks."""
        members = self.members(problems)
        begin, end = int(self.starts[members.start]), int(self.starts[members.stop])
        return (slice(at, min(at + self.block_rows, end)) for at in range(begin, end, self.block_rows))


def check_stores(stores: Sequence[Store], inputs: Inputs) -> list[int]:
    """Check that the stores belong together and hold the inputs; returns the places of the layers in their states.

    Raises `StoreError` naming the setting in which two stores differ, the layers that are not there, or the store
    without features.
    """
    first = stores[0]
    if first.info.feature == "none":
        raise StoreError(f"{first.path} was collected without features; collect again with some: --feature hidden")
    for other in stores[1:]:
        for name in _COMPATIBLE:
            ours, theirs = getattr(first.info, name), getattr(other.info, name)
            if ours != theirs:
                raise StoreError(
                    f"{first.path} has {name} {ours!r}, {other.path} has {theirs!r}; expected stores of one model and "
                    "the same settings: fit them apart"
                )
    for place, store in enumerate(stores):
        if any(store.info.difference(other.info) is None for other in stores[:place]):
            raise StoreError(f"{store.path} holds the same candidates as another of the stores; name each once")
    if first.info.feature == "logits":
        if inputs.layers:
            raise StoreError(f"{first.path} holds logits, layers {list(inputs.layers)} are asked for; leave them out")
        return [0]
    missing = [layer for layer in inputs.layers if layer not in first.info.layers]
    if missing:
        raise StoreError(
            f"{first.path} holds hidden states {_listed(first.info.layers)}, but {_listed(missing)} are asked for; "
            "choose among those it holds, or collect again with --layers"
        )
    return [first.info.layers.index(layer) for layer in inputs.layers]


def read_candidates(stores: Sequence[Store], includes_eos: bool) -> Candidates:
    """The candidates of all stores by problem; stores of the same data file share its problems, as do those that ask
    the same in other files, or in parts of one that overlap: a problem must not stand on both sides of a split.

    Without `includes_eos` the EOS at the end of a response does not count. A candidate without any token that counts
    is left out. Shards are numbered through all stores.
    """
    by_problem: dict[tuple[str, int], list[tuple[bool, str | None, int, int, int, bool, float, float]]] = {}
    prompts: dict[tuple[str, int], str | None] = {}
    owners: dict[str, tuple[str, int]] = {}  # the first data in which a prompt was met, and its place there
    without_tokens = shard_number = 0
    for store in stores:
        data = store.info.data_sha256 or str(Path(store.path).resolve())
        for shard in store.shards:
            shard.require_whole()
            ends = np.isin(shard.token_ids, () if includes_eos else store.info.eos_ids)
            for place, candidate in enumerate(shard.candidates):
                begin, end = int(shard.starts[place]), int(shard.starts[place + 1])
                tokens = end - begin - bool(end > begin and ends[end - 1])
                if not tokens:
                    without_tokens += 1
                    continue
                signals = (candidate.mean_logprob, candidate.self_certainty)
                entry = (candidate.correct, candidate.answer, shard_number, begin, tokens, candidate.cut_off, *signals)
                key = (data, candidate.problem)
                if candidate.prompt_hash is not None:
                    owner = owners.setdefault(candidate.prompt_hash, key)
                    key = key if owner[0] == data else owner
                by_problem.setdefault(key, []).append(entry)
                prompts[key] = candidate.prompt_hash
            shard_number += 1
    entries = [entry for key in sorted(by_problem) for entry in by_problem[key]]
    columns = list(zip(*entries, strict=True)) if entries else [()] * 8
    lengths = [len(by_problem[key]) for key in sorted(by_problem)]
    return Candidates(
        correct=np.array(columns[0], np.bool_),
        answers=tuple(columns[1]),
        problems=np.repeat(np.arange(len(lengths)), lengths),
        shard=np.array(columns[2], np.int64),
        begins=np.array(columns[3], np.int64),
        tokens=np.array(columns[4], np.int64),
        prompts=tuple(prompts[key] for key in sorted(by_problem)),
        cut_off=np.array(columns[5], np.bool_),
        signals=np.array(columns[6:], np.float64).T.reshape(-1, 2),
        without_tokens=without_tokens,
    )


def read_examples(
    stores: Sequence[Store], candidates: Candidates, inputs: Inputs, places: Sequence[int], memory_bytes: int
) -> Examples:
    """The candidates with their tokens; memory for blocks and, where they fit, for all inputs is `memory_bytes`."""
    shards = [shard for store in stores for shard in store.shards]
    runs = Runs(candidates.shard, candidates.begins, candidates.tokens)
    rows = TokenRows(shards, runs, inputs, places)
    examples = Examples.of(candidates, rows, memory_bytes)
    # Not everything: pooled inputs, the blocks at work and the optimiser have their share.
    spare = memory_bytes - memory_bytes // 8 - pooled_bytes(examples, memory_bytes)
    rows.hold(spare, examples.block_rows)
    return examples


@dataclass(frozen=True, slots=True)
class Split:
    """Ranges of problems, once they are in the order that came with this."""

    train: range
    """Problems that weights are fitted to."""
    validation: range
    """Problems that choose among weights."""
    calibration: range
    """Problems that the calibration is fitted to; may be empty."""


def split_problems(
    both: NDArray[np.bool_], validation_share: float, calibration_share: float, seed: int
) -> tuple[NDArray[np.int64], Split]:
    """Deal problems into three parts; `both` `[p]` says which have correct and wrong candidates.

    Those that have both are dealt apart from the others, so that each part gets its share of them. Training keeps at
    least two of them; the other parts get at least one each where enough are left. Returns the order of the problems,
    and the parts as ranges of that order; each part is in the problems' own order, as they lie on disk.
    """
    random = np.random.default_rng(seed)
    parts: list[list[NDArray[np.int64]]] = [[], [], []]
    for kind, least in ((np.flatnonzero(both), 2), (np.flatnonzero(~both), 0)):
        dealt = random.permutation(kind)
        left = max(0, len(dealt) - least)
        sizes = [
            max(round(share * len(dealt)), math.ceil(share) if least else 0)
            for share in (validation_share, calibration_share)
        ]
        # Validation comes first, but does not take the last one that calibration could have.
        validation = min(sizes[0], max(min(left, 1), left - min(sizes[1], 1)))
        counts = [validation, min(sizes[1], left - validation)]
        bounds = np.cumsum([0, *counts])
        parts[1].append(dealt[bounds[0] : bounds[1]])
        parts[2].append(dealt[bounds[1] : bounds[2]])
        parts[0].append(dealt[bounds[2] :])
    sorted_parts = [np.sort(np.concatenate(part)) for part in parts]
    ends = np.cumsum([len(part) for part in sorted_parts]).tolist()
    split = Split(range(ends[0]), range(ends[0], ends[1]), range(ends[1], ends[2]))
    return np.concatenate(sorted_parts).astype(np.int64), split


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """What one pass over the tokens tells."""

    mean: NDArray[np.float64]  # [f]
    """Mean of each input."""
    scale: NDArray[np.float64]  # [f]
    """Standard deviation of each input; 1 for a constant, and no less than float16 can tell apart."""
    pooled: Examples | None
    """Each candidate as one row, the mean of its tokens; None where they were not asked for."""


def pooled_bytes(examples: Examples, memory_bytes: int) -> int:
    """Bytes that the pooled inputs take; 0 where they are more than a quarter of `memory_bytes` and not to be kept."""
    needed = len(examples.candidates.tokens) * examples.rows.inputs * 4
    return needed if needed <= memory_bytes // 4 else 0


def survey(examples: Examples, measured: range, stores: Sequence[Store], *, pool: bool) -> Survey:
    """Mean and scale over the tokens of the problems `measured`; and, if `pool`, the mean input of every candidate.

    Every token is looked at: raises `StoreError`, which names shard and candidate, for an input that is not finite.
    """
    inputs, everything = examples.rows.inputs, range(len(examples.problem_starts) - 1)
    mean, squares, count = np.zeros(inputs), np.zeros(inputs), 0
    tokens = examples.candidates.tokens
    sums = np.zeros((len(tokens) if pool else 0, inputs), np.float32)
    for part in (measured, *_outside(measured, everything)):
        for group in examples.groups(part):
            for block in examples.blocks(group):
                rows = examples.rows.read(block.start, block.stop)
                if not np.isfinite(rows).all():
                    raise _not_finite(examples, block.start + int(np.argwhere(~np.isfinite(rows))[0, 0]), stores)
                if part is measured:
                    # The sums of squares about the mean of a block are joined as Chan, Golub and LeVeque do.
                    level = rows.mean(axis=0, dtype=np.float64)
                    centred = rows - level.astype(np.float32)
                    drift = centred.mean(axis=0, dtype=np.float64)
                    spread = np.einsum("mf,mf->f", centred, centred) - len(rows) * drift**2
                    apart, whole = level - mean, count + len(rows)
                    squares += spread + apart**2 * (count * len(rows) / whole)
                    mean += apart * (len(rows) / whole)
                    count = whole
                if pool:
                    first, last = np.searchsorted(examples.starts, [block.start, block.stop - 1], side="right") - 1
                    begins = np.maximum(examples.starts[first : last + 1] - block.start, 0)
                    sums[first : last + 1] += np.add.reduceat(rows, begins, axis=0, dtype=np.float64).astype(np.float32)
    deviation = np.sqrt(np.maximum(squares, 0.0) / max(count, 1))
    # Half a step of float16 at the size of the mean; what varies by less is rounding, and must not be blown up.
    scale = np.maximum(deviation, np.abs(mean) * 2.0**-12)
    scale[deviation < 1e-30] = 1.0
    pooled = None
    if pool:
        sums /= tokens[:, np.newaxis].astype(np.float32)
        ones = replace(examples.candidates, tokens=np.ones_like(tokens))
        pooled = replace(examples, candidates=ones, rows=ArrayRows(sums), starts=np.arange(len(tokens) + 1))
    return Survey(mean, scale, pooled)


def _outside(measured: range, everything: range) -> tuple[range, range]:
    return range(everything.start, measured.start), range(measured.stop, everything.stop)


def _not_finite(examples: Examples, row: int, stores: Sequence[Store]) -> StoreError:
    rows = examples.rows
    assert isinstance(rows, TokenRows)
    number, place = rows.place_of(row)
    for store in stores:
        if number < len(store.shards):
            break
        number -= len(store.shards)
    shard = store.shards[number]
    candidate = shard.candidates[int(np.searchsorted(shard.starts, place, side="right")) - 1]
    return StoreError(
        f"shard {number} of {store.path} holds a feature that is not finite, in candidate {candidate.index} of "
        f"problem {candidate.problem}; expected numbers: delete the files of this shard and of all later ones, and run "
        "the same collect again"
    )


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"
