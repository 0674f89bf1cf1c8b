"""The engine: one batch of rows that all requests of a model share, and the session that computes them.

    from swift_edge.engine import Consumer, Generation, OpenedModel
    model = OpenedModel.open("models/stories260k")
    ids = model.prompt_ids("Once upon a time", raw=False, feeds_last=False)
    ticket = model.engine.submit(Generation(ids, SamplingOptions(), 4, 0, 16, frozenset({2})), Consumer())

This package is a door: users and tests import its names from here, so that the files behind it can change. The runtime
itself imports a name from the file where it lives, which keeps the imports readable as a graph.
"""

from swift_edge.engine.engine import Engine
from swift_edge.engine.kv_cache import KVCache
from swift_edge.engine.model import OpenedModel, Prompt
from swift_edge.engine.prefix_cache import PrefixCache
from swift_edge.engine.request import (
    Consumer,
    Finished,
    Generation,
    Orders,
    Reading,
    Reads,
    Request,
    Step,
    Ticket,
    TicketState,
)
from swift_edge.engine.session import ModelSession
from swift_edge.engine.signals import TokenStatistics, token_statistics
from swift_edge.engine.states import StateWeights
from swift_edge.engine.step_memory import StepOutput

__all__ = [
    "Consumer",
    "Engine",
    "Finished",
    "Generation",
    "KVCache",
    "ModelSession",
    "OpenedModel",
    "Orders",
    "PrefixCache",
    "Prompt",
    "Reading",
    "Reads",
    "Request",
    "StateWeights",
    "Step",
    "StepOutput",
    "Ticket",
    "TicketState",
    "TokenStatistics",
    "token_statistics",
]
