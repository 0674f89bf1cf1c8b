"""A whole export: a bundle that holds what was asked for and nothing of the machine that made it, or nothing at all."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from transformers import PreTrainedModel

from swift_edge.bundle.folder import open_bundle
from swift_edge.bundle.manifest import HEAD_NAME
from swift_edge.engine.session import ModelSession
from swift_edge.errors import (
    DiskSpaceError,
    HeadFileError,
    HeadMismatchError,
    InvalidOptionError,
    MemoryLimitError,
    OutputExistsError,
    ParityError,
    SwiftEdgeError,
    TokenizerError,
)
from swift_edge.scoring.head import Head, save_head
from swift_edge_export import parity, publish
from swift_edge_export import preflight as room
from swift_edge_export.packing import quantize
from swift_edge_export.publish import export_bundle
from swift_edge_export.tracing.dynamo import trace

pytestmark = pytest.mark.usefixtures("quick_trace")


def left_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# -- which hidden states ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_graph_gives_out_exactly_the_hidden_states_asked_for(
    tiny_checkpoint: Path, tiny_bundle: Any, tmp_path: Path
) -> None:
    manifest = export_bundle(str(tiny_checkpoint), tmp_path / "bundle", layers="last:2")
    outputs = [value.name for value in ir.load(tmp_path / "bundle" / "model.onnx").graph.outputs]
    assert manifest.hidden_states.indices == (1, 2)
    assert [name for name in outputs if name and name.startswith("hidden")] == ["hidden_states.1", "hidden_states.2"]
    assert outputs[0] == "logits"
    ids = np.arange(3, 20)
    few, every = (ModelSession(open_bundle(path), threads=1) for path in (tmp_path / "bundle", tiny_bundle.path))
    one, other = (s.prefill(s.new_cache(1, 1), ids, layers=s.layers).hidden_states for s in (few, every))
    assert one is not None
    assert other is not None
    np.testing.assert_allclose(one, other[1:], rtol=0, atol=1e-5)


# -- precisions ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "block_size", "agreement"),
    [("fp16", None, 0.95), ("int8", None, 0.9), ("int4", None, 0.3), ("int4", 16, 0.4)],
)
def test_a_model_is_published_at_every_precision_with_its_figures(
    tiny_checkpoint: Path, tiny_bundle: Any, tmp_path: Path, precision: Any, block_size: int | None, agreement: float
) -> None:
    report: list[str] = []
    manifest = export_bundle(
        str(tiny_checkpoint), tmp_path / "bundle", precision=precision, block_size=block_size, report=report.append
    )
    bundle = open_bundle(tmp_path / "bundle")
    assert bundle.manifest == manifest
    assert manifest.fingerprint == tiny_bundle.open().manifest.fingerprint
    assert manifest.precision.name == precision
    if precision == "fp16":
        assert (manifest.precision.block_size, manifest.precision.accuracy_level) == (None, None)
    else:
        assert manifest.precision.block_size == (block_size or quantize.BLOCK_SIZE)
        assert manifest.precision.accuracy_level == quantize.ACCURACY_LEVEL
    figures = manifest.parity["relative_error"]
    assert len(figures) == 3
    # Not exact, or the precision was not applied at all.
    assert all(1e-4 < error < 1 for check in figures.values() for error in check.values())
    assert manifest.parity["greedy_agreement"] >= agreement
    for check, row in figures.items():
        assert any(check in line and f"{row['logits']:.2e}" in line for line in report)
    assert any(re.fullmatch(rf"write {precision} weights +\d+\.\d s", line) for line in report)


def test_half_precision_keeps_the_angles_of_late_positions(
    tiny_checkpoint: Path, tiny_model: PreTrainedModel, tmp_path: Path
) -> None:
    # Frequencies rounded to float16 are off by up to 5e-4 of an angle that grows with the position: 0.06 at 127.
    export_bundle(str(tiny_checkpoint), tmp_path / "bundle", precision="fp16")
    graph = ir.load(tmp_path / "bundle" / "model.onnx").graph
    (table,) = {node.inputs[7] for node in graph if node.op_type == "GroupQueryAttention"}
    assert table is not None
    assert table.const_value is not None
    positions = torch.arange(tiny_model.config.max_position_embeddings)[None]
    cosines, _ = tiny_model.model.rotary_emb(torch.zeros(1), positions)
    np.testing.assert_allclose(table.const_value.numpy(), cosines[0, :, :8].numpy(), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"block_size": 32},
        {"precision": "fp16", "block_size": 32},
        {"precision": "fp32", "rounding": "nearest"},
        {"precision": "int4", "block_size": 48},
        {"precision": "int3"},
        {"exporter": "by hand"},
        {"layers": "last:9"},
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_refused_before_anything_is_made(
    tiny_checkpoint: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        export_bundle(str(tiny_checkpoint), tmp_path / "bundle", **options)
    assert "\n" not in str(caught.value)
    assert left_in(tmp_path) == []


# -- a head that comes along -----------------------------------------------------------------------------------------


def head_file(path: Path, **changes: Any) -> Path:
    layers = changes.pop("layers", (1, 2))
    width = 64 * len(layers)
    weight = np.random.default_rng(0).normal(0, 0.1, (2, changes.pop("width", width))).astype(np.float32)
    save_head(path, Head(weight=weight, bias=np.zeros(2, np.float32), layers=layers, **changes))
    return path


def test_a_head_comes_along_with_a_warning_where_it_saw_another_precision(
    tiny_checkpoint: Path, tiny_bundle: Any, tmp_path: Path
) -> None:
    fingerprint = tiny_bundle.open().manifest.fingerprint
    head = head_file(tmp_path / "some.npz", fingerprint=fingerprint, precision="int4")
    report: list[str] = []
    manifest = export_bundle(str(tiny_checkpoint), tmp_path / "bundle", head=head, report=report.append)
    assert (tmp_path / "bundle" / HEAD_NAME).read_bytes() == head.read_bytes()
    assert HEAD_NAME in manifest.files
    assert any("trained at precision int4, the bundle has fp32" in line for line in report)


@pytest.mark.parametrize(
    ("head", "layers", "reason"),
    [
        ({"fingerprint": "0" * 64}, "all", "expected the same weights"),
        ({"width": 2 * 80}, "all", "inputs wide"),
        ({}, "last:1", "reads hidden states 1"),
    ],
    ids=["weights", "width", "layers"],
)
def test_a_head_of_another_model_is_refused_before_anything_is_traced(
    tiny_checkpoint: Path,
    tmp_path: Path,
    head: dict[str, Any],
    layers: str,
    reason: str,
) -> None:
    file = head_file(tmp_path / "some.npz", **head)
    report: list[str] = []
    with pytest.raises(HeadMismatchError, match=reason):
        export_bundle(str(tiny_checkpoint), tmp_path / "bundle", head=file, layers=layers, report=report.append)
    assert not any("trace" in line for line in report)
    assert left_in(tmp_path) == ["some.npz"]


def test_a_head_that_is_not_there_is_refused_before_anything_is_read(tiny_checkpoint: Path, tmp_path: Path) -> None:
    report: list[str] = []
    with pytest.raises(HeadFileError, match="there is no head file"):
        export_bundle(str(tiny_checkpoint), tmp_path / "bundle", head=tmp_path / "absent.npz", report=report.append)
    assert (report, left_in(tmp_path)) == ([], [])


# -- a prompt can be made --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for m in messages %}", "does not parse"),
        ("{{ messages[0].content | nonsense }}", "chat template"),
        ("{{ raise_exception('never') }}", "refuses the messages: never"),
        ("{{ none.a.b }}", "failed"),
        ("{# nothing #}", "no token"),
    ],
)
def test_a_template_with_which_no_prompt_can_be_made_is_refused_before_the_weights_are_read(
    tiny_checkpoint: Path, tmp_path: Path, template: str, words: str
) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    (folder / "chat_template.jinja").write_text(template)
    report: list[str] = []
    with pytest.raises(TokenizerError, match="no prompt can be made with the tokenizer and the chat") as caught:
        export_bundle(str(folder), tmp_path / "bundle", report=report.append)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert ".partial" not in str(caught.value)
    assert not any(line.startswith("load weights") for line in report)
    assert left_in(tmp_path) == ["checkpoint"]


def test_a_template_that_wants_a_system_message_is_none_of_these(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    template = "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}1"
    (folder / "chat_template.jinja").write_text(template)
    export_bundle(str(folder), tmp_path / "bundle")
    assert (tmp_path / "bundle" / "chat_template.jinja").read_text() == template


# -- all or nothing --------------------------------------------------------------------------------------------------

STAGES = [
    "read config",
    "load weights",
    "run torch",
    "check the lowering",
    "trace",
    "rewrite",
    "write",
    "compare",
    "hash",
]


@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupt_after_any_stage_leaves_nothing(tiny_checkpoint: Path, tmp_path: Path, stage: str) -> None:
    def interrupt(line: str) -> None:
        if line.startswith(stage):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_bundle(str(tiny_checkpoint), tmp_path / "new" / "bundle", report=interrupt)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_an_interrupt_within_a_stage_leaves_nothing(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exception: type[BaseException]
) -> None:
    seen: list[str] = []

    def compare(bundle: Any, reference: Any) -> Any:
        seen.extend(left_in(bundle.path))
        raise exception

    monkeypatch.setattr(parity, "compare", compare)
    with pytest.raises(exception):
        export_bundle(str(tiny_checkpoint), tmp_path / "bundle")
    assert seen == ["model.onnx", "tokenizer.json"]
    assert left_in(tmp_path) == []


def disk_full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Any
) -> None:
    if precision == "fp32":
        monkeypatch.setattr(publish.ir, "save", disk_full)
    else:
        monkeypatch.setattr(quantize.Packer, "write_the_rest", disk_full)  # codes are on the disk by then
    with pytest.raises(DiskSpaceError, match="more than there is") as caught:
        export_bundle(str(tiny_checkpoint), tmp_path / "bundle", precision=precision)
    assert "\n" not in str(caught.value)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("resource", ["memory", "disk"])
def test_what_cannot_fit_is_refused_before_the_weights_are_read(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resource: str
) -> None:
    if resource == "memory":
        monkeypatch.setattr(room.machine, "available_memory", lambda *_: 500 * 1024**2)
    else:
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=30 * 1024**2))
    report: list[str] = []
    with pytest.raises(MemoryLimitError if resource == "memory" else DiskSpaceError) as caught:
        export_bundle(str(tiny_checkpoint), tmp_path / "bundle", report=report.append)
    assert ("500.0 MiB" if resource == "memory" else "30.0 MiB") in str(caught.value)
    assert any("of memory and" in line for line in report)
    assert not any(line.startswith("load weights") for line in report)
    assert left_in(tmp_path) == []


@pytest.mark.slow
def test_a_graph_that_fails_its_parity_check_is_not_published(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def record(model: PreTrainedModel, context_length: int, **options: Any) -> list[parity.ReferenceRow]:
        rows = real(model, context_length, **options)
        return [dataclasses.replace(row, logits=row.logits * 1.001) for row in rows]

    real = parity.record_reference
    monkeypatch.setattr(parity, "record_reference", record)
    report: list[str] = []
    with pytest.raises(ParityError, match="of logits in"):
        export_bundle(str(tiny_checkpoint), tmp_path / "bundle", report=report.append)
    assert any("largest relative error" in line for line in report), "the figures are shown all the same"
    assert left_in(tmp_path) == []


@pytest.mark.slow
def test_a_bundle_is_replaced_only_when_asked_and_only_by_a_complete_one(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bundle"
    export_bundle(str(tiny_checkpoint), out, layers="0")
    report: list[str] = []
    with pytest.raises(OutputExistsError):
        export_bundle(str(tiny_checkpoint), out, report=report.append)
    assert report == []
    with monkeypatch.context() as patch:
        patch.setattr(parity, "compare", disk_full)
        with pytest.raises(SwiftEdgeError):
            export_bundle(str(tiny_checkpoint), out, replace=True)
    assert open_bundle(out).manifest.hidden_states.indices == (0,)
    export_bundle(str(tiny_checkpoint), out, layers="1,2", replace=True)
    assert open_bundle(out).manifest.hidden_states.indices == (1, 2)
    assert left_in(tmp_path) == ["bundle"]


# -- what is in it ---------------------------------------------------------------------------------------------------


def test_the_manifest_says_what_was_exported(tiny_bundle: Any, tiny_checkpoint: Path) -> None:
    manifest = tiny_bundle.open().manifest
    assert manifest.base_model == tiny_checkpoint.name
    assert len(manifest.fingerprint) == 64
    assert (manifest.architecture.num_layers, manifest.architecture.context_length) == (2, 128)
    assert manifest.hidden_states.indices == (0, 1, 2)
    assert set(manifest.files) == {"model.onnx", "tokenizer.json"}
    assert {"torch", "transformers", "onnxruntime"} <= set(manifest.exporter)
    stages = [line for line in tiny_bundle.report if re.search(r" \d+\.\d s$", line)]
    assert [line for stage in STAGES for line in stages if line.startswith(stage)] == stages[:-1]


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_nothing_in_a_bundle_tells_of_the_machine_that_made_it(
    tiny_checkpoint: Path, tmp_path: Path, precision: Any
) -> None:
    export_bundle(str(tiny_checkpoint), tmp_path / "bundle", precision=precision)
    places = {str(tmp_path), str(tiny_checkpoint.parent), str(Path.home()), sys.prefix, sys.base_prefix, os.getcwd()}
    places |= {str(Path(torch.__file__).parents[1]), str(Path(publish.__file__).parent), "site-packages", ".partial"}
    host = socket.gethostname()
    telling = [text.encode() for text in {*places, *([host] if len(host) > 5 else [])} if len(text) > 1]
    for file in (tmp_path / "bundle").rglob("*"):
        content = file.read_bytes()
        assert [text for text in telling if text in content] == []
    assert str(tmp_path) not in json.dumps((tmp_path / "bundle" / "swift_edge.json").read_text())


@pytest.mark.slow
def test_the_same_checkpoint_gives_the_same_files(
    tiny_checkpoint: Path, tiny_bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "trace", trace)  # not the one of `quick_trace`
    assert export_bundle(str(tiny_checkpoint), tmp_path / "bundle").files == tiny_bundle.open().manifest.files
