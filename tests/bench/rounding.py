"""What rounding costs a model: bundles of one model side by side, in loss, distribution, size and time of a step.

    python tests/bench/rounding.py FP32_BUNDLE INT4_BUNDLE ... --data gsm8k/test.jsonl --problems 60

The first bundle is the reference. Loss is the negative log-likelihood, in nats a token, of the worked answers of
GSM8K's file after their questions, as the chat template puts them; KL is the mean divergence of a bundle's next token
from the reference's at the same places. Steps are timed in turn, so that other work on the machine meets all bundles
alike: medians, 128 tokens in each row, all hidden states out.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from swift_edge.bundle.folder import open_bundle
from swift_edge.bundle.tokenizer import Tokenizer
from swift_edge.engine.session import ModelSession

ROWS = (1, 8)
CONTEXT = 128
CALCULATION = re.compile(r"<<.*?>>")
"""What GSM8K's answers hold for a calculator, and no model writes."""


def log_probabilities(session: ModelSession, prompt: list[int], answer: list[int]) -> NDArray[np.float64]:
    """Log-probabilities of the next token at each token of the answer, [t, v]."""
    ids = prompt + answer
    logits = session.prefill(session.new_cache(1, len(ids)), ids, logits="all").logits
    assert logits is not None
    there = logits[len(prompt) - 1 : -1].astype(np.float64)
    there -= there.max(axis=1, keepdims=True)
    return there - np.log(np.exp(there).sum(axis=1, keepdims=True))


class Figures:
    """What is added up of one bundle."""

    def __init__(self) -> None:
        self.tokens = 0
        self.loss = self.divergence = self.same = 0.0
        self.steps: dict[int, list[float]] = {rows: [] for rows in ROWS}

    def add(self, mine: NDArray[np.float64], reference: NDArray[np.float64], answer: list[int]) -> None:
        self.tokens += len(answer)
        self.loss -= float(mine[np.arange(len(answer)), answer].sum())
        self.divergence += float((np.exp(reference) * (reference - mine)).sum())
        self.same += float((mine.argmax(axis=1) == reference.argmax(axis=1)).sum())

    def time_step(self, session: ModelSession, rows: int) -> None:
        prompt = session.new_cache(1, CONTEXT)
        session.prefill(prompt, list(range(CONTEXT)), logits="none")
        cache = session.new_cache(rows, CONTEXT + 16)
        for _ in range(rows):
            cache.append_copy(prompt)
        for _ in range(10):
            started = time.perf_counter()
            session.decode(cache, np.arange(rows), layers=session.layers)
            self.steps[rows].append(time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+", help="the reference first")
    parser.add_argument("--data", type=Path, required=True, help="GSM8K's file")
    parser.add_argument("--problems", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5, help="of ten steps for each number of rows")
    arguments = parser.parse_args()
    bundles = [open_bundle(path) for path in arguments.bundles]
    sessions = [ModelSession(bundle) for bundle in bundles]
    figures = [Figures() for _ in bundles]
    tokenizer = Tokenizer(bundles[0])
    lines = arguments.data.read_text(encoding="utf-8").splitlines()[: arguments.problems]
    for row in map(json.loads, lines):
        prompt = tokenizer.encode_prompt(row["question"])
        answer = tokenizer.encode_response(CALCULATION.sub("", row["answer"]))
        reference = log_probabilities(sessions[0], prompt, answer)
        for session, figure in zip(sessions, figures, strict=True):
            mine = reference if session is sessions[0] else log_probabilities(session, prompt, answer)
            figure.add(mine, reference, answer)
    for _ in range(arguments.rounds):
        for rows in ROWS:
            for session, figure in zip(sessions, figures, strict=True):
                figure.time_step(session, rows)
    print(f"{len(lines)} problems, {figures[0].tokens} tokens")
    print("| bundle | MB | loss | less the first | KL | same most likely | step of 1 row, ms | of 8 rows |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    first = figures[0].loss / figures[0].tokens
    for path, figure in zip(arguments.bundles, figures, strict=True):
        size = sum(file.stat().st_size for file in path.iterdir()) / 1e6
        loss, divergence, same = (each / figure.tokens for each in (figure.loss, figure.divergence, figure.same))
        times = " | ".join(f"{1000 * statistics.median(figure.steps[rows]):.1f}" for rows in ROWS)
        print(
            f"| {path.name} | {size:.1f} | {loss:.4f} | {loss - first:+.4f} | {divergence:.4f} | {same:.3f} | {times} |"
        )


if __name__ == "__main__":
    main()
