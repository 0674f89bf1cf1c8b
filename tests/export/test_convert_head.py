"""Official SWIFT checkpoints convert to heads that score as the original formula does in torch."""

import importlib
import os
import pickle
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from swift_edge.bundle.manifest import Architecture, Graph, HiddenStates, Manifest, Precision, Tokens
from swift_edge.errors import HeadFileError, HeadMismatchError, InvalidOptionError, MissingExtraError
from swift_edge.options import SamplingOptions
from swift_edge.scoring.head import check_head, load_head
from swift_edge_export.convert_head import convert_head

WIDTH, LAYERS, VOCABULARY = 16, 3, 50  # d, L, v


def make_manifest(vocab_size: int = VOCABULARY, indices: tuple[int, ...] = (0, 1, 2, 3)) -> Manifest:
    return Manifest(
        base_model="tiny/model",
        base_revision=None,
        fingerprint="ab" * 32,
        architecture=Architecture("llama", LAYERS, WIDTH, 2, 1, 8, vocab_size, 64),
        precision=Precision("int4", 32, 4),
        hidden_states=HiddenStates(indices),
        graph=Graph("in-place"),
        tokens=Tokens((1,)),
        sampling=SamplingOptions(),
        files={},
        exporter={},
        parity={},
    )


def checkpoint(inputs: int, gate: bool = True, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    name, rows = ("fused_layer", 2) if gate else ("reward_layer", 1)
    return {
        f"{name}.weight": torch.randn(rows, inputs, generator=generator),
        f"{name}.bias": torch.randn(rows, generator=generator),
    }


def write(folder: Path, state: dict[str, torch.Tensor], ending: str = ".pt") -> Path:
    path = folder / f"checkpoint{ending}"
    if ending == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


@torch.no_grad()
def torch_score(state: dict[str, torch.Tensor], inputs: torch.Tensor) -> float:
    """The score of a response from its inputs [t, f], as the method defines it, in double precision."""
    inputs = inputs.double()
    if "fused_layer.weight" in state:
        linear = torch.nn.Linear(inputs.shape[1], 2, dtype=torch.float64)
        linear.load_state_dict({name.split(".")[1]: tensor.double() for name, tensor in state.items()})
        gate_logits, rewards = linear(inputs).unbind(-1)
        gates = torch.sigmoid(gate_logits)
        return float((gates * rewards).sum() / gates.sum().clamp(min=1e-8))
    return float((inputs @ state["reward_layer.weight"].double().T + state["reward_layer.bias"].double()).mean())


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("layers", [None, (1, 3), "logits"])
def test_converted_head_scores_as_the_original(
    tmp_path: Path, ending: str, gate: bool, layers: tuple[int, ...] | str | None
) -> None:
    random = torch.Generator().manual_seed(1)
    tokens = 23
    if layers == "logits":
        read = torch.randn(tokens, 1, VOCABULARY, generator=random)
        arguments = {}
    else:
        chosen = layers or tuple(range(LAYERS + 1))
        states = torch.randn(tokens, LAYERS + 1, WIDTH, generator=random)
        read = states[:, list(chosen)]
        arguments = {"layers": layers} if layers else {}
    inputs = read.reshape(tokens, -1)  # slice l in columns l*d to (l+1)*d
    state = checkpoint(inputs.shape[1], gate)
    returned = convert_head(write(tmp_path, state, ending), tmp_path / "head.npz", make_manifest(), **arguments)
    head = load_head(tmp_path / "head.npz")
    np.testing.assert_array_equal(head.weight, returned.weight)
    gates, rewards = head.evaluate(read.transpose(0, 1).contiguous().numpy())
    assert np.average(rewards, weights=gates) == pytest.approx(torch_score(state, inputs), abs=1e-6)
    assert head.gate is gate
    assert head.feature == ("logits" if layers == "logits" else "hidden")
    assert head.layers == (() if layers == "logits" else chosen)
    assert (head.fingerprint, head.precision, head.base_model) == ("ab" * 32, "int4", "tiny/model")
    assert head.includes_eos


@pytest.mark.parametrize(
    ("inputs", "vocab_size", "arguments", "message"),
    [
        (2 * WIDTH, VOCABULARY, {}, r"reads 2 of the 4 hidden states .*--layers with 2 numbers from 0 to 3"),
        (4 * WIDTH, 4 * WIDTH, {}, "--feature logits or --feature hidden"),
        (2 * WIDTH, 2 * WIDTH, {}, "--feature logits or --feature hidden"),
        (2 * WIDTH, 2 * WIDTH, {"feature": "hidden"}, "--layers with 2 numbers"),
        (5 * WIDTH, VOCABULARY, {}, "5 hidden states, more than 4 .*--bundle"),
        (WIDTH + 1, VOCABULARY, {}, "neither the vocabulary nor a multiple .*--bundle"),
        (2 * WIDTH, VOCABULARY, {"layers": (1, 2, 3)}, "--layers names 3 layers.*name 2 layers"),
        (2 * WIDTH, VOCABULARY, {"layers": (2, 1)}, "--layers is .*ascending"),
        (2 * WIDTH, VOCABULARY, {"layers": (3, 4)}, "--layers is .*from 0 to 3"),
        (2 * WIDTH, VOCABULARY, {"feature": "logits"}, "32 inputs, a head on logits .* has 50"),
        (VOCABULARY, VOCABULARY, {"feature": "logits", "layers": (1,)}, "leave out --layers"),
        (4 * WIDTH, VOCABULARY, {"final_norm": True}, "final norm.*cannot be converted"),
    ],
)
def test_what_the_file_leaves_open_is_asked_for(
    tmp_path: Path, inputs: int, vocab_size: int, arguments: dict[str, object], message: str
) -> None:
    source = write(tmp_path, checkpoint(inputs))
    with pytest.raises(InvalidOptionError, match=message):
        convert_head(source, tmp_path / "head.npz", make_manifest(vocab_size), **arguments)
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


@pytest.mark.parametrize(
    ("arguments", "feature", "layers"),
    [
        ({"feature": "logits"}, "logits", ()),
        ({"feature": "hidden"}, "hidden", (0, 1, 2, 3)),
        ({"layers": (0, 1, 2, 3)}, "hidden", (0, 1, 2, 3)),
    ],
)
def test_width_with_two_readings_is_settled_by_an_option(
    tmp_path: Path, arguments: dict[str, object], feature: str, layers: tuple[int, ...]
) -> None:
    source = write(tmp_path, checkpoint(4 * WIDTH))
    head = convert_head(source, tmp_path / "head.npz", make_manifest(4 * WIDTH), **arguments)
    assert (head.feature, head.layers) == (feature, layers)


def test_bundle_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match="--bundle"):
        convert_head(write(tmp_path, checkpoint(64)), tmp_path / "head.npz", None)


