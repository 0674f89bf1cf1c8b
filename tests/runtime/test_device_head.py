"""What a head reads of states that lie on a device: the gates and rewards of states that were brought here.

The device is onnxruntime's CPU; no test here has seen a GPU.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from swift_edge import Selector
from swift_edge.bundle import open_bundle
from swift_edge.engine import ModelSession, TokenStatistics
from swift_edge.engine.device.memory import Device
from swift_edge.engine.device.rows import MOST_READERS
from swift_edge.engine.device.states import StateReader
from swift_edge.scoring import Head, Norm

STORIES = Path(__file__).parents[2] / "models" / "stories260k"
WIDTH = 24


def head_of(layers: tuple[int, ...], *, gate: bool, norm: Norm, statistics: bool) -> Head:
    rng, rows = np.random.default_rng(5), 2 if gate else 1
    return Head(
        weight=rng.normal(0, 0.3, (rows, len(layers) * WIDTH + 2 * statistics)).astype(np.float32),
        bias=rng.normal(size=rows).astype(np.float32),
        layers=layers,
        token_statistics=("logprob", "entropy") if statistics else (),
        gate=gate,
        norm=norm,
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("norm", ["none", "rms"])
@pytest.mark.parametrize(
    ("layers", "gate", "statistics"), [((3,), True, False), ((0, 2, 5), True, True), ((1, 4), False, True)]
)
def test_gates_and_rewards_are_those_of_states_that_were_brought_here(
    device: Device, dtype: type[np.floating[Any]], norm: Norm, layers: tuple[int, ...], gate: bool, statistics: bool
) -> None:
    head = head_of(layers, gate=gate, norm=norm, statistics=statistics)
    rng = np.random.default_rng(0)
    states = rng.normal(0, 4, (len(layers), 5, WIDTH)).astype(dtype)  # [l, m, d]
    told = TokenStatistics(rng.normal(size=5), rng.normal(size=5))
    reader = StateReader(device, np.dtype(dtype), head.state_weights)
    placed = [device.placed(np.ascontiguousarray(each[:, np.newaxis])) for each in states]  # [m, 1, d] each
    found = head.evaluate_products(reader.products(placed), told)
    for mine, theirs in zip(found, head.evaluate(states, told), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)
    some = reader.products([each[1:3] for each in placed])
    np.testing.assert_allclose(some, reader.products(placed)[:, 1:3], rtol=1e-5, atol=1e-5)


def test_of_each_token_two_numbers_come_back_and_no_state(
    rows_on_device: None, stories_head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []
    products = StateReader.products

    def watched(self: StateReader, states: Any) -> Any:
        shapes.append(products(self, states).shape)
        return products(self, states)

    monkeypatch.setattr(StateReader, "products", watched)
    selector = Selector(STORIES, head=stories_head, threads=1)
    found = selector.pick("Once upon a time", n=3, max_new_tokens=6)
    assert all(len(each.gates) == each.n_tokens for each in found.candidates if each.gates is not None)
    assert shapes == [(2, 3)] * 6


def test_weights_are_put_onto_the_device_once_until_others_are_used(
    rows_on_device: None, stories_head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = ModelSession(open_bundle(STORIES), threads=1)
    cache = session.new_cache(1, 9)
    session.prefill(cache, [5, 6, 7])
    put: list[NDArray[Any]] = []
    placed = Device.placed
    monkeypatch.setattr(Device, "placed", lambda self, array: put.append(array) or placed(self, array))

    def products(head: Head) -> NDArray[Any]:
        out = session.decode(cache, [8], layers=stories_head.layers)
        cache.truncate(3)
        return out.products(head.state_weights)

    one, same = products(stories_head), products(stories_head)
    assert len(put) == 1
    np.testing.assert_array_equal(one, same)
    other = dataclasses.replace(stories_head, weight=2 * stories_head.weight)
    doubled = products(other)
    assert len(put) == 2
    np.testing.assert_allclose(doubled, 2 * one, rtol=1e-5)
    normed = dataclasses.replace(other, norm="rms")
    assert not np.allclose(products(normed), doubled)
    scaled = [
        dataclasses.replace(stories_head, weight=scale * stories_head.weight) for scale in range(3, 3 + MOST_READERS)
    ]
    for head in (*scaled, *scaled):
        products(head)
    assert len(put) == 3 + MOST_READERS  # those used last are there still
    products(stories_head)
    assert len(put) == 4 + MOST_READERS


def test_states_themselves_come_back_where_they_are_asked_for(rows_on_device: None, stories: ModelSession) -> None:
    session = ModelSession(open_bundle(STORIES), threads=1)
    states = []
    for each in (session, stories):
        cache = each.new_cache(1, 9)
        each.prefill(cache, [5, 6, 7])
        out = each.decode(cache, [8], layers=(1, 3))
        states.append(np.array(out.hidden_states))
    np.testing.assert_array_equal(states[0], states[1])
