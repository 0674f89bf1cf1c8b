"""The head's arithmetic against its formula, its file, and its check against a bundle."""

import contextlib
import json
import math
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from swift_edge.bundle import Architecture, Graph, HiddenStates, Manifest, Precision, Tokens
from swift_edge.engine import TokenStatistics
from swift_edge.errors import HeadFileError, HeadMismatchError, InvalidOptionError
from swift_edge.options import SamplingOptions
from swift_edge.scoring import (
    AnswerCalibration,
    Calibration,
    Head,
    Norm,
    PrefixCalibration,
    RunningScore,
    check_head,
    load_head,
    save_head,
)

MODELS = Path(__file__).parents[2] / "models"


def make_head(
    seed: int = 0, layers: tuple[int, ...] = (0, 1, 2), width: int = 4, gate: bool = True, norm: Norm = "none"
) -> Head:
    random = np.random.default_rng(seed)
    rows = 2 if gate else 1
    weight = random.standard_normal((rows, len(layers) * width)).astype(np.float32)
    return Head(
        weight,
        random.standard_normal(rows).astype(np.float32),
        layers=layers,
        gate=gate,
        fingerprint="ab" * 32,
        precision="fp32",
        base_model="tiny/model",
        norm=norm,
    )


def make_manifest(indices: tuple[int, ...] = (0, 1, 2), **changes: object) -> Manifest:
    manifest = Manifest(
        base_model="tiny/model",
        base_revision=None,
        fingerprint="ab" * 32,
        architecture=Architecture("llama", 2, 4, 2, 1, 2, 30, 64),
        precision=Precision("fp32"),
        hidden_states=HiddenStates(indices),
        graph=Graph("in-place"),
        tokens=Tokens((1,)),
        sampling=SamplingOptions(),
        files={},
        exporter={},
        parity={},
    )
    return replace(manifest, **changes)


def reference(
    head: Head, states: NDArray[np.float32], extras: list[NDArray[np.float64]]
) -> tuple[np.ndarray, np.ndarray]:
    states = states.astype(np.float64)
    if head.norm == "rms":
        states = states / np.sqrt((states**2).mean(axis=2, keepdims=True) + 1e-6)
    inputs = np.concatenate([*states, *(extra[:, None] for extra in extras)], axis=1)  # [m, f]
    outputs = inputs @ head.weight.astype(np.float64).T + head.bias
    gates = 1 / (1 + np.exp(-outputs[:, 0])) if head.gate else np.ones(len(inputs))
    return gates, outputs[:, -1]


@given(
    seed=st.integers(0, 2**32),
    tokens=st.integers(1, 9),
    layers=st.sampled_from([(0,), (2,), (0, 1, 2), (3, 5, 8, 9)]),
    width=st.sampled_from([1, 4, 65]),
    gate=st.booleans(),
    names=st.sampled_from([(), ("logprob",), ("entropy", "logprob")]),
    norm=st.sampled_from(["none", "rms"]),
)
@settings(max_examples=80, deadline=None)
def test_gates_and_rewards_follow_the_formula(
    seed: int, tokens: int, layers: tuple[int, ...], width: int, gate: bool, names: tuple[str, ...], norm: Norm
) -> None:
    random = np.random.default_rng(seed)
    rows = 2 if gate else 1
    weight = random.standard_normal((rows, len(layers) * width + len(names))).astype(np.float32)
    head = Head(weight, random.standard_normal(rows), layers=layers, gate=gate, token_statistics=names, norm=norm)
    states = random.standard_normal((len(layers), tokens, width)).astype(np.float32)
    statistics = TokenStatistics(random.standard_normal(tokens), random.standard_normal(tokens))
    gates, rewards = head.evaluate(states, statistics)
    expected = reference(head, states, [getattr(statistics, name) for name in names])
    np.testing.assert_allclose(gates, expected[0], atol=1e-5)
    np.testing.assert_allclose(rewards, expected[1], atol=1e-4)
    assert gates.dtype == rewards.dtype == np.float32


