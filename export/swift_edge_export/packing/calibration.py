"""What the products of a graph read while a model goes through text of its own: what rounding has to be good for.

Measured on a draft of the bundle, whose weights are rounded to the nearest code of 8 bits: that computes nearly what
the model does, and fits wherever the bundle does.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx_ir.passes import common as passes

from swift_edge.bundle.manifest import Bundle
from swift_edge.engine.providers import open_graph
from swift_edge.engine.session import ModelSession
from swift_edge.errors import ExportError
from swift_edge.system.machine import available_memory, default_threads
from swift_edge_export.packing.own_text import write_texts
from swift_edge_export.preflight import MOST_MOMENTS

TEXTS = 32
"""Texts that the model writes, side by side."""
TOKENS = 512
"""Tokens of each where second moments are wanted, or as many as the context holds."""
SAMPLE_TOKENS = 128
"""Tokens of each where samples will do."""
SAMPLED = 512
"""Tokens whose inputs are kept as they are, evenly spread over all texts, first tokens among them."""


@dataclasses.dataclass(frozen=True, slots=True)
class Inputs:
    """What products read, by the name of the value."""

    tokens: int
    """tokens that were read"""
    samples: Mapping[str, torch.Tensor]
    """inputs at some tokens, float32 [m, K]"""
    moments: Mapping[str, torch.Tensor]
    """mean of x times its transpose over all tokens, float32 [K, K]; the widest are left out where memory is short"""


def measure_inputs(draft: Bundle, *, moments: bool, note: Callable[[float], None] = lambda _: None) -> Inputs:
    """Let a bundle of packed weights write text, and gather what its products read of it.

    Without `moments` there are samples alone, for which a quarter of the text will do. `note` is told which share is
    done, 0 to 1.

    Raises:
        ExportError: something that a product reads is not finite.
    """
    tokens = TOKENS if moments else SAMPLE_TOKENS
    texts = write_texts(ModelSession(draft), draft, TEXTS, tokens, note=lambda share: note(share / 3)).token_ids
    graph = ir.load(draft.model_path)
    widths = _widths(graph.graph)
    total = sum(len(text) for text in texts)
    samples: dict[str, list[torch.Tensor]] = {name: [] for name in widths}
    sums = {name: torch.zeros(width, width) for name, width in (_that_fit(widths) if moments else ())}
    done = 0
    with _tapped(draft, graph, list(widths)) as read:
        for text in texts:
            for name, values in read(text).items():
                seen = torch.from_numpy(values.reshape(len(text), -1))
                if not seen.isfinite().all():
                    raise ExportError(
                        f"{name} is not finite on text that the model writes, so that no rounding can be fitted to it; "
                        "export with --rounding nearest, or another --precision"
                    )
                samples[name].append(seen[-done % _stride(total) :: _stride(total)].clone())
                if name in sums:
                    sums[name].addmm_(seen.T, seen, alpha=1 / total)
            done += len(text)
            note(1 / 3 + 2 / 3 * done / total)
    return Inputs(total, {name: torch.cat(some) for name, some in samples.items()}, sums)


def _stride(total: int) -> int:
    return max(1, total // SAMPLED)


def _widths(graph: ir.Graph) -> dict[str, int]:
    """The values that packed products read, and how wide they are."""
    products = [node for node in graph if node.op_type == "MatMulNBits"]
    return {str(node.inputs[0].name): node.attributes.get_int("K", 0) for node in products if node.inputs[0]}


def _that_fit(widths: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """The narrowest values whose moments fit into memory together."""
    available = available_memory()
    left = float("inf") if available is None else available * MOST_MOMENTS
    for name, width in sorted(widths.items(), key=lambda item: item[1]):
        left -= 4 * width * width
        if left >= 0:
            yield name, width


@contextlib.contextmanager
def _tapped(
    draft: Bundle, model: ir.Model, names: Sequence[str]
) -> Iterator[Callable[[NDArray[np.int64]], dict[str, NDArray[np.float32]]]]:
    """A function that gives the values of these names for a text [t], each [1, t, K] or [t, K]."""
    graph = model.graph
    values = {value.name: value for node in graph for value in node.outputs}
    graph.outputs[:] = [values[name] for name in names]
    passes.RemoveUnusedNodesPass()(model)  # the output layer above all: onnxruntime would compute what nobody reads
    path = draft.path / "tapped.onnx"
    try:
        ir.save(model, path)  # its weights are those of the draft, in the file beside it
        session: Any = open_graph(dataclasses.replace(draft, model_path=path), None, default_threads())
        fed = [value.name for value in session.get_inputs()]
        architecture = draft.manifest.architecture

        def read(text: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
            tokens = len(text)
            cache = np.zeros((1, architecture.num_key_value_heads, tokens, architecture.head_dim), np.float32)
            feed: dict[str, NDArray[Any]] = {name: cache for name in fed if name.startswith("past_key_values.")}
            feed["input_ids"], feed["attention_mask"] = text[None], np.ones((1, tokens), np.int64)
            for name, places in (("position_ids", np.arange(tokens)[None]), ("logits_positions", np.arange(tokens))):
                if name in fed:
                    feed[name] = places
            return dict(zip(names, session.run(list(names), feed), strict=True))

        yield read
    finally:
        path.unlink(missing_ok=True)
