"""Whether each peer runs the model that it is meant to: its tokens, as the checkpoint in fp32 sees them.

    python tests/bench/peers/agreement.py FOLDER [--peers NAME,NAME]

Every peer writes candidates for the same prompts, once at a temperature so low that the most likely token always wins
(and with lengths that differ), once as they are timed. transformers then reads prompt and candidates in fp32 and rates
each token by its logit: 1 is the most likely token, 0 the average of the vocabulary. The rating of greedy tokens is
about the correlation of the two models' logits. After another prompt the same tokens have to be rated lower: else the
rating would say nothing about the prompt, nor about the cache that it was kept in.

What is found goes to FOLDER/agreement.json, without which `compare.py` measures nobody.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environments import AGREEMENT_NAME, CHECKPOINT_NAME, made_of
from peers import PEERS, Peer, chosen
from running import Running
from transformers import AutoModelForCausalLM, PreTrainedModel
from worker import Request

from swift_edge.system.machine import default_threads

PROMPT_TOKENS = 96
LENGTHS = {"greedy": [16, 32, 48], "sampled": [48, 48, 48]}
TEMPERATURES = {"greedy": 1e-4, "sampled": 0.1}


def requests(first_special: int) -> dict[str, Request]:
    """The requests by name, the same for every peer."""
    prompts = np.random.default_rng(0).integers(0, first_special, (len(LENGTHS), PROMPT_TOKENS))
    return {
        name: Request(prompt.tolist(), LENGTHS[name], TEMPERATURES[name], top_p=0.9, seed=1)
        for name, prompt in zip(LENGTHS, prompts, strict=True)
    }


def written(folder: Path, peer: Peer, asked: dict[str, Request]) -> dict[str, list[list[int]]]:
    """The candidates of a peer, by the name of the request."""
    found = {}
    with Running(folder, peer, default_threads()) as running:
        for name, request in asked.items():
            answer = running.ask(request)
            if "error" in answer:
                raise SystemExit(f"{peer.name}, {name}: {answer['error']}")
            found[name] = answer["candidates"]
    return found


@torch.inference_mode()
def rating(model: PreTrainedModel, prompt_ids: list[int], candidates: list[list[int]]) -> float:
    """Mean rating of all tokens of the candidates after a prompt."""
    ratings = []
    for candidate in candidates:
        ids = torch.tensor([prompt_ids + candidate[:-1]])  # [1, p + t - 1]
        logits = model(ids, logits_to_keep=len(candidate)).logits[0]  # [t, v]
        average = logits.mean(-1)  # [t]
        reached = logits.gather(1, torch.tensor(candidate)[:, None])[:, 0] - average  # [t]
        ratings.append(reached / (logits.amax(-1) - average))
    return float(torch.cat(ratings).mean())


def main() -> None:
    """Ask the peers, rate what they wrote, and note it beside what is known of others."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--peers", type=chosen, default=list(PEERS), help="names with commas between them")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    out = folder / AGREEMENT_NAME
    known: dict[str, Any] = json.loads(out.read_text()) if out.is_file() else {}
    model = AutoModelForCausalLM.from_pretrained(folder / CHECKPOINT_NAME, dtype=torch.float32).eval()
    asked = requests(model.config.bos_token_id)
    for peer in arguments.peers:
        candidates = written(folder, peer, asked)
        found: dict[str, Any] = {name: rating(model, asked[name].prompt_ids, candidates[name]) for name in asked}
        found["other_prompt"] = rating(model, asked["sampled"].prompt_ids, candidates["greedy"])
        found["distinct"] = len(set(map(tuple, candidates["sampled"])))
        known[peer.name] = found | {"made": made_of(folder, peer)}
        out.write_text(json.dumps(known, indent=1))
        print(f"{peer.name}: {json.dumps(found)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
