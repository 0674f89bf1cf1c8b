"""swift-edge: one prefill, a row per candidate, a random head over all hidden states.

    python worker_swift_edge.py BUNDLE --threads 2

Candidates of one length are picked as `swift-edge bench` does it. Where each has a length of its own, the pick ends it
there, as an EOS would.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path

import numpy as np
from worker import Answer, Generate, Request, arguments_of, serve

from swift_edge.evaluation.benchmark import Shape, planned_shape, random_head
from swift_edge.handle import begin
from swift_edge.selection.planning import Planner

sys.path.append(str(Path(__file__).parents[1]))
from given_lengths import begin_of_lengths

NOTES = (
    "a random head over all hidden states scores every token in the same pass",
    "decoding includes sampling, the head and the candidates' texts",
)


def open_model(bundle: Path, threads: int) -> Generate:
    """Open the bundle with a random head."""
    planner = Planner.open(str(bundle), threads=threads)
    planner = dataclasses.replace(planner, head=random_head(planner.model.bundle.manifest), head_name=None)

    def generate(request: Request) -> Answer:
        shape = Shape(request.n, len(request.prompt_ids), request.longest)
        planned = planned_shape(planner, shape, request.seed, temperature=request.temperature, top_p=request.top_p)
        prompt_ids = np.array(request.prompt_ids, np.int64)
        begun = time.perf_counter()
        if request.is_fixed:
            handle = begin(planned, prompt_ids, watched=False, started=begun)
        else:
            handle = begin_of_lengths(planned, prompt_ids, request.lengths)
        selection = handle.result()
        total_s = time.perf_counter() - begun
        timings = selection.timings
        return Answer(
            [list(candidate.token_ids) for candidate in selection.candidates],
            total_s,
            timings.prefill_s,
            total_s - timings.prefill_s,
            selection.usage.completion_tokens,
            parts={"graph_s": timings.decode_s, "sample_s": timings.sample_s, "head_s": timings.head_s},
        )

    return generate


if __name__ == "__main__":
    arguments = arguments_of(__doc__)
    serve(
        lambda: open_model(arguments.model, arguments.threads),
        ("swift-edge", "onnxruntime", "numpy", "tokenizers"),
        NOTES,
    )