def test_layers_that_the_bundle_does_not_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HeadMismatchError, match="export the model again"):
        convert_head(write(tmp_path, checkpoint(4 * WIDTH)), tmp_path / "head.npz", make_manifest(indices=(2, 3)))
    assert not (tmp_path / "head.npz").exists()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "holds nothing; expected fused_layer.weight"),
        ({"linear.weight": torch.zeros(2, 4)}, "holds linear.weight; expected"),
        ({"fused_layer.weight": torch.zeros(2, 64)}, "expected fused_layer.weight and .bias"),
        (checkpoint(64) | checkpoint(64, gate=False), "reward_layer.weight; expected"),
        ({"fused_layer.weight": torch.zeros(3, 64), "fused_layer.bias": torch.zeros(2)}, r"\[3, 64\]"),
        ({"reward_layer.weight": torch.zeros(1, 64), "reward_layer.bias": torch.zeros(2)}, r"expected \[1, f\]"),
        ({"fused_layer.weight": torch.full((2, 64), torch.nan), "fused_layer.bias": torch.zeros(2)}, "NaN"),
        ({"fused_layer.weight": [[1.0]]}, "state dict of tensors"),
        (torch.zeros(3), "state dict of tensors"),
    ],
)
def test_other_contents_are_refused(tmp_path: Path, state: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(HeadFileError, match=message):
        convert_head(write(tmp_path, state), tmp_path / "head.npz", make_manifest())


def test_a_tensor_that_stands_for_billions_of_numbers_is_refused_by_its_shape(tmp_path: Path) -> None:
    state = {"fused_layer.weight": torch.zeros(1).expand(2, 10**10), "fused_layer.bias": torch.zeros(2)}
    source = write(tmp_path, state)
    assert source.stat().st_size < 4096
    with pytest.raises(HeadFileError, match=r"weight \[2, 10000000000\].*with at most 33554432 inputs"):
        convert_head(source, tmp_path / "head.npz", make_manifest())


def test_an_archive_that_unpacks_to_gigabytes_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    whole = write(tmp_path, checkpoint(64))
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in source.infolist():
            with archive.open(entry.filename, "w") as member:
                member.write(source.read(entry))
                if entry.filename.endswith("data/0"):
                    for _ in range(300):
                        member.write(bytes(2**20))
    assert bomb.stat().st_size < 2**20
    with pytest.raises(HeadFileError, match=r"it unpacks to 300\.\d MiB; expected at most 256.0 MiB"):
        convert_head(bomb, tmp_path / "head.npz", make_manifest())
    (tmp_path / "huge.safetensors").touch()
    os.truncate(tmp_path / "huge.safetensors", 20 * 10**9)
    with pytest.raises(HeadFileError, match=r"18\.63 GiB; expected at most 256.0 MiB"):
        convert_head(tmp_path / "huge.safetensors", tmp_path / "head.npz", make_manifest())


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_numbers_of_every_width_become_fp32(tmp_path: Path, ending: str, dtype: torch.dtype) -> None:
    state = {name: tensor.to(dtype) for name, tensor in checkpoint(64).items()}
    convert_head(write(tmp_path, state, ending), tmp_path / "head.npz", make_manifest())
    head = load_head(tmp_path / "head.npz")
    np.testing.assert_array_equal(head.weight, state["fused_layer.weight"].float().numpy())
    np.testing.assert_array_equal(head.bias, state["fused_layer.bias"].float().numpy())


def test_the_stamp_of_the_precision_is_the_one_that_is_compared(tmp_path: Path) -> None:
    manifest = replace(make_manifest(), precision=Precision("int4", 32, 4, kv_cache="int8"))
    convert_head(write(tmp_path, checkpoint(64)), tmp_path / "head.npz", manifest)
    assert check_head(load_head(tmp_path / "head.npz"), manifest) == []


ODD_TENSORS = {
    "codes": lambda weight: weight.to(torch.int8),
    "truth": lambda weight: weight > 0,
    "complex": lambda weight: weight.to(torch.complex64),
    "sparse": lambda weight: weight.to_sparse(),
    "meta": lambda weight: weight.to("meta"),
    "too large": lambda weight: weight.double() * 1e300,
    "without inputs": lambda weight: weight[:, :0],
    "transposed": lambda weight: weight.T,
    "one number": lambda weight: weight[0, 0],
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ODD_TENSORS)
def test_tensors_that_are_no_plain_numbers_are_one_line(tmp_path: Path, kind: str) -> None:
    state = checkpoint(64)
    state["fused_layer.weight"] = ODD_TENSORS[kind](state["fused_layer.weight"])
    with pytest.raises(HeadFileError, match="expected") as caught:
        convert_head(write(tmp_path, state), tmp_path / "head.npz", make_manifest())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "head.npz").exists()


