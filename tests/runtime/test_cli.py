"""The command line: what goes to stdout and to stderr, exit statuses, and what happens when things go wrong."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import swift_edge
from swift_edge.bundle import read_manifest, write_bundle
from swift_edge.cli import main
from swift_edge.scoring import Head, save_head

ROOT = Path(__file__).parents[2]
STORIES = str(ROOT / "models" / "stories260k")
INTERRUPTIONS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
QUICK = ("-m", STORIES, "-n", "3", "--max-new-tokens", "8", "--threads", "1")


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the program in this process, as the console script does."""

    def call(*arguments: str, stdin: bytes = b"") -> Outcome:
        monkeypatch.setattr(sys, "argv", ["swift-edge", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        with pytest.raises(SystemExit) as leaving:
            main()
        captured = capsys.readouterr()
        status = leaving.value.code
        assert isinstance(status, int)
        return Outcome(status, captured.out, captured.err)

    return call


def process(
    *arguments: str | bytes,
    command: Sequence[str] = (sys.executable, "-W", "error", "-m", "swift_edge"),
    encoding: str = "utf-8",
    stdout: int = subprocess.PIPE,
    stderr: int = subprocess.PIPE,
) -> "subprocess.Popen[bytes]":
    """Start the program in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(Path(swift_edge.__file__).parents[1]), "PYTHONIOENCODING": encoding}
    environment.pop("PYTHONUNBUFFERED", None)  # hides what is left in a buffer at exit
    return subprocess.Popen(
        [*command, *arguments], env=environment, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
    )


def error_of(outcome: Outcome, status: int = 1) -> str:
    """The one line of an error, and nothing else."""
    assert outcome.status == status
    assert outcome.out == ""
    (line,) = outcome.err.splitlines()
    assert line.startswith("error: ")
    return line


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "sys.argv = ['swift-edge', '--help']\n"
        "from swift_edge.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as leaving:\n    assert leaving.code == 0\n"
        "heavy = {'onnxruntime', 'tokenizers', 'jinja2', 'torch', 'swift_edge_export'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    with process(command=[sys.executable, "-c", program]) as running:
        out, err = running.communicate()
    assert running.returncode == 0, err.decode()
    for command in ("pick", "score", "inspect", "export", "convert-head"):
        assert f"  {command} " in out.decode()


def test_version(run: Run) -> None:
    outcome = run("--version")
    assert (outcome.status, outcome.out) == (0, f"swift-edge {swift_edge.__version__}\n")


def test_pick_prints_the_answer_and_reports_every_candidate(run: Run) -> None:
    outcome = run("pick", "Once upon a time", *QUICK)
    assert outcome.status == 0
    header, *candidates, facts = outcome.err.splitlines()
    assert header.split() == ["rank", "candidate", "score", "tokens", "finish"]
    assert [line.split()[0] for line in candidates] == ["1", "2", "3"]
    assert sorted(line.split()[1] for line in candidates) == ["1", "2", "3"]
    assert all(line.split()[2:4] == ["of", "3"] for line in candidates)
    scores = [float(line.split()[4]) for line in candidates]
    assert scores == sorted(scores, reverse=True)
    assert {line.split()[6] for line in candidates} <= {"length", "stop"}
    for fact in ("mean_logprob", "prefill", "decode", "tok/s", "seed 0", "CPUExecutionProvider"):
        assert fact in facts
    # A report that is not for a terminal moves nothing.
    assert "\r" not in outcome.err


def test_pick_as_json_is_one_line_with_the_names_of_the_contract(run: Run) -> None:
    plain = run("pick", "Once upon a time", *QUICK, "--seed", "3")
    outcome = run("pick", "Once upon a time", *QUICK, "--seed", "3", "--json")
    assert outcome.status == 0
    (line,) = outcome.out.splitlines()
    document = json.loads(line)
    assert list(document) == [
        *("best", "ranked", "candidates", "answers", "strategy", "signal", "p_correct", "abstained"),
        *("stopped_because", "rows", "warnings", "usage", "timings", "seed", "bundle", "head", "prompt_index"),
        "providers",
    ]
    assert document["seed"] == 3
    assert [candidate["index"] for candidate in document["candidates"]] == [0, 1, 2]
    best = document["candidates"][document["best"]]
    assert best["score"] == max(candidate["score"] for candidate in document["candidates"])
    assert best["text"] + "\n" == plain.out


def test_sampling_options_reach_the_candidates(run: Run) -> None:
    def texts(*options: str) -> list[str]:
        outcome = run("pick", "Once upon a time", *QUICK, "--json", *options)
        return [candidate["text"] for candidate in json.loads(outcome.out)["candidates"]]

    (greedy,) = texts("-n", "1", "--temperature", "0")
    for one_left in (("--top-k", "1"), ("--top-p", "1e-9"), ("--min-p", "1"), ("--temperature", "1e-6")):
        assert texts(*one_left) == [greedy] * 3, one_left
    assert texts("--seed", "1") != texts("--seed", "2")
    assert texts("-n", "1", "--temperature", "0", "--repetition-penalty", "5") != [greedy]
    assert texts("-n", "1", "--temperature", "0", "--stop", greedy[2:5]) == [greedy[:2]]


def test_a_response_that_is_an_answer_as_a_whole_is_cut_short_in_the_report(run: Run) -> None:
    options = (
        "-m",
        STORIES,
        "-n",
        "2",
        "--max-new-tokens",
        "60",
        "--task",
        "exact",
        "--stop",
        "day",
        "--budget-tokens",
        "500",
    )
    outcome = run("pick", "Once upon a time", *options)
    assert len(outcome.out) > 70
    answers = [line for line in outcome.err.splitlines() if line.startswith("answer ")]
    assert len(answers) == 2
    for line in answers:
        assert "...': 1 of 2 candidates" in line
        assert len(line) < 100
    alone = run("pick", "Once upon a time", *options[:3], "1", "--max-new-tokens", "2", "--budget-tokens", "9")
    assert "; 1 candidate, ended by" in alone.err


def test_signal_is_named_in_the_report(run: Run) -> None:
    outcome = run("pick", "Once upon a time", *QUICK, "--signal", "self_certainty")
    assert outcome.status == 0
    assert "self_certainty" in outcome.err


def test_score_ranks_given_texts(run: Run) -> None:
    sense, nonsense = ", there was a little girl.", " purple seven of"
    outcome = run("score", "Once upon a time", nonsense, sense, "-m", STORIES)
    assert (outcome.status, outcome.out) == (0, sense + "\n")
    assert [line.split()[1] for line in outcome.err.splitlines()[1:3]] == ["2", "1"]
    assert "decode" not in outcome.err


def test_a_chat_template_is_left_out_with_raw(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "chat"
    shutil.copytree(STORIES, folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }} and then", encoding="utf-8")
    write_bundle(folder, read_manifest(folder))
    greedy = ("-m", str(folder), "-n", "1", "--temperature", "0", "--max-new-tokens", "8")
    assert run("pick", "Lily saw a dog", *greedy, "--raw").out != run("pick", "Lily saw a dog", *greedy).out
    assert run("score", "Lily", "x", *greedy[:2], "--raw").err != run("score", "Lily", "x", *greedy[:2]).err


def test_prompt_from_stdin_is_the_prompt_as_an_argument(run: Run) -> None:
    given = run("pick", "Lily saw a dog", *QUICK)
    assert run("pick", "-", *QUICK, stdin=b"Lily saw a dog").out == given.out
    assert run("pick", "-", *QUICK, stdin=b"Lily saw a dog\n").out == given.out
    assert (
        run(
            "pick",
            "-",
            *QUICK,
            stdin=b"Lily saw a dog\n\n",
        ).status
        == 0
    )


def test_stdin_that_is_not_utf8_is_refused_with_the_offset(run: Run) -> None:
    message = error_of(run("pick", "-", *QUICK, stdin=b"Once \xc3\xa9 upon \xff a time"))
    assert "0xff" in message
    assert "offset 13" in message


@pytest.mark.skipif(os.name == "nt", reason="arguments are text on Windows")
@pytest.mark.parametrize("arguments", [(b"pick", b"Once \xff"), (b"score", b"Once", b"fine", b"not \xff")])
def test_arguments_that_are_not_utf8_are_refused_with_the_offset(arguments: tuple[bytes, ...]) -> None:
    with process(*arguments, "-m", STORIES) as running:
        out, err = running.communicate()
    assert (running.returncode, out) == (1, b"")
    assert err.count(b"\n") == 1
    assert b"0xff at offset %d" % arguments[-1].index(b"\xff") in err


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("pick", "x", "-m", "no-such-folder"), "no-such-folder"),
        (("pick", "x", "-m", str(ROOT / "tests")), "swift-edge export"),
        (("pick", "", *QUICK), "prompt"),
        (("pick", "word " * 600, *QUICK), "512"),
        (("pick", "x", *QUICK, "--provider", "abacus"), "abacus"),
        (("pick", "x", *QUICK, "--head", "no-such-head.npz"), "no-such-head.npz"),
        (("score", "x", "y", "-m", "no-such-folder"), "no-such-folder"),
        (("score", "x", "y", "-m", STORIES, "--provider", "abacus"), "abacus"),
        (("score", "x", "y", "-m", STORIES, "--head", "no-such-head.npz"), "no-such-head.npz"),
        (("inspect", "no-such-folder"), "no-such-folder"),
    ],
)
def test_errors_are_one_line_and_status_1(run: Run, arguments: tuple[str, ...], hint: str) -> None:
    assert hint in error_of(run(*arguments))


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("pick", "x", *QUICK, "-n", "0"), "n"),
        (("pick", "x", *QUICK, "--temperature", "-1"), "temperature"),
        (("pick", "x", *QUICK, "--temperature", "nan"), "temperature"),
        (("pick", "x", *QUICK, "--temperature", "0"), "temperature"),
        (("pick", "x", *QUICK, "--top-p", "1.5"), "top_p"),
        (("pick", "x", *QUICK, "--max-new-tokens", "0"), "max_new_tokens"),
        (("pick", "x", *QUICK, "--signal", "loudness"), "mean_logprob"),
        (("pick", "x", *QUICK, "--threads", "0"), "threads"),
        (("score", "x", "", "-m", STORIES), "text"),
        (("score", "x", "y", "-m", STORIES, "--threads", "0"), "threads"),
        (("score", "x", "y", "-m", STORIES, "--signal", "loudness"), "mean_logprob"),
        (("pick", "x", *QUICK, "--strategy", "luck"), "best-of-majority"),
        (("pick", "x", *QUICK, "--task", "poetry"), "yes-no"),
        (("pick", "x", *QUICK, "--prune", "16:0"), "prune"),
        (("pick", "x", *QUICK, "--budget-seconds", "inf"), "budget_seconds"),
        (("pick", "x", *QUICK, "--explain", "absent/page.html"), "absent"),
        (("bench", "-m", STORIES, "--temperature", "-1"), "temperature"),
        (("bench", "-m", STORIES, "--rounds", "0"), "rounds"),
    ],
)
def test_bad_values_of_options_are_one_line_and_status_2(run: Run, arguments: tuple[str, ...], hint: str) -> None:
    assert hint in error_of(run(*arguments), 2)


@pytest.mark.parametrize(
    "arguments",
    [
        ("pick",),
        ("pick", "x"),
        ("pick", "x", "-m", STORIES, "-n", "eight"),
        ("pick", "x", "-m", STORIES, "--tempreature", "1"),
        ("score", "x", "-m", STORIES),
        ("pick", "x", *QUICK, "--prune", "16:8,16:4"),
        ("pick", "x", "-m", ""),
        ("pick", "x", *QUICK, "--head", ""),
        ("pick", "x", *QUICK, "--explain", ""),
        ("inspect", ""),
        ("collect", "-m", STORIES, "--data", "", "--task", "number", "--out", "store"),
        ("collect", "-m", STORIES, "--data", "sums.jsonl", "--task", "number", "--out", ""),
        ("export", "x", "--out", ""),
        ("export", "x", "--out", "y", "--precision", "fp8"),
        ("export", "x"),
        ("guess",),
    ],
)
def test_wrong_calls_are_status_2(run: Run, arguments: tuple[str, ...]) -> None:
    outcome = run(*arguments)
    assert (outcome.status, outcome.out) == (2, "")
    assert "Usage: swift-edge" in outcome.err


def test_inspect_shows_the_manifest(run: Run) -> None:
    manifest = json.loads((Path(STORIES) / "swift_edge.json").read_text(encoding="utf-8"))
    manifest["precision"] |= dict.fromkeys(
        ("kv_cache", "carried", "zero_points", "fitted_tokens")
    )  # fields that came later
    document = json.loads(run("inspect", STORIES, "--json").out)
    assert manifest.items() <= document.items()
    assert document["head"] is None
    outcome = run("inspect", STORIES)
    assert outcome.status == 0
    for text in (manifest["base_model"], "llama: 5 layers", "512 tokens", "0-5", "fp32", "model.onnx", "parity"):
        assert text in outcome.out
    assert max(map(len, outcome.out.splitlines())) < 200


def test_a_damaged_bundle_is_named(run: Run, tmp_path: Path) -> None:
    for source in Path(STORIES).iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    model = tmp_path / "model.onnx"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    assert "model.onnx has SHA-256" in error_of(run("inspect", str(tmp_path)))


@pytest.mark.parametrize(("exporter", "extra"), [("dynamo", "export"), ("optimum", "optimum")])
def test_export_without_its_packages_prints_the_line_that_installs_them(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, exporter: str, extra: str
) -> None:
    for name in ("torch", "transformers", "optimum", "onnx", "onnx_ir", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in [name for name in sys.modules if name.partition(".")[0] == "swift_edge_export"]:
        monkeypatch.delitem(sys.modules, name)
    outcome = run("export", STORIES, "--out", str(tmp_path / "out"), "--exporter", exporter)
    # The first line is there before the packages are loaded, which takes seconds where they are.
    first, message = outcome.err.splitlines()
    assert (outcome.status, outcome.out, first) == (1, "", "load torch and transformers")
    assert message.startswith("error: ")
    assert message.endswith(f'pip install "swift-edge[{extra}]"')
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def head_file(tmp_path: Path) -> Path:
    """A head for the stories whose precision is another one, so that it comes with a warning."""
    manifest = read_manifest(Path(STORIES))
    weight = np.random.default_rng(0).normal(size=(2, 6 * 64)).astype(np.float32)
    head = Head(weight, np.zeros(2, np.float32), tuple(range(6)), fingerprint=manifest.fingerprint, precision="int4")
    save_head(tmp_path / "trained.npz", head)
    return tmp_path / "trained.npz"


def test_a_head_scores_and_its_warnings_are_in_the_report(run: Run, head_file: Path) -> None:
    outcome = run("pick", "Once upon a time", *QUICK, "--head", str(head_file))
    assert outcome.status == 0
    assert "trained.npz" in outcome.err.splitlines()[-1]
    assert "mean_logprob" not in outcome.err
    assert [line for line in outcome.err.splitlines() if line.startswith("warning: ") and "int4" in line]


def test_inspect_shows_the_head(run: Run, head_file: Path) -> None:
    folder = head_file.parent / "bundle"
    shutil.copytree(STORIES, folder)
    shutil.copy(head_file, folder / "head.npz")
    assert json.loads(run("inspect", str(folder), "--json").out)["head"]["layers"] == [0, 1, 2, 3, 4, 5]
    assert "inputs 384" in run("inspect", str(folder)).out


def test_convert_head_writes_a_head_that_pick_takes(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    source = tmp_path / "official.safetensors"
    shapes = {"fused_layer.bias": [2], "fused_layer.weight": [2, 384]}
    arrays = [np.zeros(2, np.float32), np.linspace(-1, 1, 768, dtype=np.float32)]
    header, offset = {}, 0
    for (name, shape), array in zip(shapes.items(), arrays, strict=True):
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header).encode()
    source.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(array.tobytes() for array in arrays))

    assert "--bundle" in error_of(run("convert-head", str(source)), 2)
    outcome = run("convert-head", str(source), "--bundle", STORIES)
    assert (outcome.status, outcome.out) == (0, f"{tmp_path / 'official.npz'}\n")
    assert "384 inputs" in outcome.err
    assert run("pick", "Once", *QUICK, "--head", outcome.out.strip()).status == 0
    assert "--force" in error_of(run("convert-head", str(source), "--bundle", STORIES))
    assert run("convert-head", str(source), "--bundle", STORIES, "--force").status == 0
    assert run("convert-head", str(source), "--bundle", STORIES, "--layers", "all").status == 2


def test_convert_head_without_torch_prints_the_line_that_installs_it(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "official.pt").write_bytes(b"")
    message = error_of(run("convert-head", str(tmp_path / "official.pt"), "--bundle", STORIES))
    assert message.endswith('pip install "swift-edge[export]"')


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    with process("pick", "Once upon a time", *QUICK, stdout=write) as running:
        os.close(write)
        _, err = running.communicate()
    assert running.returncode == 141
    assert b"Traceback" not in err
    assert b"Exception ignored" not in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_under_stdout_is_one_line() -> None:
    with open("/dev/full", "wb") as full, process("inspect", STORIES, stdout=full.fileno()) as running:
        _, err = running.communicate()
    assert running.returncode == 1
    assert err.startswith(b"error: No space left on device")
    assert err.count(b"\n") == 1


EVERY_KIND = (
    ("pick", "Once", *QUICK),
    ("pick", "Once", *QUICK, "--json"),
    ("score", "Once", " a", " b", "-m", STORIES, "--threads", "1"),
    ("inspect", STORIES),
    ("--version",),
    ("--help",),
    ("fit", "--help"),
)


def shell(redirection: str, *arguments: str) -> "subprocess.Popen[bytes]":
    """Start the program with its outputs as a shell redirects them."""
    program = ("sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-W", "error", "-m", "swift_edge")
    return process(*arguments, command=program)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("redirection", [">&-", "1</dev/null", ">/dev/full"])
@pytest.mark.parametrize("arguments", EVERY_KIND, ids=lambda arguments: " ".join(arguments[::6]))
def test_an_answer_that_cannot_be_written_is_an_error_in_one_line(arguments: tuple[str, ...], redirection: str) -> None:
    with shell(redirection, *arguments) as running:
        _, err = running.communicate()
    (line,) = [line for line in err.decode().splitlines() if line.startswith("error: ")]
    assert running.returncode == 1
    assert ("No space left on device" if "full" in redirection else "stdout takes no answer") in line
    assert b"Traceback" not in err
    assert b"Exception ignored" not in err
    assert err.count(b"\n") == 1


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "2</dev/null"])
def test_an_answer_is_not_lost_where_stderr_takes_nothing(redirection: str) -> None:
    with shell(redirection, *EVERY_KIND[0]) as running, shell("", *EVERY_KIND[0]) as told:
        assert running.communicate()[0] == told.communicate()[0] != b""
    assert running.returncode == 0
    for arguments, status in ((("pick",), 2), (("inspect", "absent"), 1), (("pick", "x", *QUICK, "-n", "0"), 2)):
        with shell(redirection, *arguments) as running:
            assert running.communicate()[0] == b""
        assert running.returncode == status


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_page_is_not_lost_with_the_answer(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    with process(*EVERY_KIND[0], "--explain", str(page), stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        running.stdout.close()
        assert running.wait() == 141
    assert page.read_text(encoding="utf-8").endswith("</html>\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoding", "shown"), [("utf-8", b"caf\xc3\xa9 \xe2\x98\x95"), ("latin-1", b"caf\xe9 \\u2615")]
)
def test_an_answer_survives_a_terminal_that_cannot_show_it(encoding: str, shown: bytes) -> None:
    with process("score", "Once", "caf\u00e9 \u2615", "-m", STORIES, encoding=encoding) as running:
        out, _ = running.communicate()
    assert (running.returncode, out.rstrip()) == (0, shown)


HOSTILE = "a\x1b]0;x\x07\x9b1m\x08\r\u202eb\tc\nd"
"""What sets a title, colours, goes back, overwrites and turns the direction of writing, were it obeyed."""
SEEN = r"a\x1b]0;x\x07\x9b1m\x08\r\u202eb" + "\tc\nd"


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_what_a_model_wrote_is_shown_on_a_terminal_and_kept_in_a_pipe() -> None:
    import pty

    with process("score", "Once", HOSTILE, "-m", STORIES) as running:
        out, _ = running.communicate()
    assert (running.returncode, out.decode()) == (0, HOSTILE + "\n")
    master, slave = pty.openpty()
    with process("score", "Once", HOSTILE, "-m", STORIES, stdout=slave) as running:
        os.close(slave)
        seen = b""
        while piece := TestTerminal.read(master):
            seen += piece
    os.close(master)
    assert seen.decode().replace("\r\n", "\n") == SEEN + "\n"  # the terminal's own line ends


def test_complaints_that_quote_names_are_shown(run: Run, tmp_path: Path) -> None:
    for arguments in (("inspect", str(tmp_path / HOSTILE)), ("score", "a", "b", "-m", STORIES, "--head", HOSTILE)):
        outcome = run(*arguments)
        assert outcome.status == 1
        assert r"\x1b]0;x\x07" in outcome.err
        assert "\x1b" not in outcome.err
    assert "\x1b" not in run("inspect", STORIES, HOSTILE).err


def test_a_byte_order_mark_on_stdin_is_no_part_of_the_prompt(run: Run) -> None:
    assert run("pick", "-", *QUICK, stdin=b"\xef\xbb\xbfLily").out == run("pick", "Lily", *QUICK).out


def test_a_prompt_without_end_on_stdin_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swift_edge.cli.text.MOST_STDIN_BYTES", 1000)
    assert "has more than 1000 bytes" in error_of(run("pick", "-", *QUICK, stdin=b"a" * 1001))


def test_complaints_about_long_arguments_are_cut_short(run: Run) -> None:
    for arguments in (("-n", "9" * 50_000), ("--prune", "9" * 50_000), ("--no-such-option" + "x" * 50_000,)):
        outcome = run("pick", "x", *QUICK, *arguments)
        assert (outcome.status, outcome.out) == (2, "")
        assert len(outcome.err) < 2500


@pytest.mark.skipif(os.name == "nt", reason="a file that is only written to is no stdin there")
def test_stdin_that_does_not_read_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "swift_edge", "pick", "-", *QUICK]
    with (tmp_path / "empty").open("wb") as unreadable:
        ended = subprocess.run(command, stdin=unreadable, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: the prompt was to come from stdin, which does not read")


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
class TestTerminal:
    LONG = ("pick", "Once upon a time", "-m", STORIES, "-n", "64", "--max-new-tokens", "400", "--threads", "1")

    def watch(self, interrupt: int | None) -> tuple[int, bytes, str]:
        """Run with a terminal as stderr, with this signal on the way; returns the status, stdout, what was shown."""
        import pty

        master, slave = pty.openpty()
        shown = b""
        with process(*self.LONG, stderr=slave) as running:
            os.close(slave)
            while piece := self.read(master):
                shown += piece
                if interrupt is not None and b"rows alive" in shown:
                    running.send_signal(interrupt)
                    interrupt = None
            out, _ = running.communicate()
        os.close(master)
        return running.returncode, out, shown.decode()

    @staticmethod
    def read(terminal: int) -> bytes:
        try:
            return os.read(terminal, 65536)
        except OSError:  # how Linux says that nobody writes any more
            return b""

    @pytest.mark.slow
    def test_progress_moves_and_is_cleared_before_the_report(self) -> None:
        status, out, shown = self.watch(interrupt=None)
        assert status == 0
        assert out.strip()
        moving, report = shown[: shown.index(" rank  candidate")], shown[shown.index(" rank  candidate") :]
        lines = moving.split("\r")
        assert "reading the prompt" in lines[1]
        assert any(line.startswith("32 of 32 rows alive, ") for line in lines)
        assert any(line.rstrip().endswith(" tok/s") for line in lines)
        # Before the report: blanks over the whole line, and back to its start.
        assert len(lines[-2]) >= len(lines[-3].rstrip())
        assert lines[-2].strip() == lines[-1] == ""
        assert "alive" not in report

    @pytest.mark.parametrize("interrupt", INTERRUPTIONS)
    def test_interrupt_leaves_one_line_and_status_130(self, interrupt: int) -> None:
        status, out, shown = self.watch(interrupt)
        assert (status, out) == (130, b"")
        *moving, last = shown.removesuffix("\r\n").split("\r")
        assert last == "interrupted"
        assert moving[-1].strip() == ""
