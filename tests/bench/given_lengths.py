"""Picks whose candidates end at lengths that are told beforehand, and at no other."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

from swift_edge.arrays import Ids
from swift_edge.engine.request import Finished, Orders, Step
from swift_edge.handle import Handle, Outbox
from swift_edge.selection.pick import Pick
from swift_edge.selection.planning import PlannedPick


class PickOfLengths(Pick):
    """Ends each candidate when it has as many tokens as it is to have; `stop_ids` of the plan should be empty."""

    lengths: Sequence[int]
    """Tokens of each candidate."""

    def step(self, step: Step) -> Orders | None:
        """End those that are long enough: their last token has been fed like any other."""
        written = self.__dict__.setdefault("_written", [0] * len(self.lengths))
        ended = []
        for index in step.candidates:
            written[index] += 1
            if written[index] == self.lengths[index]:
                ended.append(index)
        known = {end.candidate for end in step.finished}
        ends = tuple(Finished(index, "length", 0) for index in ended if index not in known)
        return super().step(dataclasses.replace(step, finished=(*step.finished, *ends)))


def begin_of_lengths(planned: PlannedPick, prompt_ids: Ids, lengths: Sequence[int], *, key: object = None) -> Handle:
    """Submit a pick for a prompt of token ids, whose candidates have these lengths."""
    outbox = Outbox()
    pick = PickOfLengths(planned, prompt_ids, started=time.perf_counter(), key=key, done=outbox.done)
    pick.lengths = lengths
    return Handle(planned.model.engine, pick.generation, pick, outbox, pick.selection)
