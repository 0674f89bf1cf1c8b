"""swift-edge: one prefill, a row per candidate, a random head over all hidden states.

    python worker_swift_edge.py BUNDLE --threads 2

Candidates of one length are picked as `swift-edge bench` does it. A pick has no way of ending single candidates by a
length of their own, where an EOS would; for drawn lengths they are dropped from the same batch by hand.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
from worker import Answer, Generate, Request, arguments_of, serve

from swift_edge.engine.model import OpenedModel
from swift_edge.engine.rows import DecodeLoop
from swift_edge.engine.scheduler import ContinuousBatch
from swift_edge.evaluation.benchmark import Shape, random_head, work_of
from swift_edge.results import Picked
from swift_edge.scoring.candidate import GrowingCandidate, PendingTokens
from swift_edge.selection.pick import Request as PickRequest
from swift_edge.selection.pick import Work, pick_each

NOTES = (
    "a random head over all hidden states scores every token in the same pass",
    "decoding includes sampling, the head and the candidates' texts",
)


def open_model(bundle: Path, threads: int) -> Generate:
    """Open the bundle with a random head."""
    opened = OpenedModel.open(str(bundle), None, None, threads)
    opened = dataclasses.replace(opened, head=random_head(opened.bundle.manifest), head_name=None)

    def generate(request: Request) -> Answer:
        shape = Shape(request.n, len(request.prompt_ids), request.longest)
        work = work_of(opened, str(bundle), shape, request.seed, temperature=request.temperature, top_p=request.top_p)
        return (pick if request.is_fixed else pick_drawn)(work, request)

    return generate


def pick(work: Work, request: Request) -> Answer:
    """Make one pick of candidates that are equally long."""
    begun = time.perf_counter()
    asked = PickRequest.of_ids(work, np.array(request.prompt_ids, np.int64), begun, 0.0)
    (picked,) = (event for _, event in pick_each(work, iter((asked,)), watched=False) if isinstance(event, Picked))
    total_s = time.perf_counter() - begun
    timings = picked.selection.timings
    return Answer(
        [list(candidate.token_ids) for candidate in picked.selection.candidates],
        total_s,
        timings.prefill_s,
        total_s - timings.prefill_s,
        picked.selection.usage.completion_tokens,
        parts={"graph_s": timings.decode_s, "sample_s": timings.sample_s, "head_s": timings.head_s},
    )


def pick_drawn(work: Work, request: Request) -> Answer:
    """Write and score candidates that leave the batch at lengths of their own."""
    begun = time.perf_counter()
    session, ranking = work.opened.session, work.ranking
    loop = DecodeLoop(session, work.sampling, (), request.longest, layers=ranking.layers, statistics=ranking.statistics)
    batch = ContinuousBatch(session, loop, rows=request.n)
    queued = batch.submit(np.array(request.prompt_ids, np.int64), range(request.n), request.seed)
    growing = {
        number: GrowingCandidate(index, ranking, work.opened.tokenizer) for index, number in enumerate(queued.numbers)
    }
    remaining = dict(zip(queued.numbers, request.lengths, strict=True))
    pending = PendingTokens(ranking, growing, gather=True, with_tokens=True)
    for step in batch.steps():
        pending.add(step)
        for number in step.candidates:
            remaining[number] -= 1
            if not remaining[number]:
                batch.drop(number)
    pending.count()
    finished = [candidate.finish("length", 0) for candidate in growing.values()]
    max(finished, key=lambda candidate: candidate.score)
    total_s = time.perf_counter() - begun
    return Answer(
        [list(candidate.token_ids) for candidate in finished],
        total_s,
        queued.prefill_s,
        total_s - queued.prefill_s,
        sum(request.lengths),
        parts={"graph_s": loop.decode_s, "sample_s": loop.sample_s, "head_s": pending.head_s},
    )


if __name__ == "__main__":
    arguments = arguments_of(__doc__)
    serve(
        lambda: open_model(arguments.model, arguments.threads),
        ("swift-edge", "onnxruntime", "numpy", "tokenizers"),
        NOTES,
    )
