"""Heads on other weights of the model that they were fitted to: kin, with a warning, and nothing else."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from swift_edge.bundle import Architecture, Graph, HiddenStates, Manifest, Precision, Tokens
from swift_edge.errors import HeadMismatchError
from swift_edge.options import SamplingOptions
from swift_edge.scoring import Head, check_head, load_head, save_head
from swift_edge.training import FitOptions, Store, fit_head, recalibrate

SIZES = Architecture("qwen2", 3, 6, 2, 1, 3, 90, 64)
NAME = "Qwen/Qwen2.5-Coder-0.5B-Instruct"
KIN = (
    "Qwen2.5 Coder 0.5B Instruct AWQ",
    "qwen2.5-coder-0.5b-instruct-q4_k_m",
    "models/qwen2.5-coder-0.5b-instruct.Q4_K_M.gguf",
    "someone/Qwen2.5-Coder-0.5B-Instruct-GPTQ-Int4",
    "/data/Qwen2.5_Coder_0.5B_Instruct-bf16/",
)
STRANGERS = ("Qwen/Qwen2.5-Coder-0.5B", "Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen25-Coder-0.5B-Instruct", "", "model")


def head_of(name: str, architecture: Architecture | None = SIZES) -> Head:
    weight = np.ones((2, 6), np.float32)
    bias = np.zeros(2, np.float32)
    return Head(weight, bias, (2,), fingerprint="ab" * 32, precision="int4", base_model=name, architecture=architecture)


def bundle_of(name: str, architecture: Architecture = SIZES) -> Manifest:
    return Manifest(
        base_model=name,
        base_revision=None,
        fingerprint="cd" * 32,
        architecture=architecture,
        precision=Precision("int8", 128, 4),
        hidden_states=HiddenStates((0, 1, 2, 3)),
        graph=Graph("in-place"),
        tokens=Tokens((1,)),
        sampling=SamplingOptions(),
        files={},
        exporter={},
        parity={},
    )


@pytest.mark.parametrize("name", KIN)
def test_a_head_opens_on_other_weights_of_its_model_with_a_warning(name: str, tmp_path: Path) -> None:
    save_head(tmp_path / "head.npz", head_of(NAME))
    (warning,) = check_head(load_head(tmp_path / "head.npz"), bundle_of(name))
    assert "other weights of the same base model" in warning
    assert "swift-edge recalibrate" in warning
    assert len(check_head(head_of(name), bundle_of(NAME))) == 1


def test_a_padded_vocabulary_and_a_shorter_context_are_no_other_model() -> None:
    assert len(check_head(head_of(NAME), bundle_of(NAME, replace(SIZES, vocab_size=96, context_length=32)))) == 1


@pytest.mark.parametrize("name", STRANGERS)
def test_another_model_is_refused_though_its_sizes_are_the_same(name: str) -> None:
    with pytest.raises(HeadMismatchError, match="expected the same weights"):
        check_head(head_of(NAME), bundle_of(name))


def test_names_that_say_nothing_make_no_kin() -> None:
    for name in ("", "model", "runs/checkpoint"):
        with pytest.raises(HeadMismatchError, match="expected the same weights"):
            check_head(head_of(name), bundle_of(name))


@pytest.mark.parametrize(
    "changes",
    [{"model_type": "llama"}, {"num_layers": 4}, {"num_attention_heads": 3}, {"num_key_value_heads": 2}],
)
def test_another_architecture_of_the_same_name_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(HeadMismatchError, match="expected the same weights"):
        check_head(head_of(NAME), bundle_of(NAME, replace(SIZES, **changes)))


def test_a_head_of_an_earlier_version_does_not_know_its_kin() -> None:
    with pytest.raises(HeadMismatchError, match="expected the same weights"):
        check_head(head_of(NAME, None), bundle_of(NAME))


def test_a_head_is_matched_to_the_states_of_its_kin(make_store: Callable[..., Store]) -> None:
    told = {"base_model": NAME, "architecture": SIZES}
    head = fit_head(make_store(problems=60, **told), FitOptions(weight_decay=0.03, max_iterations=40))
    assert head.architecture == SIZES
    # Of the same precision, so that the weights alone tell that states differ.
    store = make_store(
        problems=120, seed=1, shift=1.5, stretch=0.5, **told | {"base_model": KIN[0], "fingerprint": "cd" * 32}
    )
    found = recalibrate(head, store)
    record = found.summary["recalibration"]
    assert record["weights"].startswith("inputs matched from weights abababababab, fp32, to weights cdcdcdcdcdcd")
    assert record["after"]["within_problem_auroc"] > record["before"]["within_problem_auroc"] + 0.05
    assert (found.fingerprint, found.base_model) == ("cd" * 32, KIN[0])
    stranger = make_store(problems=4, **told | {"base_model": "Qwen/Qwen2.5-0.5B", "fingerprint": "cd" * 32})
    with pytest.raises(HeadMismatchError, match="expected the same weights"):
        recalibrate(head, stranger)
