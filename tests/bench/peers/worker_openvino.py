"""OpenVINO GenAI: its continuous batching, one request with N sequences, or N requests where lengths differ.

python worker_openvino.py FOLDER --threads 2
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import openvino as ov
import openvino_genai as genai
from worker import Answer, Generate, Request, arguments_of, serve

CACHE_GIB = 1
NOTES = (
    "candidates of one length are one request with num_return_sequences",
    "candidates of drawn lengths are requests of their own, begun when the first has read the prompt, which the others "
    "find in its prefix cache",
    "keys and values are kept in 8 bits, its own choice on a CPU",
    f"its cache of {CACHE_GIB} GiB keeps earlier prompts, so that its memory grows with the requests up to that",
    "prefill is the time until the first token",
)


def open_model(folder: Path, threads: int) -> Generate:
    """Open the pipeline, without a tokenizer."""
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = CACHE_GIB
    scheduler.enable_prefix_caching = True
    pipeline = genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads})
    return lambda request: generate(pipeline, scheduler.max_num_batched_tokens, request)


def generate(pipeline: genai.ContinuousBatchingPipeline, most_tokens: int, request: Request) -> Answer:
    """Write the candidates; a step reads at most `most_tokens` of the prompt."""
    begun = time.perf_counter()
    prompt = ov.Tensor(np.array([request.prompt_ids], np.int64))  # [1, p]
    if request.is_fixed:
        first, others = options(request, request.longest, request.n), []
    else:
        first, *others = [options(request, length, 1) for length in request.lengths]
    handles = [pipeline.add_request(0, prompt, first)]
    for _ in range(0, len(request.prompt_ids), most_tokens):
        pipeline.step()
    prefilled = time.perf_counter()
    handles += [pipeline.add_request(number, prompt, other) for number, other in enumerate(others, start=1)]
    while pipeline.has_non_finished_requests():
        pipeline.step()
    outputs = [output for handle in handles for output in handle.read_all()]
    done = time.perf_counter()
    candidates = [list(output.generated_ids) for output in outputs]
    return Answer(candidates, done - begun, prefilled - begun, done - prefilled, sum(map(len, candidates)))


def options(request: Request, length: int, n: int) -> genai.GenerationConfig:
    """How candidates of one length are written."""
    config = genai.GenerationConfig()
    config.max_new_tokens = length
    config.ignore_eos = True
    config.num_return_sequences = n
    config.do_sample = True
    config.temperature = request.temperature
    config.top_p = request.top_p
    config.rng_seed = request.seed
    return config


if __name__ == "__main__":
    arguments = arguments_of(__doc__)
    serve(lambda: open_model(arguments.model, arguments.threads), ("openvino-genai", "openvino"), NOTES)
