"""The two equalities that everything rests on, for every family: prefill + decode is one full forward pass of the
torch model, and a row of a batch is the row alone. Logits and every hidden state, tolerances beside the asserts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from families import REQUIRED, VOCABULARY, save_checkpoint
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, PreTrainedModel

from swift_edge.bundle.folder import open_bundle
from swift_edge.engine.session import ModelSession
from swift_edge_export.publish import export_bundle

pytestmark = pytest.mark.slow

# Longer than every attention window of the families, so that a lost window shows.
LENGTHS = (30, 19, 11)
# Relative to the largest value of the tensor; measured 4e-7 to 1.3e-6.
TORCH_TOLERANCE = 1e-5
# Kernels may sum in another order for another number of rows.
ALONE_TOLERANCE = 1e-5


class Exported:
    """A family's torch model, its exported graph, and what torch computes for a few rows."""

    def __init__(self, folder: Path, name: str) -> None:
        checkpoint = save_checkpoint(REQUIRED[name](), folder / "checkpoint")
        self.manifest = export_bundle(str(checkpoint), folder / "bundle")
        self.session = ModelSession(open_bundle(folder / "bundle"), threads=1)
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
        random = np.random.default_rng(7)
        self.rows = [random.integers(3, VOCABULARY, length) for length in LENGTHS]
        with torch.no_grad():
            outputs = [model(torch.tensor(row)[None], output_hidden_states=True) for row in self.rows]
        self.logits = [output.logits[0].numpy() for output in outputs]  # each [s, v]
        self.states = [torch.stack(output.hidden_states)[:, 0].numpy() for output in outputs]  # each [L + 1, s, d]

    def decode_batch(self, which: list[int], starts: list[int]) -> dict[int, tuple[NDArray[np.float32], ...]]:
        """Decode rows together from `starts` on; each gives logits [s - start, v], states [l, s - start, d]."""
        session = self.session
        batch = session.new_cache(len(which), 1)
        for index, start in zip(which, starts, strict=True):
            prompt = session.new_cache(1, start)
            session.prefill(prompt, self.rows[index][:start], logits="none")
            batch.append_copy(prompt)
        live, logits, states = list(which), {i: [] for i in which}, {i: [] for i in which}
        while True:
            for slot in reversed(range(len(live))):
                if int(batch.lengths[slot]) == len(self.rows[live[slot]]):
                    batch.remove(slot)
                    live[slot] = live[-1]
                    live.pop()
            if not live:
                break
            tokens = [self.rows[index][int(at)] for index, at in zip(live, batch.lengths, strict=True)]
            out = session.decode(batch, np.array(tokens), layers=session.layers)
            assert out.logits is not None
            assert out.hidden_states is not None
            for slot, index in enumerate(live):
                logits[index].append(out.logits[slot].copy())
                states[index].append(out.hidden_states[:, slot].copy())
        return {i: (np.stack(logits[i]), np.stack(states[i], axis=1)) for i in which}


@pytest.fixture(scope="module", params=sorted(REQUIRED))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(tmp_path_factory.mktemp("family"), request.param)


def assert_close(given: NDArray[np.float32], wanted: NDArray[np.float32], tolerance: float) -> None:
    assert given.shape == wanted.shape
    np.testing.assert_allclose(given, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


def test_prefill_in_chunks_is_the_full_forward_pass(exported: Exported) -> None:
    session = exported.session
    for row, logits, states in zip(exported.rows, exported.logits, exported.states, strict=True):
        out = session.prefill(session.new_cache(1, 1), row, chunk=7, logits="all", layers=session.layers)
        assert out.logits is not None
        assert out.hidden_states is not None
        assert_close(out.logits, logits, TORCH_TOLERANCE)
        for layer in range(len(states)):
            assert_close(out.hidden_states[layer], states[layer], TORCH_TOLERANCE)


def test_prefill_and_decode_of_ragged_rows_is_the_full_forward_pass(exported: Exported) -> None:
    starts = [13, 1, 6]
    for index, (logits, states) in exported.decode_batch([0, 1, 2], starts).items():
        assert_close(logits, exported.logits[index][starts[index] :], TORCH_TOLERANCE)
        for layer, wanted in enumerate(exported.states[index]):
            assert_close(states[layer], wanted[starts[index] :], TORCH_TOLERANCE)


def test_a_row_of_a_batch_is_the_row_alone_also_after_others_left(exported: Exported) -> None:
    together = exported.decode_batch([0, 1, 2], [8, 8, 8])
    for index in range(3):
        logits, states = exported.decode_batch([index], [8])[index]
        assert_close(together[index][0], logits, ALONE_TOLERANCE)
        assert_close(together[index][1], states, ALONE_TOLERANCE)


def test_the_published_parity_is_that_of_fp32(exported: Exported) -> None:
    errors = exported.manifest.parity["relative_error"]
    assert set(errors) == {"prefill in chunks", "decode in place", "rows of different lengths"}
    assert max(error for check in errors.values() for error in check.values()) < 1e-4
    assert exported.manifest.parity["greedy_agreement"] == 1.0
