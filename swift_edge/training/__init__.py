"""Training a head on the device: collect candidates with their features, fit the head, calibrate it. Needs no torch.

    from swift_edge.training import FitOptions, Store, fit_head
    head = fit_head([Store.open("store")], FitOptions(loss="bce"))


This package is a door: users and tests import its names from here, so that the files behind it can change. The runtime
itself imports a name from the file where it lives, which keeps the imports readable as a graph.
"""

from swift_edge.training.collecting.collect import collect, collect_responses
from swift_edge.training.collecting.collected import Collected, CollectProgress
from swift_edge.training.collecting.problems import Grader, Grading, Problem, Problems, read_problems
from swift_edge.training.collecting.responses import AnsweredProblem, Responses, read_responses
from swift_edge.training.fitting.fit import FitInterrupted, fit_head
from swift_edge.training.fitting.options import FitOptions
from swift_edge.training.fitting.recalibrate import know, recalibrate
from swift_edge.training.store.format import Asked, StoredCandidate, StoreInfo, read_info
from swift_edge.training.store.shards import CandidateRows, Shard
from swift_edge.training.store.writer import Store, StoreWriter

__all__ = [
    "AnsweredProblem",
    "Asked",
    "CandidateRows",
    "CollectProgress",
    "Collected",
    "FitInterrupted",
    "FitOptions",
    "Grader",
    "Grading",
    "Problem",
    "Problems",
    "Responses",
    "Shard",
    "Store",
    "StoreInfo",
    "StoreWriter",
    "StoredCandidate",
    "collect",
    "collect_responses",
    "fit_head",
    "know",
    "read_info",
    "read_problems",
    "read_responses",
    "recalibrate",
]