def test_a_state_dict_of_parameters_is_taken_and_a_file_of_before_there_were_archives_is_not(tmp_path: Path) -> None:
    state = {name: torch.nn.Parameter(tensor) for name, tensor in checkpoint(64).items()}
    assert convert_head(write(tmp_path, state), tmp_path / "head.npz", make_manifest()).gate
    torch.save(checkpoint(64), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(HeadFileError, match=r"save it again with torch\.save"):
        convert_head(tmp_path / "old.pt", tmp_path / "head.npz", make_manifest())


class Malicious:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("executed"),)


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_damaged_or_malicious_files_are_one_line_and_never_executed(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = write(tmp_path, checkpoint(64), ending).read_bytes()
    contents = [b"", b"not a checkpoint", whole[: len(whole) // 2], pickle.dumps(Malicious())]
    torch.save(Malicious(), tmp_path / "malicious.pt")
    contents.append((tmp_path / "malicious.pt").read_bytes())
    for content in contents:
        source = tmp_path / f"bad{ending}"
        source.write_bytes(content)
        with pytest.raises(HeadFileError, match="does not read as a checkpoint") as caught:
            convert_head(source, tmp_path / "head.npz", make_manifest())
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


def test_a_name_that_torch_would_search_for_minutes_is_refused_before(tmp_path: Path) -> None:
    source = write(tmp_path, checkpoint(64))
    with zipfile.ZipFile(source) as whole, zipfile.ZipFile(tmp_path / "long.pt", "w") as archive:
        for name in whole.namelist():
            damaged = b"c" + b"x" * 70_000 + b"\ny\n." if name.endswith("data.pkl") else whole.read(name)
            archive.writestr(name, damaged)
    with pytest.raises(HeadFileError, match="its pickle holds a text of 70002 characters"):
        convert_head(tmp_path / "long.pt", tmp_path / "head.npz", make_manifest())


def test_absent_file_and_unknown_ending_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HeadFileError, match="there is no file"):
        convert_head(tmp_path / "absent.pt", tmp_path / "head.npz", make_manifest())
    (tmp_path / "head.onnx").write_bytes(b"x")
    with pytest.raises(HeadFileError, match=r"ending '\.onnx'"):
        convert_head(tmp_path / "head.onnx", tmp_path / "head.npz", make_manifest())


@pytest.mark.parametrize(("ending", "package"), [(".pt", "torch"), (".safetensors", "safetensors")])
def test_absent_package_is_named_with_the_install_line(
    tmp_path: Path, ending: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path, checkpoint(64), ending)
    for name in (package, f"{package}.numpy"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=rf"'{package}'.*pip install \"swift-edge\[export\]\""):
        convert_head(source, tmp_path / "head.npz", make_manifest())


@pytest.mark.slow
def test_import_needs_no_torch() -> None:
    importlib.import_module("swift_edge_export.convert_head")
    code = (
        "import sys, swift_edge_export.convert_head; sys.exit('torch' in sys.modules or 'safetensors' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
