"""A tiny Llama that the tests of the exporter share: checkpoint, torch model, bundle. Made once, changed by nobody."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from families import REQUIRED, save_checkpoint
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from swift_edge.bundle.folder import open_bundle
from swift_edge.bundle.manifest import Bundle
from swift_edge_export import publish
from swift_edge_export.loading import fingerprint
from swift_edge_export.publish import export_bundle
from swift_edge_export.tracing.graph import GraphShape

pytest.register_assert_rewrite("graph_builder")  # so that what it finds is told as in a test

# The models are tiny: a second thread has nothing to do, and waits for its core where the machine is busy.
torch.set_num_threads(1)


@dataclasses.dataclass(frozen=True)
class TinyBundle:
    path: Path
    report: list[str]

    def open(self) -> Bundle:
        return open_bundle(self.path)


def tiny_config() -> PretrainedConfig:
    """Two layers are the fewest that can be mistaken for each other."""
    config = REQUIRED["llama"]()
    config.num_hidden_layers = 2
    return config


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tiny_config(), tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="session")
def tiny_model(tiny_checkpoint: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tiny_checkpoint).eval().requires_grad_(False)
    return model


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    path, report = tmp_path_factory.mktemp("tiny") / "bundle", []
    export_bundle(str(tiny_checkpoint), path, report=report.append)
    return TinyBundle(path, report)


@pytest.fixture(scope="session")
def traces() -> dict[Any, ir.Model]:
    """Graphs that were traced before."""
    return {}


@pytest.fixture
def quick_trace(monkeypatch: pytest.MonkeyPatch, traces: dict[Any, ir.Model]) -> None:
    """Trace each model once per shape and type; an export that asks again gets a copy of the graph."""
    real = publish.trace

    def trace(model: PreTrainedModel, shape: GraphShape, report: Callable[[str], None], *, rotary: bool) -> ir.Model:
        key = (fingerprint(sorted(model.named_parameters())), model.dtype, shape, rotary)
        if key not in traces:
            traces[key] = real(model, shape, report, rotary=rotary)
        return traces[key].clone()

    monkeypatch.setattr(publish, "trace", trace)
