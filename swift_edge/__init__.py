"""Best of N from a small language model on a CPU: generate and score the candidates in one pass, without PyTorch.

    from swift_edge import Selector
    picked = Selector("models/stories260k").pick("Once upon a time", n=8, max_new_tokens=64)
    picked.best.text

Letters of array shapes, the same in every module: n rows or candidates, s tokens fed in one step, p prompt tokens,
t response tokens, m positions or tokens at hand, f tokens fed out of those (in a head: its inputs), l layers read,
d hidden size, v vocabulary, h KV heads, k head dim, c KV capacity in tokens.
"""

from swift_edge.errors import SwiftEdgeError
from swift_edge.handle import Handle
from swift_edge.options import PickOptions
from swift_edge.results import (
    Answer,
    Candidate,
    CandidateBegun,
    CandidateDropped,
    CandidateFinished,
    Event,
    FailedPick,
    Picked,
    Selection,
    Timings,
    TokenSampled,
    Usage,
)
from swift_edge.selector import Selector

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "Candidate",
    "CandidateBegun",
    "CandidateDropped",
    "CandidateFinished",
    "Event",
    "FailedPick",
    "Handle",
    "PickOptions",
    "Picked",
    "Selection",
    "Selector",
    "SwiftEdgeError",
    "Timings",
    "TokenSampled",
    "Usage",
    "__version__",
]