@given(
    seed=st.integers(0, 2**32),
    tokens=st.integers(2, 17),
    layers=st.integers(1, 26),
    width=st.sampled_from([1, 2, 7, 64, 896]),
    gate=st.booleans(),
    norm=st.sampled_from(["none", "rms"]),
)
@settings(max_examples=100, deadline=None)
def test_token_in_a_batch_is_the_token_alone_bit_for_bit(
    seed: int, tokens: int, layers: int, width: int, gate: bool, norm: Norm
) -> None:
    head = make_head(seed, tuple(range(layers)), width, gate, norm)
    states = np.random.default_rng(seed).standard_normal((layers, tokens, width)).astype(np.float32)
    gates, rewards = head.evaluate(states)
    for token in range(tokens):
        gate, reward = head.evaluate(states[:, token : token + 1])
        assert (gate[0], reward[0]) == (gates[token], rewards[token])


def test_a_name_that_no_file_can_have_is_no_head_file() -> None:
    with pytest.raises(HeadFileError, match="there is no head file at xxx"):
        load_head("x" * 20000)


def test_with_the_norm_a_state_counts_by_its_direction_alone() -> None:
    head = make_head(norm="rms")
    states = np.random.default_rng(0).standard_normal((3, 5, 4)).astype(np.float16)
    gates, rewards = head.evaluate(states)
    # Far from zero the epsilon of the norm is nothing; 65,504 is the greatest float16.
    scaled = states.astype(np.float32) * np.array([1e4, 64, 8], np.float32)[:, np.newaxis, np.newaxis]
    np.testing.assert_allclose(head.evaluate(scaled)[1], rewards, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(head.evaluate(scaled)[0], gates, rtol=1e-4, atol=1e-5)
    assert np.isfinite(head.evaluate(np.zeros((3, 1, 4), np.float16))[1]).all()


def test_head_on_logits_reads_them_as_one_slice() -> None:
    head = Head(np.array([[1, 0, 0], [0, 1, 2]]), np.zeros(2), layers=(), feature="logits")
    gates, rewards = head.evaluate(np.array([[[0, 1, 2], [50, 0, 0]]], np.float32))
    np.testing.assert_allclose(gates, [0.5, 1.0])
    np.testing.assert_array_equal(rewards, [5, 0])


def test_extreme_gate_logits_do_not_overflow() -> None:
    head = Head(np.array([[1.0], [1.0]]), np.zeros(2), layers=(0,))
    gates, _ = head.evaluate(np.array([[[-1e30], [-50.0], [0.0], [1e30]]], np.float32))
    np.testing.assert_allclose(gates, [0, math.exp(-50), 0.5, 1], rtol=1e-6)


@pytest.mark.parametrize("shape", [(2, 5, 4), (3, 5, 5), (3, 4)])
def test_states_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(HeadMismatchError, match=r"expected \[3, m, 4\]"):
        make_head().evaluate(np.zeros(shape, np.float32))


def test_missing_token_statistics_are_named() -> None:
    head = Head(np.zeros((2, 5)), np.zeros(2), layers=(1,), token_statistics=("entropy",))
    for statistics in (None, TokenStatistics(np.zeros(3)), TokenStatistics(np.zeros(3), np.zeros(2))):
        with pytest.raises(HeadMismatchError, match="'entropy'"):
            head.evaluate(np.zeros((1, 3, 4), np.float32), statistics)


@given(st.lists(st.tuples(st.floats(0, 1, width=32), st.floats(-100, 100, width=32)), max_size=30))
def test_every_prefix_has_the_score_of_its_tokens(tokens: list[tuple[float, float]]) -> None:
    running = RunningScore()
    for count, (gate, reward) in enumerate(tokens, start=1):
        running.add(gate, reward)
        together = RunningScore()
        together.add_all(*zip(*tokens[:count], strict=True))
        assert running.score == together.score
        exact = math.fsum(g * r for g, r in tokens[:count]) / max(math.fsum(g for g, _ in tokens[:count]), 1e-8)
        assert running.score == pytest.approx(exact, rel=1e-9, abs=1e-9)


def test_no_tokens_have_no_score_and_shut_gates_have_zero() -> None:
    running = RunningScore()
    assert math.isnan(running.score)
    running.add(0.0, 5.0)
    assert running.score == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"weight": np.zeros((3, 12))},
        {"weight": np.zeros(12)},
        {"weight": np.zeros((2, 13))},
        {"weight": np.zeros((2, 0))},
        {"weight": np.full((2, 12), np.nan)},
        {"bias": np.zeros(1)},
        {"gate": False},
        {"layers": ()},
        {"layers": (2, 1, 0)},
        {"layers": (0, 0, 1)},
        {"layers": (-1, 0, 1)},
        {"feature": "logits"},
        {"feature": "states"},
        {"token_statistics": ("length",)},
        {"token_statistics": ("entropy", "entropy")},
        {"norm": "layer"},
        {"precision": "int4" * 300},
        {"base_model": "m" * 1001},
        {"input_mean": np.zeros(12)},
        {"input_mean": np.zeros(12), "input_scale": np.zeros(12)},
        {"input_mean": np.full(12, np.inf), "input_scale": np.ones(12)},
        {"calibration": {"slope": 1.0}},
        {"weight": np.zeros((2, 7)), "layers": (), "feature": "logits", "norm": "rms"},
    ],
)
def test_fields_that_do_not_fit_together_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(InvalidOptionError, match=r"the (head's|calibration) .*expected"):
        replace(make_head(), **changes)


