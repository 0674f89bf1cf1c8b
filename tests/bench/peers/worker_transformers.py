"""SWIFT's own way: `generate`, then a second forward over prompt and response for the states, then the head.

    python worker_transformers.py CHECKPOINT --threads 2 --dtype bfloat16

The second pass takes one candidate at a time, as SWIFT's own script does; unlike there it computes no logits, which
would only be thrown away.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, StoppingCriteria
from worker import Answer, Generate, Request, arguments_of, serve

NOTES = (
    "candidates that have reached their length run on to the longest: generate keeps its batch",
    "prefill is the time until the first token",
    "the second pass keeps the logits of one position only (SWIFT's own script computes all of them)",
)


class EndsAt(StoppingCriteria):
    """Ends each row at a length of its own, and notes when the first token came."""

    def __init__(self, request: Request) -> None:
        self.first_token = 0.0
        self._ends = torch.tensor(request.lengths) + len(request.prompt_ids)  # [n]

    def __call__(self, input_ids: torch.Tensor, _scores: object, **_kwargs: object) -> torch.Tensor:
        """Which rows have ended `[n]`."""
        self.first_token = self.first_token or time.perf_counter()
        return self._ends <= input_ids.shape[1]


def open_model(checkpoint: Path, dtype: torch.dtype, threads: int) -> Generate:
    """Load the checkpoint and a random head over all its hidden states."""
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype).eval()
    model.generation_config.eos_token_id = None
    config = model.config
    head = nn.Linear((config.num_hidden_layers + 1) * config.hidden_size, 2).to(dtype)
    return lambda request: generate(model, head, request)


@torch.inference_mode()
def generate(model: PreTrainedModel, head: nn.Linear, request: Request) -> Answer:
    """Write the candidates and score them."""
    torch.manual_seed(request.seed)
    prompt = torch.tensor([request.prompt_ids])  # [1, p]
    ends = EndsAt(request)
    begun = time.perf_counter()
    sequences = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        num_return_sequences=request.n,
        max_new_tokens=request.longest,
        do_sample=True,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=0,
        pad_token_id=0,
        stopping_criteria=[ends],
    )  # [n, p + t]
    written = time.perf_counter()
    starts = prompt.shape[1]
    rows = [row[: starts + length] for row, length in zip(sequences, request.lengths, strict=True)]  # [p + t] each
    scores = [score(model, head, row, starts) for row in rows]
    max(range(request.n), key=scores.__getitem__)
    done = time.perf_counter()
    return Answer(
        candidates=[row[starts:].tolist() for row in rows],
        total_s=done - begun,
        prefill_s=ends.first_token - begun,
        decode_s=written - ends.first_token,
        second_pass_s=done - written,
        sampled_tokens=request.n * (sequences.shape[1] - starts),
    )


def score(model: PreTrainedModel, head: nn.Linear, sequence: torch.Tensor, prompt_tokens: int) -> float:
    """Gate-weighted mean of the rewards of a response, read from all layers."""
    output = model(sequence[None], output_hidden_states=True, use_cache=False, logits_to_keep=1)
    states = torch.cat([state[0, prompt_tokens:] for state in output.hidden_states], dim=-1)  # [t, l * d]
    gates, rewards = head(states).float().unbind(-1)  # [t], [t]
    gates = gates.sigmoid()
    return float((gates * rewards).sum() / gates.sum())


if __name__ == "__main__":
    arguments = arguments_of(__doc__, ("--dtype", ("bfloat16", "float32")))
    chosen = getattr(torch, arguments.dtype)
    serve(lambda: open_model(arguments.model, chosen, arguments.threads), ("torch", "transformers"), NOTES)
