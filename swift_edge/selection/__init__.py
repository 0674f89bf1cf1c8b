"""One request's candidates: how many are written, which are dropped, and which one is picked.

    from swift_edge.selection import rank_by_answer
    rank_by_answer([[0, 2], [1]], weights=[0.2, 0.3, 0.2], scores=[1.0, 3.0, 2.0])  # [2, 0, 1]

This package is a door: users and tests import its names from here, so that the files behind it can change. The runtime
itself imports a name from the file where it lives, which keeps the imports readable as a graph.
"""

from swift_edge.selection.adaptive.steering import Plan
from swift_edge.selection.decision import Decided, Decision
from swift_edge.selection.ranking import (
    answer_sums,
    combine_by_rank,
    combine_by_scaling,
    rank,
    rank_by_answer,
    redraw_weights,
)

__all__ = [
    "Decided",
    "Decision",
    "Plan",
    "answer_sums",
    "combine_by_rank",
    "combine_by_scaling",
    "rank",
    "rank_by_answer",
    "redraw_weights",
]