def test_weights_cannot_be_changed_and_are_a_copy() -> None:
    weight = np.zeros((2, 4), np.float32)
    head = Head(weight, np.zeros(2), layers=(1,))
    weight[0, 0] = 7
    assert head.weight[0, 0] == 0
    with pytest.raises(ValueError, match="read-only"):
        head.weight[0, 0] = 1


def full_head() -> Head:
    return Head(
        np.arange(20, dtype=np.float32).reshape(2, 10),
        np.array([0.5, -0.5], np.float32),
        layers=(1, 3),
        token_statistics=("logprob", "entropy"),
        includes_eos=False,
        calibration=Calibration(
            slope=1.5,
            intercept=-0.25,
            base_rate=0.5,
            error=0.01,
            candidates=80,
            problems=10,
            answers=AnswerCalibration(slope=0.5, intercept=-1.0, error=0.02, problems=10),
            prefixes={16: PrefixCalibration(0.25, -0.5, 80), 24: PrefixCalibration(0.75, -0.25, 70)},
        ),
        fingerprint="cd" * 32,
        precision="int4",
        base_model="naïve/模型",
        summary={"problems": 12, "auroc": {"validation": 0.7}},
        norm="rms",
        input_mean=np.arange(10, dtype=np.float32),
        input_scale=np.arange(1, 11, dtype=np.float32),
    )


def test_saved_head_is_loaded_unchanged(tmp_path: Path) -> None:
    for head in (full_head(), make_head(gate=False), Head(np.ones((2, 9)), np.zeros(2), layers=(), feature="logits")):
        save_head(tmp_path / "head.npz", head)
        loaded = load_head(tmp_path / "head.npz")
        for name in Head.__dataclass_fields__:
            np.testing.assert_equal(getattr(loaded, name), getattr(head, name), err_msg=name)


def test_file_without_the_later_fields_means_none_of_them(tmp_path: Path) -> None:
    write_members(tmp_path / "head.npz", norm="ABSENT", input_mean="ABSENT", input_scale="ABSENT")
    head = load_head(tmp_path / "head.npz")
    assert (head.norm, head.input_mean, head.input_scale) == ("none", None, None)


def test_a_calibration_of_before_answers_and_prefixes_reads(tmp_path: Path) -> None:
    curve = Calibration(slope=1.5, intercept=-0.25, base_rate=0.5, error=0.01, candidates=80, problems=10)
    older = {name: value for name, value in curve.to_dict().items() if name not in ("answers", "prefixes")}
    write_members(tmp_path / "head.npz", calibration=older)
    assert load_head(tmp_path / "head.npz").calibration == curve


