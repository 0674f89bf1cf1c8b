"""What every worker shares: requests come in and answers go out, a line of JSON each, until standard input ends.

Needs the standard library alone, for each worker runs in the environment of its peer. Knows how to listen, to time the
loading and to measure memory. Does not know any model.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import json
import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

PARENT_DIES = 1  # PR_SET_PDEATHSIG of Linux


@dataclass(frozen=True, slots=True)
class Request:
    """N candidates for a prompt."""

    prompt_ids: list[int]
    """The prompt."""
    lengths: list[int]
    """Tokens of each candidate; no other token ends one."""
    temperature: float
    """Divides the logits."""
    top_p: float
    """Probability mass kept."""
    seed: int
    """Seed of the random numbers."""

    @property
    def n(self) -> int:
        """Candidates."""
        return len(self.lengths)

    @property
    def longest(self) -> int:
        """Tokens of the longest candidate."""
        return max(self.lengths)

    @property
    def is_fixed(self) -> bool:
        """Whether all candidates have the same length."""
        return min(self.lengths) == self.longest


@dataclass(frozen=True, slots=True)
class Answer:
    """What was written, and how long it took in seconds."""

    candidates: list[list[int]]
    """Token ids of the candidates, in any order."""
    total_s: float
    """From the token ids of the prompt to all candidates, and their scores where the peer makes them."""
    prefill_s: float | None
    """Until the prompt is read, or until the first token where the peer does not tell them apart; None if unknown."""
    decode_s: float | None
    """The rest of writing the candidates, with sampling, and with scoring in the same pass; None if unknown."""
    sampled_tokens: int
    """Tokens that were sampled: more than asked for where candidates that have ended run on."""
    second_pass_s: float | None = None
    """Reading the candidates again to score them; None where that is not done."""
    parts: dict[str, float] | None = None
    """Other times that the peer tells of itself."""


Generate = Callable[[Request], Answer]


def arguments_of(description: str, *options: tuple[str, Sequence[str]]) -> argparse.Namespace:
    """Read the command line of a worker: model and threads, and `options`, each with its choices."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    for name, choices in options:
        parser.add_argument(name, choices=choices, required=True)
    return parser.parse_args()


def serve(open_model: Callable[[], Generate], packages: Sequence[str], notes: Sequence[str]) -> None:
    """Open the model, say so with the versions of `packages`, and answer until standard input ends.

    A request that fails is answered with its error, and the next one is waited for.
    """
    # A worker that is stopped between two requests cannot notice that its standard input has ended.
    ctypes.CDLL(None).prctl(PARENT_DIES, signal.SIGKILL)
    # What libraries print on standard output goes to standard error.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    begun = time.perf_counter()
    generate = open_model()
    load_s = time.perf_counter() - begun
    versions = {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}
    ready = {"ready": True, "load_s": load_s, "versions": versions, "notes": list(notes)}
    print(json.dumps(ready | {"loaded_bytes": memory_bytes("VmRSS")}), file=answers)
    for line in sys.stdin:
        request = Request(**json.loads(line))
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is held now
        try:
            answer = asdict(answered(generate, request)) | {"new_tokens": sum(request.lengths)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer | {"peak_bytes": memory_bytes("VmHWM")}), file=answers)


def answered(generate: Generate, request: Request) -> Answer:
    """Answer a request; an error where the candidates have other lengths than were asked for."""
    answer = generate(request)
    lengths = [len(candidate) for candidate in answer.candidates]
    if sorted(lengths) != sorted(request.lengths):
        raise RuntimeError(f"candidates of {lengths} tokens where {request.lengths} were asked for")
    return answer


def memory_bytes(field: str) -> int:
    """Memory of this process, `VmRSS` for now and `VmHWM` for the peak, as Linux tells it; mapped files count."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
