"""llama.cpp through its Python binding: the prompt read once, its sequence copied, one token per sequence and step.

    python worker_llama.py FILE.gguf --threads 2

The sampler chain is its own: top-k 40, then top-p, then the temperature, then the draw.
"""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llama_cpp as lib
from worker import Answer, Generate, Request, arguments_of, serve

TOP_K = 40
UBATCH_TOKENS = 512
NOTES = (
    f"its own sampler chain: top-k {TOP_K}, top-p, temperature, draw",
    "a context that fits the request is made before the clock starts, as a server would have one",
    "rows that have reached their length leave the batch; the longest candidates have the lowest sequence numbers, "
    "so that those that go on stay next to each other, which its cache wants",
    "embedding and output layer are packed in the type of the other matrices",
)


@dataclass(slots=True)
class Llama:
    """The model, and the context of the last request."""

    model: Any
    """Its weights."""
    threads: int
    """Threads of prefill and decode."""
    context: Any = None
    """Cache and buffers."""
    room: tuple[int, int] = (0, 0)
    """Sequences of the context, and tokens of each."""
    samplers: list[Any] = field(default_factory=list)
    """A chain for each sequence of the request."""

    def make_room(self, rows: int, tokens: int) -> None:
        """Have an empty context for `rows` sequences of `tokens` tokens."""
        if self.room != (rows, tokens):
            if self.context is not None:
                lib.llama_free(self.context)
            parameters = lib.llama_context_default_params()
            parameters.n_ctx = rows * -(-tokens // 256) * 256
            parameters.n_batch = parameters.n_ctx
            parameters.n_ubatch = UBATCH_TOKENS
            parameters.n_seq_max = parameters.n_outputs_max = rows
            parameters.n_threads = parameters.n_threads_batch = self.threads
            parameters.no_perf = True
            self.context = lib.llama_init_from_model(self.model, parameters)
            self.room = (rows, tokens)
            if not self.context:
                raise RuntimeError(f"no context for {rows} sequences of {tokens} tokens")
        lib.llama_memory_clear(lib.llama_get_memory(self.context), True)

    def make_samplers(self, request: Request) -> None:
        """Have a chain per sequence, each with random numbers of its own."""
        for sampler in self.samplers:
            lib.llama_sampler_free(sampler)
        self.samplers = []
        for number in range(request.n):
            chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
            for sampler in (
                lib.llama_sampler_init_top_k(TOP_K),
                lib.llama_sampler_init_top_p(request.top_p, 1),
                lib.llama_sampler_init_temp(request.temperature),
                lib.llama_sampler_init_dist(request.seed * 1000 + number),
            ):
                lib.llama_sampler_chain_add(chain, sampler)
            self.samplers.append(chain)

    def decode(self, batch: Any) -> None:
        """Run the model."""
        if (status := lib.llama_decode(self.context, batch)) != 0:
            raise RuntimeError(f"llama_decode returned {status}")


def open_model(path: Path, threads: int) -> Generate:
    """Load the file."""
    lib.llama_backend_init()
    parameters = lib.llama_model_default_params()
    parameters.n_gpu_layers = 0
    model = lib.llama_model_load_from_file(str(path).encode(), parameters)
    if not model:
        raise SystemExit(f"llama.cpp does not load {path}")
    llama = Llama(model, threads)
    return lambda request: generate(llama, request)


def generate(llama: Llama, request: Request) -> Answer:
    """Write the candidates."""
    prompt_tokens = len(request.prompt_ids)
    llama.make_room(request.n, prompt_tokens + request.longest)
    llama.make_samplers(request)
    batch = lib.llama_batch_init(max(prompt_tokens, request.n), 0, 1)
    begun = time.perf_counter()
    for place, token_id in enumerate(request.prompt_ids):
        put(batch, place, token_id, place, 0, last=place == prompt_tokens - 1)
    batch.n_tokens = prompt_tokens
    llama.decode(batch)
    memory = lib.llama_get_memory(llama.context)
    for number in range(1, request.n):
        lib.llama_memory_seq_cp(memory, 0, number, -1, -1)
    # Reading the logits waits for the graph.
    lib.llama_get_logits_ith(llama.context, -1)
    prefilled = time.perf_counter()
    sample_s = 0.0
    lengths = sorted(request.lengths, reverse=True)
    candidates: list[list[int]] = [[] for _ in lengths]
    for step in range(request.longest):
        live = sum(length > step for length in lengths)
        before = time.perf_counter()
        for number in range(live):
            token_id = lib.llama_sampler_sample(llama.samplers[number], llama.context, number if step else -1)
            put(batch, number, token_id, prompt_tokens + step, number, last=True)
            candidates[number].append(token_id)
        sample_s += time.perf_counter() - before
        batch.n_tokens = sum(length > step + 1 for length in lengths)  # a candidate's last token is not fed
        if batch.n_tokens:
            llama.decode(batch)
            lib.llama_get_logits_ith(llama.context, -1)
    done = time.perf_counter()
    lib.llama_batch_free(batch)
    sampled = sum(request.lengths)
    return Answer(candidates, done - begun, prefilled - begun, done - prefilled, sampled, parts={"sample_s": sample_s})


def put(batch: Any, place: int, token_id: int, position: int, sequence: int, *, last: bool) -> None:
    """Set an entry of a batch; logits are wanted after the `last` token of a sequence."""
    batch.token[place] = token_id
    batch.pos[place] = position
    batch.n_seq_id[place] = 1
    batch.seq_id[place][0] = ctypes.c_int32(sequence)
    batch.logits[place] = last


if __name__ == "__main__":
    arguments = arguments_of(__doc__)
    serve(lambda: open_model(arguments.model, arguments.threads), ("llama-cpp-python",), NOTES)
