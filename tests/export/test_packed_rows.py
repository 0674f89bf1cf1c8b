"""A candidate of a quantised bundle does not depend, in any bit, on how many others are decoded beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import transformers
from families import save_checkpoint
from numpy.typing import NDArray

from swift_edge import Selector
from swift_edge.bundle.folder import open_bundle
from swift_edge.engine.session import ModelSession
from swift_edge_export.publish import export_bundle

pytestmark = pytest.mark.slow

VOCABULARY = 96


@pytest.fixture(scope="module", params=[("int4", "float"), ("int8", "float"), ("int4", "int8"), ("int8", "int8")])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Wide enough for whole blocks of 128, where onnxruntime takes rows in pairs.
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=384, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("packed")
    precision, kv_cache = request.param
    checkpoint = str(save_checkpoint(config, folder / "checkpoint"))
    export_bundle(checkpoint, folder / "bundle", precision=precision, kv_cache=kv_cache)
    return folder / "bundle"


def decode(session: ModelSession, rows: list[NDArray[np.int64]], steps: int) -> NDArray[np.float32]:
    """Logits [steps, n, v] of rows that start with the same 9 tokens and go on with tokens of their own."""
    prompt = session.new_cache(1, 9)
    session.prefill(prompt, np.arange(9) + 10, logits="none")
    batch = session.new_cache(len(rows), 9)
    batch.append_copy(prompt, len(rows))
    logits = []
    for step in range(steps):
        out = session.decode(batch, np.array([row[step] for row in rows]), layers=session.layers)
        assert out.logits is not None
        assert out.hidden_states is not None
        assert out.hidden_states.shape == (len(session.layers), len(rows), session.hidden_size)
        logits.append(out.logits.copy())
    return np.stack(logits)


def test_a_row_is_bitwise_the_same_in_a_batch_of_any_size(bundle: Path) -> None:
    session = ModelSession(open_bundle(bundle))
    rows = list(np.random.default_rng(0).integers(3, VOCABULARY, (8, 6)))
    together = decode(session, rows, 6)  # [6, 8, v]
    for count in range(1, 8):
        np.testing.assert_array_equal(decode(session, rows[:count], 6), together[:, :count])


@pytest.mark.parametrize("fewer", [1, 3, 4, 7])
def test_candidate_i_of_n_8_is_candidate_i_of_fewer(bundle: Path, fewer: int) -> None:
    selector = Selector(bundle)
    options = {"max_new_tokens": 12, "temperature": 1.0, "top_p": 1.0, "seed": 3, "raw": True}
    eight = selector.pick("ABCABC", n=8, **options)
    few = selector.pick("ABCABC", n=fewer, **options)
    for one, other in zip(few.candidates, eight.candidates[:fewer], strict=True):
        assert one.token_ids == other.token_ids
        assert one.score == other.score
