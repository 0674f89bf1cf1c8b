"""The filters keep the tokens that transformers' own processors keep, in the order of its `generate`."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from swift_edge.engine.sampling import after_penalty, kept_weights
from swift_edge.options import SamplingOptions


def theirs(logits: NDArray[np.float32], options: SamplingOptions, seen: NDArray[np.int64]) -> NDArray[np.float64]:
    """Probabilities [v] after their processors, run in float64 so that their rounding does not decide."""
    processors = LogitsProcessorList()
    if options.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
    if options.temperature != 1:
        processors.append(TemperatureLogitsWarper(options.temperature))
    if options.top_k:
        processors.append(TopKLogitsWarper(options.top_k))
    if options.top_p < 1:
        processors.append(TopPLogitsWarper(options.top_p))
    if options.min_p is not None:
        processors.append(MinPLogitsWarper(options.min_p))
    scores = processors(torch.from_numpy(seen)[None], torch.from_numpy(logits).double()[None])
    return torch.softmax(scores, dim=-1)[0].numpy()


def near_boundary(logits: NDArray[np.float32], options: SamplingOptions, seen: NDArray[np.int64]) -> bool:
    """Whether a hair more or less of top-p or min-p changes what they keep."""

    def count(sign: int) -> int:
        top_p = min(options.top_p + sign * 2e-6, 1.0) if options.top_p < 1 else 1.0
        min_p = None if options.min_p is None else float(np.clip(options.min_p * (1 + sign * -2e-6), 0, 1))
        changed = SamplingOptions(options.temperature, top_p, options.top_k, min_p, options.repetition_penalty)
        return int(np.count_nonzero(theirs(logits, changed, seen)))

    return count(1) != count(-1)


@given(
    seed=st.integers(0, 2**32),
    size=st.sampled_from([1, 2, 13, 500, 5000, 40_000]),
    spread=st.sampled_from([0.0, 0.1, 1.0, 4.0, 12.0]),
    rounded=st.booleans(),
    options=st.builds(
        SamplingOptions,
        temperature=st.sampled_from([0.25, 0.7, 1.0, 2.0]),
        top_p=st.sampled_from([0.05, 0.33, 0.9, 0.995, 1.0]),
        top_k=st.sampled_from([None, 1, 7, 50, 4000]),
        min_p=st.sampled_from([None, 0.011, 0.3]),
        repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
    ),
)
@settings(max_examples=100, deadline=None)
def test_the_same_tokens_survive_with_the_same_probabilities(
    seed: int, size: int, spread: float, rounded: bool, options: SamplingOptions
) -> None:
    random = np.random.default_rng(seed)
    logits = (random.standard_normal(size) * spread).astype(np.float32)
    if rounded:  # ties everywhere
        logits = np.round(logits * 2) / np.float32(2)
    seen = random.integers(0, size, 20)
    expected = theirs(logits, options, seen)
    row = after_penalty(logits, options.repetition_penalty, seen)
    token_ids, weights = kept_weights(row, row.max(), options)
    found = np.zeros(size)
    found[token_ids] = weights / weights.sum()
    if near_boundary(logits, options, seen):
        np.testing.assert_allclose(found, expected, atol=0.5 if size < 10 else 0.1)
        return
    # Equal numbers of tokens with equal probabilities; which ones of the least likely group, their sort leaves open.
    np.testing.assert_allclose(np.sort(found), np.sort(expected), rtol=1e-4, atol=1e-12)
    least = expected[expected > 0].min() * 1.001
    np.testing.assert_array_equal(np.flatnonzero(found > least), np.flatnonzero(expected > least))


def test_the_order_is_that_of_generate() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=4, vocab_size=8, n_positions=8))
    config = GenerationConfig(
        do_sample=True, temperature=0.5, top_k=5, top_p=0.9, min_p=0.1, repetition_penalty=1.2, num_beams=1
    )
    model._prepare_special_tokens(config)
    built = model._get_logits_processor(config, input_ids_seq_length=1)
    assert [type(processor) for processor in built] == [
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
        MinPLogitsWarper,
    ]
