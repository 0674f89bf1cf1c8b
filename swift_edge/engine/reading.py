"""Reading of given responses in chunks after their prompt: the same numbers as decoding them, up to rounding."""

from collections.abc import Iterator
from time import perf_counter
from typing import Final

import numpy as np
from numpy.typing import NDArray

from swift_edge.engine.request import Reading, Step, Ticket
from swift_edge.engine.session import ModelSession
from swift_edge.engine.signals import token_statistics

RESPONSE_CHUNK_TOKENS: Final = 64
"""Response tokens per run of the graph: each takes a row of logits, and hidden states if they are read."""


def read_responses(session: ModelSession, ticket: Ticket) -> Iterator[Step]:
    """Feed each response of a request after its prompt, chunk by chunk, and yield the steps that decoding would yield.

    The prompt has been read. The last token is not fed if the context is full, or if nothing is read after it.
    """
    request, prompt = ticket.request, ticket.prompt
    assert isinstance(request, Reading)
    assert prompt is not None
    reads, cache, watch = request.reads, prompt.cache, ticket.watch
    for number, response in enumerate(request.responses):
        cache.truncate(len(request.prompt_ids))
        logits = prompt.logits  # [1, v]
        fed = min(len(response) - (not reads.feeds_last), session.context_length - cache.longest)
        for begin in range(0, len(response), RESPONSE_CHUNK_TOKENS):
            started = perf_counter()
            token_ids = np.array(response[begin : begin + RESPONSE_CHUNK_TOKENS], np.int64)  # [m]
            output, products = None, tuple[NDArray[np.floating], ...]()
            before = logits
            if fed > begin:
                output = session.prefill(cache, token_ids[: fed - begin], logits="all", layers=reads.all_layers)
                before = np.concatenate([logits, output.logits])[: len(token_ids)]  # [m, v]
                logits = output.logits[-1:]
            read = perf_counter()
            statistics = token_statistics(
                before,
                token_ids,
                entropy="entropy" in reads.statistics,
                self_certainty="self_certainty" in reads.statistics,
            )
            sampled = perf_counter()
            if output is not None:
                products = tuple(map(output.products, reads.weights))
            ended = perf_counter()
            watch.prefill_s += read - started
            watch.sample_s += sampled - read
            watch.head_s += ended - sampled
            yield Step(
                (number,) * len(token_ids),
                token_ids,
                statistics,
                products,
                output.states.of(reads.layers) if output is not None and reads.layers else None,
                output.logits if output is not None and reads.logits else None,
                (),
                1,
                ended - started,
            )
