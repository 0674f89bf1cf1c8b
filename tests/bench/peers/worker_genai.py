"""onnxruntime-genai: a batch of N equal prompts, the last hidden state read at each step.

python worker_genai.py MODEL --threads 2
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import onnxruntime_genai as og
from worker import Answer, Generate, Request, arguments_of, serve

NOTES = (
    "its way to N candidates is a batch of N equal prompts: the prompt is read N times",
    "a row cannot leave: candidates that have reached their length run on to the longest",
    "the last hidden state is read at each step and nothing is made of it",
)


def open_model(folder: Path, threads: int) -> Generate:
    """Open a folder of its builder."""
    config = og.Config(str(folder))
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = og.Model(config)
    return lambda request: generate(model, request)


def generate(model: og.Model, request: Request) -> Answer:
    """Write the candidates, all to the longest."""
    begun = time.perf_counter()
    end = len(request.prompt_ids) + request.longest
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(
        batch_size=request.n,
        min_length=end,  # so that no token ends a candidate
        max_length=end,
        do_sample=True,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=0,
        random_seed=request.seed,
    )
    generator = og.Generator(model, parameters)
    generator.append_tokens(np.tile(np.array(request.prompt_ids, np.int32), (request.n, 1)))  # [n, p]
    prefilled = time.perf_counter()
    steps = 0
    while not generator.is_done():
        generator.generate_next_token()
        states = generator.get_output("hidden_states")  # [n, s, d]
        steps += 1
    done = time.perf_counter()
    if states.shape[0] != request.n:
        raise RuntimeError(f"states of shape {states.shape} for {request.n} candidates")
    starts = len(request.prompt_ids)
    candidates = [
        generator.get_sequence(row)[starts : starts + length].tolist() for row, length in enumerate(request.lengths)
    ]
    return Answer(candidates, done - begun, prefilled - begun, done - prefilled, request.n * steps)


if __name__ == "__main__":
    arguments = arguments_of(__doc__)
    serve(lambda: open_model(arguments.model, arguments.threads), ("onnxruntime-genai", "onnxruntime", "numpy"), NOTES)