def test_a_published_head_is_saved_as_the_same_bytes(tmp_path: Path) -> None:
    published = MODELS / "small-steps" / "head.npz"
    head = load_head(published)
    assert isinstance(head.calibration, Calibration)
    assert head.calibration.answers is not None
    assert head.calibration.prefixes
    save_head(tmp_path / "head.npz", head)
    assert (tmp_path / "head.npz").read_bytes() == published.read_bytes()


def test_saving_is_reproducible_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    save_head(tmp_path / "a.npz", full_head())
    first = (tmp_path / "a.npz").read_bytes()
    save_head(tmp_path / "a.npz", make_head())
    save_head(tmp_path / "a.npz", full_head())
    assert (tmp_path / "a.npz").read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_failed_save_keeps_the_old_file_and_leaves_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_head(tmp_path / "a.npz", full_head())
    before = (tmp_path / "a.npz").read_bytes()

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(HeadFileError, match="No space left"):
        save_head(tmp_path / "a.npz", make_head())

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_head(tmp_path / "a.npz", make_head())
    assert (tmp_path / "a.npz").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_save_into_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(HeadFileError, match="cannot be written"):
        save_head(tmp_path / "absent" / "a.npz", make_head())


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_file_is_a_head_file_error_or_reads_the_same(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "head.npz"
    save_head(path, full_head())
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(HeadFileError):  # or a byte changed that nothing reads
        np.testing.assert_array_equal(load_head(path).weight, full_head().weight)


def write_members(path: Path, **changes: object) -> None:
    save_head(path, full_head())
    with np.load(path) as arrays:
        members = dict(arrays)
    metadata = json.loads(str(members["metadata"]))
    arrays_changed = {name: value for name, value in changes.items() if name in members}
    metadata |= {name: value for name, value in changes.items() if name not in members}
    members["metadata"] = np.array(json.dumps({key: value for key, value in metadata.items() if value != "ABSENT"}))
    members |= arrays_changed
    np.savez(path, **{key: value for key, value in members.items() if not isinstance(value, str)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": "ABSENT"}, "no weight"),
        ({"weight": np.zeros((2, 10))}, "weight is float64"),
        ({"weight": np.zeros((2, 11), np.float32)}, "11 inputs wide"),
        ({"weight": np.array([[None] * 10] * 2)}, r"weight does not read: it holds '\|O'; expected numbers"),
        ({"metadata": np.array("{")}, "does not read"),
        ({"metadata": np.array("[1]")}, "the document is .* expected an object"),
        ({"metadata": np.array("[" * 100_000)}, "does not read"),
        ({"format_version": 2}, "format version 2.*pip install --upgrade"),
        ({"layers": "ABSENT"}, "layers is missing"),
        ({"layers": [1, 2.5]}, r"layers\[1\] is 2.5; expected an integer"),
        ({"layers": [1, 10**6]}, r"the head's layers is \[1, 1000000\]; expected ascending numbers from 0 to 10000"),
        ({"layers": [1, 10**30]}, "expected an integer of at most 64 bits"),
        ({"summary": {"task": "poetry"}}, "the head's task is 'poetry'; expected one of number, "),
        ({"summary": {"task": ["number"]}}, r"the head's task is \['number'\]; expected one of number, "),
        ({"summary": {"x": math.nan}}, "NaN is no number of JSON"),
        ({"weight": np.full((2, 10), 3e38, np.float32)}, r"the head's weight is 3e\+38 somewhere; expected"),
        ({"weight": np.full((2, 10), np.nan, np.float32)}, "the head's weight is not finite"),
        ({"weight": np.zeros((2, 10), ">f4")}, "weight is >f4, expected float32"),
        ({"weight": np.zeros((2, 10), np.float16)}, "weight is float16, expected float32"),
        ({"weight": np.zeros((2, 0), np.float32)}, "0 inputs wide"),
        ({"metadata": np.array(["{}"])}, r"its metadata is <U2 \[1\], expected one text"),
        ({"calibration": full_head().calibration.to_dict() | {"slope": 1e300}}, "the calibration's slope is 1e.300"),
        (
            {"calibration": full_head().calibration.to_dict() | {"prefixes": {"9" * 5000: {}}}},
            "calibration.prefixes is",
        ),
        ({"layers": [True, 3]}, r"layers\[0\] is true; expected an integer"),
        ({"gate": 1}, "gate is 1; expected true or false"),
        (
            {"token_statistics": [["logprob"]]},
            r"token_statistics\[0\] is .*; expected one of logprob, entropy",
        ),
        ({"calibration": 3}, "calibration is 3; expected an object"),
        ({"calibration": {"slope": 1.0}}, "calibration.intercept is missing; expected a number"),
        ({"calibration": full_head().calibration.to_dict() | {"prefixes": {"x": {}}}}, "calibration.prefixes is"),
        ({"calibration": full_head().calibration.to_dict() | {"slope": -1}}, "the calibration's slope is -1.0"),
        ({"norm": 1}, "norm is 1; expected one of none, rms"),
        ({"norm": "layer"}, "norm is .layer.; expected one of none, rms"),
        ({"input_scale": "ABSENT"}, "input_mean is given; expected input_mean with input_scale"),
        ({"input_scale": np.ones(10)}, "input_scale is float64"),
        ({"input_mean": np.ones(9, np.float32)}, r"input_mean is of shape \[9\]"),
        ({"feature": "pixels"}, "feature is .pixels.; expected one of hidden, logits"),
    ],
)
def test_malformed_file_says_what_is_wrong(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = tmp_path / "head.npz"
    write_members(path, **changes)
    with pytest.raises(HeadFileError, match=message) as caught:
        load_head(path)
    assert "\n" not in str(caught.value)
    assert "convert-head" in str(caught.value)


def test_other_files_are_not_heads(tmp_path: Path) -> None:
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "empty.npz").write_bytes(b"")
    for path in (tmp_path, tmp_path / "absent.npz", tmp_path / "array.npy", tmp_path / "empty.npz"):
        with pytest.raises(HeadFileError, match=r"expected|does not read"):
            load_head(path)


def test_archive_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("weight.npy", "w") as member:
        for _ in range(257):
            member.write(bytes(2**20))
    with pytest.raises(HeadFileError, match="unpacks to"):
        load_head(path)


def test_head_of_this_bundle_passes_without_a_warning() -> None:
    assert check_head(make_head(), make_manifest()) == []
    logits = Head(np.zeros((2, 30)), np.zeros(2), layers=(), feature="logits", fingerprint="ab" * 32, precision="fp32")
    assert check_head(logits, make_manifest(indices=())) == []


def test_head_of_another_width_is_refused_with_both_widths() -> None:
    with pytest.raises(HeadMismatchError, match=r"15 inputs wide.*expected 3 x 4 for tiny/model \(hidden size 4\)"):
        check_head(make_head(width=5), make_manifest())
    logits = Head(np.zeros((2, 29)), np.zeros(2), layers=(), feature="logits")
    with pytest.raises(HeadMismatchError, match="vocabulary size 30"):
        check_head(logits, make_manifest())


def test_head_of_another_model_is_refused_with_both_names() -> None:
    other = make_manifest(fingerprint="12" * 32, base_model="other/model")
    with pytest.raises(HeadMismatchError, match=r"trained on tiny/model .* holds other/model"):
        check_head(make_head(), other)


def test_head_on_layers_that_were_not_exported_is_refused_with_the_way_out() -> None:
    with pytest.raises(HeadMismatchError, match=r"hidden states 0,1, the bundle has 2; .*--layers"):
        check_head(make_head(), make_manifest(indices=(2,)))
    with pytest.raises(HeadMismatchError, match="no hidden states"):
        check_head(make_head(), make_manifest(indices=()))


def test_another_precision_is_a_warning_that_names_recalibrate() -> None:
    (warning,) = check_head(make_head(), make_manifest(precision=Precision("int4", 128, 4)))
    assert "fp32" in warning
    assert "int4" in warning
    assert "swift-edge recalibrate" in warning


def test_unknown_fingerprint_is_a_warning() -> None:
    (warning,) = check_head(make_head(), make_manifest(fingerprint=""))
    assert warning.startswith("the bundle does not say")
    (warning,) = check_head(replace(make_head(), fingerprint=""), make_manifest())
    assert warning.startswith("the head does not say")


def npy(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    length = len(header).to_bytes(2 if version == b"\x01\x00" else 4, "little")
    return b"\x93NUMPY" + version + length + header.encode() + data


def test_an_array_whose_header_claims_what_is_not_there_is_refused_before_room_is_made_for_it(tmp_path: Path) -> None:
    path = tmp_path / "head.npz"
    header = "{{'descr': {}, 'fortran_order': False, 'shape': {}}}"
    damaged = [
        (npy(header.format("'<f4'", "(2, 10000000000)"), bytes(80)), "but 80 bytes of numbers follow"),
        (npy(header.format("'<f4'", "(2, 18446744073709551617, 0)"), bytes(80)), "but 80 bytes of numbers follow"),
        (npy(header.format("'<f4'", "(2, -10)"), bytes(80)), r"its shape is \(2, -10\); expected whole numbers"),
        (npy(header.format("'<f4'", "(True, 10)"), bytes(40)), "expected whole numbers"),
        (npy(header.format("'<f4'", "(2, 10)"), bytes(79)), "but 79 bytes of numbers follow"),
        (npy(header.format("'|O'", "(2, 10)"), bytes(80)), "expected numbers"),
        (npy(header.format("[('a', '<f4')]", "(2, 10)"), bytes(80)), "expected numbers"),
        (npy(header.format("'<f4'", "(2, 10)"), bytes(80), b"\x03\x00"), "expected an array in NumPy's format"),
        (npy("__import__('os').abort()"), "its header is"),
        (npy("(" * 9000), "its header is"),
        (npy("{" * 20_000, version=b"\x02\x00"), "its header has 20000 bytes"),
        (b"PK\x03\x04", "expected an array in NumPy's format"),
        (b"", "expected an array in NumPy's format"),
    ]
    for content, said in damaged:
        write_members(path)
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in (members | {"weight.npy": content}).items():
                archive.writestr(name, data)
        with pytest.raises(HeadFileError, match=f"its weight does not read: .*{said}"):
            load_head(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_that_hides_its_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "head.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:  # a block of 45 bytes may unpack to 900 KB
        archive.writestr("weight.npy", bytes(10**6))
    with pytest.raises(HeadFileError, match="packed in an unusual way"):
        load_head(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weight.npy", b"1")
        archive.writestr("weight.npy", b"2")
    with pytest.raises(HeadFileError, match="two members of one name"):
        load_head(path)
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(1001):
            archive.writestr(str(number), b"")
    with pytest.raises(HeadFileError, match="1001 members; expected at most 1000"):
        load_head(path)


def test_a_summary_of_odd_numbers_is_written_as_json_has_it_and_any_other_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "head.npz"
    odd = {"loss": math.nan, "runs": [math.inf, np.float32(0.5), np.array([1, 2])], "source": "caf\udce9.pt"}
    save_head(path, replace(full_head(), summary=odd))
    assert load_head(path).summary == {"loss": None, "runs": [None, 0.5, [1, 2]], "source": "caf?.pt"}
    before = path.read_bytes()
    for summary in ({"x": {1, 2}}, {1: "a", "1": "b"}, {"x": 10**5000}):
        with pytest.raises(HeadFileError, match="the head cannot be written"):
            save_head(path, replace(full_head(), summary=summary))
    assert path.read_bytes() == before
